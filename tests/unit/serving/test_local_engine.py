"""The local engine: a batch gives what each gives alone, images are read once, unwanted work is dropped."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import torch
from serving_small import ANSWERS, QUESTIONS, TEXTS, FolderIndex, engine, png, predictors

from openblip.core.errors import UserError
from openblip.data.sample import BrokenSample
from openblip.generation.config import DecodeConfig
from openblip.serving.cache import FeatureCache
from openblip.serving.engine import Answering, Captioning, Embedding, Explaining, Matching, Searching, Work
from openblip.serving.local import LocalEngine
from openblip.serving.model import Dropped

BATCHED = 1e-4
"""of float32 sums in another order: a batch of 6 multiplies larger matrices than a batch of 1"""
DRAWN = DecodeConfig(sample=True, top_p=0.9, max_new_tokens=6, num_sequences=2, seed=3)


def using(made: LocalEngine, use: Callable[[LocalEngine], Awaitable[Any]]) -> Any:
    async def go() -> Any:
        try:
            return await use(made)
        finally:
            await made.close()

    return asyncio.run(go())


def together(made: LocalEngine, works: list[Work]) -> list[Any]:
    return using(made, lambda one: asyncio.gather(*(one.run(work) for work in works)))


def works() -> list[Work]:
    """Of every kind several, two of them about the same image."""
    made: list[Work] = []
    for number in (0, 1, 2, 0):
        image = png(number)
        made += [
            Captioning(model="blip", image=image),
            Captioning(model="blip", image=image, config=DRAWN, prompt="a red" if number else None),
            Matching(model="blip", image=image, texts=TEXTS[number : number + 2]),
            Embedding(model="blip", image=image if number else None, texts=TEXTS[: number + 1]),
            Answering(model="vqa", image=image, questions=QUESTIONS[number : number + 1]),
            Answering(model="vqa", image=image, questions=QUESTIONS[1:3], candidates=ANSWERS),
        ]
    return made


def numbers(found: Any) -> list[float]:
    """All numbers in a result."""
    if isinstance(found, torch.Tensor):
        return found.flatten().tolist()
    if isinstance(found, list | tuple):
        return [number for one in found for number in numbers(one)]
    if hasattr(found, "__dataclass_fields__"):
        return [number for name in found.__dataclass_fields__ for number in numbers(getattr(found, name))]
    return [float(found)] if isinstance(found, float) else []


def texts(found: Any) -> list[str]:
    """All texts in a result."""
    if isinstance(found, list | tuple):
        return [text for one in found for text in texts(one)]
    if hasattr(found, "__dataclass_fields__"):
        return [text for name in found.__dataclass_fields__ for text in texts(getattr(found, name))]
    return [found] if isinstance(found, str) else []


def test_a_batch_gives_what_each_gives_alone() -> None:
    made = engine(gather_ms=200)
    batched = together(made, works())
    assert made.counts.batched == 24
    assert made.counts.batches <= 8, "they were not computed together"
    plain = engine(gather_ms=0, batch_size=1, cache_bytes=0)
    alone = using(plain, lambda one: one_by_one(one, works()))
    assert plain.counts.batches == 24
    for left, right in zip(batched, alone, strict=True):
        assert texts(left) == texts(right)
        assert numbers(left) == pytest.approx(numbers(right), abs=BATCHED)


async def one_by_one(made: LocalEngine, works: list[Work]) -> list[Any]:
    return [await made.run(work) for work in works]


def test_a_drawn_answer_belongs_to_its_image_and_question_alone() -> None:
    drawn = [
        Answering(model="vqa", image=png(number % 2), questions=QUESTIONS[number : number + 1], config=DRAWN)
        for number in range(4)
    ]
    made = engine(gather_ms=200)
    batched = together(made, [*drawn])
    assert made.counts.batches < 4, "they were not computed together"
    backwards = together(engine(gather_ms=200), [*reversed(drawn)])
    alone = using(engine(gather_ms=0, batch_size=1), lambda one: one_by_one(one, [*drawn]))
    assert texts(batched) == texts(backwards[::-1]) == texts(alone)
    both = Answering(model="vqa", image=png(0), questions=(QUESTIONS[1], QUESTIONS[0]), config=DRAWN)
    (joined,) = together(engine(), [both])
    assert texts(joined[1]) == texts(alone[0]), "nor on the other questions of its request"


def test_it_gives_what_the_predictor_gives() -> None:
    made = predictors()
    blip, vqa, image = made["blip"], made["vqa"], png(5)
    caption, match, answer, vectors = together(
        LocalEngine(made),
        [
            Captioning(model="blip", image=image),
            Matching(model="blip", image=image, texts=TEXTS),
            Answering(model="vqa", image=image, questions=QUESTIONS),
            Embedding(model="blip", image=image, texts=TEXTS),
        ],
    )
    assert caption == blip.caption(image)[0]
    assert numbers(match) == pytest.approx(numbers(blip.match(image, TEXTS)[0]), abs=BATCHED)
    assert texts(answer) == texts(vqa.answer(image, QUESTIONS)[0])
    torch.testing.assert_close(vectors[0], blip.embed_images(image)[0])
    torch.testing.assert_close(vectors[1], blip.embed_texts(TEXTS))


def test_an_image_is_encoded_once() -> None:
    made = engine(gather_ms=0)

    async def use(one: LocalEngine) -> None:
        for _ in range(3):
            await one.run(Captioning(model="blip", image=png(1)))
        await one.run(Matching(model="blip", image=png(1), texts=TEXTS))
        await one.run(Explaining(model="blip", image=png(1), text=TEXTS[0]))
        await one.run(Answering(model="vqa", image=png(1), questions=QUESTIONS))

    using(made, use)
    assert made.counts.encoded == 2, "once for each model"
    assert made.counts.remembered == 4
    assert made.counts.cache_bytes > 0


def test_what_has_left_the_cache_is_encoded_again() -> None:
    made = engine(gather_ms=0, cache_bytes=0)

    async def use(one: LocalEngine) -> list[Any]:
        return [await one.run(Captioning(model="blip", image=png(1))) for _ in range(2)]

    first, second = using(made, use)
    assert first == second
    assert made.counts.encoded == 2


def test_features_may_go_between_reading_and_computing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request found its image in the cache, and so did not decode it; others then filled the cache."""
    monkeypatch.setattr(FeatureCache, "__contains__", lambda self, key: True)
    made = engine(cache_bytes=0)
    (caption,) = together(made, [Captioning(model="blip", image=png(1))])
    assert caption == predictors()["blip"].caption(png(1))[0]


