"""CapFilt with BLIP-2: stage 2 writes, stage 1 judges, over one frozen tower; or one beside a BLIP model."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from capfilt_small import PIXELS, config, contents, output, rows_of, run, tokenizer, write_folder

from openblip.bootstrap.models import open_models
from openblip.checkpoints.convert import convert_model
from openblip.checkpoints.store import StoredModel, open_model, save_model
from openblip.core.errors import UserError
from openblip.core.language_tokenizer import LanguageTokenizer
from openblip.data.images import decode_image
from openblip.data.sources.open import open_source
from openblip.generation.config import DecodeConfig
from openblip.tasks.load import load

sys.path.append(str(Path(__file__).resolve().parents[1] / "blip2"))
import small_blip2

GREEDY = DecodeConfig(max_new_tokens=5)


@pytest.fixture(scope="module")
def stages(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Folders of a stage 2 and a stage 1: the same tower, norms and Q-Formers of their own."""
    folder = tmp_path_factory.mktemp("blip2")
    words, language = tokenizer(), small_blip2.write_language(folder / "language")
    sizes = {"qformer": {"vocab_size": words.vocab_size}}
    first = small_blip2.model(seed=1, **sizes)
    second = small_blip2.model(
        seed=2, language=language, matches=False, qformer={"vocab_size": None, "max_positions": 0}
    )
    second.vision.load_state_dict(first.vision.state_dict())
    save_model(folder / "stage1", StoredModel(first, words, {}))
    save_model(folder / "stage2", StoredModel(second, None, {"prompt": "a photo of"}))
    return str(folder / "stage2"), str(folder / "stage1")


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("web") / "images", 6)


def test_texts_and_scores_are_those_of_the_models_by_themselves(
    stages: tuple[str, str], web: Path, tmp_path: Path
) -> None:
    run(config((*stages, ""), web, decode=GREEDY), tmp_path / "out", output(layout="jsonl"))
    rows, source = rows_of(tmp_path / "out"), open_source(str(web))
    writer, judge = (load(path, device="cpu", dtype="float32") for path in stages)
    assert len(rows) == len(source) == 6
    for row in rows:
        image = decode_image(source[row.index])
        web_text, written = row.texts
        assert written.text == writer.caption(image, config=GREEDY)[0][0].text
        for text in (web_text, written):
            match = judge.match(image, text.text)[0][0]
            assert text.itm == pytest.approx(match.itm_probability, abs=1e-4)
            assert text.itc == pytest.approx(match.itc_similarity, abs=1e-4)
    assert len({round(text.itm or 0.0, 5) for row in rows for text in row.texts}) > 6
    again = run(config((*stages, ""), web, decode=GREEDY), tmp_path / "out", output(layout="jsonl"))
    assert again.new_chunks == 0


def test_a_tower_that_both_are_frozen_over_looks_once(stages: tuple[str, str]) -> None:
    pair = open_models(*stages)
    assert pair.captioner is not None
    assert pair.filter is not None
    assert (pair.one_vision, pair.one_model) == (True, False)
    seen = []
    pair.filter.adapter.model.vision.register_forward_hook(lambda *_: seen.append(1))
    images = torch.randint(256, (2, 3, PIXELS, PIXELS), dtype=torch.uint8)
    memory, read = pair.look({pair.filter.image_size: images})
    assert len(seen) == 1
    assert memory is not None
    assert read is not None
    embeds, judged = read
    for part, found in ((pair.captioner, memory), (pair.filter, judged)):
        alone = part.adapter.remember(part.adapter.encode(images))
        torch.testing.assert_close(found.keys[0], alone.keys[0])
    torch.testing.assert_close(embeds, pair.filter.adapter.encode(images))
    assert not torch.allclose(memory.keys[0], judged.keys[0]), "each has a norm and projections of its own"


def test_stage_1_writes_and_judges_alone(stages: tuple[str, str], web: Path, tmp_path: Path) -> None:
    """By the Q-Former's own language head."""
    assert open_models(stages[1], stages[1]).one_model
    totals = run(config((stages[1], stages[1], ""), web), tmp_path / "out", output("jsonl", threshold=0.0))
    assert totals.images == 6
    assert all(text.itm is not None for row in rows_of(tmp_path / "out") for text in row.texts)


def test_beside_a_blip_model(
    stages: tuple[str, str], models: tuple[str, str, str], web: Path, tmp_path: Path
) -> None:
    for captioner, judge in ((stages[0], models[1]), (models[0], stages[1])):
        pair = open_models(captioner, judge)
        assert not pair.one_vision
        target = tmp_path / Path(judge).name
        run(config((captioner, judge, ""), web), target, output("jsonl", threshold=0.0))
        rows = rows_of(target)
        assert {(row.captioner, row.filter) for row in rows} == {
            (pair.captioner.fingerprint, pair.filter.fingerprint)  # type: ignore[union-attr]
        }
        assert all(len(row.texts) == 3 for row in rows)


def test_the_same_files_twice(stages: tuple[str, str], web: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        run(config((*stages, ""), web), tmp_path / name, output(layout="jsonl"))
    first, second = (contents(tmp_path / name) for name in ("a", "b"))
    tables = [name for name in first if "table" in name or name == "captions.jsonl"]
    assert tables
    assert all(first[name] == second[name] for name in tables)


def test_a_stage_that_cannot_is_refused(stages: tuple[str, str]) -> None:
    with pytest.raises(UserError, match=r"^--filter .*stage2: this is a BLIP-2 .*; matching needs .* stage 1$"):
        open_models("", stages[0])


def test_a_language_model_of_transformers_is_read_in_the_dtype_of_the_run(
    stages: tuple[str, str], web: Path, tmp_path: Path
) -> None:
    theirs = str(tmp_path / "theirs")
    stored = open_model(stages[0])
    stored.language_tokenizer = LanguageTokenizer.load(stored.model.llm.config.source)
    convert_model(stored, Path(theirs), to="transformers")
    for dtype in ("float32", "bfloat16"):
        part = open_models(theirs, "", dtype=dtype).captioner
        assert part is not None
        assert part.adapter.model.llm.config.dtype == dtype
    run(config((theirs, "", ""), web, dtype="bfloat16"), tmp_path / "out", output("jsonl", name="all"))
    part = open_models(theirs, "", dtype="bfloat16").captioner
    assert part is not None
    assert {row.captioner for row in rows_of(tmp_path / "out")} == {part.fingerprint}
