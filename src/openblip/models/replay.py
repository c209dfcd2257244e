"""A decoder's steps over tensors that stay where they are, which a GPU replays as one CUDA graph.

A step of one token launches some twenty kernels for each layer, and for few rows a GPU computes them faster than
Python launches them. Here the cache has its full length from the beginning, so that all steps of a text are the
same kernels on the same memory: they are recorded once for each shape and then launched together.

    stepper = ReplayedStepper(DecoderStepper(decoder, memory), states, max_new_tokens=20, moves=True)

`states` keeps what was recorded for the next texts of the same shape. Without a GPU nothing is recorded and the
same steps are computed as they are written.

Shapes: R rows, V vocabulary.
"""

from __future__ import annotations

import threading
import warnings
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["FixedState", "FixedStates", "Replayable", "ReplayedStepper", "rounded_room"]

_MOST_STATES = 8
_ROOM = 16
"""texts of nearly the same length share a state: its room is a multiple of this"""


def rounded_room(tokens: int) -> int:
    """Tokens that a state has room for where at least `tokens` are needed."""
    return -(-tokens // _ROOM) * _ROOM


class FixedState(ABC):
    """What a stepper keeps between two tokens, in tensors that are made once and overwritten.

    Args:
        rows: R.
        moves: whether rows change their places between steps, as beams do.
    """

    def __init__(self, rows: int, *, moves: bool, device: torch.device) -> None:
        self.moves = moves
        self.token = torch.zeros(rows, dtype=torch.int64, device=device)
        self.identity = torch.arange(rows, device=device)
        self.index = self.identity.clone()
        """where each row was before, if rows move"""
        self.slot = torch.zeros(1, dtype=torch.int64, device=device)
        """where the next token's keys and values go"""
        self.length = 0
        """the same on the host"""
        self._step: Callable[[], Tensor] | None = None

    def step(self, token: Tensor) -> Tensor:
        """Read one more token int64 [R]; the scores [R, V] of the next, valid until the next step."""
        assert self._step is not None, "a state is prepared before its first step"
        self.token.copy_(token)
        logits = self._step()
        self.length += 1
        return logits

    def prepare(self, pool: Any) -> None:
        """Record a step where the device can; what was loaded is lost."""
        self._step = record(self._advance, self._clear, self.token.device, pool)

    def load(self, stepper: Replayable) -> None:
        """Take over what a stepper has read."""
        self._clear()
        self.length = self._read(stepper)
        self.slot.fill_(self.length)

    def _advance(self) -> Tensor:
        if self.moves:
            self._move(self.index)
            self.index.copy_(self.identity)
        logits = self._compute()
        self.slot.add_(1)
        return logits

    def _clear(self) -> None:
        self.index.copy_(self.identity)
        self.slot.zero_()
        self._forget()

    @abstractmethod
    def give_back(self, stepper: Replayable) -> None:
        """Leave the stepper as if it had read all tokens itself; it holds views, to be reordered at once."""

    @abstractmethod
    def _read(self, stepper: Replayable) -> int:
        """Copy what the stepper holds, after `_forget`; the number of slots that this takes."""

    @abstractmethod
    def _forget(self) -> None:
        """Hold no token."""

    @abstractmethod
    def _move(self, index: Tensor) -> None:
        """Make row i what row `index[i]` was, in place."""

    @abstractmethod
    def _compute(self) -> Tensor:
        """Read `token` into slot `slot`; scores [R, V]."""


class Replayable(Protocol):
    """A `Stepper` whose state can be kept in a `FixedState`."""

    vocab_size: int
    max_length: int | None

    def start(self, prompt_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """As `Stepper.start`."""
        ...

    def step(self, token: Tensor) -> Tensor:
        """As `Stepper.step`."""
        ...

    def reorder(self, index: Tensor, left: Tensor | None = None) -> None:
        """As `Stepper.reorder`."""
        ...

    @property
    def num_slots(self) -> int:
        """Slots of the cache that are in use, padding included."""
        ...

    def shape_with_room(self, rows: int, room: int) -> Hashable:
        """What tells states apart that cannot stand for each other; None where this model cannot be recorded."""
        ...

    def fixed(self, rows: int, room: int, *, moves: bool) -> FixedState:
        """An empty state of that shape."""
        ...


class FixedStates(threading.local):
    """The states of a model, by shape; of many, those that were used last. Each thread has its own."""

    def __init__(self) -> None:
        self._states: OrderedDict[Hashable, FixedState | None] = OrderedDict()
        self._pool: Any = None

    def get(self, stepper: Replayable, rows: int, room: int, *, moves: bool) -> FixedState | None:
        """A state that is ready to be loaded; None where the model's steps cannot be recorded."""
        shape = stepper.shape_with_room(rows, room)
        if shape is None:
            return None
        key = (shape, moves)
        if key not in self._states:
            while len(self._states) >= _MOST_STATES:
                self._states.popitem(last=False)
            with torch.inference_mode(False):  # what is made in that mode cannot be overwritten outside of it
                state = stepper.fixed(rows, room, moves=moves)
            self._states[key] = self._prepared(state)
        self._states.move_to_end(key)
        return self._states[key]

    def _prepared(self, state: FixedState) -> FixedState | None:
        if self._pool is None and state.token.device.type == "cuda":
            # The states of a thread never compute at the same time, so they can share their scratch memory.
            self._pool = torch.cuda.graph_pool_handle()
        try:
            state.prepare(self._pool)
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:  # an operation that waits for the device, as some quantized products do
            reason = str(error).strip().partition("\n")[0]
            warnings.warn(f"this model's steps are computed without CUDA graphs: {reason}", stacklevel=2)
            return None
        return state


class ReplayedStepper:
    """A stepper whose steps are recorded: it fits `generation`'s `Stepper` protocol.

    Args:
        stepper: reads the prompts, and computes whatever cannot be recorded.
        max_new_tokens: that are written at most.
        moves: whether rows change their places between steps, as beams do.
    """

    def __init__(self, stepper: Replayable, states: FixedStates, *, max_new_tokens: int, moves: bool) -> None:
        self.stepper, self.states, self.moves = stepper, states, moves
        self.max_new_tokens = max_new_tokens
        self.vocab_size, self.max_length = stepper.vocab_size, stepper.max_length
        self._room = 0
        self._state: FixedState | None = None

    def start(self, prompt_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """As `Stepper.start`."""
        logits = self.stepper.start(prompt_ids, attention_mask)
        self._room = rounded_room(self.stepper.num_slots + self.max_new_tokens - 1)
        return logits

    def step(self, token: Tensor) -> Tensor:
        """As `Stepper.step`; the scores are valid until the next step."""
        if self._state is None:
            self._state = self.states.get(self.stepper, len(token), self._room, moves=self.moves)
            if self._state is None:
                return self.stepper.step(token)
            self._state.load(self.stepper)
        return self._state.step(token)

    def reorder(self, index: Tensor, left: Tensor | None = None) -> None:
        """As `Stepper.reorder`."""
        state = self._state
        if state is None:
            self.stepper.reorder(index, left)
        elif state.moves and left is None and len(index) == len(state.index):
            state.index.copy_(index)
        else:
            self._state = None
            state.give_back(self.stepper)
            self.stepper.reorder(index, left)


def record(
    function: Callable[[], Tensor], clear: Callable[[], None], device: torch.device, pool: Any
) -> Callable[[], Tensor]:
    """`function` as one CUDA graph, whose result is overwritten each time; on other devices the function itself.

    Args:
        clear: called before each of the first calls, which change what the function reads.

    Raises:
        RuntimeError: the function waits for the device or copies to the host.
    """
    if device.type != "cuda":
        return function
    with torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):  # libraries allocate and choose their kernels in the first calls
                clear()
                function()
            clear()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        # Other threads may go on using the device: only what this one does is recorded.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            result = function()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay
