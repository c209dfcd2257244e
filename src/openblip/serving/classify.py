"""The endpoint `/v1/classify`: which of some classes an image shows, without training on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from openblip.core.errors import UserError
from openblip.serving.engine import Classifying, ModelInfo
from openblip.serving.limits import Limits
from openblip.serving.schemas import Request, check_texts
from openblip.tasks.classification import TEMPLATES
from openblip.tasks.results import ClassScore

__all__ = ["ClassifyReply", "ClassifyRequest"]


@dataclass(frozen=True, kw_only=True)
class ClassifyRequest(Request):
    """Say which of some classes an image shows."""

    image: bytes
    """file, base64 or data URI"""
    classes: tuple[str, ...]
    """names, at least two"""
    templates: tuple[str, ...] = TEMPLATES
    """how a name is put into words, {} in its place; several are averaged"""
    by: Literal["itc", "itm"] = "itc"
    """itc compares embeddings, as CLIP does; itm reads the image with each text, slower"""

    @property
    def needs(self) -> str:
        """Embeddings or matching."""
        return "embed" if self.by == "itc" else "match"

    def work(self, model: ModelInfo, limits: Limits) -> Classifying:
        """As `Request.work`."""
        check_texts("classes", self.classes, limits)
        check_texts("templates", self.templates, limits)
        texts = len(self.classes) * len(self.templates)
        if texts > limits.texts:
            raise UserError(f"classes times templates are {texts} texts; the service takes at most {limits.texts}")
        return Classifying(
            model=model.id, image=self.image, classes=self.classes, templates=self.templates, by=self.by
        )


@dataclass(frozen=True)
class ClassifyReply:
    """All classes, the likeliest first."""

    model: str
    classes: list[ClassScore]
