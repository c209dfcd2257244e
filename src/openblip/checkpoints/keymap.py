"""Two-way maps between our tensors and those of another format, with every key accounted for.

A map is a list of `Rule`s read in either direction: one tensor of ours stands for one or several of
theirs, concatenated along the first axis (a fused query-key-value projection is three matrices there).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from openblip.core.errors import UserError
from openblip.models.vision import interpolate_positions

__all__ = ["Rule", "Sizes", "export_state", "import_state", "load_by_rules", "resample_positions"]


@dataclass(frozen=True)
class Rule:
    """`ours` holds the tensors `theirs`, in order, along the first axis."""

    ours: str
    theirs: tuple[str, ...]
    copies: tuple[tuple[str, ...], ...] = ()
    """other names under which their format repeats the same tensors (tied weights); written on export"""
    transpose: bool = False
    """theirs is ours transposed"""


@dataclass(frozen=True)
class Sizes:
    """Reads sizes off the tensors of a checkpoint, each with the rank that it is to have."""

    state: Mapping[str, Tensor]
    source: str
    """what to call the checkpoint in messages"""

    def shape(self, key: str, rank: int) -> torch.Size:
        """The shape of a tensor.

        Raises:
            UserError: it is missing, empty or of another rank.
        """
        if key not in self.state:
            raise _missing(self.source, key)
        shape = self.state[key].shape
        if len(shape) != rank or 0 in shape:
            raise UserError(
                f'{self.source}: "{key}" has shape {tuple(shape)}; one of {rank} dimensions was expected'
            )
        return shape

    def count(self, pattern: str) -> int:
        """How many layers there are, by the largest number that `pattern` finds in a name."""
        found = [int(m.group(1)) for key in self.state if (m := re.match(pattern, key))]
        return max(found, default=-1) + 1

    def num_patches(self, key: str, *, first: int = 1) -> int:
        """Of position embeddings [1, first + n, D], n."""
        one, count, _ = shape = self.shape(key, 3)
        if one != 1 or count <= first:
            raise UserError(f'{self.source}: "{key}" has shape {tuple(shape)}, which holds no positions of patches')
        return count - first


def _missing(source: str, key: str) -> UserError:
    return UserError(f'{source} has no "{key}"; it is incomplete or of another model')


def resample_positions(
    state: dict[str, Tensor],
    key: str,
    grid: tuple[int, int],
    source_grid: tuple[int, int] | None = None,
    *,
    source: str,
    first: int = 1,
) -> None:
    """Interpolate the position embeddings `key` of a state dict in place; see `interpolate_positions`.

    Raises:
        UserError: they are missing or do not fill a grid; names the key.
    """
    count = Sizes(state, source).num_patches(key, first=first)
    rows, columns = source_grid or (round(count**0.5),) * 2
    if rows * columns != count:
        raise UserError(
            f'{source}: "{key}" holds {count} positions of patches, which do not fill a grid of {rows} x {columns}'
        )
    state[key] = interpolate_positions(state[key], grid, (rows, columns), first=first)


def import_state(
    rules: Sequence[Rule],
    state: Mapping[str, Tensor],
    shapes: Mapping[str, torch.Size],
    *,
    source: str,
    ignored: Iterable[str] = (),
) -> dict[str, Tensor]:
    """Turn their state dict into ours.

    Args:
        shapes: of our tensors, by name: what the model expects.
        source: what to call the checkpoint in messages.
        ignored: keys of theirs that are known and not needed.

    Raises:
        UserError: a key is missing, left over, or of another shape; names it.
    """
    used = set(ignored)
    result: dict[str, Tensor] = {}
    for rule in rules:
        missing = [name for name in rule.theirs if name not in state]
        if missing:
            raise _missing(source, missing[0])
        parts = [state[name] for name in rule.theirs]
        used.update(rule.theirs)
        for names in rule.copies:
            used.update(names)
        wanted = shapes[rule.ours]
        # Each by itself, since those of other shapes may not be concatenated at all.
        each = _shape_of_part(wanted, rule)
        for name, part in zip(rule.theirs, parts, strict=True):
            if part.shape != each:
                raise UserError(
                    f'{source}: "{name}" has shape {tuple(part.shape)}, '
                    f"which does not fit the model ({tuple(wanted)} for {rule.ours})"
                )
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        result[rule.ours] = tensor.T.contiguous() if rule.transpose else tensor
    left = sorted(set(state) - used)
    if left:
        more = f" and {len(left) - 1} more" if len(left) > 1 else ""
        raise UserError(f'{source} has the unexpected key "{left[0]}"{more}; it is of another model')
    return result


def _shape_of_part(wanted: torch.Size, rule: Rule) -> tuple[int, ...]:
    """Of each of `rule.theirs`, which are equal parts of ours."""
    if len(rule.theirs) == 1:
        return tuple(wanted[::-1] if rule.transpose else wanted)
    return (wanted[0] // len(rule.theirs), *wanted[1:])


def _check_copies(state: Mapping[str, Tensor], names: Iterable[str], copies: Iterable[str], source: str) -> None:
    """Refuse a file whose tied tensors differ: one of the two would be lost without a word."""
    for name, copy in zip(names, copies, strict=True):
        both = name in state and copy in state and not state[copy].is_meta
        if both and not torch.equal(state[name], state[copy]):
            raise UserError(
                f'{source}: "{copy}" differs from "{name}", which the model shares; it is of a model whose weights '
                "are not tied"
            )


@torch.no_grad()
def load_by_rules(
    model: nn.Module, rules: Sequence[Rule], state: Mapping[str, Tensor], *, source: str, ignored: Iterable[str]
) -> None:
    """Load their state dict into `model`, whose every parameter has a rule.

    A model on the meta device takes the tensors themselves, made float32; any other gets a copy.

    Raises:
        UserError: as `import_state`.
    """
    for rule in rules:
        for names in rule.copies:
            _check_copies(state, rule.theirs, names, source)
    shapes = {key: value.shape for key, value in model.state_dict().items()}
    ours = import_state(rules, state, shapes, source=source, ignored=ignored)
    named = dict(model.named_parameters())
    # Tied tensors appear twice in state_dict; the rules name each once.
    missing = sorted(set(named) - set(ours))
    assert not missing, f"rules leave {missing} out"
    assign = next(iter(named.values())).is_meta
    if assign:
        ours = {key: value.float() for key, value in ours.items()}
    model.load_state_dict(ours, strict=False, assign=assign)


def export_state(rules: Sequence[Rule], state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Turn our state dict into theirs; the inverse of `import_state`."""
    result: dict[str, Tensor] = {}
    for rule in rules:
        tensor = state[rule.ours]
        if rule.transpose:
            tensor = tensor.T
        parts = tensor.chunk(len(rule.theirs)) if len(rule.theirs) > 1 else (tensor,)
        for names in (rule.theirs, *rule.copies):
            for name, part in zip(names, parts, strict=True):
                result[name] = part.clone().contiguous()
    return result