def test_the_cache_is_bounded_by_bytes() -> None:
    cache = FeatureCache(100)
    for key in range(5):
        cache.put(key, torch.zeros(10))  # 40 bytes
    assert (len(cache), cache.nbytes) == (2, 80)
    assert cache.get(3) is not None  # now used last
    cache.put(5, torch.zeros(10))
    assert 3 in cache
    assert 4 not in cache
    cache.put("large", torch.zeros(26))
    assert "large" not in cache
    assert cache.nbytes <= 100


def test_what_is_wrong_with_one_concerns_no_other() -> None:
    made = engine(gather_ms=100, max_pixels=50 * 50)
    good = Matching(model="blip", image=png(0), texts=("two dogs",))

    async def use(one: LocalEngine) -> list[Any]:
        bad = (
            Matching(model="blip", image=png(0)[:200], texts=("two dogs",)),
            Matching(model="blip", image=png(0, side=51), texts=("two dogs",)),
            Matching(model="blip", image=png(0), texts=("dog " * 600,)),
            Matching(model="vqa", image=png(0), texts=("two dogs",)),
            Matching(model="vga", image=png(0), texts=("two dogs",)),
            Answering(model="vqa", image=png(0), questions=("what?",), prompt="Question: {}"),
        )
        return await asyncio.gather(*(one.run(work) for work in (*bad, good)), return_exceptions=True)

    cut, bomb, long, unable, unknown, prompted, fine = using(made, use)
    assert (cut.cause, bomb.cause) == ("truncated", "too-large")
    assert isinstance(cut, BrokenSample)
    assert "tokens" in str(long)
    assert "matching needs" in str(unable)
    assert 'did you mean "vqa"?' in str(unknown)
    assert "BLIP-2" in str(prompted)
    assert all(isinstance(error, UserError) for error in (long, unable, unknown, prompted))
    assert fine[0].text == "two dogs"


