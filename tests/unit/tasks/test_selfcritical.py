"""Self-critical training: its gradient is that of the expected reward, the reward rises, a run resumes exactly."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small
import torch
from PIL import Image

from openblip.core.config import override
from openblip.core.errors import UserError
from openblip.data.sources.open import open_source
from openblip.metrics.caption import CiderD
from openblip.models.pixels import normalize
from openblip.objectives.configs import SelfCriticalConfig
from openblip.objectives.selfcritical import CaptionRewards
from openblip.recipes.blip import caption_finetune
from openblip.tasks.config import RunConfig, as_sources
from openblip.tasks.evaluation import evaluation_batches
from openblip.tasks.selfcritical import SelfCritical
from openblip.tasks.training import run_training
from openblip.tasks.vocabulary import texts_of_images

COLOURS = {"red": (210, 40, 40), "green": (40, 180, 60), "blue": (40, 60, 200)}


def rewards() -> CaptionRewards:
    texts = {0: ["a red bus", "two dogs"], 1: ["a cat on a red chair"], 2: ["the road", "a long road"]}
    return CaptionRewards({image: [CaptionRewards.words_of(text) for text in own] for image, own in texts.items()})


def objective(**settings: Any) -> SelfCritical:
    config = SelfCriticalConfig(**{"samples": 4, "max_new_tokens": 6, **settings})
    return SelfCritical(
        small.model().part(encoder=False, decoder=True), config, small.tokenizer(), rewards(), prompt="a "
    )


def test_a_caption_that_stops_early_is_rewarded_less_and_its_end_is_a_word() -> None:
    ended, cut = CaptionRewards.words_of("a red bus"), CaptionRewards.words_of("a red bus", ended=False)
    assert len(ended) == len(cut) + 1
    assert rewards().of(0, ended) > rewards().of(0, cut) > rewards().of(0, CaptionRewards.words_of("a red"))
    assert rewards().of(1, ended) < rewards().of(0, ended)


def test_document_frequencies_are_those_of_the_collection() -> None:
    """A word that each image's references hold says nothing; one of a single image as much as an unknown one."""
    scorer = CiderD.of([[["a", "cat"]], [["a", "dog"]], [["a", "bird"]]])
    assert scorer.score(["a"], [["a"]]) == 0.0
    assert scorer.score(["cat"], [["cat"]]) == scorer.score(["fish"], [["fish"]]) == pytest.approx(2.5)


@pytest.mark.parametrize("baseline", ["samples", "greedy"])
def test_the_loss_is_the_advantage_times_the_likelihood(baseline: str) -> None:
    """Against captions that are scored one at a time, without folding, cache or padding."""
    step = objective(baseline=baseline).train()
    model, tokenizer, images = step.model, step.tokenizer, normalize(small.batch([0, 1, 2]).images)
    ids = torch.arange(3)
    torch.manual_seed(3)
    found = step(images, ids)
    assert all(module.training for module in model.modules()), "dropout is on again afterwards"
    model.eval()
    torch.manual_seed(3)
    with torch.no_grad():
        memory = model.remember(model.encode_image(images))
        sampled, greedy = step._write(memory, ids, 4), step._write(memory, ids, 0)
    own = [
        step.rewards.of(row, CaptionRewards.words_of(tokenizer.decode(tokens), ended=ended))
        for row, tokens, _, ended in sampled.texts()
    ]
    best = [
        step.rewards.of(row, CaptionRewards.words_of(tokenizer.decode(tokens), ended=ended))
        for row, tokens, _, ended in greedy.texts()
    ]
    total = torch.zeros(())
    for place, (row, tokens, _, _) in enumerate(sampled.texts()):
        group = own[row * 4 : row * 4 + 4]
        base = best[row] if baseline == "greedy" else (sum(group) - own[place]) / 3
        text = [*step.prompt_ids[0].tolist(), *tokens]
        logits = model.decoder(torch.tensor([text]), memory=model.remember(model.encode_image(images[row][None])))
        start = step.prompt_ids.shape[1]
        likelihood = sum(logits[0, i - 1].log_softmax(-1)[text[i]] for i in range(start, len(text)))
        total = total - (own[place] - base) * likelihood
    expected = total / sampled.lengths.sum()
    assert abs(expected.item()) > 1e-3
    # Sums of float32 in another order.
    torch.testing.assert_close(found["loss"], expected, rtol=1e-3, atol=1e-5)
    assert float(found["reward"]) == pytest.approx(sum(own) / len(own), rel=1e-5)
    gradients = [
        torch.autograd.grad(loss, model.decoder.head.bias, retain_graph=True)[0]
        for loss in (found["loss"], expected)
    ]
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-5)


