"""Reads the body of a request: never more than allowed, JSON or a form, into one of `schemas`' dataclasses."""

from __future__ import annotations

import base64
import binascii
import json
import types
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from openblip.core.errors import UserError, nearest, require
from openblip.serving.limits import Limits

__all__ = ["Refused", "parse", "read_body", "schema_of"]

_JSON, _FORM = "application/json", "multipart/form-data"
_FIELDS = 1024
"""parts of a form"""

Request = TypeVar("Request")


class Refused(Exception):
    """An answer other than 200: its status and its sentence."""

    def __init__(self, status: int, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        # A request may name half a character, which JSON allows and UTF-8 does not.
        self.message = message.encode("utf-8", "backslashreplace").decode()
        self.status, self.headers = status, dict(headers or {})


async def read_body(chunks: AsyncIterator[bytes], length: str | None, limits: Limits) -> bytes:
    """The whole body.

    Args:
        chunks: as they come.
        length: the header "content-length".

    Raises:
        Refused: it is too large; by its header before it is read, without one as soon as too much has come.
    """
    too_large = Refused(413, f"the request is larger than {limits.body_bytes:,} bytes", {"connection": "close"})
    if length is not None and length.isdecimal() and int(length) > limits.body_bytes:
        raise too_large
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > limits.body_bytes:
            raise too_large
    return bytes(body)


async def parse(body: bytes, headers: Mapping[str, str], kind: type[Request], limits: Limits) -> Request:
    """The request that a body holds.

    Raises:
        Refused: it is neither JSON nor a form.
        UserError: a field is unknown, missing or of a wrong type.
    """
    known: Any = kind
    content = headers.get("content-type", "").partition(";")[0].strip().lower()
    if content == _JSON:
        values = _from_json(body)
    elif content == _FORM:
        values = await _from_form(body, headers, _lists(known))
    else:
        raise Refused(415, f"the body must be {_JSON} or {_FORM}")
    require("pydantic", "serving")
    from pydantic import ValidationError

    try:
        return _checker(known).validate_python(values)
    except ValidationError as error:
        unknown = ("extra_forbidden", "unexpected_keyword_argument")
        found = error.errors(include_url=False, include_input=False, include_context=False)
        first = min(found, key=lambda one: one["type"] not in unknown)  # a field misspelt is missing as well
        name = ".".join(str(part) for part in first["loc"])[:60]
        if first["type"] in unknown:
            names = [field.name for field in fields(known)]
            raise UserError(f'there is no field "{name}"{nearest(name, names)}') from None
        told = {"missing": "it is missing", "missing_argument": "it is missing", "tuple_type": "it must be a list"}
        raise UserError(f"{name}: {told.get(first['type'], first['msg'][:200])}") from None


def schema_of(kind: type) -> dict[str, Any]:
    """The JSON schema of a request."""
    return _checker(kind).json_schema(ref_template="#/components/schemas/{model}")


@cache
def _checker(kind: Any) -> Any:
    assert is_dataclass(kind)
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


@cache
def _lists(kind: Any) -> frozenset[str]:
    """Fields that hold several values."""
    hints = get_type_hints(kind)
    several = set()
    for name, hint in hints.items():
        parts = get_args(hint) if get_origin(hint) is types.UnionType else (hint,)
        if any(get_origin(part) is tuple for part in parts):
            several.add(name)
    return frozenset(several)


def _from_json(body: bytes) -> dict[str, Any]:
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UserError("the body is no JSON") from error
    if not isinstance(values, dict):
        raise UserError("the body must be a JSON object")
    if isinstance(values.get("image"), str):
        values["image"] = _from_base64(values["image"])
    elif values.get("image") is not None:
        raise UserError("image: in JSON it is a string of base64, or a data URI")
    return values


def _from_base64(text: str) -> bytes:
    """Bytes of base64 or of a data URI; addresses of other sites are never opened."""
    if text.startswith(("http:", "https:", "file:")):
        raise UserError("image: addresses are not opened; send the image itself, as a form or as base64")
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise UserError("image: a data URI must hold base64: data:image/jpeg;base64,...")
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise UserError("image: it is no base64") from error


async def _from_form(body: bytes, headers: Mapping[str, str], lists: frozenset[str]) -> dict[str, Any]:
    require("python_multipart", "serving")
    from starlette.datastructures import Headers, UploadFile
    from starlette.formparsers import MultiPartException, MultiPartParser

    async def once() -> AsyncGenerator[bytes, None]:
        yield body

    parser = MultiPartParser(
        Headers(headers),
        once(),
        max_files=1,
        max_fields=_FIELDS,
        max_part_size=len(body),
    )
    parser.spool_max_size = len(body) + 1  # nothing goes to a disk
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, UnicodeDecodeError, ValueError) as error:
        raise UserError("the form cannot be read: its parts are cut, or more than one is a file") from error
    values: dict[str, Any] = {}
    for name, value in form.multi_items():
        given = await value.read() if isinstance(value, UploadFile) else value
        if name == "image" and isinstance(given, str):
            given = _from_base64(given)
        if name in lists:
            values.setdefault(name, []).append(given)
        elif name in values:
            raise UserError(f"{name[:40]}: it is given twice")
        else:
            values[name] = given
    return values
