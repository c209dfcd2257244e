"""Texts that begin alike as a tree: a beginning that several texts of a prompt share is read once.

    tree = Prefixes.of(input_ids, attention_mask)                     # [R, C, T] texts, C for each of R prompts
    logits = read(tree.input_ids, tree.positions, tree.mask, rows)    # [R, M, V] of M nodes, in one pass
    logits[row, tree.places[row, text, t]]                            # what speaks of token t + 1 of that text

A node is a token with all tokens before it. It stands at the position of its depth and attends to its ancestors and
itself, so that a causal decoder computes what it would of the text alone. The last token of a text predicts nothing
and is no node.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Prefixes", "ReadTree"]


class ReadTree(Protocol):
    """A decoder that reads a tree of texts for each prompt."""

    def __call__(self, input_ids: Tensor, positions: Tensor, mask: Tensor, rows: Tensor) -> Tensor:
        """Next-token logits [P, M, V] of nodes int64 [P, M] at `positions` int64 [P, M].

        `mask` bool [P, M, M] tells which nodes a node attends to; `rows` int64 [P], rising, names the prompts.
        """


@dataclass(frozen=True)
class Prefixes:
    """The trees of R prompts; one with fewer than M nodes is filled up with nodes that nothing reads."""

    input_ids: Tensor
    """int64 [R, M], the token of each node; parents stand before their children"""
    positions: Tensor
    """int64 [R, M]"""
    mask: Tensor
    """bool [R, M, M], True where node i attends to node j"""
    places: Tensor
    """int64 [R, C, T - 1], the node that predicts token t + 1 of a text; 0 where there is no such token"""

    @classmethod
    def of(cls, input_ids: Tensor, attention_mask: Tensor) -> Prefixes:
        """The trees of texts int64 [R, C, T] (mask bool, padding on the right)."""
        device = input_ids.device
        rows, texts, width = input_ids.shape
        vocabulary = int(input_ids.max()) + 1
        row = torch.arange(rows, device=device)[:, None].expand(rows, texts)
        parent = row  # the first tokens of a prompt's texts hang on a number of the prompt's own
        found, count = [], rows
        numbers = torch.zeros(rows, texts, width - 1, dtype=torch.int64, device=device)
        for place in range(width - 1):
            there = attention_mask[:, :, place + 1]
            keys = parent[there] * vocabulary + input_ids[:, :, place][there]
            unique, which = keys.unique(return_inverse=True)
            if not len(unique):
                break
            owner = torch.empty_like(unique).scatter_(0, which, row[there])  # equal keys are of one prompt
            found.append((owner, unique // vocabulary, unique % vocabulary))
            parent = parent.masked_scatter(there, count + which)
            numbers[:, :, place] = numbers[:, :, place].masked_scatter(there, count + which)
            count += len(unique)
        return cls._placed(found, numbers, attention_mask[:, :, 1:], count - rows)

    @classmethod
    def _placed(
        cls, found: list[tuple[Tensor, Tensor, Tensor]], numbers: Tensor, there: Tensor, count: int
    ) -> Prefixes:
        """Nodes by depth, each (owner, parent, token) with numbers from R on, put into a row for each prompt."""
        device, rows = numbers.device, len(numbers)
        owners = torch.cat([owner for owner, _, _ in found]) if found else numbers.new_zeros(0)
        sizes = torch.bincount(owners, minlength=rows)
        most = max(1, int(sizes.max()) if rows else 1)
        # The place of each node among those of its prompt, in the order in which they were found.
        order = owners.argsort(stable=True)
        local = torch.empty_like(owners)
        local[order] = torch.arange(count, device=device) - (sizes.cumsum(0) - sizes)[owners[order]]
        ids = torch.zeros(rows, most, dtype=torch.int64, device=device)
        positions, mask = torch.zeros_like(ids), torch.zeros(rows, most, most, dtype=torch.bool, device=device)
        mask[:, :, 0] = torch.arange(most, device=device) >= sizes[:, None]  # those that fill up see something
        before = 0
        for depth, (owner, parent, token) in enumerate(found):
            own = local[before : before + len(owner)]
            ids[owner, own], positions[owner, own] = token, depth
            if depth:
                mask[owner, own] = mask[owner, local[parent - rows]]
            mask[owner, own, own] = True
            before += len(owner)
        places = torch.where(there, local[(numbers - rows).clamp_min(0)] if count else numbers, 0)
        return cls(ids, positions, mask, places)