def test_other_seeds_and_images_sample_other_captions() -> None:
    step = objective().eval()
    images = normalize(small.batch([0, 1]).images[:1].repeat(2, 1, 1, 1))
    with torch.no_grad():
        memory = step.model.remember(step.model.encode_image(images))

    def written(seed: int, ids: list[int]) -> list[list[int]]:
        torch.manual_seed(seed)
        return step._write(memory, torch.tensor(ids), 4).ids.tolist()

    assert written(0, [0, 1]) == written(0, [0, 1])
    assert written(0, [0, 1]) != written(1, [0, 1])
    assert written(0, [0, 1])[0] != written(0, [7, 1])[0]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 images of one colour each; every caption is a row of its own, as in COCO's training files."""
    folder = tmp_path_factory.mktemp("captions")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(24):
        name = list(COLOURS)[number % 3]
        pixels = np.clip(rng.normal(COLOURS[name], 12, (32, 32, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
        texts = (f"a {name} field", f"{name} all over")
        rows += [{"image": f"{number}.png", "caption": text, "image_id": number} for text in texts]
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def config(data: Path, *settings: str, model: str = "nano") -> RunConfig:
    made = caption_finetune((str(data / "data.jsonl"),), model=model, validation=())
    quiet = (
        *("batch_size=8", "num_workers=0", "train.trackers=[]", "train.log_every=1", "train.schedule=constant"),
        *("train.warmup_steps=0", "train.learning_rate=2e-3", "prompt=", "image_size=32", "vocab_size=60"),
    )
    return override(made, (*quiet, *settings))


def told(run: Path, name: str) -> list[float]:
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record[name] for record in records if record["split"] == "train"]


@pytest.mark.slow
def test_the_reward_rises_and_a_stopped_run_goes_on_as_if_it_had_not_been(data: Path, tmp_path: Path) -> None:
    """From a captioner that says each of six captions half right; its samples then name the colour."""
    first = config(data, "train.max_steps=30", "tokenizer=train")
    run_training(first, tmp_path / "first", show=False)
    model = str(tmp_path / "first" / "model")
    whole = config(data, "train.max_steps=40", "scst.samples=5", "scst.max_new_tokens=8", model=model)
    run_training(whole, tmp_path / "whole", show=False)
    reward = told(tmp_path / "whole", "reward")
    assert len(reward) == 40
    assert np.mean(reward[-5:]) > np.mean(reward[:5]) + 0.5
    run_training(override(whole, ("train.max_steps=7",)), tmp_path / "parts", show=False)
    run_training(override(whole, ("train.max_steps=12",)), tmp_path / "parts", resume=True, show=False)
    assert told(tmp_path / "parts", "loss") == told(tmp_path / "whole", "loss")[:12]


def test_images_of_several_sources_find_their_texts(data: Path, tmp_path: Path) -> None:
    """Images of both count from 0; each is rewarded by the texts of its own source."""
    other = data / "other.jsonl"
    lines = [json.loads(line) for line in (data / "data.jsonl").read_text().splitlines()]
    moved = [row | {"caption": f"other {row['image_id']}"} for row in lines]
    other.write_text("".join(json.dumps(row) + "\n" for row in moved))
    places = as_sources((str(data / "data.jsonl"), str(other)))
    sources = [open_source(place) for place in places]
    texts = texts_of_images(sources, clean="simplify")
    loader = evaluation_batches(places, 32, samples=1000, clean="simplify")
    found = {
        image: own
        for batch in loader
        for image, own in zip(batch.image_ids.tolist(), batch.texts_of_images, strict=True)
    }
    assert len(found) == 48
    assert {image: set(own) for image, own in texts.items()} == {image: set(own) for image, own in found.items()}
    both = replace(config(data, "scst.samples=2", "train.max_steps=1", "tokenizer=train"), sources=places)
    run_training(both, tmp_path / "run", show=False)
    assert len(told(tmp_path / "run", "reward")) == 1


def test_settings_that_make_no_sense_are_refused(data: Path) -> None:
    with pytest.raises(UserError, match="greedy"):
        config(data, "scst.samples=1")
    with pytest.raises(UserError, match="scst trains captioners"):
        replace(config(data, "scst.samples=2"), task="retrieval")
