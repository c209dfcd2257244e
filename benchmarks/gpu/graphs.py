"""Writing with its steps recorded as CUDA graphs beside the same steps launched one by one; texts compared.

The images are encoded before: three beams of 20 tokens of BLIP's decoder over the memory of ViT-L at 384 px, five
of BLIP-2's OPT-2.7B behind 32 soft prompts, as each captions by itself. Weights are drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.caption import half
from benchmarks.gpu.measure import forget, measured
from benchmarks.gpu.report import Report
from benchmarks.gpu.steps import DEC, blip_sizes, small_opt
from openblip.generation.config import DecodeConfig
from openblip.generation.decode import decode, recorded
from openblip.models.blip import Blip
from openblip.models.configs import LanguageConfig
from openblip.models.language import FrozenLanguage
from openblip.models.language_fixed import ReplayableLanguage
from openblip.models.language_sizes import language_of_size
from openblip.models.replay import FixedStates, Replayable
from openblip.models.stepper_fixed import ReplayableDecoder

__all__ = ["measure"]

BATCHES = (1, 16, 64)
NEW, PROMPT, SOFT = 20, 4, 32
ENDS: dict[str, tuple[int, Sequence[int]]] = {"20 tokens each": (NEW, [3]), "texts that end": (1, range(40, 540))}
"""least tokens of a text and what ends it; rows of texts that have ended are left out, unless steps are recorded"""

Begin = Callable[[], Replayable]
"""a stepper that has written nothing yet"""
Encode = Callable[[int], Begin]
"""of so many images"""


def measure(report: Report) -> None:
    """A row for each way of writing in each batch, and one of the gain with the share of equal tokens."""
    torch.set_grad_enabled(False)
    for name, beams, opened in (("BLIP", 3, _blip), ("BLIP-2, OPT-2.7B", 5, _language)):
        with report.case(name):
            encode: Encode | None = opened(report)
            for batch in (2,) if report.pretend else BATCHES:
                assert encode is not None
                begin = encode(batch)
                for ends in ENDS:
                    case = f"writing, {name}, batch {batch}, {ends}"
                    with report.case(case):
                        _beside(report, case, begin, batch, beams, *ENDS[ends])
        encode = None  # before the next model is drawn
        forget(report.device)


def _beside(
    report: Report, case: str, begin: Begin, batch: int, beams: int, least: int, ends: Sequence[int]
) -> None:
    config = DecodeConfig(num_beams=beams, min_new_tokens=least, max_new_tokens=NEW)
    prompts = torch.full((batch, PROMPT), DEC if beams == 3 else 5, device=report.device)
    texts, seconds = [], []
    for way, states in (("launched one by one", None), ("recorded", FixedStates())):

        def write(states: FixedStates | None = states) -> Tensor:
            stepper = recorded(begin(), states, config)
            return decode(stepper, prompts, None, config, eos_ids=ends, pad_id=0).ids

        texts.append(write())  # records
        found: dict[str, Any] = measured(write, report.device, images=batch, seconds=2, pretend=report.pretend)
        seconds.append(found["seconds"])
        report.add(f"{case}: {way}", **found)
    # In half precision two beams may lie closer than its rounding, and a text goes its own way from there.
    width = min(text.shape[1] for text in texts)
    same = (texts[0][:, :width] == texts[1][:, :width]).float().mean().item()
    report.add(f"{case}: times faster", ratio=round(seconds[0] / seconds[1], 3), equal_tokens=round(same, 4))


def _blip(report: Report) -> Encode:
    with torch.device(report.device):
        model = Blip(blip_sizes(report.pretend, "large", 384)).to(half(report)).eval()
    pixels = model.config.vision.pixels

    def encode(batch: int) -> Begin:
        images = torch.randn(batch, 3, *pixels, device=report.device, dtype=half(report))
        memory = model.remember(model.encode_image(images))
        return lambda: ReplayableDecoder(model.decoder, memory)

    return encode


def _language(report: Report) -> Encode:
    settings = LanguageConfig(dtype="float32" if report.pretend else "bfloat16")
    with torch.device(report.device):
        llm = FrozenLanguage(small_opt() if report.pretend else language_of_size("facebook/opt-2.7b"), settings)

    def encode(batch: int) -> Begin:
        soft = torch.randn(batch, SOFT, llm.width, device=report.device, dtype=llm.dtype)
        return lambda: ReplayableLanguage(llm, soft)

    return encode
