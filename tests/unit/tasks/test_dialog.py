"""Dialogs as a task: what is read of a dialog, ranks against a plain computation, runs and commands."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator
from pathlib import Path

import miniature
import numpy as np
import pytest
import small
import torch
from kept_results import kept_predictions

from openblip.checkpoints.store import StoredModel, save_model
from openblip.cli.entry import main
from openblip.core.errors import UserError
from openblip.core.places import DATA_ROOT
from openblip.core.tokenizer import TextTokenizer
from openblip.data.sample import Batch
from openblip.data.sources.dialogs import Dialog, Round, dialog_of, open_dialogs
from openblip.models.blip import Blip, blip_config
from openblip.models.vqa import BlipVqa, VqaConfig
from openblip.recipes.catalogue import recipe_named
from openblip.tasks.dialog import encode_rounds, evaluate_dialogs, prepare_dialogs, write_ranks
from openblip.tasks.evaluation import evaluation_batches
from openblip.tasks.load import load
from openblip.tasks.registry import task_of
from openblip.tasks.training import set_up

DOG = Dialog(
    7,
    "A dog on a road.",
    (
        Round("is it small", "yes", ("no", "yes"), 1),
        Round("is there a cat", "two", ("two", "no", "a red bus"), 0),
        Round("what is red", "a bus"),
    ),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    miniature.coco(root)
    miniature.visdial(root)
    return root


@functools.cache
def words() -> TextTokenizer:
    said = [f"answer {number} is it question the caption of" for number in range(120)]
    return TextTokenizer.train([*small.TEXTS, *small.QUESTIONS, "yes no two . ?", *said] * 3, vocab_size=300)


def model(seed: int = 0) -> StoredModel:
    """A nano VQA model with the tokenizer of `words`."""
    torch.manual_seed(seed)
    sizes = blip_config("nano", vocab_size=words().vocab_size, image_size=small.PIXELS)
    vqa = BlipVqa(VqaConfig(vision=sizes.vision, text=sizes.text))
    with torch.no_grad():
        for parameter in vqa.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return StoredModel(vqa.eval(), words())


def batches(spec: str) -> Iterator[Batch]:
    return evaluation_batches([open_dialogs(spec)], small.PIXELS, samples=100, clean="none")


# ---- what is read ----


def test_a_dialog_is_read_with_caption_and_earlier_rounds() -> None:
    tokenizer = words()
    first, third = encode_rounds(tokenizer, DOG, (0, 2), max_length=64)

    def ids(*texts: str) -> list[int]:
        parts = [tokenizer.encode([text], first="enc", end=True).input_ids[0].tolist() for text in texts]
        return [tokenizer.enc_id, *(token for part in parts for token in part[1:])]

    assert first == ids("a dog on a road", "is it small")
    assert third == ids("a dog on a road", "is it small yes", "is there a cat two", "what is red")


def test_long_dialogs_lose_their_earliest_rounds_then_the_caption() -> None:
    tokenizer = words()
    (whole,) = encode_rounds(tokenizer, DOG, (2,), max_length=64)
    (caption, one, two, question) = np.split(whole, np.flatnonzero(np.array(whole) == tokenizer.sep_id)[:-1] + 1)
    less = encode_rounds(tokenizer, DOG, (2,), max_length=len(whole) - 1)[0]
    assert less == [*caption, *two, *question]  # the first round goes as a whole
    least = encode_rounds(tokenizer, DOG, (2,), max_length=1 + len(question) + 3)[0]
    assert least == [*caption[:3], tokenizer.sep_id, *question]
    tiny = encode_rounds(tokenizer, DOG, (2,), max_length=4)[0]
    assert tiny == [tokenizer.enc_id, *question[-3:]]
    assert len(one) > 3
    for length in range(3, 64):
        assert all(len(row) <= length for row in encode_rounds(tokenizer, DOG, (0, 1, 2), max_length=length))


def test_every_round_with_an_answer_is_trained_on(root: Path) -> None:
    tokenizer = words()
    (train,) = batches(f"visdial:train?root={root}")
    prepared = prepare_dialogs(tokenizer, max_length=64)(train)
    assert len(prepared.questions) == prepared.num_scored == 20
    assert prepared.image_of is None
    assert prepared.weights.tolist() == [1.0] * 20
    texts = [tokenizer.decode(row[1:]) for row in prepared.answers.input_ids]
    assert texts == [one.answer for meta in train.meta for one in dialog_of(meta).rounds]
    (test,) = batches(f"visdial:test?root={root}")
    ragged = prepare_dialogs(tokenizer, max_length=64)(test)
    assert ragged.image_of is not None
    assert torch.bincount(ragged.image_of).tolist() == [9, 2]
    test.meta = [{"dialog": Dialog(1, "", (Round("is it"),))}] * 2
    with pytest.raises(UserError, match="no answers to train on"):
        prepare_dialogs(tokenizer)(test)


# ---- ranks ----


def plain_likelihoods(stored: StoredModel, batch: Batch, image: int, place: int) -> list[float]:
    """Of each candidate alone, with the image encoded for it."""
    vqa, tokenizer, dialog = stored.model, stored.tokenizer, dialog_of(batch.meta[image])
    ids = torch.tensor(encode_rounds(tokenizer, dialog, (place,), max_length=64))
    found = []
    for option in dialog.rounds[place].options:
        states = vqa.read_question(ids, None, vqa.remember(vqa.encode_pixels(batch.images[image : image + 1])))
        answer = tokenizer.encode([option], first="dec").input_ids
        logits = vqa.text_decoder(answer, memory=vqa.remember_question(states, None))
        chosen = logits[0, :-1].log_softmax(1).gather(1, answer[0, 1:, None])
        found.append(float(chosen.sum()))
    return found


def shortened(dialog: Dialog) -> Dialog:
    """Its first and its last rounds with 20 candidates, as many as the plain way scores in seconds."""
    rounds = []
    for one in (*dialog.rounds[:2], *dialog.rounds[-2:]):
        chosen = [*range(19), 99 if one.right is None or one.right < 19 else one.right]
        options = tuple(one.options[index] for index in chosen)
        rated = tuple(one.relevance[index] for index in chosen) if one.relevance else ()
        rounds.append(Round(one.question, one.answer, options, options.index(one.answer), rated))
    return Dialog(dialog.image_id, dialog.caption, tuple(rounds))


@torch.no_grad()
def test_ranks_are_those_of_a_plain_computation(root: Path) -> None:
    stored = model()
    adapter = small.predictor(stored.model, stored.tokenizer).adapter
    (batch,) = batches(f"visdial:val?root={root}")
    batch.meta = [{"dialog": shortened(dialog_of(meta))} for meta in batch.meta]
    metrics, records = evaluate_dialogs(adapter, [batch], max_length=64)
    assert len(records) == 8
    ranks, gains = [], []
    for record in records:
        image, place = batch.keys.index(record["key"]), record["round_id"] - 1  # type: ignore[arg-type,operator]
        one = dialog_of(batch.meta[image]).rounds[place]
        scores = plain_likelihoods(stored, batch, image, place)
        order = sorted(range(20), key=lambda index: -scores[index])
        assert sorted(record["ranks"]) == list(range(1, 21))  # type: ignore[call-overload]
        # Candidates whose likelihoods differ by less than float32 computes them may change places.
        ours = [record["ranks"].index(number) for number in range(1, 21)]  # type: ignore[attr-defined]
        assert [scores[index] for index in ours] == pytest.approx([scores[index] for index in order], abs=1e-3)
        ranks.append(record["rank"])
        assert ranks[-1] == record["ranks"][one.right]  # type: ignore[index]
        if one.relevance:
            count = sum(value > 0 for value in one.relevance)
            best = sorted(one.relevance, reverse=True)
            gain = sum(one.relevance[index] / math.log2(at + 2) for at, index in enumerate(ours[:count]))
            gains.append(gain / sum(best[at] / math.log2(at + 2) for at in range(count)))
    assert len(set(ranks)) > 3
    assert gains
    expected = {f"recall@{k}": np.mean([rank <= k for rank in ranks]) for k in (1, 5, 10)}
    expected |= {"mean_rank": np.mean(ranks), "median_rank": np.median(ranks), "ndcg": np.mean(gains)}
    expected["mean_reciprocal_rank"] = np.mean([1 / rank for rank in ranks])
    assert metrics == pytest.approx(expected)
    again, _ = evaluate_dialogs(adapter, [batch], max_length=64, max_rows=3)
    assert again == pytest.approx(metrics)


class Told:
    """A model whose candidates are as likely as it is told."""

    device = torch.device("cpu")
    tokenizer = words()

    def __init__(self, scores: list[float]) -> None:
        self.scores = scores

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def remember(self, embeds: torch.Tensor) -> Told:
        return self

    def select(self, index: torch.Tensor) -> Told:
        return self

    def read(self, memory: Told, questions: object) -> Told:
        return self

    def likelihoods(self, asked: Told, candidates: list[tuple[str, ...]]) -> torch.Tensor:
        width = max(map(len, candidates))
        return torch.tensor([self.scores[:width]] * len(candidates))


def told(scores: list[float], *rounds: Round) -> tuple[dict[str, float], list[dict[str, object]]]:
    dialog = Dialog(1, "a dog", rounds)
    batch = Batch(torch.zeros(1, 1), [], torch.zeros(1), ["1"], [{"dialog": dialog}], torch.zeros(0))
    return evaluate_dialogs(Told(scores), [batch])  # type: ignore[arg-type]


def test_a_round_without_a_relevant_candidate_has_no_ndcg_and_rounds_may_have_fewer_candidates() -> None:
    rated = Round("is it", "a", ("a", "b", "c"), 0, (0.0, 0.0, 0.5))
    metrics, records = told([3.0, 2.0, 1.0], rated, Round("is it", "b", ("a", "b"), 1), Round("and"))
    assert metrics["ndcg"] == 0.0  # k is 1, and the one relevant candidate is last
    assert metrics["mean_rank"] == 1.5
    assert [record["ranks"] for record in records] == [[1, 2, 3], [1, 2]]
    metrics, records = told([3.0, 2.0, 1.0], Round("is it", "a", ("a", "b", "c"), 0, (0.0, 0.0, 0.0)))
    assert "ndcg" not in metrics
    assert metrics["num_without_relevance"] == 1.0
    assert json.loads(json.dumps(records[0]))["ndcg"] is None


def test_equal_likelihoods_count_against_the_answer_and_ranks_stay_a_permutation() -> None:
    metrics, (record,) = told([1.0, 1.0, 1.0], Round("is it", "a", ("a", "b", "c"), 0))
    assert metrics["mean_rank"] == 3.0
    assert record["ranks"] == [1, 2, 3]


def test_a_test_split_is_ranked_only(root: Path) -> None:
    stored = model()
    adapter = small.predictor(stored.model, stored.tokenizer).adapter
    metrics, records = evaluate_dialogs(adapter, batches(f"visdial:test?root={root}"), max_length=64)
    assert metrics == {"num_unanswered": 2.0}
    assert [(one["image_id"], one["round_id"]) for one in records] == [(568676, 10), (543615, 3)]


# ---- submission files ----


def test_submissions_are_whole_or_refused(tmp_path: Path) -> None:
    records = [{"image_id": 1, "round_id": 2, "ranks": [2, 1], "key": "1"}]
    write_ranks(tmp_path / "ranks.json", records, [(1, 2)])
    assert json.loads((tmp_path / "ranks.json").read_text()) == [{"image_id": 1, "round_id": 2, "ranks": [2, 1]}]
    with pytest.raises(UserError, match="1 have no ranks, one of them round 3 of image 1"):
        write_ranks(tmp_path / "more.json", records, [(1, 2), (1, 3)])
    assert not (tmp_path / "more.json").exists()


# ---- runs and commands ----


@pytest.mark.slow
def test_a_run_learns_dialogs_and_is_evaluated_by_command(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATA_ROOT, str(root))
    run = ["train", "small-visdial", "visdial:train", "--out", str(tmp_path / "run"), "--model", "nano"]
    settings = ("image_size=32", "batch_size=2", "num_workers=0", "train.precision=float32")
    assert main([*run, "--steps", "60", *(w for one in settings for w in ("--set", one))]) == 0
    trained = tmp_path / "run" / "model"
    assert task_of(load(trained, device="cpu").adapter) == "dialog"
    capsys.readouterr()
    out = tmp_path / "found"
    words = ["--model", str(trained), "--device", "cpu"]
    assert main(["evaluate", "visdial:train", *words, "--out", str(out)]) == 0
    metrics = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert metrics.keys() >= {"recall@1", "recall@5", "recall@10", "mean_rank", "mean_reciprocal_rank", "ndcg"}
    assert metrics["recall@10"] > 0.5  # of twenty rounds that it was trained on; by chance 0.1
    assert len(kept_predictions(out)) == 20
    assert main(["evaluate", "visdial:test", *words, "--submission", str(tmp_path / "ranks.json")]) == 0
    assert "2 questions without answers in the data: predictions only" in capsys.readouterr().err
    rows = json.loads((tmp_path / "ranks.json").read_text())
    assert [(row["image_id"], row["round_id"]) for row in rows] == [(568676, 10), (543615, 3)]
    assert all(sorted(row["ranks"]) == list(range(1, 101)) for row in rows)


def test_a_model_for_questions_is_evaluated_on_published_dialogs(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATA_ROOT, str(root))
    save_model(tmp_path / "vqa", model())
    assert task_of(load(tmp_path / "vqa", device="cpu").adapter) == "answering"
    assert main(["evaluate", "visdial:val", "--model", str(tmp_path / "vqa"), "--device", "cpu"]) == 0
    assert 1 <= json.loads(capsys.readouterr().out)["mean_rank"] <= 100
    sizes = blip_config("nano", vocab_size=words().vocab_size, image_size=small.PIXELS)
    save_model(tmp_path / "blip", StoredModel(Blip(sizes), words()))
    assert main(["evaluate", "visdial:val", "--model", str(tmp_path / "blip"), "--device", "cpu"]) == 2
    assert "dialogs need a BLIP VQA model" in capsys.readouterr().err


def test_the_recipe_of_the_paper_starts_from_a_pretrained_model(root: Path, tmp_path: Path) -> None:
    sizes = blip_config("nano", vocab_size=words().vocab_size, image_size=small.PIXELS)
    save_model(tmp_path / "blip", StoredModel(Blip(sizes), words()))
    data = f"visdial:train?root={root}"
    config = recipe_named("blip-visdial").config((data,), model="base", validation=(data,))
    assert (config.task, config.image_size, config.train.monitor) == ("dialog", 384, "mean_reciprocal_rank")
    assert (config.train.learning_rate, config.train.epochs) == (2e-5, 20)
    start = recipe_named("blip-visdial").config((data,), model=str(tmp_path / "blip"))
    adapter, (source,), training = set_up(start, tmp_path / "run")
    assert adapter.can == {"answer", "dialog"}
    assert len(source) == 2
    (batch,) = batches(data)
    rows = training.prepare(batch).questions.input_ids
    assert rows.shape[1] <= 64, "no more than the model's positions"
