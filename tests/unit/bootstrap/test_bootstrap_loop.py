"""The paper's loop: who learns from what, in which order, each once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import openblip.bootstrap.loop as loop
from openblip.bootstrap.job import CapFiltConfig, Output
from openblip.bootstrap.places import Places
from openblip.bootstrap.run import Totals
from openblip.cli.bootstrap import _recipe
from openblip.core.config import from_dict, to_dict
from openblip.core.errors import UserError
from openblip.core.files import write_json
from openblip.data.source_config import SourceConfig
from openblip.tasks.config import RunConfig

WEB, HUMAN = ("a.jsonl?weight=2", "tars/"), ("coco.jsonl",)


@pytest.fixture
def config() -> loop.BootstrapConfig:
    return _recipe(WEB, HUMAN, (), "micro", 7, 3)


class Calls(list[tuple[str, Any]]):
    """What the loop asked for, in order."""

    images = 5


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Nothing is trained: runs and CapFilt are written down."""
    seen = Calls()

    def train(run: RunConfig, out: Path, **_: Any) -> Any:
        seen.append((out.name, run))
        return SimpleNamespace(steps=1, images_per_second=1.0)

    def capfilt(settings: CapFiltConfig, target: Path, _: Any) -> Totals:
        seen.append((f"{target.parent.name}/{target.name}", settings))
        return Totals(samples=10, images=seen.images, kept_texts=6)

    monkeypatch.setattr(loop, "run_training", train)
    monkeypatch.setattr(loop, "run_capfilt", capfilt)
    monkeypatch.setattr(loop, "_measure", lambda _, run, __: {"truth": 0.1 if run.name == "first" else 0.2})
    return seen


def test_who_learns_from_what(config: loop.BootstrapConfig, calls: Calls, tmp_path: Path) -> None:
    found = loop.run_bootstrap(config, tmp_path / "out")
    names = [name for name, _ in calls]
    assert names == ["first", "captioner", "filter", "clean/0", "clean/1", "second"]
    runs = dict(calls)
    assert runs["first"].sources == (*config.web, *config.human)
    for name, task in (("captioner", "captioning"), ("filter", "retrieval")):
        assert runs[name].sources == config.human
        assert runs[name].model == str(tmp_path / "out" / "first" / "model")
        assert runs[name].task == task
    for number in (0, 1):
        settings = runs[f"clean/{number}"]
        assert settings.source == config.web[number]
        assert settings.captioner.endswith("captioner/model")
        assert settings.filter.endswith("filter/model")
    clean = runs["second"].sources[:2]
    assert [(Path(s.path).name, s.weight) for s in clean] == [("0", 2.0), ("1", None)]
    assert runs["second"].sources[2:] == config.human
    # The two models differ in what they learn from, and in nothing else.
    assert replace(runs["second"], sources=runs["first"].sources) == runs["first"]
    assert found["first"]["truth"] == 0.1
    assert found["second"]["truth"] == 0.2
    assert found["clean"]["images"] == 10


def test_each_stage_is_done_once(config: loop.BootstrapConfig, calls: Calls, tmp_path: Path) -> None:
    stages: list[str] = []
    found = loop.run_bootstrap(config, tmp_path, on_stage=stages.append)
    assert tuple(stages) == loop.STAGES
    (tmp_path / "stages" / "second.json").unlink()
    calls.clear()
    assert loop.run_bootstrap(config, tmp_path)["first"] == found["first"]
    assert [name for name, _ in calls] == ["second"]
    with pytest.raises(UserError, match=r"other settings \(.*batch_size"):
        loop.run_bootstrap(replace(config, batch_size=9), tmp_path)


def test_a_filter_that_leaves_nothing(config: loop.BootstrapConfig, calls: Calls, tmp_path: Path) -> None:
    calls.images = 0
    with pytest.raises(UserError, match="drops every text of the 20 noisy samples"):
        loop.run_bootstrap(config, tmp_path)


def test_a_source_of_which_nothing_is_left_stays_out(
    config: loop.BootstrapConfig, calls: Calls, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def capfilt(_: CapFiltConfig, target: Path, output: Output) -> Totals:
        images = 5 * (target.name == "1")
        write_json(Places(target).totals, {"samples": 10, "images": images, "output": to_dict(output)})
        return Totals(samples=10, images=images, kept_texts=images)

    monkeypatch.setattr(loop, "run_capfilt", capfilt)
    loop.run_bootstrap(config, tmp_path)
    clean = SourceConfig(path=str(tmp_path / "clean" / "1"))
    assert dict(calls)["second"].sources == (clean, *config.human)


def test_a_mark_that_is_broken_says_nothing(config: loop.BootstrapConfig, calls: Calls, tmp_path: Path) -> None:
    found = loop.run_bootstrap(config, tmp_path)
    (tmp_path / "stages" / "second.json").write_bytes(b"")
    calls.clear()
    assert loop.run_bootstrap(config, tmp_path)["second"] == found["second"]
    assert [name for name, _ in calls] == ["second"]


@pytest.mark.parametrize("size", ["micro", "base", "large"])
def test_recipes_are_plain_settings(size: str) -> None:
    config = _recipe(WEB, HUMAN, ("val.jsonl",), size, 7, 3)
    assert from_dict(loop.BootstrapConfig, to_dict(config)) == config
    assert config.pretrain.model == size


def test_what_a_loop_needs() -> None:
    with pytest.raises(UserError, match="the noisy pairs"):
        _recipe((), HUMAN, (), "micro", 7, 3)
    with pytest.raises(UserError, match="people have written"):
        _recipe(WEB, (), (), "micro", 7, 3)
