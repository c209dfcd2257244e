"""The engine over Ray Serve: the answers of the local engine, and none lost when replicas are killed."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ray_small import open_nothing, open_small
from serving_small import ANSWERS, QUESTIONS, TEXTS, png, predictors

from openblip.cli.serve import serve
from openblip.core.errors import MissingExtra, UserError
from openblip.data.sample import BrokenSample
from openblip.generation.config import DecodeConfig
from openblip.serving import ray_engine
from openblip.serving.engine import Answering, Captioning, Embedding, Explaining, Matching, Work
from openblip.serving.local import LocalEngine
from openblip.serving.ray_engine import RayEngine, RayOptions, Replica

SHORT = DecodeConfig(num_beams=2, max_new_tokens=5, min_new_tokens=1)
SAMPLED = DecodeConfig(sample=True, top_p=0.9, max_new_tokens=5, min_new_tokens=1, seed=3)


def all_work() -> list[Work]:
    """Several pieces of every kind."""
    found: list[Work] = []
    for number in range(4):
        image = png(number)
        found += [
            Captioning(model="blip", image=image, config=SHORT),
            Captioning(model="blip", image=image, config=SAMPLED),
            Matching(model="blip", image=image, texts=TEXTS[: number + 1]),
            Embedding(model="blip", image=image, texts=TEXTS[:2]),
            Answering(model="vqa", image=image, questions=QUESTIONS[:2], candidates=ANSWERS),
        ]
    return [*found, Explaining(model="blip", image=png(0), text=TEXTS[0])]


def close(found: Any, expected: Any) -> None:
    """Equal but for rounding: batches differ between the engines, and with them the order of sums."""
    if isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-5, rel=1e-4)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            close(one, other)
    elif hasattr(expected, "__dataclass_fields__"):
        for name in expected.__dataclass_fields__:
            close(getattr(found, name), getattr(expected, name))
    else:
        assert found == expected


async def gathered(engine: Any, work: list[Work]) -> list[Any]:
    return list(await asyncio.gather(*(engine.run(one) for one in work)))


@pytest.fixture(scope="module")
def expected() -> list[Any]:
    """What the local engine gives."""

    async def go() -> list[Any]:
        engine = LocalEngine(predictors())
        try:
            return await gathered(engine, all_work())
        finally:
            await engine.close()

    return asyncio.run(go())


@pytest.fixture(scope="module")
def engine() -> Iterator[RayEngine]:
    """Two replicas on this machine."""
    pytest.importorskip("ray", reason="Ray is not installed")
    options = RayOptions(min_replicas=2, max_replicas=2, threads=1, requests=16, stop_seconds=5)
    here = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(here))  # replicas import `ray_small`
        patch.setattr(ray_engine, "usable_cores", lambda: 3)  # one more than these replicas take
        started = RayEngine.start(open_small, options)
        yield started
        asyncio.run(started.close())


@pytest.mark.slow
def test_answers_are_those_of_the_local_engine(engine: RayEngine, expected: list[Any]) -> None:
    local = LocalEngine(predictors())
    assert dict(engine.models) == dict(local.models)
    assert engine.searchable is None
    close(asyncio.run(gathered(engine, all_work())), expected)
    counts = engine.counts
    assert counts.batched >= len(all_work())
    assert counts.batches < counts.batched, "requests of one kind are computed together"
    assert counts.waiting == 0


@pytest.mark.slow
def test_mistakes_in_a_request_are_what_they_are_locally(engine: RayEngine) -> None:
    async def go() -> None:
        with pytest.raises(UserError, match="there is no model"):
            await engine.run(Matching(model="none", image=png(), texts=TEXTS))
        with pytest.raises(BrokenSample) as broken:
            await engine.run(Matching(model="blip", image=b"<html>", texts=TEXTS))
        assert broken.value.cause == "not-an-image"

    asyncio.run(go())


@pytest.mark.slow
def test_a_request_that_nobody_waits_for_is_dropped(engine: RayEngine) -> None:
    async def go() -> None:
        before = engine.counts.dropped
        task = asyncio.ensure_future(engine.run(Captioning(model="blip", image=png(50), config=SHORT)))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert engine.counts.dropped == before + 1
        assert engine.counts.waiting == 0

    asyncio.run(go())


@pytest.mark.slow
def test_a_killed_replica_loses_no_request(engine: RayEngine, expected: list[Any]) -> None:
    async def go() -> None:
        for _ in range(20):  # a replica that is slow to answer is given little
            await gathered(engine, all_work()[:8])
            if len(engine.replicas) > 1:
                break
        assert len(engine.replicas) == 2, "both have answered"
        # On a busy machine a replica may tell the length of its queue too late, and is given nothing: then it has
        # nothing in hand when it is killed, and another is killed.
        before = engine.retried
        for _ in range(5):
            work = all_work()
            running = [asyncio.ensure_future(engine.run(one)) for one in work]
            await asyncio.sleep(0.4)  # less than a replica holds what it has computed
            assert engine.counts.waiting > len(work) // 2
            alive = [process for process in engine.replicas if is_alive(process)]
            os.kill(alive[0], signal.SIGKILL)
            close(list(await asyncio.gather(*running)), expected)
            if engine.retried > before:
                return
        raise AssertionError("nothing was in hand of the replicas that were killed")

    asyncio.run(go())


def is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_when_all_replicas_are_killed_new_ones_answer(engine: RayEngine, expected: list[Any]) -> None:
    async def go() -> list[Any]:
        before = set(engine.replicas)
        running = [asyncio.ensure_future(engine.run(one)) for one in all_work()]
        await asyncio.sleep(0.4)
        for process in before:
            try:
                os.kill(process, signal.SIGKILL)
            except ProcessLookupError:  # the one of the test before
                continue
        results = list(await asyncio.gather(*running))
        assert set(engine.replicas) - before, "a new process has answered"
        return results

    close(asyncio.run(go()), expected)


def test_a_model_that_cannot_be_opened_is_one_sentence() -> None:
    replica = Replica(open_nothing, torch.get_num_threads())
    assert asyncio.run(replica.describe()) == "there is no model runs/none/model"


def test_ray_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(MissingExtra, match=r"openblip\[ray\]"):
        RayEngine.start(open_small, RayOptions())
    with pytest.raises(MissingExtra, match=r"openblip\[ray\]"):
        serve(("model",), engine="ray", port=0)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"replicas": 2}, "--engine ray"),
        ({"ray_address": "auto"}, "--engine ray"),
        ({"engine": "ray", "replicas": 2, "max_replicas": 3}, "exclude each other"),
        ({"engine": "ray", "min_replicas": 3, "max_replicas": 2}, "3 to 2 replicas"),
        ({"engine": "ray", "replicas": -1}, "replicas"),
    ],
)
def test_options_that_make_no_sense_are_refused(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        serve(("model",), port=0, **options)
