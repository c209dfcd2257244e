"""VQAv2, A-OKVQA and GQA from miniature copies: measures by the datasets' own rules, files for their servers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import miniature
import pytest
import small
import torch
from kept_results import kept_predictions
from torch import Tensor

from openblip.checkpoints.store import StoredModel, save_model
from openblip.cli.entry import main
from openblip.core.errors import UserError
from openblip.core.places import DATA_ROOT
from openblip.data.sample import Batch
from openblip.data.sources.questions import open_questions
from openblip.generation.config import DecodeConfig
from openblip.tasks.answering import evaluate_answers, prepare_questions
from openblip.tasks.evaluation import evaluation_batches
from openblip.tasks.results import Answer
from openblip.tasks.submission import question_ids, write_submission


class Oracle:
    """A model that answers as it is told; the first of all choices is the likeliest."""

    device = torch.device("cpu")

    def __init__(self, say: Callable[[str], str]) -> None:
        self.say = say

    def encode(self, images: Tensor) -> Tensor:
        return images

    def remember(self, embeds: Tensor) -> Any:
        return self

    def select(self, index: Tensor) -> Any:
        return self

    def ask(self, memory: Any, questions: Sequence[str], **options: Any) -> list[str]:
        return list(questions)

    def answers(self, asked: list[str], config: DecodeConfig) -> list[tuple[Answer, ...]]:
        return [(Answer(self.say(question), -1.0, 1.0),) for question in asked]

    def measured_question(self, text: str) -> str:
        return text

    def rank(
        self, asked: list[str], candidates: Sequence[str], *, keep: int = 128, label_smoothing: float = 0.0
    ) -> list[tuple[Answer, ...]]:
        assert keep >= len(candidates)
        return [tuple(Answer(text, -1.0, 0.5) for text in candidates) for _ in asked]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for make in (miniature.coco, miniature.vqav2, miniature.okvqa, miniature.aokvqa, miniature.gqa):
        make(root)
    return root


@pytest.fixture(autouse=True)
def _named(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(DATA_ROOT, str(root))


def batches(spec: str) -> Iterator[Batch]:
    return evaluation_batches([open_questions(spec)], 16, samples=100, clean="none")


def measured(spec: str, say: Callable[[str], str]) -> tuple[dict[str, float], list[dict[str, Any]]]:
    return evaluate_answers(Oracle(say), batches(spec), DecodeConfig())  # type: ignore[arg-type]


def test_vqav2_by_the_official_rule_and_by_kind() -> None:
    """A unanimous "yes" is not "Yes."; of two askings of one question each has its own answers; "" is an answer."""
    answers = {"What is this?": "Net", "Is it red?": "Yes.", "How many?": "2"}
    metrics, records = measured("vqav2:val", answers.__getitem__)
    assert [record["accuracy_generated"] for record in records] == pytest.approx([1.0, 0.0, 0.0, 1.0])
    assert [record["question_id"] for record in records] == [42000, 42001, 42002, 73000]
    assert metrics == pytest.approx(
        {
            "accuracy_generated": 0.5,
            "accuracy_generated, other": 0.5,
            "accuracy_generated, yes/no": 0.0,
            "accuracy_generated, number": 1.0,
        }
    )
    metrics, _ = measured("vqav2:val?rule=normalised", answers.__getitem__)
    assert metrics["accuracy_generated, yes/no"] == 1.0


def test_questions_are_put_as_the_model_is_to_be_measured() -> None:
    class Shouting(Oracle):
        def measured_question(self, text: str) -> str:
            return text.upper()

    heard: list[str] = []
    _, records = evaluate_answers(
        Shouting(lambda question: heard.append(question) or "2"),  # type: ignore[arg-type, func-returns-value]
        batches("vqav2:val"),
        DecodeConfig(),
    )
    asked = [str(record["question"]) for record in records]
    assert heard == [question.upper() for question in asked] != asked


def test_base_forms_are_measured_beside_the_official_accuracy() -> None:
    """As LAVIS measures OK-VQA: the answer that is generated is turned into base forms, those given are not."""
    said = "nets"
    metrics, records = evaluate_answers(
        Oracle(lambda _: said),  # type: ignore[arg-type]
        batches("vqav2:val"),
        DecodeConfig(),
        lemmas=lambda text: text.removesuffix("s"),
    )
    assert records[0]["lemmas"] == said.removesuffix("s")
    assert (records[0]["accuracy_generated"], records[0]["accuracy_generated, lemmas"]) == (0.0, 1.0)
    assert metrics["accuracy_generated, lemmas"] > metrics["accuracy_generated"]
    assert {"accuracy_generated, lemmas, other", "accuracy_generated, other"} <= metrics.keys()


def test_aokvqa_direct_answers_leave_the_difficult_out_and_choices_are_exact() -> None:
    metrics, records = measured("aokvqa:val", lambda question: "ride" if "1" in question else "train")
    assert ["accuracy_generated" in record for record in records] == [True, True, False]
    assert [record["accuracy_choice"] for record in records] == [1.0, 0.0, 0.0]  # the first is always chosen
    assert metrics == pytest.approx(
        {
            "accuracy_generated": (2 / 3 + 0) / 2,
            "accuracy_generated, difficult too": (2 / 3 + 0 + 2 / 3) / 3,
            "accuracy_choice": 1 / 3,
        }
    )


def test_gqa_exact_beside_normalised() -> None:
    answers = {"0": "jeans", "1": "yes", "2": "bed"}
    metrics, _ = measured("gqa:testdev", lambda question: answers[question[-2]])
    assert metrics == pytest.approx(
        {
            "accuracy_generated": 1 / 3,
            "accuracy_generated, open": 0.0,
            "accuracy_generated, binary": 1.0,
            "accuracy_generated, normalised": 1.0,
            "accuracy_generated, normalised, open": 1.0,
            "accuracy_generated, normalised, binary": 1.0,
        }
    )


def test_okvqa_is_measured_as_vqa() -> None:
    assert measured("okvqa:val", lambda question: "tennis")[0] == {"accuracy_generated": 1.0}


def test_a_test_split_is_predicted_only_and_not_trained_on() -> None:
    metrics, records = measured("vqav2:test", lambda question: "net")
    assert metrics == {"num_unanswered": 2.0}
    assert [(record["question_id"], record["generated"]) for record in records] == [(1000, "net"), (14000, "net")]
    prepare = prepare_questions(small.vqa_tokenizer())
    with pytest.raises(UserError, match="no answers to train on"):
        prepare(next(batches("vqav2:test")))


@pytest.mark.parametrize(
    ("spec", "form", "expected"),
    [
        ("vqav2:test", "vqa", [{"question_id": 1000, "answer": "net"}, {"question_id": 14000, "answer": "net"}]),
        (
            "aokvqa:test",
            "aokvqa",
            {f"22testQ{k}zzz": {"multiple_choice": "Ride", "direct_answer": "net"} for k in range(3)},
        ),
        (
            "gqa:test",
            "gqa",
            [{"questionId": f"20{n}0000{n}", "prediction": "net"} for n in range(3)],
        ),
    ],
)
def test_submission_files(spec: str, form: Any, expected: Any, tmp_path: Path) -> None:
    _, records = measured(spec, lambda question: "net")
    assert write_submission(tmp_path / "out.json", form, records, question_ids(open_questions(spec))) == len(
        records
    )
    assert json.loads((tmp_path / "out.json").read_text()) == expected


@pytest.mark.parametrize(
    ("ids", "expected", "form", "message"),
    [
        ([1, 2, 2], [1, 2], "vqa", "question 2 is answered twice"),  # the padded tail of a distributed evaluation
        ([1, 2], [1, 2, 2], "vqa", "the data have question 2 twice"),
        ([1], [1, 2, 3], "vqa", "needs all 3 questions, and 2 have no prediction, the first 2"),
        ([1, 2], [1], "vqa", "question 2 is not among those of the data"),
        (["1a"], ["1a"], "vqa", "'1a' is not an integer"),
        ([None], [None], "gqa", "has no question_id"),
    ],
)
def test_submissions_are_whole_or_refused(
    ids: list[Any], expected: list[Any], form: Any, message: str, tmp_path: Path
) -> None:
    records = [{"question_id": number, "generated": "yes"} for number in ids]
    with pytest.raises(UserError, match=message):
        write_submission(tmp_path / "out.json", form, records, expected)
    assert not (tmp_path / "out.json").exists()


def test_the_best_of_given_answers_is_submitted_and_ids_have_the_servers_type(tmp_path: Path) -> None:
    records = [{"question_id": "7", "generated": "a", "ranked": "b"}]
    write_submission(tmp_path / "vqa.json", "vqa", records, ["7"])
    assert json.loads((tmp_path / "vqa.json").read_text()) == [{"question_id": 7, "answer": "b"}]
    write_submission(tmp_path / "gqa.json", "gqa", [{**records[0], "question_id": 7}], [7])
    assert json.loads((tmp_path / "gqa.json").read_text()) == [{"questionId": "7", "prediction": "b"}]


@pytest.fixture(scope="module")
def vqa(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "vqa"
    info = {"task": "vqa", "answers": list(small.ANSWERS)}
    save_model(folder, StoredModel(small.vqa_model(), small.vqa_tokenizer(), info))
    return folder


def test_the_command_writes_a_submission_and_says_that_there_is_no_measure(
    vqa: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATA_ROOT, "")
    out = tmp_path / "vqa.json"
    words = ["--model", str(vqa), "--device", "cpu", "--data-root", str(root), "--samples", "1"]
    assert main(["evaluate", "vqav2:test", *words, "--submission", str(out)]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == {"num_unanswered": 2.0}
    assert "2 questions without answers in the data: predictions only" in printed.err
    rows = json.loads(out.read_text())
    assert [row["question_id"] for row in rows] == [1000, 14000]
    assert all(row["answer"] in small.ANSWERS for row in rows)
    assert main(["evaluate", "vqav2:test", *words, "--submission", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["evaluate", "okvqa:val", *words, "--submission", str(tmp_path / "ok.json")]) == 2
    assert "for one split of coco, nocaps, vqav2, aokvqa, gqa, nlvr2" in capsys.readouterr().err


def test_a_broken_image_keeps_the_submission_from_being_written(
    vqa: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATA_ROOT, str(tmp_path))
    miniature.coco(tmp_path)
    miniature.vqav2(tmp_path)
    broken = tmp_path / "coco" / "images" / "test2015" / "COCO_test2015_000000000014.jpg"
    broken.write_bytes(broken.read_bytes()[:40])
    words = ["--model", str(vqa), "--device", "cpu", "--submission", str(tmp_path / "out.json")]
    assert main(["evaluate", "vqav2:test", *words, "--out", str(tmp_path / "test")]) == 2
    assert "needs all 2 questions, and 1 have no prediction, the first 14000" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()
    (answered,) = kept_predictions(tmp_path / "test")
    assert answered["question_id"] == 1000, "what was computed is kept"


def test_a_submission_needs_a_model_that_answers(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATA_ROOT, str(root))
    save_model(tmp_path / "model", StoredModel(small.model(), small.tokenizer()))
    words = ["--model", str(tmp_path / "model"), "--device", "cpu", "--submission", str(tmp_path / "out.json")]
    assert main(["evaluate", "vqav2:test", *words]) == 2
    assert "--submission needs a model that answers questions" in capsys.readouterr().err


def test_a_model_without_answers_to_rank_is_told_of_the_published_list(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(DATA_ROOT, "")
    save_model(tmp_path / "vqa", StoredModel(small.vqa_model(), small.vqa_tokenizer(), {"task": "vqa"}))
    words = ["--model", str(tmp_path / "vqa"), "--device", "cpu", "--data-root", str(root)]
    (tmp_path / "answers.txt").write_text("yes\nno\n")
    for more, told in (([], True), (["--answers", str(tmp_path / "answers.txt")], False)):
        assert main(["evaluate", "vqav2:val", *words, *more]) == 0
        said = capsys.readouterr().err
        assert ("BLIP's figures on VQAv2 are by ranking" in said and "answer_list.json" in said) == told
