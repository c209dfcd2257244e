"""Text files of captions beside images: where they are put, what happens to those that are there, refusals."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from openblip.core.errors import UserError
from openblip.data.image_inputs import find_image_inputs
from openblip.data.sinks.beside import Existing, Plan, TextFiles
from openblip.data.sources import open_source


def make(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4)).save(path)


def planned(files: TextFiles) -> Plan:
    return files.plan(find_image_inputs(files.places))


@pytest.fixture
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    make(*(tmp_path / "photos" / name for name in ("a.jpg", "b.PNG", "sub/c.d.webp", "sub/deep/e.jpg")))
    monkeypatch.chdir(tmp_path)
    return Path("photos")


def test_each_image_has_its_file_beside_it_and_the_loader_reads_it(photos: Path) -> None:
    files = TextFiles([photos], prefix="tok, ", suffix=" .")
    plan = planned(files)
    assert {name: str(path) for name, path in plan.files.items()} == {
        "photos/a.jpg": "photos/a.txt",
        "photos/b.PNG": "photos/b.txt",
        "photos/sub/c.d.webp": "photos/sub/c.d.txt",
        "photos/sub/deep/e.jpg": "photos/sub/deep/e.txt",
    }
    for name, path in plan.files.items():
        files.write(path, [f"an image\nof {name}", "naïve\u2028text"])
    assert (photos / "a.txt").read_bytes() == "tok, an image of photos/a.jpg .\ntok, naïve text .\n".encode()
    source = open_source(str(photos))
    for index in range(len(source)):
        sample = source[index]
        assert sample.texts == (f"tok, an image of photos/{sample.key} .", "tok, naïve text .")
    assert not [name for name in os.listdir(photos) if name.endswith(".tmp")]


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        (["photos"], ["a.txt", "b.txt", "sub/c.d.txt", "sub/deep/e.txt"]),
        (["photos/sub/", "photos/a.jpg"], ["a.txt", "c.d.txt", "deep/e.txt"]),
        (["photos/*/*.webp"], ["sub/c.d.txt"]),
        (["photos/sub/deep/e.jpg"], ["e.txt"]),
        (["./photos/sub"], ["c.d.txt", "deep/e.txt"]),
        (["photos", "photos/a.jpg"], ["a.txt", "b.txt", "sub/c.d.txt", "sub/deep/e.txt"]),
    ],
)
def test_a_folder_mirrors_those_of_the_images(photos: Path, places: list[str], expected: list[str]) -> None:
    files = TextFiles(places, folder=Path("texts"))
    plan = planned(files)
    assert len(plan.images) == len(expected), "an image that is named twice has one text"
    for path in plan.files.values():
        files.write(path, ["x"])
    found = sorted(str(path.relative_to("texts")) for path in Path("texts").rglob("*") if path.is_file())
    assert found == expected


@pytest.mark.parametrize(
    ("existing", "expected", "first"),
    [("skip", "old\nlines", []), ("overwrite", "new\n", ["new"]), ("append", "old\nlines\nnew\n", ["old", "new"])],
)
def test_what_is_there(photos: Path, existing: Existing, expected: str, first: list[str]) -> None:
    (photos / "a.txt").write_text("old\nlines")
    files = TextFiles([photos], existing=existing)
    plan = planned(files)
    assert plan.existing == (existing == "skip")
    assert ("photos/a.jpg" in plan.files) == bool(first)
    for _ in range(2):  # as when the command is run again: append adds no line twice
        for path in plan.files.values():
            files.write(path, ["new"])
    assert (photos / "a.txt").read_text() == expected
    assert (photos / "b.txt").read_text() == "new\n"


def test_images_that_differ_in_their_ending_share_a_text(photos: Path) -> None:
    make(photos / "a.png")
    plan = planned(TextFiles([photos], existing="overwrite"))
    assert plan.sharing == [("photos/a.png", "photos/a.jpg")]
    assert [image.name for image in plan.images][:2] == ["photos/a.jpg", "photos/b.PNG"]


def test_images_of_a_list_have_texts_beside_them(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(Path("here.png"))
    absolute = str(tmp_path / "photos" / "sub" / "c.d.webp")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{absolute}\nphotos/a.jpg\n"))
    plan = planned(TextFiles(["-", "*.png"]))
    assert plan.files == {
        absolute: tmp_path / "photos" / "sub" / "c.d.txt",
        "photos/a.jpg": Path("photos/a.txt"),
        "here.png": Path("here.txt"),
    }


def test_nothing_is_written_outside(photos: Path, tmp_path: Path) -> None:
    """A folder that a link leads to is another's: its images are left out with a reason."""
    make(tmp_path / "elsewhere" / "x.jpg")
    (photos / "linked").symlink_to(tmp_path / "elsewhere")
    plan = planned(TextFiles([photos]))
    assert "photos/linked/x.jpg" not in plan.files
    (left,) = plan.images.left_out.broken()
    assert (left.cause, left.key) == ("outside", "photos/linked/x.jpg")
    mirrored = TextFiles([photos], folder=Path("texts"))
    assert mirrored.plan(find_image_inputs([photos])).files["photos/linked/x.jpg"] == Path("texts/linked/x.txt")
    Path("texts").mkdir()
    Path("texts/sub").symlink_to(tmp_path / "elsewhere")
    assert "photos/sub/c.d.webp" not in planned(mirrored).files
    (photos / "a.txt").symlink_to(tmp_path / "secret")
    over = TextFiles([photos], existing="overwrite")
    over.write(planned(over).files["photos/a.jpg"], ["mine"])
    assert not (tmp_path / "secret").exists()
    assert (photos / "a.txt").read_text() == "mine\n"


def test_what_is_refused(photos: Path, tmp_path: Path) -> None:
    for options, message in (
        ({"extension": ".jpg"}, "a text must not end in .jpg"),
        ({"extension": "/../x"}, "no extension of a file"),
        ({"extension": ".."}, "no extension of a file"),
        ({"extension": ""}, "no extension of a file"),
        ({"prefix": "two\nlines"}, "more than one line"),
        ({"places": ["-"], "folder": Path("texts")}, "no folder to mirror"),
    ):
        with pytest.raises(UserError, match=message):
            TextFiles(**{"places": [photos], **options})  # type: ignore[arg-type]
    assert TextFiles([photos], extension="caption").extension == "caption"
    make(tmp_path / "others" / "a.png")
    with pytest.raises(UserError, match=r"others/a\.png and photos/a\.jpg would share texts/a\.txt"):
        planned(TextFiles(["others", "photos"], folder=Path("texts")))
    with tarfile.open(photos / "t.tar", "w") as tar:
        tar.add(photos / "a.jpg", "in.jpg")
    with pytest.raises(UserError, match=r"photos/t\.tar/in\.jpg lies in a tar"):
        planned(TextFiles([photos]))
    Path("file").write_text("x")
    with pytest.raises(UserError, match="file is no folder"):
        planned(TextFiles(["photos/a.jpg"], folder=Path("file")))


def test_a_folder_that_cannot_be_written(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Said before any work is done, and when it turns out later."""
    files = TextFiles([photos])
    plan = planned(files)

    def refuse(path: Path, text: str) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("openblip.data.sinks.beside.write_text", refuse)
    with pytest.raises(UserError, match=r"the folder photos cannot be written; .*--out"):
        files.write(plan.files["photos/a.jpg"], ["x"])
    monkeypatch.setattr(os, "access", lambda path, mode: "sub" not in str(path))
    with pytest.raises(UserError, match=r"the folder photos/sub(/deep)? cannot be written"):
        planned(files)
