"""Videos as models and tasks read them: one memory of all frames, retrieval and questions by command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import miniature
import numpy as np
import pytest
import small
import torch
import torch.nn.functional as F
from kept_results import kept_predictions
from PIL import Image
from torch import Tensor
from videos import frame, make_video, needs_av

from openblip.checkpoints.store import StoredModel, save_model
from openblip.cli.entry import main
from openblip.core.places import DATA_ROOT
from openblip.data.sources import open_source
from openblip.objectives.momentum import MomentumCopy
from openblip.tasks.evaluation import evaluation_batches
from openblip.tasks.retrieval import evaluate_retrieval

TEXT = torch.tensor([[2, 11, 12, 13, 3]])


def pixels(videos: int, frames: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (videos, frames, 3, small.PIXELS, small.PIXELS)
    return torch.randint(0, 256, shape, generator=generator).to(torch.uint8)


# ---- models ----


@pytest.mark.parametrize("repeated", [1, 3])
@torch.no_grad()
def test_a_video_of_one_frame_is_read_as_its_image(repeated: int) -> None:
    """Also where its one frame is read several times: attention shares its weight among equal tokens."""
    model, images = small.model(), pixels(2, 1)
    video, still = model.encode_pixels(images.expand(-1, repeated, -1, -1, -1)), model.encode_pixels(images[:, 0])
    assert video.shape[1] == repeated * still.shape[1]
    torch.testing.assert_close(model.image_features(video), model.image_features(still), atol=1e-5, rtol=0)
    of_video, of_still = model.remember(video), model.remember(still)
    text = TEXT.expand(2, -1)
    torch.testing.assert_close(
        model.match(text, None, of_video), model.match(text, None, of_still), atol=1e-4, rtol=0
    )
    torch.testing.assert_close(
        model.decoder(text, memory=of_video), model.decoder(text, memory=of_still), atol=1e-4, rtol=0
    )


@torch.no_grad()
def test_itc_takes_the_mean_of_frames_before_it_normalises_and_itm_reads_all_tokens() -> None:
    """As BLIP's eval_retrieval_video does."""
    model, videos = small.model(), pixels(2, 4)
    embeds = model.encode_pixels(videos)
    each = [model.encode_pixels(videos[:, k]) for k in range(4)]
    torch.testing.assert_close(embeds, torch.cat(each, dim=1), atol=1e-5, rtol=0)
    mean = torch.stack([model.vision_proj(one[:, 0]) for one in each]).mean(0)
    torch.testing.assert_close(model.image_features(embeds), F.normalize(mean, dim=-1), atol=1e-5, rtol=0)
    back = model.encode_pixels(videos.flip(1))  # no frame has a place in time
    text = TEXT.expand(2, -1)
    torch.testing.assert_close(
        model.match(text, None, model.remember(embeds)), model.match(text, None, model.remember(back)),
        atol=1e-4, rtol=0,
    )  # fmt: skip
    alone = model.match(text, None, model.remember(each[0]))
    assert (model.match(text, None, model.remember(embeds)) - alone).abs().max() > 1e-2


@torch.no_grad()
def test_momentum_copies_read_videos_as_the_model_does() -> None:
    model = small.model()
    images = model.vision.normalize(pixels(2, 3))
    found, _ = MomentumCopy(model, 0.9).features(images, TEXT.expand(2, -1), None)
    torch.testing.assert_close(found, model.image_features(model.encode_image(images)), atol=1e-5, rtol=0)


# ---- retrieval and questions ----


def colored(folder: Path) -> Path:
    """Videos of a colour each with captions, and one that cannot be read."""
    rows = []
    for number in range(6):
        image = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        make_video(folder / "videos" / f"{number}.mkv", [image, frame(30 * number, (32, 32))])
        rows.append({"video": f"videos/{number}.mkv", "caption": small.TEXTS[number]})
    return miniature.write(folder / "captions.jsonl", rows, lines=True)


def test_retrieval_of_videos_is_that_of_their_frames(tmp_path: Path) -> None:
    """The same numbers as from pixels that are decoded by hand."""
    needs_av()
    file = colored(tmp_path)
    adapter = small.predictor(small.model(), small.tokenizer()).adapter
    source = open_source(f"{file}?frames=2")
    found = evaluate_retrieval(
        adapter, evaluation_batches([source], small.PIXELS, samples=10, clean="simplify"), rerank_k=3
    )
    (batch,) = evaluation_batches([source], small.PIXELS, samples=10, clean="simplify", batch_size=12)
    assert batch.images.shape == (6, 2, 3, 32, 32)
    assert batch.images[1, 1, 0, -1, -1] == 30
    with torch.no_grad():
        model: Any = adapter.model
        each = torch.stack([model.vision_proj(model.encode_pixels(batch.images[:, k])[:, 0]) for k in (0, 1)])
        videos = F.normalize(each.mean(0), dim=-1)
        tokens = small.tokenizer().encode(batch.texts)
        texts = model.text_features(tokens.input_ids, tokens.attention_mask)
    places = (texts @ videos.T).argsort(dim=1, descending=True)
    first = float((places[:, 0] == torch.arange(6)).float().mean())
    assert found["t2i_recall@1"] == pytest.approx(first)
    assert {"t2i_recall_itm@1", "t2i_recall_itm@10"} <= found.keys()


