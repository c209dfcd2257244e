"""METEOR and SPICE by the programs behind published results: Java, through pycocoevalcap (extra "java-metrics").

    java_scores(captions, references, ("METEOR",))     # {"METEOR": 0.28}

Both read the words of `metrics.words`, which are those of the evaluation's own tokenizer.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from openblip.core.errors import UserError, require
from openblip.metrics.words import split_words

__all__ = ["JavaMetric", "check_java", "java_scores"]

JavaMetric = Literal["METEOR", "SPICE"]
_SPICE_MODELS = "stanford-corenlp-3.6.0-models.jar"


def check_java(names: Sequence[JavaMetric]) -> None:
    """Refuse, before anything is computed, metrics that cannot be computed here.

    Raises:
        UserError: the extra, Java, or what SPICE downloads is missing.
    """
    if not names:
        return
    require("pycocoevalcap", "java-metrics")
    if shutil.which("java") is None:
        raise UserError(
            f"{' and '.join(names)} run in Java, and there is no command java; install a Java runtime "
            "(Debian: apt install default-jre-headless), or leave them out"
        )
    if "SPICE" in names:
        folder = Path(require("pycocoevalcap.spice.spice", "java-metrics").__file__ or "").parent
        if not (folder / "lib" / _SPICE_MODELS).is_file():
            raise UserError(
                f"SPICE needs {_SPICE_MODELS}, which is downloaded once (400 MB): "
                "run python -m pycocoevalcap.spice.get_stanford_models, or leave SPICE out"
            )


def java_scores(
    captions: Sequence[str], references: Sequence[Sequence[str]], names: Sequence[JavaMetric]
) -> dict[str, float]:
    """Scores of the whole collection by name, as fractions.

    Args:
        captions: one for each image.
        references: the human captions of each image, in the same order.

    Raises:
        UserError: as `check_java`, or a program failed.
    """
    check_java(names)
    written = {image: [" ".join(split_words(text))] for image, text in enumerate(captions)}
    human = {image: [" ".join(split_words(text)) for text in texts] for image, texts in enumerate(references)}
    scores: dict[str, float] = {}
    for name in names:
        module = require(f"pycocoevalcap.{name.lower()}.{name.lower()}", "java-metrics")
        try:
            scorer: Any = getattr(module, name.capitalize())()
            scores[name] = float(scorer.compute_score(human, written)[0])
        except (OSError, ValueError, module.subprocess.CalledProcessError) as error:
            raise UserError(f"the Java program of {name} failed ({error}); its messages are above") from error
    return scores
