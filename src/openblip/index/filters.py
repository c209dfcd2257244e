"""Which images of an index a search may give: by folder, date, words of their captions, and metadata."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from openblip.core.errors import UserError
from openblip.index.database import Condition, Database

__all__ = ["Filters"]

_DATE = re.compile(r"\d{4}(-\d{2}(-\d{2}([ T]\d{2}(:\d{2}(:\d{2})?)?)?)?)?")


@dataclass(frozen=True)
class Filters:
    """All that are given must hold.

    Raises:
        UserError: a date is not written as 2024-05-01 or does not exist, or a filter by words holds no word.
    """

    folder: str = ""
    """the folder (or tar) that images lie in or below"""
    since: str = ""
    """the first day, "2024-05-01", or the beginning of a time, "2024-05" """
    until: str = ""
    """the last day, likewise: "2024" is its whole year"""
    words: str = ""
    """words that all stand in the captions, in any form of upper and lower case"""
    metadata: Mapping[str, str] = field(default_factory=dict)
    """names and values, as texts"""

    def __post_init__(self) -> None:
        for name in ("since", "until"):
            value = getattr(self, name)
            if value and not _is_date(value):
                raise UserError(f'{name} takes a date such as 2024-05-01, not "{value}"')
        if self.words and not _words(self.words):
            raise UserError(f'there is no word in "{self.words}" to look for in captions')

    def __bool__(self) -> bool:
        return self != Filters()

    def where(self, database: Database) -> Condition:
        """A condition of SQL on `images`; images that were removed never pass."""
        parts, values = ["removed IS NULL"], list[Any]()
        if self.folder:
            inside = os.fsencode(os.path.join(os.path.abspath(self.folder), ""))
            parts.append("path >= ? AND path < ?")
            values += [inside, inside[:-1] + bytes([inside[-1] + 1])]  # all that begins so
        if self.since:
            parts.append("date >= ?")
            values.append(self.since.replace("T", " "))
        if self.until:
            parts.append("date < ?")
            values.append(self.until.replace("T", " ") + "~")  # sorts behind all that begins so
        conditions = [database.has_metadata(name, str(value)) for name, value in self.metadata.items()]
        if self.words:
            conditions.append(database.has_words(_words(self.words)))
        for condition, own in conditions:
            parts.append(condition)
            values += own
        return " AND ".join(parts), values


def _is_date(value: str) -> bool:
    """Whether it is a day or a time that there is, or the beginning of one."""
    if not _DATE.fullmatch(value):
        return False
    try:
        datetime.fromisoformat(value + "0000-01-01 00:00:00"[len(value) :])
    except ValueError:
        return False
    return True


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text)
