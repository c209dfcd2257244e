"""Configurations: what is unknown, of a wrong type or out of range is named, and plain data comes back the same."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from openblip.core.config import differences, from_dict, load, override, save, to_dict
from openblip.core.errors import MissingExtra, UserError, closest, nearest, require


@dataclass(frozen=True, kw_only=True)
class Optim:
    learning_rate: float = 3e-4
    betas: tuple[float, float] = (0.9, 0.999)
    schedule: Literal["cosine", "step", "none"] = "cosine"

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ValueError(f"learning_rate must be above 0, not {self.learning_rate}")


@dataclass(frozen=True, kw_only=True)
class Run:
    name: str
    steps: int = 10
    amp: bool = False
    folder: Path | None = None
    sources: tuple[str, ...] = ()
    weights: dict[str, float] = field(default_factory=dict)
    optim: Optim = field(default_factory=Optim)
    limit: int | str | None = None


def test_plain_data_comes_back_the_same() -> None:
    run = Run(name="a", folder=Path("x/y"), sources=("p", "q"), weights={"p": 0.5}, optim=Optim(betas=(0.8, 0.9)))
    data = json.loads(json.dumps(to_dict(run)))
    assert data["optim"]["betas"] == [0.8, 0.9]
    assert from_dict(Run, data) == run


def test_whole_numbers_are_floats_where_floats_are_wanted() -> None:
    found = from_dict(Run, {"name": "a", "optim": {"learning_rate": 1, "betas": [0, 1]}})
    assert isinstance(found.optim.learning_rate, float)
    assert all(isinstance(b, float) for b in found.optim.betas)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"name": "a", "stepz": 3}, 'unknown setting "stepz" (did you mean "steps"?)'),
        ({"name": "a", "optim": {"learning_rat": 1.0}}, 'rat" (did you mean "optim.learning_rate"?)'),
        ({"name": "a", "qqqq": 1}, "known: amp, folder"),
        ({"steps": 3}, '"name" is missing'),
        ({"name": "a", "steps": "3"}, "\"steps\" must be a whole number, not '3'"),
        ({"name": "a", "steps": 3.5}, '"steps" must be a whole number, not 3.5'),
        ({"name": "a", "steps": True}, '"steps" must be a whole number, not True'),
        ({"name": "a", "amp": 1}, '"amp" must be true or false, not 1'),
        ({"name": "a", "amp": "False"}, "\"amp\" must be true or false, not 'False'"),
        ({"name": 3}, '"name" must be text, not 3'),
        ({"name": None}, '"name" must be text, not None'),
        ({"name": "a", "sources": "p"}, "\"sources\" must be a list, not 'p'"),
        ({"name": "a", "sources": ["p", 3]}, '"sources[1]" must be text, not 3'),
        ({"name": "a", "weights": {"p": "x"}}, "\"weights.p\" must be a number, not 'x'"),
        ({"name": "a", "optim": 3}, "optim must be a table of settings, not 3"),
        ({"name": "a", "optim": {"betas": [1.0]}}, '"optim.betas" must hold 2 values, not 1'),
        ({"name": "a", "optim": {"schedule": "cosin"}}, '"optim.schedule" cannot be \'cosin\' (did you mean "cos'),
        ({"name": "a", "optim": {"learning_rate": -1.0}}, "optim: learning_rate must be above 0, not -1.0"),
    ],
)  # fmt: skip
def test_mistakes_are_named(data: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        from_dict(Run, data)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_unions_take_each_of_their_types() -> None:
    for value in (None, 3, "all"):
        assert from_dict(Run, {"name": "a", "limit": value}).limit == value
    with pytest.raises(UserError, match="limit"):
        from_dict(Run, {"name": "a", "limit": 2.5})


def test_toml_and_json_files(tmp_path: Path) -> None:
    toml = tmp_path / "run.toml"
    toml.write_text('name = "a"\nsteps = 7\nsources = ["p"]\n[optim]\nlearning_rate = 1e-3\n')
    found = load(toml, Run)
    assert (found.steps, found.sources, found.optim.learning_rate) == (7, ("p",), 1e-3)
    save(found, tmp_path / "run.json")
    assert load(tmp_path / "run.json", Run) == found
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.toml", "name = ", "cannot be read as TOML"),
        ("a.json", "{", "cannot be read as JSON"),
        ("a.json", "[1]", "must be a table"),
        ("a.toml", 'name = "a"\nstep = 1', 'did you mean "steps"'),
    ],
)
def test_a_bad_file_is_named(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as caught:
        load(tmp_path / name, Run)
    assert name in str(caught.value)
    with pytest.raises(UserError, match=r"no configuration file .*gone\.toml"):
        load(tmp_path / "gone.toml", Run)


def test_override() -> None:
    run = Run(name="a")
    changed = override(
        run,
        [
            "steps=5",
            "optim.learning_rate=1e-5",
            "amp=true",
            "folder=some/where",
            'sources=["p", "q"]',
            "limit=none",
        ],
    )
    assert (changed.steps, changed.optim.learning_rate, changed.amp) == (5, 1e-5, True)
    assert (changed.folder, changed.sources, changed.limit) == (Path("some/where"), ("p", "q"), None)
    assert run == Run(name="a"), "the original stays"
    assert override(run, ["name=x=y"]).name == "x=y"
    assert override(run, ["name=2024"]).name == "2024", "a text may look like a number"
    assert override(run, ["sources=p,q"]).sources == override(run, ["sources=,p,q,"]).sources == ("p", "q")
    assert override(run, ["sources="]).sources == ()
    assert [override(run, [f"amp={text}"]).amp for text in ("1", "0", "False")] == [True, False, False]


@dataclass(frozen=True, kw_only=True)
class Bound:
    low: int = 0
    high: int = 5

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise UserError(f"low {self.low} is above high {self.high}")


@pytest.mark.parametrize("order", [1, -1])
def test_settings_that_are_right_together_come_in_any_order(order: int) -> None:
    assert override(Bound(), ["low=7", "high=9"][::order]) == Bound(low=7, high=9)
    with pytest.raises(UserError, match="low 7 is above high 6"):
        override(Bound(), ["low=7", "high=6"][::order])


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("steps", "sets nothing; write NAME=VALUE"),
        ("stes=3", 'did you mean "steps"'),
        ("optim.lerning_rate=3", 'did you mean "optim.learning_rate"'),
        ("learning_rate=3", r'setting "learning_rate" \(did you mean "optim.learning_rate"\?\)'),
        ("optin.learning_rate=3", 'did you mean "optim.learning_rate"'),
        ("steps.more=3", 'unknown setting "steps.more"'),
        ("optim.zzz=3", 'unknown setting "optim.zzz" .known: '),
        ("steps=many", "must be a whole number, not 'many'"),
        ("sources=[p", "must be a list"),
    ],
)
def test_override_mistakes_are_named(assignment: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        override(Run(name="a"), [assignment])


def test_differences_name_each_place() -> None:
    old, new = Run(name="a"), Run(name="b", optim=Optim(learning_rate=1e-5))
    assert differences(old, new) == ["name: 'a' -> 'b'", "optim.learning_rate: 0.0003 -> 1e-05"]
    assert differences(old, to_dict(old)) == []


def test_nearest_and_require() -> None:
    assert nearest("captoin", ["caption", "match"]) == ' (did you mean "caption"?)'
    assert nearest("zzz", ["b", "a"]) == " (known: a, b)"
    assert closest("cap", ["caption", "capfilt", "map"]) == ' (did you mean "caption" or "capfilt"?)'
    assert closest("trai", ["train-small", "trail"]) == ' (did you mean "train-small" or "trail"?)'
    assert closest("blip", [f"blip-{i}" for i in range(20)]).count("blip-") == 1, "not all of many"
    assert nearest("zzz", []) == closest("zzz", ["b", "a"]) == ""
    assert require("json", "report") is json
    with pytest.raises(MissingExtra, match=r'pip install "openblip\[report\]"'):
        require("no_such_library.sub", "report")
