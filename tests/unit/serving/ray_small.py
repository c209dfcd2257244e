"""What replicas of Ray open in tests: the small models in an engine that lets each request wait."""

from __future__ import annotations

import asyncio
from typing import Any

import torch
from serving_small import predictors

from openblip.core.errors import UserError
from openblip.serving.engine import Work
from openblip.serving.local import LocalEngine
from openblip.serving.ray_engine import Opened


class Slow(LocalEngine):
    """Holds what it has computed for a moment, so that requests are in hand when a replica is killed."""

    async def run(self, work: Work) -> Any:
        """As `LocalEngine.run`, later."""
        result = await super().run(work)
        await asyncio.sleep(0.5)
        return result


def open_small() -> Opened:
    """The engine of a replica."""
    torch.manual_seed(0)
    return Opened(Slow(predictors(), gather_ms=20.0), "cpu")


def open_nothing() -> Opened:
    """A model that is not there."""
    raise UserError("there is no model runs/none/model")
