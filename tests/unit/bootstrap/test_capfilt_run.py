"""A run from end to end: the table, the training set, continuing, deciding anew, what is refused."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as parquet
import pytest
import torch
from capfilt_small import (
    PIXELS,
    config,
    contents,
    make_image,
    output,
    rows_of,
    run,
    text_of,
    write_folder,
    write_tar,
)
from PIL import Image

from openblip.bootstrap.job import Shard
from openblip.bootstrap.models import open_models
from openblip.bootstrap.places import Places
from openblip.bootstrap.run import decide_again
from openblip.core.errors import UserError
from openblip.core.files import write_json
from openblip.core.text import read_json
from openblip.data.images import decode_image
from openblip.data.sources.open import open_source
from openblip.data.stream import Loader
from openblip.data.transforms import evaluation_transform
from openblip.generation.config import DecodeConfig
from openblip.tasks.load import load

Models = tuple[str, str, str]


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tars of 12 samples; number 5 is no image, number 14 is cut."""
    folder = tmp_path_factory.mktemp("web")
    write_tar(folder / "00000.tar", 0, 12, bad={5: b"<html>"})
    write_tar(folder / "00001.tar", 12, 12, bad={14: make_image(14)[:300]})
    return folder


@pytest.fixture(scope="module")
def done(web: Path, models: Models, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("runs") / "first"
    totals = run(config(models, web), target)
    assert (totals.chunks, totals.samples, totals.quarantined) == (4, 24, 2)
    return target


def test_every_sample_has_its_row(done: Path) -> None:
    rows = rows_of(done)
    assert [row.key for row in rows] == [f"0000{n // 12}/{n:09d}" for n in range(24)]
    assert {row.key[-2:]: row.status for row in rows if row.status != "ok"} == {
        "05": "not-an-image",
        "14": "truncated",
    }
    for number, row in enumerate(rows):
        if row.status == "ok":
            assert [t.origin for t in row.texts] == ["web", "synthetic", "synthetic"]
            assert row.texts[0].text == text_of(number)
            assert all(t.itm is not None and t.itc is not None and t.reason for t in row.texts)
            assert row.captioner != row.filter
            assert row.seed == 3
    kept = [text.kept for row in rows for text in row.texts]
    assert 0 < sum(kept) < len(kept)


def test_scores_are_those_of_the_predictor(done: Path, models: Models) -> None:
    """One by one, with nothing shared, the filter says the same."""
    predictor = load(models[1], device="cpu", dtype="float32")
    for row in rows_of(done)[:4]:
        number = int(row.key[-9:])
        for text in row.texts:
            (match,) = predictor.match(make_image(number), text.text)[0]
            assert text.itm == pytest.approx(match.itm_probability, abs=1e-5)
            assert text.itc == pytest.approx(match.itc_similarity, abs=1e-5)


def test_the_set_holds_what_was_kept_and_is_a_source(done: Path) -> None:
    source = open_source(str(done))
    wanted = {row.key: [t.text for t in row.kept] for row in rows_of(done) if row.status == "ok" and row.kept}
    found = [source[index] for index in range(len(source))]
    assert [list(sample.texts) for sample in found] == list(wanted.values())
    numbers = [int(key[-9:]) for key in wanted]
    assert [decode_image(sample).size for sample in found] == [(40 + n % 7, 40) for n in numbers]


def test_nothing_is_done_twice(done: Path, web: Path, models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    before = contents(done)
    monkeypatch.setattr("openblip.bootstrap.run.make_pipeline", lambda *_: pytest.fail("models are requested"))
    assert run(config(models, web), done).new_chunks == 0
    assert contents(done) == before


def test_a_rerun_makes_what_is_missing_alike(done: Path, web: Path, models: Models, tmp_path: Path) -> None:
    copy = shutil.copytree(done, tmp_path / "copy")
    for name in ("table/00000-00001.parquet", "done/00000-00001.json", "done/00001-00000.json"):
        (copy / "capfilt" / name).unlink()
    (copy / "00000-00001.tar").unlink()
    (copy / ".00000-00000.tar.7.tmp").write_bytes(b"cut by a kill")
    assert run(config(models, web), copy).new_chunks == 2
    assert contents(copy) == contents(done)


def test_texts_depend_on_key_and_seed_alone(done: Path, web: Path, models: Models, tmp_path: Path) -> None:
    """Other batches and chunks change nothing but rounding."""
    run(config(models, web, batch_size=5, chunk_size=100), tmp_path / "other")
    for ours, theirs in zip(rows_of(done), rows_of(tmp_path / "other"), strict=True):
        assert [t.text for t in ours.texts] == [t.text for t in theirs.texts]
        assert [t.itm for t in ours.texts] == pytest.approx([t.itm for t in theirs.texts], abs=1e-5)


def test_shares_of_machines_make_the_same_run(done: Path, web: Path, models: Models, tmp_path: Path) -> None:
    target = tmp_path / "shared"
    for number in (1, 0):
        run(config(models, web), target, shard=Shard(number, 2))
        assert not (target / "capfilt" / "totals.json").exists()
    assert run(config(models, web), target).new_chunks == 0
    assert contents(target) == contents(done)


def test_deciding_anew_needs_no_model(done: Path, tmp_path: Path) -> None:
    scores = {(r.key, t.text): t.itm or 0 for r in rows_of(done) for t in r.texts}
    level = sorted(scores.values())[-5]
    totals = decide_again(done, output("parquet", threshold=level), target=tmp_path / "strict")
    assert totals.kept_texts == sum(score >= level for score in scores.values())
    source = open_source(str(tmp_path / "strict"))
    assert sorted(text for i in range(len(source)) for text in source[i].texts) == sorted(
        text for (_, text), score in scores.items() if score >= level
    )
    # Back to the first policy and layout, in place: the table and the set are those of the first run.
    decide_again(tmp_path / "strict", output())
    assert contents(tmp_path / "strict") == contents(done)


@pytest.mark.parametrize("layout", ["jsonl", "folder", "parquet", "none"])
def test_every_layout_holds_the_same(done: Path, layout: str, tmp_path: Path) -> None:
    decide_again(done, output(layout), target=tmp_path / layout)
    if layout == "none":
        assert [path.name for path in (tmp_path / layout).iterdir()] == ["capfilt"]
        return
    ours, theirs = open_source(str(done)), open_source(str(tmp_path / layout))
    assert [ours[i].texts for i in range(len(ours))] == [theirs[i].texts for i in range(len(theirs))]
    for i in range(len(ours)):
        assert decode_image(ours[i]).tobytes() == decode_image(theirs[i]).tobytes()


def test_a_folder_is_read_and_texts_from_the_web_are_judged_alone(models: Models, tmp_path: Path) -> None:
    web = write_folder(tmp_path / "web", 6)
    (web / "002.txt").unlink()
    run(config(models, web, captioner=""), tmp_path / "out", output("jsonl"))
    rows = rows_of(tmp_path / "out")
    assert [[t.origin for t in row.texts] for row in rows] == [["web"] if n != 2 else [] for n in range(6)]
    assert {row.status for row in rows} == {"ok"}


def test_one_model_for_both_looks_once(models: Models, web: Path, tmp_path: Path) -> None:
    """A tied model, and a captioner with the filter's vision tower, encode each image once."""
    tied = open_models(models[2], models[2])
    assert tied.one_model
    assert tied.captioner is tied.filter
    assert open_models(models[2], models[1]).one_vision
    apart = open_models(models[0], models[1])
    assert not apart.one_vision
    for pair, looks in ((tied, 1), (open_models(models[2], models[1]), 1), (apart, 2)):
        assert pair.captioner is not None
        count = 0

        def counted(*_: object) -> None:
            nonlocal count
            count += 1

        towers = {part.adapter.model.vision for part in (pair.captioner, pair.filter)}
        hooks = [tower.register_forward_hook(counted) for tower in towers]
        images = torch.zeros(2, 3, PIXELS, PIXELS, dtype=torch.uint8)
        pair.look({PIXELS: images})
        for hook in hooks:
            hook.remove()
        assert count == looks


def test_a_table_from_before_the_outside_model_was_named_is_read(web: Path, models: Models, tmp_path: Path) -> None:
    run(config(models, web), tmp_path / "out", output())
    before = rows_of(tmp_path / "out")
    for path in (tmp_path / "out" / "capfilt" / "table").glob("*.parquet"):
        parquet.write_table(parquet.read_table(path).drop_columns(["ranker"]), path)
    assert rows_of(tmp_path / "out") == before
    assert before[0].ranker == ""


def test_an_outside_model_ranks_the_texts(web: Path, models: Models, monkeypatch: pytest.MonkeyPatch,
                                          tmp_path: Path) -> None:  # fmt: skip
    """It is given each image with its texts as they are; "blip2" keeps what it finds most similar."""

    def ranker(images: Sequence[Image.Image], texts: Sequence[Sequence[str]]) -> list[list[float]]:
        return [[len(text) + image.width / 1000 for text in own] for image, own in zip(images, texts, strict=True)]

    ranker.fingerprint = "0123456789abcdef"  # type: ignore[attr-defined]
    monkeypatch.setattr("openblip.bootstrap.run.open_ranker", lambda name, _: {"some-clip": ranker}[name])
    policy = output(name="blip2", keep=1, rank_by="ranker")
    run(config(models, web, ranker="some-clip"), tmp_path / "out", policy)
    for row in rows_of(tmp_path / "out"):
        if row.status == "ok":
            width = 40 + int(row.key[-9:]) % 7
            assert row.ranker == "0123456789abcdef"
            assert [t.ranker for t in row.texts] == pytest.approx([len(t.text) + width / 1000 for t in row.texts])
            assert [t.text for t in row.kept] == [max((t.text for t in row.texts), key=len)]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"captioner": 1}, "--captioner .*captions need a BLIP"),
        ({"filter": 0}, "--filter .*matching needs a BLIP"),
        ({"chunk_size": 0}, "chunk_size must be at least 1"),
    ],
)
def test_models_that_cannot(
    settings: dict[str, int], words: str, models: Models, web: Path, tmp_path: Path
) -> None:
    named = {name: models[value] if name != "chunk_size" else value for name, value in settings.items()}
    with pytest.raises(UserError, match=words):
        run(config(models, web, **named), tmp_path / "out")


