"""`openblip index` from building to near-duplicates, and killed in the middle."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import time
from contextlib import closing
from pathlib import Path

import pytest
from job_commands import CommandServer, Running
from job_world import World
from safetensors.torch import load_file, save_file

from openblip.core.errors import UserError
from openblip.data.image_inputs import ImageInput
from openblip.index.stores import open_database

pytestmark = pytest.mark.slow

EXACT = ("--device", "cpu", "--dtype", "float32")
# Each batch waits a little, so that there is a moment to kill it in.
SLOWLY = """
import time
from openblip.tasks.predictor import Predictor
embed = Predictor.embed_images
Predictor.embed_images = lambda *args, **options: (time.sleep(0.3), embed(*args, **options))[1]
"""


@pytest.fixture(scope="module")
def photos(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The world's images with their captions beside them, one of them broken."""
    folder = world.as_folder(tmp_path_factory.mktemp("indexed") / "photos")
    (folder / "broken.png").write_bytes(b"\x89PNG cut")
    return folder


@pytest.fixture(params=["folder", "postgres"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """What the name of an index begins with: a folder, or a database."""
    return f"{tmp_path}/" if request.param == "folder" else f"{request.getfixturevalue('postgres')}#"


def committed(index: str) -> int:
    """Images that are in an index now, whatever state its building is in."""
    try:
        with closing(open_database(index)) as database:
            return int(database.rows("SELECT count(*) FROM images")[0][0])
    except (UserError, sqlite3.OperationalError):
        return 0


def await_more(running: Running, index: str, before: int, seconds: float = 100) -> None:
    """Wait until more images are in an index than before."""
    end = time.monotonic() + seconds
    while committed(index) <= before:
        assert time.monotonic() < end, running.err.read_text()
        time.sleep(0.02)


def test_an_index_from_the_beginning(
    openblip: CommandServer, world: World, model: Path, photos: Path, tmp_path: Path, base: str
) -> None:
    index = f"{base}first"
    how = ("--model", model, "--out", index, *EXACT)
    built = openblip("index", "build", photos, *how, code=1)
    assert built.records == [
        {"data": str(photos), "added": 48, "changed": 0, "removed": 0, "same": 0, "skipped": 1}
    ]
    assert "skipped" in built.err
    assert "broken.png (" in built.err
    assert openblip("index", "build", photos, *how, code=1).records[0]["same"] == 48

    found = openblip("index", "search", "a red circle", "--index", index, "--top", 5, *EXACT).records
    images = sorted(str(path) for path in photos.glob("*.png") if path.name != "broken.png")
    expected = openblip("retrieve", "a red circle", *images, "--model", model, "--top", 5, *EXACT).records
    assert [hit["rank"] for hit in found] == [1, 2, 3, 4, 5]
    assert [hit["path"] for hit in found] == [hit["item"] for hit in expected]
    # Vectors and image features are kept as float16.
    assert [hit["itm"] for hit in found] == pytest.approx([hit["itm"] for hit in expected], abs=0.02)
    assert all(hit["caption"] in world.texts for hit in found)

    best = Path(found[0]["path"])
    like = openblip("index", "search", "--image", best, "--index", index, "--paths", "--top", 2).out.splitlines()
    assert like[0] == str(best)
    assert len(like) == 2
    sheet, why = tmp_path / "found.html", tmp_path / "why"
    some = ("--words", "red", "--folder", photos, "--sheet", sheet, "--explain", why, "--top", 3)
    hits = openblip("index", "search", "+circle -red", "--index", index, *some, *EXACT).records
    assert len(hits) == 3
    page = sheet.read_text()
    assert page.count("<article") == page.count('src="data:image/') == 3
    assert "+circle -red" in page
    assert all(f">{hit['score']:+.3f}<" in page for hit in hits)
    assert "The score that orders them is the ITC similarity plus" in page
    drawings = sorted(why.iterdir())
    assert [path.name[:4] for path in drawings] == ["001-", "002-", "003-"]
    assert all(ImageInput("", path).decode().width > 100 for path in drawings)

    (told,) = openblip("index", "info", "--index", index).records
    assert (told["images"], told["vectors"], told["broken"], told["removed"]) == (48, 48, 1, 0)
    assert told["broken_images"][0]["path"] == str(photos / "broken.png")
    openblip("index", "remove", best, "--index", index)
    assert str(best) not in openblip("index", "search", "a red circle", "--index", index, "--paths").out
    copy = tmp_path / "copy"
    copy.mkdir()
    shutil.copy(images[7], copy / "again.png")
    assert openblip("index", "add", copy, "--index", index).records[0]["added"] == 1
    (group,) = [
        group["images"]
        for group in openblip("index", "duplicates", "--index", index, "--distance", 0).records
        if str(copy / "again.png") in json.dumps(group)
    ]
    assert {image["path"] for image in group} >= {images[7], str(copy / "again.png")}
    changed = openblip("index", "add", "--index", index, code=1).records
    assert [change["added"] for change in changed] == [1, 0], "what was removed is back"


def test_a_killed_build_opens_and_resumes(openblip: CommandServer, model: Path, photos: Path, base: str) -> None:
    whole, killed = f"{base}whole", f"{base}killed"
    how = ("--model", model, "--batch-size", 2, *EXACT)
    openblip("index", "build", photos, *how, "--out", whole, code=1)
    for _ in range(2):
        before = committed(killed)
        running = openblip.start("index", "build", photos, *how, "--out", killed, before=SLOWLY)
        await_more(running, killed, before)
        running.signal(signal.SIGKILL)
        assert running.wait().code == -signal.SIGKILL
        assert before < committed(killed) < 48
        found = openblip("index", "search", "a red circle", "--index", killed, "--rerank", 0, "--top", 48, *EXACT)
        assert len(found.records) == committed(killed)
    kept = committed(killed)
    (done,) = openblip("index", "build", photos, *how, "--out", killed, code=1).records
    assert (done["same"], done["added"]) == (kept, 48 - kept)
    search = ("search", "a red circle", "--rerank", 0, "--top", 48, *EXACT, "--index")
    ours, theirs = (openblip("index", *search, index).records for index in (killed, whole))
    assert {hit["path"]: hit["itc"] for hit in ours} == pytest.approx(
        {hit["path"]: hit["itc"] for hit in theirs}, abs=1e-3
    )
    assert len(ours) == 48


def test_what_is_refused(
    openblip: CommandServer, model: Path, captioner: Path, photos: Path, tmp_path: Path, base: str
) -> None:
    index, refuse = f"{base}refused", openblip.refuse
    running = openblip.start(
        "index", "build", photos, "--model", model, "--out", index, "--batch-size", 2, before=SLOWLY
    )
    await_more(running, index, 0)
    running.signal(signal.SIGTERM)
    stopped = running.wait()
    assert stopped.code == 143
    assert "run the same command again to resume" in stopped.err
    with open_database(index).writing():  # as another process does
        assert "another process is writing to the index" in refuse("index", "add", photos, "--index", index)
        assert "another process is writing" in refuse("index", "remove", photos, "--index", index)
    other = shutil.copytree(model, tmp_path / "other") / "model.safetensors"
    save_file({name: -weight for name, weight in load_file(other).items()}, other, metadata={"format": "pt"})
    assert "built with another model" in refuse("index", "build", photos, "--model", other.parent, "--out", index)
    assert "fingerprint" in refuse("index", "search", "a red circle", "--index", index, "--model", other.parent)
    assert "embeddings need" in refuse("index", "build", photos, "--model", captioner, "--out", f"{base}c")
    assert "; openblip index build DATA --model" in refuse("index", "search", "x", "--index", f"{base}none")
    assert "say what to search for" in refuse("index", "search", "--index", index)
    assert "--meta takes NAME=VALUE" in refuse("index", "search", "x", "--index", index, "--meta", "x")
    assert "takes a date such as" in refuse("index", "search", "x", "--index", index, "--since", "May")
