"""The command `datasets`: the table of published datasets, and what of one is below the data root."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, arg

from openblip.cli.arguments import person
from openblip.core.places import DATA_ROOT

if TYPE_CHECKING:
    from openblip.data.cards import Card

__all__ = ["dataset_rows", "datasets"]


def datasets(
    name: Annotated[Positional[str], arg(metavar="[NAME]", help_behavior_hint="")] = "",
    /,
    *,
    data_root: Annotated[Path | None, arg(metavar="FOLDER", help_behavior_hint="")] = None,
) -> None:
    """List the published datasets that are known by name, or show one, and what of it is here.

    Args:
        name: of a dataset; left out, all are listed.
        data_root: the folder that holds them; left out, that of the variable OPENBLIP_DATA.
    """
    from openblip.data.cards import card_named

    root = _root(data_root)
    if name:
        _show(card_named(name), root)
    elif person():
        from openblip.report import Column, Table, print_table

        rows = list(dataset_rows(root))
        columns = [Column(name=column) for column in rows[0]]
        print_table(Table(title="datasets", columns=columns, rows=[tuple(row.values()) for row in rows]))
    else:
        for row in dataset_rows(root):
            print(json.dumps(row, ensure_ascii=False))


def _root(given: Path | None) -> Path | None:
    if given is None and not os.environ.get(DATA_ROOT):
        return None
    from openblip.data.cards.find import data_root

    return data_root(str(given) if given is not None else "")


def dataset_rows(root: Path | None) -> Iterator[dict[str, str]]:
    """A row of the table for each dataset; with a root also which splits are there."""
    from openblip.data.cards import CARDS
    from openblip.data.cards.find import find_form

    for card in CARDS.values():
        row = {"dataset": card.name, "what": card.title, "splits": ", ".join(card.splits), "task": card.task}
        if root is not None:
            found = {split: find_form(card, split, root) for split in card.splits}
            row["here"] = ", ".join(split for split, one in found.items() if not one.missing) or "nothing"
        yield row


def _show(card: Card, root: Path | None) -> None:
    """Print a card."""
    from openblip.data.cards.find import find_form

    facts: dict[str, Any] = {"what": card.title, "task": card.task, "home": card.home, "licence": card.licence}
    if card.images_of:
        facts["images"] = f"those of {card.images_of}"
    for archive in card.archives:
        count = f" ({archive.count:,} images)" if archive.count else ""
        facts[f"images {archive.folder}"] = f"{archive.url}{count}"
    for split, forms in card.splits.items():
        for form in forms:
            names = " and ".join(filter(None, (form.file, form.beside)))
            facts[f"{card.name}:{split}, {form.by}"] = f"{names} from {form.url}"
    for target in card.targets:
        facts[f"{target.measure}; {target.model}"] = f"{target.value} ({target.source})"
    if card.note:
        facts["note"] = card.note
    if root is not None:
        for split in card.splits:
            found = find_form(card, split, root)
            facts[f"{card.name}:{split} in {root}"] = found.missing or f"{found.file}"
    if person():  # lines: the cells of a table would cut addresses
        print("\n".join([card.name, *(f"  {name}: {value}" for name, value in facts.items())]))
    else:
        print(json.dumps({"dataset": card.name, **facts}, indent=2, ensure_ascii=False))
