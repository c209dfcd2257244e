"""The predictor: any kind of image, one or many, in any batch; search against brute force; clear words."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch

from openblip.core.errors import UserError
from openblip.data.image_inputs import ImageInput
from openblip.data.sample import BrokenSample
from openblip.explain.cam import caption_maps
from openblip.generation.config import DecodeConfig
from openblip.models import replay
from openblip.models.blip import Blip
from openblip.models.dual import BlipDual, DualConfig
from openblip.models.nlvr import BlipNlvr, NlvrConfig
from openblip.models.pixels import normalize
from openblip.tasks.answering import encode_questions
from openblip.tasks.families.blip import BlipAdapter, VqaAdapter
from openblip.tasks.load import load
from openblip.tasks.pairs import prepare_pairs
from openblip.tasks.predictor import Predictor, find_images
from openblip.tasks.results import Found
from tests.recorder import Recorder

CLOSE = {"rtol": 1e-4, "atol": 1e-4}
"""the same sums of float32 in another order"""
FEW = DecodeConfig(num_beams=2, max_new_tokens=6)


@pytest.fixture(scope="module")
def blip() -> Blip:
    return small.model()


@pytest.fixture
def predictor(blip: Blip) -> Predictor:
    return small.predictor(blip, small.tokenizer(), batch_size=3)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("images")
    for number in range(7):
        small.make_image(number).save(folder / f"{number}.png")
    return find_images([folder])


def test_every_kind_of_image_is_the_same(predictor: Predictor, paths: list[str]) -> None:
    image = small.make_image(3)
    encoded = io.BytesIO()
    image.save(encoded, "PNG")
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
    kinds = [paths[3], Path(paths[3]), image, np.asarray(image), encoded.getvalue(), pixels, pixels / 255]
    expected = predictor.embed_images(paths)[3]
    for kind in kinds:
        torch.testing.assert_close(predictor.embed_images(kind), expected[None], **CLOSE)
    torch.testing.assert_close(predictor.embed_images(kinds), expected.expand(7, -1), **CLOSE)
    several = (np.stack([np.asarray(image)] * 2), torch.stack([pixels] * 2))
    for kind in several:
        torch.testing.assert_close(predictor.embed_images(kind), expected.expand(2, -1), **CLOSE)
    assert predictor.embed_images([]).shape == (0, len(expected))
    assert predictor.caption([]) == predictor.match([], "a dog") == []


def test_captions_are_those_of_the_model(predictor: Predictor, blip: Blip, paths: list[str]) -> None:
    found = predictor.caption(paths, FEW)
    with torch.no_grad():
        memory = blip.remember(blip.encode_image(normalize(predictor.pixels(paths))))
    expected = BlipAdapter(blip, predictor.tokenizer).generate(memory, FEW, [""] * len(paths))
    assert [[c.text for c in one] for one in found] == [[c.text for c in one] for one in expected]
    assert predictor.caption(paths[4], FEW)[0][0].text == expected[4][0].text


def test_captions_by_recorded_steps_are_the_same(
    predictor: Predictor, blip: Blip, paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replay, "record", recorder := Recorder())
    ours = small.predictor(blip, small.tokenizer(), batch_size=3, cuda_graphs=True)
    for config in (FEW, DecodeConfig(sample=True, num_sequences=2, max_new_tokens=6)):
        texts, expected = ours.caption(paths, config), predictor.caption(paths, config)
        assert [[c.text for c in own] for own in texts] == [[c.text for c in own] for own in expected]
    assert recorder.recorded > 1
    assert recorder.replayed > 2 * recorder.recorded


def test_cuda_graphs_are_for_gpus(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="CUDA graphs need a GPU of NVIDIA or AMD, and this computes on cpu"):
        load(tmp_path / "not opened", device="cpu", cuda_graphs=True)


def test_it_begins_with_the_prompt_it_was_trained_with(blip: Blip, paths: list[str]) -> None:
    trained = small.predictor(blip, small.tokenizer(), {"prompt": "a red "})
    plain = small.predictor(blip, small.tokenizer())
    assert trained.caption(paths[0], FEW) == plain.caption(paths[0], FEW, prompt="a red ")
    assert trained.caption(paths[0], FEW, prompt="") == plain.caption(paths[0], FEW)
    assert trained.caption(paths[0], FEW)[0][0].log_prob != plain.caption(paths[0], FEW)[0][0].log_prob


def test_samples_belong_to_the_image_and_the_seed(predictor: Predictor, paths: list[str]) -> None:
    config = DecodeConfig(sample=True, top_p=0.9, num_sequences=3, max_new_tokens=6)
    whole = [[c.text for c in one] for one in predictor.caption(paths, config)]
    assert [[c.text for c in predictor.caption(path, config)[0]] for path in paths] == whole
    other = DecodeConfig(sample=True, top_p=0.9, num_sequences=3, max_new_tokens=6, seed=1)
    assert [[c.text for c in one] for one in predictor.caption(paths, other)] != whole


def test_matches_are_cosine_and_itm_of_each_pair(predictor: Predictor, blip: Blip, paths: list[str]) -> None:
    texts = ["Two DOGS!", "a red bus on a road"]
    cleaned = ["two dogs", "a red bus on a road"]
    words = predictor.tokenizer
    for path, row in zip(paths, predictor.match(paths, texts), strict=True):
        with torch.no_grad():
            embeds = blip.encode_image(normalize(predictor.pixels([path])))
            for match, text, clean in zip(row, texts, cleaned, strict=True):
                alone, paired = words.encode([clean]).input_ids, words.encode([clean], first="enc").input_ids
                cosine = float((blip.image_features(embeds) @ blip.text_features(alone, None).T)[0, 0])
                probability = float(blip.match(paired, None, blip.remember(embeds)).softmax(-1)[0, 1])
                assert match.text == text
                assert match.itc_similarity == pytest.approx(cosine, abs=1e-4)
                assert match.itm_probability == pytest.approx(probability, abs=1e-4)


@pytest.mark.parametrize(("top", "rerank"), [(2, 0), (2, 1), (3, 5), (50, 4), (1, 50)])
def test_search_orders_by_itc_and_then_by_itm(
    predictor: Predictor, blip: Blip, paths: list[str], top: int, rerank: int
) -> None:
    queries = ["two dogs", "a red bus"]

    def pair(path: str, text: str) -> tuple[float, float]:
        """Cosine, and ITM's logit of "matched"."""
        with torch.no_grad():
            memory = blip.remember(blip.encode_image(normalize(predictor.pixels([path]))))
            ids = predictor.tokenizer.encode([text], first="enc").input_ids
            return predictor.match(path, text)[0][0].itc_similarity, float(blip.match(ids, None, memory)[0, 1])

    def check(hits: list[Found], candidates: dict[str, tuple[float, float]]) -> None:
        """The items and scores of a search."""
        by_itc = [(itc, item) for item, (itc, _) in sorted(candidates.items(), key=lambda c: -c[1][0])]
        read = [(sum(candidates[item]), item) for _, item in by_itc[:rerank]]
        expected = [*sorted(read, reverse=True), *by_itc[len(read) :]][:top]
        assert [hit.item for hit in hits] == [item for _, item in expected]
        assert [hit.score for hit in hits] == pytest.approx([score for score, _ in expected], abs=1e-3)
        assert [hit.itm_probability is not None for hit in hits] == [i < len(read) for i in range(len(hits))]

    found = predictor.retrieve_images(paths, queries, top=top, rerank_k=rerank)
    for query, hits in zip(queries, found, strict=True):
        check(hits, {path: pair(path, query) for path in paths})
    hits = predictor.retrieve_texts(paths[2], list(small.TEXTS), top=top, rerank_k=rerank)
    check(hits, {text: pair(paths[2], text) for text in small.TEXTS})


def losing(predictor: Predictor, *files: str, call: int = 2) -> Predictor:
    """The predictor, with files that vanish before images are decoded for the nth time."""
    calls, real = [0], predictor.batches

    def batches(images: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            for file in files:
                Path(file).rename(f"{file}.gone")
        yield from real(images)

    predictor.batches = batches  # type: ignore[method-assign]
    return predictor


@pytest.mark.parametrize(("top", "rerank"), [(7, 7), (4, 4), (3, 2)])
def test_files_that_vanish_during_a_search_are_left_out(
    predictor: Predictor, blip: Blip, paths: list[str], tmp_path: Path, top: int, rerank: int
) -> None:
    files = [str(tmp_path / Path(path).name) for path in paths]
    for path, file in zip(paths, files, strict=True):
        Path(file).write_bytes(Path(path).read_bytes())
    whole = predictor.retrieve_images(files, ["two dogs"], top=7, rerank_k=7)[0]
    first = predictor.retrieve_images(files, ["two dogs"], top=rerank, rerank_k=rerank)[0]
    gone = sorted(hit.item for hit in first)[0]
    broken: list[BrokenSample] = []
    other = losing(small.predictor(blip, small.tokenizer(), batch_size=3), gone)
    (hits,) = other.retrieve_images(files, ["two dogs"], top=top, rerank_k=rerank, broken=broken)
    assert [(one.cause, one.key) for one in broken] == [("missing", gone)]
    read = [hit.item for hit in first if hit.item != gone]
    rest = sorted((hit for hit in whole if hit.item not in (*read, gone)), key=lambda hit: -hit.itc_similarity)
    assert [hit.item for hit in hits] == [*read, *(hit.item for hit in rest)][:top]
    known = {hit.item: hit.itm_probability for hit in whole}
    for hit in hits:
        assert hit.itm_probability == (pytest.approx(known[hit.item], abs=1e-5) if hit.item in read else None)
    Path(f"{gone}.gone").rename(gone)
    with pytest.raises(UserError, match=r"cannot be used \(missing\)"):
        losing(small.predictor(blip, small.tokenizer(), batch_size=3), gone).retrieve_images(files, ["two dogs"])


def test_images_of_one_name_are_told_apart(predictor: Predictor, paths: list[str]) -> None:
    whole = [ImageInput("same.png", Path(path)) for path in paths]
    damaged = ImageInput("same.png", b"")
    broken: list[BrokenSample] = []
    (hits,) = predictor.retrieve_images([damaged, *whole], ["two dogs"], top=7, rerank_k=7, broken=broken)
    (expected,) = predictor.retrieve_images(paths, ["two dogs"], top=7, rerank_k=7)
    assert len(broken) == 1
    assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in expected], abs=1e-4)


def test_an_image_that_cannot_be_read_is_named(predictor: Predictor, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no image")
    for image, message in (
        (tmp_path / "none.png", r"none\.png cannot be used \(missing\)"),
        (str(tmp_path / "text.png"), r"text\.png cannot be used \(not-an-image\)"),
        (b"", r"an image cannot be used \(empty\)"),
        (torch.zeros(4, 8, 8), r"an image cannot be used \(not-an-image\): a tensor of torch.float32 \[4, 8, 8\]"),
        (torch.full((3, 8, 8), 7.0), r"floats from 7 to 7, not from 0 to 1"),
    ):
        with pytest.raises(UserError, match=message):
            predictor.caption(image, FEW)


def test_the_likelihood_of_a_caption_is_that_of_writing_it(predictor: Predictor, paths: list[str]) -> None:
    written = predictor.caption(paths[:4], FEW)
    texts = [[one.text for one in captions] for captions in written]
    scored = predictor.log_likelihood(paths[:4], texts)
    whole = [
        (c, s) for cs, ss in zip(written, scored, strict=True) for c, s in zip(cs, ss, strict=True) if c.complete
    ]
    for caption, likelihood in whole:
        # The same ids unless the tokenizer cuts the text in another way than it was written.
        if likelihood.num_tokens == caption.num_tokens:
            assert likelihood.log_prob == pytest.approx(caption.log_prob, abs=1e-3)
    every = predictor.log_likelihood(paths[:4], list(small.TEXTS), prompt="a ")
    for image, row in zip(paths[:4], every, strict=True):
        assert [one.text for one in row] == list(small.TEXTS)
        assert sum(one.probability for one in row) == pytest.approx(1)
        (alone,) = predictor.log_likelihood(image, small.TEXTS[3], prompt="a ")[0]
        assert alone.log_prob == pytest.approx(row[3].log_prob, abs=1e-3)
        assert alone.probability == 1
        assert alone.perplexity == pytest.approx(np.exp(-alone.log_prob / alone.num_tokens))
    (ranked,) = predictor.rank_captions(paths[0], small.TEXTS, prompt="a ")
    assert [one.text for one in ranked] == [one.text for one in sorted(every[0], key=lambda one: -one.log_prob)]


def test_a_prompt_may_leave_out_its_blank(predictor: Predictor, paths: list[str]) -> None:
    """Written, scored alone and beside others, explained and trained on, it is the same prompt."""
    texts, words, batch = list(small.TEXTS[:3]), predictor.tokenizer, small.batch([0, 1])

    def used(prompt: str) -> list[Any]:
        memory = predictor.remember(paths[0])
        maps = caption_maps(predictor.model, words, memory, texts[0], prompt=prompt)
        trained = prepare_pairs(words, max_length=20, prompt=prompt)(batch)
        return [
            predictor.caption(paths[0], FEW, prompt=prompt),
            predictor.log_likelihood(paths[:2], texts, prompt=prompt),
            predictor.score(paths[:2], texts, by=["likelihood"], prompt=prompt),
            [(one.word, one.weights.tolist()) for one in maps],
            (trained.text.input_ids.tolist(), trained.prompt_length),
        ]

    for without, with_blank in zip(used("a red"), used("a red "), strict=True):
        assert without == with_blank


def test_each_image_may_have_texts_of_its_own(predictor: Predictor, paths: list[str]) -> None:
    own = [["two dogs"], ["birds", "the road"], ["a long chair"], ["two dogs", "birds", "a cat"]]
    every = predictor.match(paths[:4], sorted({text for texts in own for text in texts}))
    for row, texts, found in zip(every, own, predictor.match(paths[:4], own), strict=True):
        assert [one.text for one in found] == texts
        known = {one.text: one for one in row}
        for one in found:
            assert one.itm_probability == pytest.approx(known[one.text].itm_probability, abs=1e-5)
            assert one.itc_similarity == pytest.approx(known[one.text].itc_similarity, abs=1e-5)
    for wrong in (own[:3], [*own, ["birds"]]):
        with pytest.raises(UserError, match=f"there are texts for {len(wrong)} images, but"):
            predictor.match(paths[:4], wrong)
    prompts = ["a red ", "two ", "a ", "the "]
    (third,) = predictor.caption(paths[2], FEW, prompt="a ")
    assert [one.text for one in predictor.caption(paths[:4], FEW, prompt=prompts)[2]] == [one.text for one in third]
    with pytest.raises(UserError, match="there are 3 prompts"):
        predictor.caption(paths[:4], FEW, prompt=prompts[:3])


def test_likelihoods_are_of_texts_as_in_training(predictor: Predictor, paths: list[str]) -> None:
    """Points are not read, so that they neither count nor fill the model's positions."""
    for texts in (["A red bus.", "Two (dogs)!"], ["bus. " * 40, "bus"]):
        clean = [predictor.clean(text) for text in texts]
        for given, read in zip(
            *(predictor.log_likelihood(paths[0], some)[0] for some in (texts, clean)), strict=True
        ):
            assert (given.log_prob, given.num_tokens) == (read.log_prob, read.num_tokens)
        scored = [predictor.score(paths[0], some, by=["likelihood"])[0] for some in (texts, clean)]
        assert [one.log_prob for one in scored[0]] == [one.log_prob for one in scored[1]]


def test_no_images_give_nothing(predictor: Predictor) -> None:
    assert predictor.pixels([]).shape == (0, 3, small.PIXELS, small.PIXELS)
    assert predictor.caption([]) == []


def test_an_image_is_projected_once_however_many_texts(
    predictor: Predictor, blip: Blip, paths: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    projected = []
    remember = blip.remember
    monkeypatch.setattr(blip, "remember", lambda embeds: (projected.append(len(embeds)), remember(embeds))[1])
    texts = [f"{text} {other}" for text in small.TEXTS for other in small.TEXTS * 5]  # more than are read at once
    predictor.match(paths, texts)
    assert sum(projected) == len(paths)


def test_texts_that_cannot_be_read_are_named(predictor: Predictor, paths: list[str]) -> None:
    long = "bus " * 80
    for call, message in (
        (
            lambda: predictor.match(paths[0], long),
            r'the text "bus bus .*\.\.\." has 82 tokens, and the model takes 64',
        ),
        (lambda: predictor.embed_texts([long]), "has 82 tokens"),
        (lambda: predictor.log_likelihood(paths[0], "bus " * 62, prompt="a red"), "has 66 tokens with its prompt"),
        (lambda: predictor.score(paths[0], "bus " * 62, prompt="a red"), "has 66 tokens with its prompt"),
        (lambda: predictor.match(paths[0], "犬"), 'vocabulary has no word of "犬"'),
        (lambda: predictor.match(paths[0], []), "there is no text"),
        (lambda: predictor.match(paths[0], ["a dog", ""]), "one of the texts is empty"),
        (lambda: predictor.caption(paths[0], FEW, prompt="写真 "), 'cannot begin with "写真 "'),
        (lambda: predictor.answer(paths[0], "what?"), "answers need a BLIP VQA model"),
        (lambda: predictor.judge(paths[0], paths[1], "two dogs"), "needs a BLIP NLVR2 model"),
    ):
        with pytest.raises(UserError, match=message):
            call()
    assert predictor.embed_texts([]).shape == (0, 32)


def test_answers_are_those_of_the_model(paths: list[str]) -> None:
    tokenizer = small.vqa_tokenizer()
    model = small.vqa_model()
    predictor, adapter = small.predictor(model, tokenizer, batch_size=3), VqaAdapter(model, tokenizer)
    questions = list(small.QUESTIONS)
    for candidates in (None, small.ANSWERS):
        found = predictor.answer(paths[:4], questions, candidates)
        assert [[one.question for one in row] for row in found] == [questions] * 4
        for image, row in zip(paths[:4], found, strict=True):
            for question, one in zip(questions, row, strict=True):
                memory = predictor.remember(image)
                read = adapter.read(memory, encode_questions(tokenizer, [question]))
                if candidates is None:
                    (expected,) = adapter.answers(read, adapter.answering)
                else:
                    (expected,) = adapter.rank(read, candidates)
                assert [a.text for a in one.answers] == [a.text for a in expected]
                assert one.answers[0].log_prob == pytest.approx(expected[0].log_prob, abs=1e-3)
                if candidates is not None:
                    assert sum(a.probability for a in one.answers) == pytest.approx(1)
    own = [[questions[0]], questions[1:3]]
    assert [[one.question for one in row] for row in predictor.answer(paths[:2], own)] == own
    with pytest.raises(UserError, match="no answers to choose from"):
        predictor.answer(paths[0], "what is red?", [])
    with pytest.raises(UserError, match=r"this is a BLIP VQA model.*captions need"):
        predictor.caption(paths[0])


def test_pairs_of_images_are_judged(paths: list[str]) -> None:
    torch.manual_seed(0)
    sizes = small.model().config
    model = BlipNlvr(NlvrConfig(vision=sizes.vision, text=sizes.text, merge_from=1)).eval()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    predictor = small.predictor(model, small.tokenizer(), batch_size=2)
    texts = ["two dogs", "a red bus", "birds"]
    found = predictor.judge(paths[:3], paths[3:6], texts)
    for number, judged in enumerate(found):
        (alone,) = predictor.judge(paths[number], paths[3 + number], texts[number])
        assert alone.probability == pytest.approx(judged.probability, abs=1e-5)
        assert judged.true == (judged.probability >= 0.5)
    assert [one.text for one in found] == texts
    for first, second, told in ((paths[:3], paths[3:5], texts), (paths[:3], paths[3:6], texts[:2])):
        with pytest.raises(UserError, match="as many second images"):
            predictor.judge(first, second, told)


def test_two_towers_embed(paths: list[str]) -> None:
    torch.manual_seed(0)
    sizes = small.model().config
    model = BlipDual(DualConfig(vision=sizes.vision, text=sizes.text, embed_dim=16)).eval()
    predictor = small.predictor(model, small.tokenizer())
    images, texts = predictor.embed_images(paths), predictor.embed_texts(["two dogs", "birds"])
    assert (images.shape, texts.shape) == ((7, 16), (2, 16))
    torch.testing.assert_close(images.norm(dim=1), torch.ones(7))
    with pytest.raises(UserError, match="two-tower BLIP model"):
        predictor.match(paths, "two dogs")


def test_transformers_way_of_matching_can_be_had(blip: Blip, paths: list[str]) -> None:
    ours, theirs = (
        small.predictor(blip, small.tokenizer()),
        small.predictor(blip, small.tokenizer(), {"like": "transformers"}),
    )
    words = small.tokenizer().encode(["two dogs"], first="cls").input_ids
    with torch.no_grad():
        expected = float(blip.match(words, None, theirs.remember(paths[0])).softmax(-1)[0, 1])
    (match,) = theirs.match(paths[0], "two dogs")[0]
    assert match.itm_probability == pytest.approx(expected, abs=1e-5)
    assert abs(ours.match(paths[0], "two dogs")[0][0].itm_probability - expected) > 1e-3


def test_broken_images_are_left_out_of_a_search_where_requested(
    predictor: Predictor, paths: list[str], tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    some = [paths[0], str(bad), *paths[1:]]
    with pytest.raises(UserError, match=r"bad\.png cannot be used"):
        predictor.retrieve_images(some, ["two dogs"])
    broken: list[BrokenSample] = []
    found = predictor.retrieve_images(some, ["two dogs"], broken=broken)
    assert [one.item for one in found[0]] == [one.item for one in predictor.retrieve_images(paths, ["two dogs"])[0]]
    assert [sample.key for sample in broken] == [str(bad)]
    assert predictor.retrieve_images([str(bad)], ["two dogs"], broken=broken) == [[]]


def test_images_are_found_in_files_folders_and_globs(paths: list[str], tmp_path: Path) -> None:
    folder = Path(paths[0]).parent
    assert find_images([folder / "0.png", folder]) == [paths[0], *paths]
    assert find_images([f"{folder}/[01].png"]) == paths[:2]
    with pytest.raises(UserError, match="no image or folder"):
        find_images([tmp_path / "none"])
    with pytest.raises(UserError, match="there is no image in"):
        find_images([tmp_path])