@pytest.mark.parametrize("spec", ["msrvtt:test", "msrvtt:test?frames=3"])
def test_text_to_video_retrieval_by_command(
    spec: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_av()
    miniature.msrvtt(tmp_path)
    monkeypatch.setenv(DATA_ROOT, str(tmp_path))
    save_model(tmp_path / "m", StoredModel(small.model().part(encoder=True, decoder=False), small.tokenizer()))
    assert main(["evaluate", spec, "--model", str(tmp_path / "m"), "--device", "cpu"]) == 0
    metrics = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert metrics["t2i_recall@5"] == 1.0
    assert metrics["t2i_recall_itm@1"] in (0.0, 0.5, 1.0)


def test_a_broken_video_is_told_and_the_figures_are_not_those_of_the_split(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    needs_av()
    file = colored(tmp_path)
    (tmp_path / "videos" / "3.mkv").write_bytes(b"")
    save_model(tmp_path / "m", StoredModel(small.model(), small.tokenizer()))
    words = ["--model", str(tmp_path / "m"), "--device", "cpu", "--out", str(tmp_path / "found")]
    assert main(["evaluate", f"{file}?frames=2", *words]) == 1
    printed = capsys.readouterr()
    assert "measured on 5 images, without 1 that cannot be used (1 empty)" in printed.err
    metrics = json.loads(printed.out.splitlines()[-1])
    assert [one["key"] for one in metrics["left_out"]] == ["videos/3.mkv"]
    for name in ("t2i_recall@1", "t2i_recall_itm@5"):  # as benchmarks of videos count it
        assert metrics[f"{name}, unread missed"] == pytest.approx(
            metrics[name] * 5 / 6, abs=1e-6
        )  # printed rounded
    assert "i2t_recall@1, unread missed" not in metrics


def test_questions_about_videos_by_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_av()
    for make in (miniature.msrvtt, miniature.msrvttqa):
        make(tmp_path)
    monkeypatch.setenv(DATA_ROOT, str(tmp_path))
    answers = {"answers": ["run", "man"]}
    save_model(tmp_path / "m", StoredModel(small.vqa_model(), small.vqa_tokenizer(), answers))
    out = tmp_path / "found"
    words = ["--model", str(tmp_path / "m"), "--device", "cpu", "--out", str(out)]
    assert main(["evaluate", "msrvttqa:test", *words]) == 0
    metrics = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"accuracy_generated", "accuracy_ranked", "accuracy_ranked, what", "accuracy_ranked, who"} <= set(
        metrics
    )
    records = kept_predictions(out)
    assert [record["question_id"] for record in records] == [100, 101]
    assert {record["ranked"] for record in records} <= {"run", "man"}


@pytest.mark.slow
def test_a_run_is_trained_on_videos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Which of four videos a caption is of shows in their second frame alone."""
    needs_av()
    rows = []
    for number in range(4):
        make_video(tmp_path / f"{number}.mkv", [frame(128, (32, 32)), frame(20 + 70 * number, (32, 32))])
        rows.append({"video": f"{number}.mkv", "caption": small.TEXTS[number]})
    file = miniature.write(tmp_path / "captions.jsonl", rows, lines=True)
    run = ["train", "small-pretrain", f"{file}?frames=2", "--out", str(tmp_path / "run"), "--model", "nano"]
    settings = ("image_size=32", "batch_size=4", "num_workers=0", "train.precision=float32")
    assert main([*run, "--steps", "60", *(word for one in settings for word in ("--set", one))]) == 0
    capsys.readouterr()
    words = ["--model", str(tmp_path / "run" / "model"), "--device", "cpu"]
    assert main(["evaluate", f"{file}?frames=2", *words]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["t2i_recall@1"] == 1.0


def test_images_and_videos_are_read_together_where_frames_are_named(tmp_path: Path) -> None:
    needs_av()
    image = frame(30, (32, 32))
    make_video(tmp_path / "a.mkv", [image])
    Image.fromarray(image).save(tmp_path / "b.png")
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("a red bus\n")
    (batch,) = evaluation_batches([open_source(f"{tmp_path}?frames=2")], small.PIXELS, samples=4, clean="none")
    assert batch.keys == ["a.mkv", "b.png"]
    assert torch.equal(batch.images[0], batch.images[1])