def test_a_batch_that_fails_is_computed_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine(gather_ms=200)
    model = made._served["blip"]
    compute = model.compute

    def fails(batch: Any) -> list[Any]:
        if any(one.work.texts == ("birds",) for one in batch):
            raise MemoryError("no room for birds")
        return compute(batch)

    monkeypatch.setattr(model, "compute", fails)

    async def use(one: LocalEngine) -> list[Any]:
        asked = (("two dogs",), ("birds",), ("the road",))
        runs = (one.run(Matching(model="blip", image=png(0), texts=text)) for text in asked)
        return await asyncio.gather(*runs, return_exceptions=True)

    dogs, birds, road = using(made, use)
    assert isinstance(birds, MemoryError)
    assert (dogs[0].text, road[0].text) == ("two dogs", "the road")


def test_work_that_waits_is_dropped_when_its_call_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine(gather_ms=0, batch_size=1)
    computed: list[bytes] = []
    compute = made._served["blip"].compute

    def slow(batch: Any) -> list[Any]:
        computed.extend(one.work.image for one in batch)
        time.sleep(0.2)
        return compute(batch)

    monkeypatch.setattr(made._served["blip"], "compute", slow)

    async def use(one: LocalEngine) -> None:
        calls = [asyncio.create_task(one.run(Captioning(model="blip", image=png(n)))) for n in range(3)]
        while len(computed) < 1 or one.counts.waiting < 2:
            await asyncio.sleep(0.005)
        waiting = [n for n in range(3) if png(n) not in computed]
        calls[waiting[0]].cancel()
        await asyncio.wait(calls)
        assert calls[waiting[0]].cancelled()
        assert calls[waiting[1]].result()

    using(made, use)
    assert len(computed) == 2
    assert made.counts.dropped == 1


def test_computing_stops_when_nobody_waits_any_more() -> None:
    """Between two layers of the model, not at the end of the text."""
    made = engine(gather_ms=0)
    model = made._served["blip"]
    seen: list[str] = []

    async def use(one: LocalEngine) -> None:
        endless = DecodeConfig(max_new_tokens=60, min_new_tokens=60)
        call = asyncio.create_task(one.run(Captioning(model="blip", image=png(0), config=endless)))

        def note(module: Any, inputs: Any) -> None:
            seen.append("layer")
            if len(seen) == 20:  # in the thread of the model: the client goes while it computes
                loop.call_soon_threadsafe(call.cancel)
                time.sleep(0.1)

        loop = asyncio.get_running_loop()
        for block in model.adapter.model.decoder.transformer.text_blocks:
            block.register_forward_pre_hook(note)
        await asyncio.wait([call])
        # The engine goes on.
        assert await one.run(Captioning(model="blip", image=png(1), config=DecodeConfig(max_new_tokens=3)))

    using(made, use)
    assert made.counts.dropped == 1
    assert len(seen) < 50, "it was computed to its end"


def test_dropping_needs_all_of_a_batch_to_be_unwanted() -> None:
    model = engine()._served["blip"]
    block = model.adapter.model.vision.vit.blocks[0]
    with model.wanted(lambda: False), pytest.raises(Dropped):
        block(torch.zeros(1, 5, block.norm1.normalized_shape[0]))
    wanted = [True]
    with model.wanted(lambda: wanted[0]):
        model.embeds([model.read(Captioning(model="blip", image=png(3)))])


def test_search_goes_to_the_index(tmp_path: Any) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    index = FolderIndex(tmp_path)
    made = engine(index=(index, "blip"))
    assert made.searchable == "blip"
    by_text, by_image = together(
        made,
        [
            Searching(model="blip", text="two dogs", count=2, rerank=0),
            Searching(model="blip", image=png(1), count=1),
        ],
    )
    assert [hit.path for hit in by_text] == [str(tmp_path / "0.png"), str(tmp_path / "1.png")]
    assert len(by_image) == 1
    assert index.asked[0] == {"text": "two dogs", "image": None, "count": 2, "rerank": 0}
    assert index.asked[1]["image"].size == (40, 40)
