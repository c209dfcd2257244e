"""Reads the body of a request: never more than allowed, JSON or a form, into one of `schemas`' dataclasses."""

from __future__ import annotations

import base64
import binascii
import json
import types
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from typing import Any, Protocol, TypeVar, get_args, get_origin, get_type_hints

from openblip.core.errors import UserError, nearest, require
from openblip.serving.limits import Limits

__all__ = ["Opener", "Refused", "checked", "from_json", "parse", "read_body", "read_image", "schema_of"]

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


class Opener(Protocol):
    """Opens images by their addresses."""

    async def open(self, address: str) -> bytes:
        """An encoded image.

        Raises:
            UserError: the address is not allowed, or does not give an image.
        """
        ...


async def parse(
    body: bytes, headers: Mapping[str, str], kind: type[Request], opener: Opener | None = None
) -> Request:
    """The request that a body holds.

    Args:
        opener: of images that are named by their addresses; None refuses these.

    Raises:
        Refused: it is neither JSON nor a form.
        UserError: a field is unknown, missing or of a wrong type.
    """
    known: Any = kind
    content = headers.get("content-type", "").partition(";")[0].strip().lower()
    if content == _JSON:
        values = from_json(body)
        if isinstance(values.get("image"), str):
            values["image"] = await read_image(values["image"], opener)
        elif values.get("image") is not None:
            raise UserError("image: in JSON it is a string of base64, or a data URI")
    elif content == _FORM:
        values = await _from_form(body, headers, _lists(known), opener)
    else:
        raise Refused(415, f"the body must be {_JSON} or {_FORM}")
    return checked(values, kind)


def checked(values: Mapping[str, Any], kind: type[Request]) -> Request:
    """A request of the fields in `values`.

    Raises:
        UserError: a field is unknown, missing or of a wrong type.
    """
    require("pydantic", "serving")
    from pydantic import ValidationError

    known: Any = kind
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
    """The JSON schema of a request; what it refers to stands where it is used."""
    schema = _checker(kind).json_schema()
    return _inlined(schema, schema.pop("$defs", {}))


def _inlined(part: Any, named: Mapping[str, Any]) -> Any:
    if isinstance(part, dict):
        if "$ref" in part:
            return _inlined(named[part["$ref"].rpartition("/")[2]], named)
        return {name: _inlined(value, named) for name, value in part.items()}
    return [_inlined(one, named) for one in part] if isinstance(part, list) else part


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


def from_json(body: bytes) -> dict[str, Any]:
    """The object that a body holds.

    Raises:
        UserError: it holds none.
    """
    try:
        values = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise UserError("the body is no JSON") from error
    if not isinstance(values, dict):
        raise UserError("the body must be a JSON object")
    return values


async def read_image(text: str, opener: Opener | None) -> bytes:
    """Bytes of base64, of a data URI or of an address.

    Raises:
        UserError: they cannot be had.
    """
    if text[:6].lower().startswith(("http:", "https:")) and opener is not None:
        return await opener.open(text)
    if text[:6].lower().startswith(("http:", "https:", "file:")):
        raise UserError("image: addresses are not opened; send the image itself, as a form or as base64")
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise UserError("image: a data URI must hold base64: data:image/jpeg;base64,...")
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, UnicodeEncodeError) as error:
        raise UserError("image: it is no base64") from error


async def _from_form(
    body: bytes, headers: Mapping[str, str], lists: frozenset[str], opener: Opener | None
) -> dict[str, Any]:
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
            given = await read_image(given, opener)
        if name in lists:
            values.setdefault(name, []).append(given)
        elif name in values:
            raise UserError(f"{name[:40]}: it is given twice")
        else:
            values[name] = given
    return values
