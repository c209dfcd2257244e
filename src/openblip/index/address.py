"""How an index in PostgreSQL is named: postgresql://USER@HOST/DATABASE#NAME, shown without a password."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlsplit

from openblip.core.errors import UserError, require

__all__ = ["Address", "check_address", "is_address", "parse_address"]

_SCHEMES = ("postgresql://", "postgres://")
_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
_SHOWN = ("host", "port", "dbname")
"""settings of the query that say where the database is"""
_HOSTS = re.compile(r"([\w.%-]*|\[[0-9a-fA-F:.]+\])(:\d+)?(,([\w.%-]*|\[[0-9a-fA-F:.]+\])(:\d+)?)*")


@dataclass(frozen=True)
class Address:
    """Where an index in PostgreSQL is."""

    url: str = field(repr=False)
    """of the database, as libpq reads it; may hold a password"""
    name: str
    """of the index in this database"""
    shown: str
    """the address as messages give it, without a password"""

    @property
    def schema(self) -> str:
        """That holds the tables of the index."""
        return f"openblip_{self.name}"


def is_address(index: str) -> bool:
    """Whether an index is named by a database rather than by a folder."""
    return index.startswith(_SCHEMES)


def check_address(index: str) -> None:
    """Refuse an address that cannot be read, or one that cannot be used without an extra.

    Raises:
        UserError: as said.
    """
    parse_address(index)
    for package in ("psycopg", "pgvector"):
        require(package, "postgres")


def parse_address(index: str) -> Address:
    """Read the address of an index.

    Raises:
        UserError: it is not one; what was given is not repeated, since it may hold a password.
    """
    unread = UserError(
        "the address of the database cannot be read; write postgresql://USER@HOST:PORT/DATABASE#NAME, and in a "
        "password %40 for @, %23 for #, %2F for /, %3F for ?"
    )
    try:
        parts = urlsplit(index)
    except ValueError:  # whose message repeats the part with the password
        raise unread from None
    # A password with a sign that ends its part of the address would stand in a part that is shown.
    user, _, hosts = parts.netloc.rpartition("@")
    user = user.partition(":")[0]
    if (
        not is_address(index)
        or any("@" in part for part in (parts.path, parts.query, parts.fragment))
        or "@" in user
        or not _HOSTS.fullmatch(hosts)
        or not re.fullmatch(r"/?[^/]*", parts.path)
    ):
        raise unread
    if not _NAME.fullmatch(parts.fragment):
        raise UserError(
            "an index in PostgreSQL is named by the end of its address, postgresql://USER@HOST/DATABASE#NAME; NAME "
            "begins with a small letter and has at most 40 small letters, digits and _"
        )
    query = "&".join(f"{key}={value}" for key, value in parse_qsl(parts.query) if key in _SHOWN)
    shown = f"postgresql://{user}{'@' if user else ''}{hosts}{parts.path}{'?' if query else ''}{query}"
    return Address(index.partition("#")[0], parts.fragment, f"{shown}#{parts.fragment}")
