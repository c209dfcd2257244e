"""The families of models and the tasks: a new one is its file and a line here."""

from __future__ import annotations

from collections.abc import Sequence

from openblip.checkpoints.store import StoredModel
from openblip.core.errors import UserError
from openblip.data.cards import card_named, find_split, named_split
from openblip.data.source_config import SourceConfig
from openblip.data.sources.composed import is_composed
from openblip.tasks.answering import ANSWERING
from openblip.tasks.captioning import CAPTIONING
from openblip.tasks.classification import CLASSIFICATION
from openblip.tasks.composed import COMPOSED
from openblip.tasks.config import FamilyName, TaskName
from openblip.tasks.dialog import DIALOG
from openblip.tasks.families.blip import BLIP
from openblip.tasks.families.blip2_build import BLIP2
from openblip.tasks.families.family import Family
from openblip.tasks.nlvr import NLVR
from openblip.tasks.pretraining import PRETRAINING
from openblip.tasks.protocols import Adapter
from openblip.tasks.retrieval import RETRIEVAL
from openblip.tasks.task import Task

__all__ = ["FAMILIES", "TASKS", "adapt", "task_of"]

FAMILIES: dict[FamilyName, Family] = {"blip": BLIP, "blip2": BLIP2}
TASKS: dict[TaskName, Task] = {
    "pretraining": PRETRAINING,
    "captioning": CAPTIONING,
    "retrieval": RETRIEVAL,
    "answering": ANSWERING,
    "nlvr": NLVR,
    "dialog": DIALOG,
    "classification": CLASSIFICATION,
    "composed": COMPOSED,
}


def adapt(stored: StoredModel) -> Adapter:
    """The adapter of a model as it was opened.

    Raises:
        UserError: no family has models of its class.
    """
    for family in FAMILIES.values():
        if (adapter := family.adapters.get(type(stored.model))) is not None:
            return adapter(
                stored.model,
                stored.tokenizer,
                stored.info,
                language_tokenizer=stored.language_tokenizer,
                ignored=stored.ignored,
            )
    raise UserError(f"no family knows a {type(stored.model).__name__}; known are {', '.join(FAMILIES)}")


def task_of(adapter: Adapter, data: Sequence[SourceConfig] = ()) -> TaskName:
    """The task that a finished model is evaluated on.

    Args:
        data: folders of classes, queries of composed retrieval and published dialogs are measured as such, whatever
            the model was trained for.

    Raises:
        UserError: a published dataset is not known or not complete.
    """
    if any(find_split(source).classes for source in data):
        return "classification"
    if data and all(is_composed(source) for source in data):
        return "composed"
    if data and "likelihood" in adapter.can and not any(find_split(source).need_texts for source in data):
        return "captioning"  # of a test split: captions are written and compared with nothing
    named = [named_split(source.path) for source in data]
    dialogs = bool(named) and all(one is not None and card_named(one[0]).task == "dialog" for one in named)
    if dialogs or adapter.info.get("task") == "dialog":
        return "dialog"
    if adapter.info.get("task") == "answering" or adapter.can == {"answer", "dialog"}:
        return "answering"
    if adapter.can == {"judge"}:
        return "nlvr"
    return "pretraining"  # all that it can do with images and captions