def test_another_run_s_folder_is_refused(done: Path, web: Path, models: Models, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"other settings \(config.decode"):
        run(config(models, web, decode=DecodeConfig()), done)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="holds other files"):
        run(config(models, web), tmp_path / "own")
    for source in (web, f"file://{web}"):
        with pytest.raises(UserError, match="choose a folder outside"):
            run(config(models, source), web / "clean")
    with pytest.raises(UserError, match="is no folder of openblip capfilt"):
        decide_again(tmp_path, output())


def test_what_training_does_with_the_set_may_differ(done: Path, web: Path, models: Models, tmp_path: Path) -> None:
    """Nor need the description of a run know a setting that came later."""
    folder = Path(shutil.copytree(done, tmp_path / "run"))
    file = Places(folder).run
    described = read_json(file)
    assert described["config"]["source"].pop("epoch_share") == 1.0
    write_json(file, described)
    settings = config(models, web)
    assert run(settings, folder).new_chunks == 0
    shared = replace(settings, source=replace(settings.source, weight=2.0, epoch_share=0.5))
    assert run(shared, folder).new_chunks == 0


def test_the_loader_draws_one_of_the_two_at_each_step(done: Path, tmp_path: Path) -> None:
    decide_again(done, output(name="blip2", keep=2), target=tmp_path / "two")
    source = open_source(str(tmp_path / "two"))
    loader = Loader(source, evaluation_transform(PIXELS), 4, drop_last=False, clean="none")
    drawn: dict[str, list[str]] = {}
    for _ in range(8):
        for batch in loader:
            for key, text in zip(batch.keys, batch.texts, strict=True):
                drawn.setdefault(key, []).append(text)
    for index in range(len(source)):
        sample = source[index]
        assert len(sample.texts) == 2
        assert len(drawn[sample.key]) == 8
        assert set(drawn[sample.key]) <= set(sample.texts)
    assert sum(len(set(texts)) == 2 for texts in drawn.values()) > 0.8 * len(drawn)
