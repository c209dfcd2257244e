"""The decisions of a CapFilt run: over HTTP, and what is read of the run behind it."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest
from judged_small import BROKEN, SAMPLES, judged_run, text_of
from PIL import Image
from serving_small import StandIn, ask, png, post

from openblip.bootstrap.browse import Decisions, Filter
from openblip.bootstrap.places import Places
from openblip.bootstrap.table import read_table, write_table
from openblip.cli.serve import serve
from openblip.core.errors import UserError
from openblip.serving.app import Service


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that tests read."""
    return judged_run(tmp_path_factory.mktemp("judged"))


@pytest.fixture
def service(run: Path) -> Service:
    """Without a model."""
    return Service(StandIn(models={}), decisions=Decisions(run))


def numbers(reply: dict[str, Any]) -> list[int]:
    return [int(one["name"].removesuffix(".png")) for one in reply["samples"]]


def test_the_summary_counts_texts_by_origin_and_reason(service: Service) -> None:
    async def asking(client: httpx.AsyncClient) -> list[Any]:
        return [(await client.get(path)).json() for path in ("/v1/capfilt", "/v1/models")]

    summary, models = ask(service, asking)
    assert models["capfilt"] is True
    assert (summary["samples"], summary["unusable"]) == (SAMPLES, 1)
    assert (summary["policy"], summary["threshold"]) == ("paper", 0.5)
    found = {(one["origin"], one["kept"], one["reason"]): one["texts"] for one in summary["counts"]}
    usable = [number for number in range(SAMPLES) if number != BROKEN]
    assert found == {
        ("web", True, "matched"): sum(number % 2 for number in usable),
        ("web", False, "unmatched"): sum(number % 2 == 0 for number in usable),
        ("synthetic", True, "matched"): sum(number % 4 != 0 for number in usable),
        ("synthetic", False, "unmatched"): sum(number % 4 == 0 for number in usable),
    }
    assert all(one["meaning"] for one in summary["counts"])


def test_a_page_holds_samples_with_all_their_texts(service: Service, run: Path) -> None:
    answer = post(service, "/v1/capfilt", count=10)
    reply = answer.raise_for_status().json()
    assert numbers(reply) == list(range(10))
    assert reply["next"] == 10
    first, broken = reply["samples"][0], reply["samples"][BROKEN]
    assert [(one["text"], one["kept"], one["reason"]) for one in first["texts"]] == [
        (text_of(0), False, "unmatched"),
        ("a bus that was written 0", False, "unmatched"),
    ]
    assert first["texts"][0]["itm"] == pytest.approx(0.1)
    assert (broken["status"], broken["image"], broken["texts"]) == ("not-an-image", None, [])
    assert str(run.parent) not in answer.text, "no path of the server"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"verdict": "kept", "origin": "web"}, lambda number: number % 2),
        ({"verdict": "dropped", "origin": "synthetic"}, lambda number: number % 4 == 0),
        ({"reason": "matched", "origin": "synthetic"}, lambda number: number % 4),
        ({"words": "RED bus"}, lambda number: number % 3 == 0),
        ({"words": "red", "verdict": "kept"}, lambda number: number % 3 == 0 and number % 2),
        ({"reason": "no-words"}, lambda number: False),
    ],
)
def test_filters_join(service: Service, fields: dict[str, Any], expected: Any) -> None:
    wanted = [number for number in range(SAMPLES) if number != BROKEN and expected(number)]
    found: list[int] = []

    async def asking(client: httpx.AsyncClient) -> None:
        start: int | None = 0
        while start is not None:
            answer = await client.post("/v1/capfilt", json={**fields, "start": start, "count": 3})
            reply = answer.raise_for_status().json()
            assert len(reply["samples"]) <= 3
            assert all(any(text["fits"] for text in one["texts"]) for one in reply["samples"])
            found.extend(numbers(reply))
            start = reply["next"]

    ask(service, asking)
    assert found == wanted, "pages join without a gap or a repeat"


def test_images_are_those_of_the_source_and_small(service: Service) -> None:
    async def asking(client: httpx.AsyncClient) -> list[httpx.Response]:
        places = (3, BROKEN, SAMPLES, 10**9)
        return [await client.get(f"/v1/capfilt/images/{number}") for number in places]

    good, *others = ask(service, asking)
    assert good.headers["content-type"] == "image/jpeg"
    shown, source = Image.open(io.BytesIO(good.content)), Image.open(io.BytesIO(png(3)))
    assert shown.size == source.size
    for answer in others:
        assert answer.status_code == 404
        assert set(answer.json()) == {"error"}


def test_an_image_outside_the_source_is_never_read(run: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "000.png").write_bytes(png(99))
    table = Places(copy).table("00000-00000")
    rows = read_table(table)
    rows[0].part, rows[1].key, rows[2].index = str(secret), "../secret/000.png", 10**6
    write_table(table, rows)
    decisions = Decisions(copy)
    for number in range(3):
        with pytest.raises(UserError, match=r"any more|has changed"):
            decisions.image(number)
    assert decisions.image(3).size == (40, 40)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"verdict": "maybe"}, "verdict"),
        ({"reason": "unmached"}, "unmatched"),
        ({"count": 1000}, "count is 1 to"),
        ({"start": -1}, "start at least 0"),
        ({"words": "a" * 10_000}, "characters"),
        ({"verdit": "kept"}, "there is no field"),
    ],
)
def test_wrong_fields_are_refused_with_a_sentence(service: Service, fields: dict[str, Any], sentence: str) -> None:
    answer = post(service, "/v1/capfilt", **fields)
    assert answer.status_code == 422
    assert sentence in answer.json()["error"]


def test_a_service_without_a_run_has_no_decisions() -> None:
    service = Service(StandIn())

    async def asking(client: httpx.AsyncClient) -> tuple[Any, int]:
        return (await client.get("/v1/models")).json(), (await client.get("/v1/capfilt")).status_code

    models, status = ask(service, asking)
    assert (models["capfilt"], status) == (False, 404)


def test_a_narrow_filter_reads_a_bounded_number_of_rows(run: Path) -> None:
    found = Decisions(run).find(Filter(words="number 29"), most=12)
    assert (found.samples, found.next) == ([], 12)
    found = Decisions(run).find(Filter(words="number 29"), start=12, most=20)
    assert ([one.number for one in found.samples], found.next) == ([29], None)


def test_a_run_that_is_not_complete_is_refused(run: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder of openblip capfilt"):
        Decisions(tmp_path)
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    Places(copy).totals.write_text(json.dumps({"output": None}))
    with pytest.raises(UserError, match="decided on anew"):
        Decisions(copy)
    Places(copy).totals.unlink()
    with pytest.raises(UserError, match="not complete"):
        Decisions(copy)


def test_the_command_refuses_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder of openblip capfilt"):
        serve(capfilt=tmp_path, port=0)
    with pytest.raises(UserError, match="at least one model"):
        serve()
