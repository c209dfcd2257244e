"""Answering questions about images: trained, and evaluated by generating and by ranking given answers.

BLIP: all questions about an image read its one memory, all answers to a question read that question's one memory.
BLIP-2: the language model answers, and the Q-Former reads the question too.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from openblip.core.errors import UserError
from openblip.core.files import write_text
from openblip.core.language_tokenizer import LanguageTokenizer
from openblip.core.runtime import rank
from openblip.core.sharing import joint
from openblip.core.text import read_list
from openblip.core.tokenizer import TextTokenizer, TokenBatch
from openblip.data.clean import clean_question
from openblip.data.sample import Batch
from openblip.data.sources.answers import GivenAnswers
from openblip.data.sources.base import Source
from openblip.data.sources.questions import answers_of, asked_of, open_questions
from openblip.generation.config import DecodeConfig
from openblip.metrics.answers import AS_GIVEN, AccuracyRule, answer_accuracy, normalise_answer
from openblip.metrics.lemmas import lemmatizer
from openblip.objectives.answering import VqaObjective
from openblip.objectives.blip2 import Blip2Stage2
from openblip.tasks.captioning import LanguagePairBatch, Stage2Step
from openblip.tasks.config import QUESTION_TOKENS, RunConfig
from openblip.tasks.feature_cache import FeatureCache
from openblip.tasks.protocols import Adapter, Answers
from openblip.tasks.step import PreparedBatch, Training, TrainingStep, images_of, unless_even
from openblip.tasks.task import Batches, Evaluation, RunData, Task
from openblip.tasks.vocabulary import all_answers

__all__ = [
    "ANSWERING",
    "QuestionBatch",
    "VqaStep",
    "answer_list",
    "encode_questions",
    "evaluate_answers",
    "prepare_answers",
    "prepare_questions",
    "score_answer",
]


@dataclass(frozen=True)
class QuestionBatch(PreparedBatch):
    """What BLIP trains on: B images, Q questions about them, A different answers to these."""

    questions: TokenBatch
    image_of: Tensor | None
    """int64 [Q]; None when there are equally many questions about each image"""
    answers: TokenBatch
    question_of: Tensor | None
    """int64 [A]; None when there are equally many answers to each question"""
    weights: Tensor
    """float32 [A]"""

    @property
    def num_scored(self) -> int:
        """Questions."""
        return len(self.questions)


class VqaStep(TrainingStep[QuestionBatch]):
    """`VqaObjective` over `QuestionBatch`es."""

    def forward(self, batch: QuestionBatch) -> dict[str, Tensor]:
        """Losses of a batch by name."""
        return self.objective(
            self.model.vision.normalize(batch.images),
            batch.questions,
            batch.answers,
            batch.question_of,
            batch.weights,
            image_of=batch.image_of,
            num_questions=self.divisor,
        )


def encode_questions(
    tokenizer: TextTokenizer,
    questions: Sequence[str],
    *,
    clean: str = "simplify",
    max_length: int = QUESTION_TOKENS,
) -> TokenBatch:
    """Questions as BLIP reads them, beginning with [ENC].

    Args:
        clean: as the model was trained: "simplify" lower-cases and drops punctuation, "spaces", "none".
    """
    texts = questions if clean == "none" else [clean_question(q, simplify=clean == "simplify") for q in questions]
    return tokenizer.encode(texts, first="enc", max_length=max_length)


def prepare_questions(
    tokenizer: TextTokenizer, *, clean: str = "simplify", max_length: int = QUESTION_TOKENS
) -> Callable[[Batch], QuestionBatch]:
    """A function from the loader's batches to `QuestionBatch`es.

    Args:
        clean: as `encode_questions`; answers are taken as they are given.
        max_length: tokens of a question, and of an answer; longer ones are cut.
    """

    def prepare(batch: Batch) -> QuestionBatch:
        known = [answers_of(meta) for meta in batch.meta]
        texts: list[str] = []
        owners: list[int] = []
        weights: list[float] = []
        for row, (question, image) in enumerate(zip(batch.texts, batch.image_index.tolist(), strict=True)):
            given = _trainable(known[image][question], question)
            texts += given
            weights += given.values()
            owners += [row] * len(given)
        return QuestionBatch(
            images=batch.images,
            questions=encode_questions(tokenizer, batch.texts, clean=clean, max_length=max_length),
            image_of=unless_even(batch.image_index, len(batch)),
            answers=tokenizer.encode(texts, first="dec", max_length=max_length),
            question_of=unless_even(torch.tensor(owners), len(batch.texts)),
            weights=torch.tensor(weights),
        )

    return prepare


def prepare_answers(
    tokenizer: TextTokenizer | None,
    language_tokenizer: LanguageTokenizer,
    *,
    start_id: int | None,
    max_length: int,
    prompt: str,
    reads_prompts: bool = False,
    chat: bool = False,
    cache: FeatureCache | None = None,
) -> Callable[[Batch], LanguagePairBatch]:
    """A function from batches with one question an image to what BLIP-2's language model trains on.

    Of the answers given to a question one is drawn by their weights.

    Args:
        tokenizer: of the Q-Former; None where it reads no text, so that the language model alone is asked.
        start_id: with which an encoder-decoder's decoder starts; None for a decoder.
        max_length: tokens of a question as the Q-Former reads it alone.
        reads_prompts: whether that reads the whole prompt, as InstructBLIP's does, and not the question alone.
    """
    images = images_of(cache)
    alone = tokenizer is not None and not reads_prompts

    def prepare(batch: Batch) -> LanguagePairBatch:
        # As `Blip2Adapter.ask` has them.
        questions = [clean_question(text) for text in batch.texts] if alone else list(batch.texts)
        given = [answers_of(meta)[text] for meta, text in zip(batch.meta, batch.texts, strict=True)]
        answers = [_draw(_trainable(one, text)) for one, text in zip(given, batch.texts, strict=True)]
        prompts = [prompt.replace("{}", question) for question in questions]
        texts, most = (questions, max_length) if alone else (prompts, None)
        read = None if tokenizer is None else tokenizer.encode(texts, max_length=most)
        prompts = [language_tokenizer.placed(text, chat=chat) for text in prompts]
        if start_id is not None:
            prefix = language_tokenizer.prompts(prompts, side="right", end=True)
            text = language_tokenizer.texts(answers).targets(start_id)
            return LanguagePairBatch(images(batch), text, batch.image_ids, questions=read, prefix=prefix)
        text = language_tokenizer.texts(answers, prompts=prompts)
        return LanguagePairBatch(images(batch), text, batch.image_ids, questions=read)

    return prepare


def _trainable(given: GivenAnswers, question: str) -> dict[str, float]:
    """The answers to a question with their weights.

    Raises:
        UserError: it has none, as in test splits.
    """
    if not (merged := given.merged):
        raise UserError(f'the question "{question}" has no answers to train on; leave test splits to evaluate')
    return merged


def _draw(weights: dict[str, float]) -> str:
    answers, shares = list(weights), torch.tensor(list(weights.values()))
    return answers[int(torch.multinomial(shares, 1))]


def train_blip(config: RunConfig, adapter: Adapter, data: RunData) -> Training:
    """BLIP: each answer to a question is a text to write, weighted by how many people gave it."""
    tokenizer, smoothing = adapter.tokenizer, config.answering.label_smoothing
    objective = VqaObjective(
        adapter.model, enc_id=tokenizer.enc_id, dec_id=tokenizer.dec_id, label_smoothing=smoothing
    )
    prepare = prepare_questions(tokenizer, clean=config.clean, max_length=config.max_length)
    answers = answer_list(config, data.sources, data.out)
    return Training(VqaStep(objective), prepare, text_mode="all", answers=answers)


def train_blip2(config: RunConfig, adapter: Adapter, data: RunData) -> Training:
    """BLIP-2: the language model answers."""
    prepare = prepare_answers(
        adapter.tokenizer,
        adapter.language_tokenizer,
        start_id=adapter.model.llm.start_id,
        max_length=config.max_length,
        prompt=config.prompt,
        reads_prompts=adapter.stored.reads_prompts,
        chat=adapter.model.llm.config.chat == "yes",
        cache=data.cache,
    )
    answers = answer_list(config, data.sources, data.out) if config.answering.answers else ()
    step = Stage2Step(
        Blip2Stage2(
            adapter.model, eos_id=adapter.language_tokenizer.eos_id, each_frame=adapter.stored.reads_prompts
        )
    )
    return Training(step, prepare, answers=answers)


def answer_list(config: RunConfig, sources: Sequence[Source], out: Path) -> list[str]:
    """The answers to choose from when ranking: those of a file, or of the training data, the most frequent first.

    Args:
        out: the run's folder, where they are kept as answers.txt.

    Raises:
        UserError: the file cannot be read or is empty.
    """
    named = config.answering.answers
    file = Path(named) if named else out / "answers.txt"
    if named or file.is_file():
        try:
            lines = read_list(file)
        except OSError as error:
            raise UserError(f"{file} cannot be read as a list of answers: {error}") from error
        if answers := list(dict.fromkeys(lines)):
            return answers
        raise UserError(f"{file} holds no answers; write one on each line")
    counts = Counter(" ".join(answer.split()) for answer in all_answers(sources))
    answers = sorted(counts, key=lambda answer: (-counts[answer], answer))[: config.answering.max_answers]
    if answers and rank() == 0:  # an empty list could not be read again
        write_text(file, "".join(f"{answer}\n" for answer in answers))
    return answers


def score_answer(prediction: str, given: GivenAnswers, *, rule: AccuracyRule = "official") -> float:
    """How right an answer is, 0 to 1.

    Of answers by several people VQA's accuracy: right if three gave it. Where they have weights of their own: the
    share of these that agrees with the prediction, unless the rule compares answers as they are.

    Args:
        rule: as of `answer_accuracy`.
    """
    if len(set(given.weights)) == 1 or rule in AS_GIVEN:
        return answer_accuracy(prediction, given.texts, rule=rule)
    predicted = normalise_answer(prediction)
    agreeing = sum(w for text, w in given.merged.items() if normalise_answer(text) == predicted)
    return agreeing / sum(given.weights)


@torch.no_grad()
def evaluate_answers(
    model: Answers,
    batches: Iterable[Batch],
    config: DecodeConfig,
    *,
    candidates: Sequence[str] = (),
    keep: int = 128,
    label_smoothing: float = 0.0,
    prompt: str | None = None,
    max_length: int | None = QUESTION_TOKENS,
    max_rows: int = 64,
    rule: AccuracyRule = "official",
    lemmas: Callable[[str], str] | None = None,
) -> Evaluation:
    """Answer every question by generating, and by ranking `candidates` where there are any.

    Args:
        batches: with all questions of every image (`text_mode="all"`).
        label_smoothing: as of `Answers.rank`.
        prompt: as of `Answers.ask`.
        max_length: tokens of a question.
        max_rows: questions that are answered at once.
        rule: of accuracy, as of `answer_accuracy`, where the data do not say theirs.
        lemmas: gives the base form of an answer, whose accuracy is then given too ("accuracy_generated, lemmas").

    Returns:
        metrics by name: "accuracy_generated", "accuracy_ranked", and "accuracy_most": that of ranking if it never
        erred, since an answer may not be among the candidates; each also for the kinds of question that the data
        tell apart ("accuracy_generated, number") and, where the rule compares answers as they are, normalised
        ("accuracy_generated, normalised"); "accuracy_choice" where there are choices; "num_unanswered" where some
        have no answers in the data; and one record for each question.
    """
    choose = partial(model.rank, label_smoothing=label_smoothing)
    records: list[dict[str, object]] = []
    found_scores: list[tuple[str, float]] = []
    known: dict[str, list[str]] = {}
    for text in dict.fromkeys(candidates):
        known.setdefault(normalise_answer(text), []).append(text)
    for batch in batches:
        memory = model.remember(model.encode(batch.images))
        asked_of_image = [asked_of(meta) for meta in batch.meta]
        assert [q for asked in asked_of_image for q in asked.questions] == batch.texts, "not all, or cleaned"
        given = [answers for asked in asked_of_image for answers in asked.given]
        for rows in torch.arange(len(batch.texts)).split(max_rows):
            owners = batch.image_index[rows]
            texts = [model.measured_question(batch.texts[row]) for row in rows.tolist()]
            asked = model.ask(memory.select(owners.to(model.device)), texts, prompt=prompt, max_length=max_length)
            written = model.answers(asked, config)
            ranked = choose(asked, candidates, keep=keep) if candidates else [()] * len(texts)
            for row, owner, (free, *_), ordered in zip(
                rows.tolist(), owners.tolist(), written, ranked, strict=True
            ):
                right, question = given[row], batch.texts[row]
                own_rule = cast("AccuracyRule", asked_of_image[owner].rule or rule)
                record: dict[str, object] = {"key": batch.keys[owner], "question": question}
                record |= {"question_id": right.about.id} if right.about.id is not None else {}
                record |= {"answers": list(right.texts), "generated": free.text, "log_prob": free.log_prob}
                options = {"generated": [free.text]}
                if lemmas is not None:
                    record["lemmas"] = lemmas(free.text)
                    options["generated, lemmas"] = [str(record["lemmas"])]
                if ordered:
                    record |= {"ranked": ordered[0].text, "probability": ordered[0].probability}
                    there = [near for text in right.texts for near in known.get(normalise_answer(text), ())]
                    options |= {"ranked": [ordered[0].text], "most": there}
                found = _scores(options, right, own_rule) if right.texts else {}
                if right.about.choices:
                    choices, own = right.about.choices, torch.tensor([owner], device=model.device)
                    wording = model.measured_question(question)
                    one = model.ask(memory.select(own), [wording], prompt=prompt, max_length=max_length)
                    record["choice"] = choose(one, choices, keep=len(choices))[0][0].text
                    if right.about.correct is not None:
                        found["choice"] = float(record["choice"] == choices[right.about.correct])
                for name, value in found.items():
                    found_scores.append((name, value))
                    if right.about.kind and name != "choice":
                        found_scores.append((f"{name}, {right.about.kind}", value))
                records.append({**record, **{f"accuracy_{name}": value for name, value in found.items()}})
    records, scores = joint(records), defaultdict(list)
    for name, value in joint(found_scores):
        scores[name].append(value)
    metrics = {f"accuracy_{name}": sum(values) / len(values) for name, values in scores.items()}
    unanswered = sum(not record["answers"] for record in records)
    return metrics | ({"num_unanswered": float(unanswered)} if unanswered else {}), records


def _scores(options: Mapping[str, Sequence[str]], right: GivenAnswers, rule: AccuracyRule) -> dict[str, float]:
    """How right the best of some answers is, by name, and beside it by the protocol of LAVIS where that is another.

    On GQA it normalises both sides (its first release the prediction alone); on A-OKVQA it counts the questions
    whose direct answers are difficult, which the official program leaves out.
    """
    rules: dict[str, AccuracyRule] = {"": rule}
    if rule == "direct":
        rules = {", difficult too": rule} | ({} if right.about.difficult else rules)
    elif rule in AS_GIVEN:
        rules[", normalised"] = "normalised"
    found: dict[str, float] = {}
    for ending, one in rules.items():
        for name, texts in options.items():
            values = (score_answer(text, right, rule=one) for text in texts)
            found[f"{name}{ending}"] = max(values, default=0.0)
    return found


def evaluate(config: RunConfig, adapter: Adapter, batches: Batches, answers: Sequence[str]) -> Evaluation:
    """Accuracy of generated answers, and of ranked ones where there are `answers` to choose from.

    BLIP ranks by its training loss, as the original: label smoothing makes every further token cost more.
    """
    return evaluate_answers(
        adapter.need("answer"),
        batches(),
        config.decode,
        candidates=answers,
        keep=config.answering.keep,
        label_smoothing=config.answering.label_smoothing if adapter.family == "blip" else 0.0,
        prompt=config.prompt or None,
        max_length=config.max_length,
        rule=config.answering.rule,
        lemmas=lemmatizer() if config.answering.lemmas else None,
    )


ANSWERING = Task(
    train={"blip": train_blip, "blip2": train_blip2},
    evaluate=evaluate,
    open=open_questions,
    single=frozenset({"blip2"}),  # a language model trains on one question, which the Q-Former reads with the image
    cleans=False,
)
