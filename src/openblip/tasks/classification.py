"""Zero-shot classification: which of some classes an image shows, by the texts that name them, and its accuracy.

By ITC a class is the mean of its templates' embeddings, normalised again, as CLIP does; with BLIP-2 the query that
fits it best counts. By ITM it is the mean of the templates' logits. Class texts are embedded once.

Shapes: B images, N image tokens, Dv vision width, K classes, P templates, E joint width.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from openblip.core.errors import UserError, nearest
from openblip.core.sharing import joint
from openblip.data.sample import Batch
from openblip.data.source_config import SourceConfig
from openblip.data.sources.classes import AS_FOLDERS, ClassFolderSource
from openblip.data.sources.open import open_source
from openblip.metrics.classification import Accuracy
from openblip.tasks.config import RunConfig
from openblip.tasks.protocols import Adapter, short
from openblip.tasks.results import ClassScore
from openblip.tasks.retrieval import embed_texts, match_logits, match_margin
from openblip.tasks.task import Batches, Evaluation, Task

__all__ = [
    "CLASSIFICATION",
    "TEMPLATES",
    "By",
    "Classifier",
    "class_names",
    "evaluate_classes",
    "open_classes",
    "refuse_duplicates",
]

By = Literal["itc", "itm"]
TEMPLATES = ("a photo of a {}",)


class Classifier:
    """Classes as a model reads them.

    Args:
        model: one that embeds (by "itc") or matches (by "itm").
        classes: their names, K of them.
        templates: texts with {} in place of the name, P of them.

    Raises:
        UserError: there are fewer than two classes or two that are the same text to the model, a template has no
            {}, a text cannot be read, or the model can do neither.
    """

    def __init__(
        self, model: Adapter, classes: Sequence[str], *, templates: Sequence[str] = TEMPLATES, by: By = "itc"
    ) -> None:
        if by not in get_args(By):
            raise UserError(f'classes are told apart by "itc" or "itm", not "{by}"{nearest(by, get_args(By))}')
        self.model = model.need("embed" if by == "itc" else "match")
        self.classes, self.by = list(classes), by
        if len(self.classes) < 2:
            raise UserError("a classification needs at least two classes")
        if not templates:
            raise UserError('there is no template; give one such as "a photo of a {}"')
        for template in templates:
            if "{}" not in template:
                raise UserError(f'the template "{template}" has no {{}} in place of the class')
        for name in self.classes:  # a template has words of its own
            if len(model.tokenizer.encode([model.clean(name)]).input_ids[0]) <= 2:  # [CLS] and [SEP]
                raise UserError(f"the class {short(name)} holds no word")
        texts = [template.replace("{}", name) for name in self.classes for template in templates]
        model.check_texts(texts)
        cleaned = [model.clean(text) for text in texts]
        each = [tuple(cleaned[i : i + len(templates)]) for i in range(0, len(cleaned), len(templates))]
        refuse_duplicates(self.classes, each)
        self._tokens, features = embed_texts(self.model, cleaned)
        self.features = F.normalize(features.view(len(each), len(templates), -1).mean(1), dim=-1)
        """[K, E]"""

    @torch.no_grad()
    def scores(self, image_embeds: Tensor) -> Tensor:
        """[B, K] of image_embeds [B, N, Dv]: cosine, or mean difference of ITM logits (matched minus not)."""
        if self.by == "itc":
            return self.model.similarities(self.features, self.model.image_features(image_embeds).float()).T
        rows, texts = len(image_embeds), len(self._tokens.input_ids)
        pairs = torch.cartesian_prod(torch.arange(rows), torch.arange(texts)).flip(1)
        logits = match_logits(self.model, image_embeds, self._tokens, pairs)
        return match_margin(logits).view(rows, len(self.classes), -1).mean(2)

    def __call__(self, image_embeds: Tensor, *, top: int | None = None) -> list[list[ClassScore]]:
        """The `top` classes of each image (None: all), the likeliest first."""
        scores = self.scores(image_embeds)
        scale = self.model.similarity_scale if self.by == "itc" else 1.0
        shares = (scores * scale).softmax(1)
        best = scores.topk(min(top or len(self.classes), len(self.classes)), dim=1).indices
        rows = zip(best.tolist(), shares.tolist(), scores.tolist(), strict=True)
        return [[ClassScore(self.classes[k], share[k], score[k]) for k in own] for own, share, score in rows]


def refuse_duplicates(names: Sequence[str], texts: Iterable[object]) -> None:
    """Refuse classes that cannot be told apart.

    Args:
        names: of the classes.
        texts: what stands for each.

    Raises:
        UserError: names those that are equal.
    """
    texts = list(texts)
    more = {text for text, count in Counter(texts).items() if count > 1}
    if more:
        same = ", ".join(f'"{name}"' for name, text in zip(names, texts, strict=True) if text in more)
        raise UserError(f"classes are named twice, or are the same text to the model: {same}")


def open_classes(config: SourceConfig) -> ClassFolderSource:
    """A folder whose subfolders are classes.

    Raises:
        UserError: as `open_source`; or it is no such folder.
    """
    config = replace(config, pairs=False)  # an image has one text, its class
    source = open_source(config)
    if not isinstance(source, ClassFolderSource):
        source = open_source(replace(config, classes=AS_FOLDERS))
    assert isinstance(source, ClassFolderSource)
    return source


def class_names(sources: Sequence[SourceConfig]) -> list[str]:
    """The classes of some sources, each once.

    Raises:
        UserError: as `open_classes`.
    """
    opened = [open_classes(config) for config in sources]
    return list(dict.fromkeys(name for one in opened for name in one.class_names.values()))


@torch.no_grad()
def evaluate_classes(classifier: Classifier, batches: Iterable[Batch]) -> Evaluation:
    """Classify every image.

    Args:
        batches: with the class of each image as its text.

    Returns:
        "accuracy_top1", "accuracy_top5" of more than five classes, "accuracy_mean_per_class"; and one record for
        each image: its key, its class ("truth") and the five likeliest with their probabilities.
    """
    records: list[dict[str, Any]] = []
    for batch in batches:
        ranked = classifier(classifier.model.encode(batch.images), top=5)
        for key, (truth,), found in zip(batch.keys, batch.texts_of_images, ranked, strict=True):
            classes = [{"name": one.name, "probability": one.probability} for one in found]
            records.append({"key": key, "truth": truth, "classes": classes})
    records = joint(records)
    accuracy = Accuracy(classifier.classes)
    for record in records:
        accuracy.add(record["truth"], [one["name"] for one in record["classes"]])
    figures = accuracy.figures()
    names = [name for name in ("top1", "top5", "mean_per_class") if name in figures]
    return {f"accuracy_{name}": figures[name] for name in names}, records


def evaluate(config: RunConfig, adapter: Adapter, batches: Batches, answers: Sequence[str]) -> Evaluation:
    """Accuracy by ITC with "a photo of a {}"; `answers` are the classes."""
    return evaluate_classes(Classifier(adapter, answers), batches())


CLASSIFICATION = Task(train={}, evaluate=evaluate, open=open_classes, cleans=False)
