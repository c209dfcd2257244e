"""Links inside tars: archivers write a file of two names as a file and a link to it."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from make_data import encoded, make_image

from openblip.data.image_inputs import find_image_inputs
from openblip.data.sample import BrokenSample
from openblip.data.sources import open_source

LONG, LONGER = "5" * 120 + ".jpg", "6" * 130 + ".jpg"


@pytest.mark.parametrize("layout", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_links_are_their_files(tmp_path: Path, layout: int) -> None:
    image = encoded(make_image(3), "JPEG")
    files = {"a/0.jpg": image, "a/0.txt": b"a text"}
    links = [
        ("a/1.jpg", "0.jpg", tarfile.SYMTYPE),
        ("a/1.txt", "2.txt", tarfile.SYMTYPE),
        ("a/2.txt", "../a/0.txt", tarfile.SYMTYPE),
        ("a/2.jpg", "a/0.jpg", tarfile.LNKTYPE),
        ("3.jpg", "/elsewhere/3.jpg", tarfile.SYMTYPE),
        ("4.jpg", "4.jpg", tarfile.SYMTYPE),
    ]
    if layout != tarfile.USTAR_FORMAT:
        files[LONGER] = image
        links.append((LONG, LONGER, tarfile.LNKTYPE))
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w", format=layout) as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for name, target, kind in links:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            tar.addfile(member)
    source = open_source(str(path))
    found = {(sample := source[index]).key: sample for index in range(len(source))}
    assert [found[f"t/a/{number}"].texts for number in range(3)] == [("a text",)] * 3
    long = [LONG, LONGER] if layout != tarfile.USTAR_FORMAT else []
    whole = ["a/0", "a/1", "a/2", *(name.removesuffix(".jpg") for name in long)]
    assert {key for key, sample in found.items() if sample.image == image} == {f"t/{key}" for key in whole}
    images = find_image_inputs([path])
    broken = []
    for one in images:
        try:
            one.decode()
        except BrokenSample as error:
            broken.append((error.key, error.cause))
    assert sorted(broken) == [(f"{path}/3.jpg", "empty"), (f"{path}/4.jpg", "empty")]
    assert len(images) == len(whole) + 2
