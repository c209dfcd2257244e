"""NLVR2 as a task: batches, evaluation, runs, and the commands `train`, `evaluate` and `judge`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from kept_results import kept_predictions
from PIL import Image
from small import PIXELS, make_image, predictor, tokenizer

from openblip.checkpoints.store import StoredModel, open_model, save_model
from openblip.cli.entry import main
from openblip.core.errors import UserError
from openblip.data.sample import Batch
from openblip.data.sources.labels import Statement
from openblip.models.blip import Blip, blip_config
from openblip.models.nlvr import BlipNlvr, NlvrConfig
from openblip.recipes.catalogue import recipe_named
from openblip.tasks.load import load
from openblip.tasks.nlvr import evaluate_statements, prepare_statements, swap_sides
from openblip.tasks.registry import task_of
from openblip.tasks.training import evaluate_model, run_training

COLORS = {"red": (220, 30, 30), "blue": (30, 30, 220), "green": (30, 200, 30)}
STATEMENTS = (
    ("the left bus is on the right road", True, "a"),
    ("two dogs", False, "b"),
    ("a bright red chair", False, "a"),
)


def judge_model(seed: int = 0) -> BlipNlvr:
    """A nano model whose judgements differ between images."""
    torch.manual_seed(seed)
    sizes = blip_config("nano", vocab_size=tokenizer().vocab_size, image_size=PIXELS)
    model = BlipNlvr(NlvrConfig(vision=sizes.vision, text=sizes.text, merge_from=1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return model.eval()


def batch(owners: tuple[int, ...] = (0, 0, 1)) -> Batch:
    """Pairs of images with `STATEMENTS`, each about the pair in `owners`."""
    count = max(owners) + 1
    images = torch.randint(0, 256, (count, 2, 3, PIXELS, PIXELS), generator=torch.Generator().manual_seed(0))
    own = [
        tuple(Statement(*one) for one, owner in zip(STATEMENTS, owners, strict=True) if owner == pair)
        for pair in range(count)
    ]
    return Batch(
        images=images.to(torch.uint8),
        texts=[statement.text for statements in own for statement in statements],
        image_ids=torch.arange(count),
        keys=[f"pair-{pair}" for pair in range(count)],
        meta=[{"statements": statements} for statements in own],
        image_index=torch.tensor(owners),
    )


def color_pairs(folder: Path, split: str, count: int) -> Path:
    """Pairs of plain images in random colours, with statements that say which colour is on which side."""
    generator = torch.Generator().manual_seed(len(split))
    names = list(COLORS)
    (folder / split).mkdir()
    lines = []
    for pair in range(count):
        left, right, said, side = (int(torch.randint(high, (1,), generator=generator)) for high in (3, 3, 3, 2))
        said = (left, right)[side] if pair % 2 else said
        for image, color in enumerate((left, right)):
            shown = Image.new("RGB", (PIXELS, PIXELS), COLORS[names[color]])
            shown.save(folder / split / f"{split}-0-{pair}-img{image}.png")
        sentence = f"The {('left', 'right')[side]} image is {names[said]}."
        label = str((left, right)[side] == said)
        lines.append({"identifier": f"{split}-0-{pair}-{3 * side + said}", "sentence": sentence, "label": label})
    (folder / f"{split}.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / f"{split}.json"


# ---- batches ----


def test_sides_are_whole_words() -> None:
    assert swap_sides("The Left bus, right of a bright road") == "The right bus, left of a bright road"


def test_batches_hold_the_statements_of_each_pair_with_their_labels() -> None:
    words = tokenizer()
    prepared = prepare_statements(words, max_length=20, swap=False)(batch())
    assert prepared.images.shape == (2, 2, 3, PIXELS, PIXELS)
    assert prepared.labels.tolist() == [1, 0, 0]
    assert prepared.pair_of is not None
    assert prepared.pair_of.tolist() == [0, 0, 1]
    assert prepared.num_scored == 3
    assert prepared.statements.input_ids[:, 0].tolist() == [words.enc_id] * 3
    even = prepare_statements(words, max_length=20)(batch((0, 1, 2)))
    assert even.pair_of is None


def test_pairs_are_swapped_with_their_sides_in_training_alone() -> None:
    words, given = tokenizer(), batch()
    plain = prepare_statements(words, clean="none", max_length=40, swap=False)
    torch.manual_seed(0)
    seen = set()
    for _ in range(20):
        prepared = prepare_statements(words, clean="none", max_length=40)(given)
        for pair in (0, 1):
            kept = torch.equal(prepared.images[pair], given.images[pair])
            assert kept or torch.equal(prepared.images[pair], given.images[pair].flip(0))
            seen.add((pair, kept))
        texts = words.decode(prepared.statements.input_ids[0].tolist())
        kept = torch.equal(prepared.images[0], given.images[0])
        expected = given.texts[0] if kept else swap_sides(given.texts[0])
        assert texts == words.decode(words.encode([expected], first="enc").input_ids[0].tolist())
    assert seen == {(pair, kept) for pair in (0, 1) for kept in (True, False)}
    assert torch.equal(plain(given).images, given.images)


# ---- evaluation ----


def test_evaluation_is_what_the_predictor_judges_and_the_same_each_time() -> None:
    model = predictor(judge_model(), tokenizer())
    metrics, records = evaluate_statements(model.adapter, [batch()])
    again, _ = evaluate_statements(model.adapter, [batch()], max_rows=1)
    assert again == pytest.approx(metrics)
    right = [record["prediction"] == record["label"] for record in records]
    assert metrics["accuracy"] == pytest.approx(sum(right) / 3)
    assert metrics["consistency"] == pytest.approx(((right[0] and right[2]) + right[1]) / 2)
    images = batch().images
    alone = [
        model.judge(*(Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images[pair]), text)[0]
        for pair, (text, _, _) in zip((0, 0, 1), STATEMENTS, strict=True)
    ]
    probabilities = [record["probability"] for record in records]
    assert probabilities == pytest.approx([judgement.probability for judgement in alone], abs=1e-5)
    assert len({round(p, 3) for p in probabilities}) == 3  # type: ignore[call-overload]


def test_a_finished_model_is_evaluated_as_what_it_is(tmp_path: Path) -> None:
    save_model(tmp_path / "m", StoredModel(judge_model(), tokenizer()))
    assert task_of(load(tmp_path / "m", device="cpu").adapter) == "nlvr"
    blip = predictor(Blip(blip_config("nano", vocab_size=tokenizer().vocab_size, image_size=PIXELS)), tokenizer())
    with pytest.raises(UserError, match="judging pairs of images needs a BLIP NLVR2 model"):
        blip.judge(make_image(0), make_image(1), "two dogs")


# ---- runs and commands ----


@pytest.mark.slow
def test_a_run_learns_which_image_is_which_colour(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, test = color_pairs(tmp_path, "train", 160), color_pairs(tmp_path, "test1", 40)
    run = ("train", "small-nlvr", str(train), "--out", str(tmp_path / "run"), "--model", "nano", "--steps", "250")
    settings = ("image_size=32", "batch_size=16", "num_workers=0")
    assert main([*run, *(part for setting in settings for part in ("--set", setting))]) == 0
    model = tmp_path / "run" / "model"
    capsys.readouterr()
    found = tmp_path / "evaluation"
    assert main(["evaluate", str(test), "--model", str(model), "--device", "cpu", "--out", str(found)]) == 0
    metrics = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert metrics["accuracy"] >= 0.95
    assert 0 < metrics["consistency"] <= 1
    assert metrics["standard_error"] < 0.1
    records = kept_predictions(found)
    assert len(records) == 40
    assert records[0].keys() >= {"key", "statement", "label", "prediction", "probability", "group"}
    for color in ("red", "blue"):
        Image.new("RGB", (PIXELS, PIXELS), COLORS[color]).save(tmp_path / f"{color}.png")
    sides = ("The left image is red.", "The left image is blue.", "The right image is blue.")
    texts = [part for text in sides for part in ("--text", text)]
    images = [str(tmp_path / "red.png"), str(tmp_path / "blue.png")]
    assert main(["judge", *images, "--model", str(model), "--device", "cpu", *texts]) == 0
    judged = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert judged[0]["probability"] > judged[1]["probability"]
    expected = load(model, device="cpu").judge([images[0]] * 3, [images[1]] * 3, sides)
    assert [(one["text"], one["true"]) for one in judged] == [(one.text, one.true) for one in expected]
    assert judged[0]["images"] == images


def test_a_run_starts_from_a_pretrained_model_and_from_one_for_nlvr(tmp_path: Path) -> None:
    words = tokenizer()
    torch.manual_seed(0)
    blip = Blip(blip_config("nano", vocab_size=words.vocab_size, image_size=PIXELS))
    save_model(tmp_path / "blip", StoredModel(blip, words))
    train = color_pairs(tmp_path, "train", 32)
    small = recipe_named("small-nlvr")

    def first_step(start: Path, out: Path) -> BlipNlvr:
        config = small.config((str(train),), model=str(start), validation=(str(train),), steps=1)
        run_training(config, out, show=False)
        metrics, _ = evaluate_model(config, load(out / "model", device="cpu").adapter)
        assert metrics.keys() == {"accuracy", "consistency", "standard_error"}
        return open_model(out / "model").model

    trained = first_step(tmp_path / "blip", tmp_path / "one")
    assert trained.config.merge_from == 1
    block, source = trained.text_encoder.text_blocks[0], blip.encoder.text_blocks[0].cross_attention.key_value
    for part in (block.cross_attention, block.cross_attention.second):
        torch.testing.assert_close(part.key_value.weight, source.weight, atol=0.02, rtol=0)
    again = first_step(tmp_path / "one" / "model", tmp_path / "two")
    first, second = (model.head[0].weight for model in (trained, again))
    torch.testing.assert_close(first, second, atol=0.02, rtol=0)


def test_the_recipe_of_the_paper(tmp_path: Path) -> None:
    config = recipe_named("blip-nlvr").config(("nlvr2.json",), model="base", validation=("dev.json",))
    assert (config.task, config.image_size, config.train.monitor) == ("nlvr", 384, "accuracy")
    assert (config.train.learning_rate, config.train.epochs) == (3e-5, 15)
    with pytest.raises(UserError, match='the task "nlvr" is not available for blip2'):
        run_training(type(config)(sources=config.sources, family="blip2", task="nlvr"), tmp_path / "run")


def test_data_without_statements_are_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "captions.jsonl").write_text(json.dumps({"image": "a.png", "caption": "a dog"}) + "\n")
    data = str(tmp_path / "captions.jsonl")
    assert main(["train", "small-nlvr", data, "--out", str(tmp_path / "run"), "--model", "nano"]) == 2
    output = capsys.readouterr().err.strip()
    assert "has no label column" in output
    assert "\n" not in output
