"""How well texts fit images, by every measure that a model has, each image encoded once for all of its texts.

    itm          probability of ITM that image and text belong together
    itc          cosine of their embeddings
    likelihood   log-likelihood of the text as a caption
    vqa          probability of "yes" to a question about the text (VQAScore, Lin et al., ECCV 2024)

Shapes: B images, N image tokens, Dv vision width, R texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from openblip.core.errors import UserError, nearest
from openblip.tasks.protocols import Adapter
from openblip.tasks.results import Score
from openblip.tasks.retrieval import embed_texts, match_logits, match_probability

__all__ = ["ANSWER", "MEASURES", "QUESTION", "Scorer"]

MEASURES = {"itm": "match", "itc": "embed", "likelihood": "likelihood", "vqa": "answer"}
"""what a model must be able to do for each"""
QUESTION = 'Does this figure show "{}"? Please answer yes or no.'
ANSWER = "yes"
_MOST_ROWS = 256
"""texts that a decoder or a language model reads at once"""


@dataclass
class Scorer:
    """Measures of a model.

    Args:
        by: names of `MEASURES`; empty: all that the model has.
        prompt: what stands before a text in its likelihood; None is what the model was trained with.
        question: of VQAScore, {} in place of the text.
        answer: whose probability it is.

    Raises:
        UserError: a measure is unknown or not the model's, or the question has no {}.
    """

    model: Adapter
    by: Sequence[str] = ()
    prompt: str | None = None
    question: str = QUESTION
    answer: str = ANSWER

    def __post_init__(self) -> None:
        for name in self.by:
            if name not in MEASURES:
                raise UserError(f'there is no measure "{name}"{nearest(name, MEASURES)}')
            self.model.need(MEASURES[name])
        self.by = tuple(name for name in MEASURES if name in self.by or (not self.by and self._has(name)))
        if not self.by:
            self.model.refuse("match")
        if "{}" not in self.question:
            raise UserError(f'the question "{self.question}" has no {{}} in place of the text')

    def _begin(self, model: Adapter) -> str:
        """What stands before a text in its likelihood."""
        return model.prompt if self.prompt is None else self.prompt

    def _has(self, measure: str) -> bool:
        return MEASURES[measure] in self.model.can

    def check(self, text: str) -> None:
        """Refuse a text that the model cannot read.

        Raises:
            UserError: says why.
        """
        model = self.model.need(MEASURES[self.by[0]])
        if "itm" in self.by or "itc" in self.by:
            model.check_texts([text])
        if "likelihood" in self.by:
            model.check_captions([text], prompt=self._begin(model))
        if "vqa" in self.by:
            model.check_questions([self.question.replace("{}", text)], [self.answer])

    @torch.no_grad()
    def __call__(self, image_embeds: Tensor, texts: Sequence[str], owners: Sequence[int]) -> list[Score]:
        """Scores of R texts.

        Args:
            image_embeds: [B, N, Dv].
            owners: the image of each text, R of them.
        """
        found: dict[str, list[float]] = {}
        own = torch.tensor(owners, dtype=torch.int64)
        if "itm" in self.by or "itc" in self.by:
            found |= self._match(image_embeds, texts, own)
        if "likelihood" in self.by or "vqa" in self.by:
            found |= self._read(image_embeds, texts, own)
        columns = [found.get(name, [None] * len(texts)) for name in ("itm", "itc", "log_prob", "num_tokens", "vqa")]
        return [Score(*values) for values in zip(texts, *columns, strict=True)]

    def _match(self, image_embeds: Tensor, texts: Sequence[str], owners: Tensor) -> dict[str, list[float]]:
        model = self.model.need("embed")
        tokens, features = embed_texts(model, [self.model.clean(text) for text in texts])
        found = {}
        if "itm" in self.by:
            pairs = torch.stack((torch.arange(len(texts)), owners), dim=1)
            found["itm"] = match_probability(match_logits(model, image_embeds, tokens, pairs)).tolist()
        if "itc" in self.by:
            every = model.similarities(features, model.image_features(image_embeds).float())
            found["itc"] = every[torch.arange(len(texts)), owners].tolist()
        return found

    def _read(self, image_embeds: Tensor, texts: Sequence[str], owners: Tensor) -> dict[str, list[float]]:
        model = self.model.need("likelihood" if "likelihood" in self.by else "answer")
        memory = model.remember(image_embeds)
        found: dict[str, Tensor] = {}
        if "likelihood" in self.by:
            found |= {"log_prob": torch.zeros(len(texts)), "num_tokens": torch.zeros(len(texts), dtype=torch.int64)}
        if "vqa" in self.by:
            found["vqa"] = torch.zeros(len(texts), dtype=torch.float64)
        for images, places in _blocks(owners):
            part = memory if len(images) == memory.batch_size else memory.select(images.to(model.device))
            rows = places.flatten()
            own = [texts[row] for row in rows.tolist()]
            if "likelihood" in self.by:
                sums, counts = model.score_own(part, own, prompt=self._begin(model))
                found["log_prob"][rows], found["num_tokens"][rows] = sums.float().cpu(), counts.cpu()
            if "vqa" in self.by:
                asked = model.ask(part, [self.question.replace("{}", text) for text in own])
                best = [answers[0].log_prob for answers in model.rank(asked, [self.answer], keep=1)]
                found["vqa"][rows] = torch.tensor(best, dtype=torch.float64).exp()
        return {name: values.tolist() for name, values in found.items()}


def _blocks(owners: Tensor, limit: int = _MOST_ROWS) -> Iterator[tuple[Tensor, Tensor]]:
    """Images with equally many texts together, so that these share a memory that nobody copies.

    Yields:
        images int64 [n] and the places of their texts int64 [n, c], at most `limit` texts.
    """
    order = owners.argsort(stable=True)
    images, counts = torch.unique_consecutive(owners[order], return_counts=True)
    starts = counts.cumsum(0) - counts
    for count in counts.unique().tolist():
        alike = (counts == count).nonzero()[:, 0]
        places = order[starts[alike][:, None] + torch.arange(count)]  # [n, c]
        for part in torch.arange(len(alike)).split(max(1, limit // count)):
            for columns in torch.arange(count).split(limit):
                yield images[alike[part]], places[part][:, columns]
