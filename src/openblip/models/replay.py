"""A decoder's steps over tensors that stay where they are, which a GPU replays as one CUDA graph.

A step of one token launches some twenty kernels for each layer, and for few rows a GPU computes them faster than
Python launches them. Here the cache has its full length from the beginning, so that all steps of a text are the
same kernels on the same memory: they are recorded once for each shape and then launched together.

    stepper = ReplayedStepper(ReplayableDecoder(decoder, memory), states, max_new_tokens=20, moves=True)

`states` keeps what was recorded for the next texts of the same shape. A text that is done is computed on until the
last one of its batch is done, since fewer rows would be another shape. Without a GPU nothing is recorded and the
same steps are computed as they are written.

Shapes: R rows, R' rows that are left, V vocabulary.
"""

from __future__ import annotations

import threading
import warnings
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor

from openblip.core.errors import UserError, first_line
from openblip.models.recordable import WaitsForDevice, refusing_waits

__all__ = ["FixedState", "FixedStates", "Replayable", "ReplayedStepper", "rounded_room"]

_MOST_STATES = 8
_ROOM = 16
"""texts of nearly the same length share a state: its room is a multiple of this"""
_one_at_a_time = threading.Lock()
"""a process records one graph at a time"""


def rounded_room(tokens: int) -> int:
    """Tokens that a state has room for where at least `tokens` are needed."""
    return -(-tokens // _ROOM) * _ROOM


class FixedState(ABC):
    """What a stepper keeps between two tokens, in tensors that are made once and overwritten.

    Args:
        rows: R.
        room: slots of the cache.
        moves: whether rows change their places between steps, as beams do.
    """

    def __init__(self, rows: int, room: int, *, moves: bool, device: torch.device) -> None:
        self.room, self.moves = room, moves
        self.token = torch.zeros(rows, dtype=torch.int64, device=device)
        self.identity = torch.arange(rows, device=device)
        self.index = self.identity.clone()
        """where each row was before the next step"""
        self.slot = torch.zeros(1, dtype=torch.int64, device=device)
        """where the next token's keys and values go"""
        self.length = 0
        """the same on the host"""
        self._step: Callable[[], Tensor] = self._advance

    def step(self) -> Tensor:
        """Read `token`; the scores [R, V] of the next, valid until the next step."""
        assert self.length < self.room, f"a state with room for {self.room} tokens is full"
        logits = self._step()
        self.length += 1
        return logits

    def reorder(self, index: Tensor) -> None:
        """Make row i what row `index[i]` was, int64 [R]; several at once where a step follows that moves rows."""
        if self.moves:
            self.index.copy_(self.index[index])
        else:
            self._move(index)

    def prepare(self, streams: _Streams, pool: Any) -> None:
        """Record a step where the device can; what was loaded is lost.

        Raises:
            WaitsForDevice: a step reads a value of the device.
        """
        with streams.trying_out():  # libraries allocate and choose their kernels in the first call
            for guard in (nullcontext(), refusing_waits()):
                self._clear()
                with guard:
                    self._advance()
            self._clear()
        self._step = record(self._advance, streams, pool)

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
        """What tells states apart that cannot stand for each other, where the weights lie among it; None where this
        model cannot be recorded."""
        ...

    def fixed(self, rows: int, room: int, *, moves: bool) -> FixedState:
        """An empty state of that shape."""
        ...


class FixedStates(threading.local):
    """The states of a model, by shape; of many, those that were used last. Each thread has its own."""

    def __init__(self) -> None:
        self._states: OrderedDict[Hashable, FixedState] = OrderedDict()
        self._streams: _Streams | None = None
        self._pool: Any = None
        self._refused = False

    def get(self, stepper: Replayable, rows: int, room: int, *, moves: bool) -> FixedState | None:
        """A state that is ready to be loaded; None where the model's steps are not recorded."""
        shape = None if self._refused else stepper.shape_with_room(rows, room)
        if shape is None:
            return None
        key = (shape, moves)
        if key not in self._states:
            while len(self._states) >= _MOST_STATES:
                self._states.popitem(last=False)
            try:
                self._states[key] = self._made(stepper, rows, room, moves=moves)
            except (WaitsForDevice, torch.OutOfMemoryError) as error:
                # What was kept is only faster: its memory is given back.
                self._refused = True
                self._states.clear()
                message = f"this model's steps are computed without CUDA graphs: {first_line(error)}"
                warnings.warn(message, stacklevel=2)
                return None
        self._states.move_to_end(key)
        return self._states[key]

    def _made(self, stepper: Replayable, rows: int, room: int, *, moves: bool) -> FixedState:
        # Tensors that are made in inference mode could not be overwritten outside of it.
        with torch.inference_mode(False), torch.no_grad(), _one_at_a_time:
            state = stepper.fixed(rows, room, moves=moves)
            if self._streams is None or self._streams.device != state.token.device:
                self._streams, self._pool = _Streams(state.token.device), None
            if not self._states:
                # The states of a thread never compute at the same time, so they can share their scratch memory; a
                # pool without a graph is not used again.
                self._pool = self._streams.new_pool()
            state.prepare(self._streams, self._pool)
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
        self._started = False
        self._places: Tensor | None = None
        """int64 [R'], where the rows that are left stand in the state; None where all are"""

    def start(self, prompt_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """As `Stepper.start`."""
        logits = self.stepper.start(prompt_ids, attention_mask)
        # The last token that is written is never read.
        self._room = rounded_room(self.stepper.num_slots + self.max_new_tokens - 1)
        return logits

    def step(self, token: Tensor) -> Tensor:
        """As `Stepper.step`; the scores are valid until the next step."""
        if not self._started:
            self._started = True
            self._state = self.states.get(self.stepper, len(token), self._room, moves=self.moves)
            if self._state is not None:
                self._state.load(self.stepper)
        if self._state is None:
            return self.stepper.step(token)
        if self._places is None:
            self._state.token.copy_(token)
            return self._state.step()
        self._state.token.index_copy_(0, self._places, token)
        return self._state.step().index_select(0, self._places)

    def reorder(self, index: Tensor, left: Tensor | None = None) -> None:
        """As `Stepper.reorder`; rows that are dropped stay in the state and are computed on."""
        state = self._state
        if state is None:
            self.stepper.reorder(index, left)
            return
        before = state.identity if self._places is None else self._places
        if left is not None:
            # The rows of a prompt that is left stay among its own places, whichever of them they come from.
            of_each = torch.arange(len(index) // len(left), device=index.device)
            self._places = before[(left[:, None] * len(of_each) + of_each).flatten()]
        places = before if left is None else self._places
        assert places is not None
        state.reorder(state.identity.index_copy(0, places, before[index]))


class _Streams:
    """What a thread records on: other streams than it computes on, of its own, on the states' device."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.on_gpu = device.type == "cuda"
        self._try_out, self.capture = (torch.cuda.Stream(device) if self.on_gpu else None for _ in range(2))

    def new_pool(self) -> Any:
        """For the scratch memory of graphs."""
        return torch.cuda.graph_pool_handle() if self.on_gpu else None

    @contextmanager
    def trying_out(self) -> Iterator[None]:
        """Within, compute beside the current stream: after all that it has to do, before what follows there."""
        if self._try_out is None:
            yield
            return
        self._try_out.wait_stream(torch.cuda.current_stream(self.device))
        try:
            with torch.cuda.stream(self._try_out):
                yield
        finally:
            torch.cuda.current_stream(self.device).wait_stream(self._try_out)


def record(function: Callable[[], Tensor], streams: _Streams, pool: Any) -> Callable[[], Tensor]:
    """`function` as one CUDA graph, whose result is overwritten each time; on other devices the function itself.

    Raises:
        UserError: it cannot be recorded, after which torch 2.11 does not leave the device as it was.
    """
    if not streams.on_gpu:
        return function
    assert streams.capture is not None
    graph = torch.cuda.CUDAGraph()
    try:
        # Of its own, so that the current stream is restored whatever happens. Other threads may go on using the
        # device: only what this one does is recorded.
        with (
            torch.cuda.stream(streams.capture),
            torch.cuda.graph(graph, pool=pool, stream=streams.capture, capture_error_mode="thread_local"),
        ):
            result = function()
    except RuntimeError as error:
        cause = error if error.__context__ is None else error.__context__
        raise UserError(
            f"a step of this model cannot be recorded as a CUDA graph ({first_line(cause)}); leave CUDA graphs out"
        ) from error

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay
