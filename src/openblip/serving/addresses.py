"""Opens images by their addresses, of named domains alone, and never in the server's own network.

Before each connection, the first one and that of every redirect: the scheme is http or https on its usual port,
the host is one that was allowed, its name is resolved once, every address that it has is public, and the connection
goes to one of these by number. A name that is resolved otherwise a moment later (DNS rebinding) has no effect.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import Awaitable, Callable, Collection
from contextlib import suppress
from typing import NamedTuple
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from openblip.core.errors import UserError, require

__all__ = ["Addresses", "Connect", "Resolve", "is_public"]

Resolve = Callable[[str, int], Awaitable[list[str]]]
"""Host and port to IP addresses."""
Connect = Callable[
    [str, int, ssl.SSLContext | None, str], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]
]
"""To an IP address and port, with TLS for a host's name where there is a context."""

_PORTS = {"http": 80, "https": 443}
_REDIRECTS = 3
_BINARY = ("application/octet-stream", "binary/octet-stream")
"""what storage services call any file"""
_PATH = "/:@!$&'()*+,;=%-._~"
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_CHUNK = 2**16


class _Redirect(NamedTuple):
    """Where another address has sent to."""

    location: str


class Addresses:
    """Opens images of some domains.

    Args:
        domains: host names that are allowed, "*.example.com" for all below one.
        max_bytes: of an image.
        seconds: for an image in all, redirects included.
        resolve, connect: the system's, but for tests.

    Raises:
        UserError: a domain is none.
        MissingExtra: h11 is not installed.
    """

    def __init__(
        self,
        domains: Collection[str],
        *,
        max_bytes: int,
        seconds: float = 10.0,
        resolve: Resolve | None = None,
        connect: Connect | None = None,
    ) -> None:
        require("h11", "serving")
        self._domains = frozenset(_checked(domain) for domain in domains)
        self._max_bytes, self._seconds = max_bytes, seconds
        self._resolve, self._connect = resolve or _resolve, connect or _connect
        self._context = ssl.create_default_context()

    async def open(self, address: str) -> bytes:
        """The body that an address gives, which claims to be an image.

        Raises:
            UserError: the address is not allowed, or gives no image within the time and the size.
        """
        try:
            async with asyncio.timeout(self._seconds):
                return await self._follow(address)
        except TimeoutError:
            raise UserError(f"image: the address gave no image within {self._seconds:g} seconds") from None

    async def _follow(self, address: str) -> bytes:
        secure = False
        for _ in range(_REDIRECTS + 1):
            parts = self._allowed(address)
            if secure and parts.scheme == "http":
                raise UserError("image: the address leads from https to http")
            secure = parts.scheme == "https"
            found = await self._get(parts)
            if isinstance(found, bytes):
                return found
            try:
                address = urljoin(address, found.location)
            except ValueError:
                raise UserError("image: the address leads on to what is no address") from None
        raise UserError(f"image: the address leads on more than {_REDIRECTS} times")

    def _allowed(self, address: str) -> SplitResult:
        """The parts of an address that may be opened."""
        if any(character <= " " or character in "\\\x7f" or _is_half(character) for character in address):
            raise UserError("image: the address holds a character that no address may")
        try:
            parts = urlsplit(address)
            port, host = parts.port, parts.hostname or ""
        except ValueError:
            raise UserError("image: this is no address") from None
        if parts.scheme not in _PORTS:
            raise UserError("image: an address begins with http:// or https://")
        if port not in (None, _PORTS[parts.scheme]):
            raise UserError("image: addresses are opened at port 80 (http) and 443 (https) alone")
        if parts.username is not None or parts.password is not None:
            raise UserError("image: an address with a user's name is not opened")
        below = {f"*.{host[place + 1 :]}" for place, character in enumerate(host) if character == "."}
        if host not in self._domains and not below & self._domains:
            raise UserError(f"image: addresses of {host[:100] or 'no host'} are not opened; send the image itself")
        return parts

    async def _get(self, parts: SplitResult) -> bytes | _Redirect:
        host, port = str(parts.hostname), _PORTS[parts.scheme]
        try:
            host.encode("idna")  # as the system's resolver, TLS and HTTP take it
            found = await self._resolve(host, port)
        except (OSError, UnicodeError):  # the latter for labels that are empty or too long
            found = []
        if not found:
            raise UserError(f"image: the host {host[:100]} is not known")
        if not all(is_public(one) for one in found):
            raise UserError(f"image: the host {host[:100]} lies in a network that is not public")
        reader, writer = await self._reach(found, port, self._context if parts.scheme == "https" else None, host)
        try:
            return await self._exchange(parts, reader, writer)
        except OSError:
            raise UserError("image: the connection to the host was broken") from None
        finally:
            writer.transport.abort()  # it has nothing more to say, and is not waited for

    async def _reach(
        self, found: list[str], port: int, context: ssl.SSLContext | None, host: str
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection to the first address that takes one."""
        for address in dict.fromkeys(found):
            with suppress(OSError):
                return await self._connect(address, port, context, host)
        raise UserError(f"image: the host {host[:100]} cannot be reached")

    async def _exchange(
        self, parts: SplitResult, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bytes | _Redirect:
        import h11

        target = quote(parts.path or "/", safe=_PATH) + (
            f"?{quote(parts.query, safe=_PATH + '?')}" if parts.query else ""
        )
        host = str(parts.hostname).encode("idna").decode()
        headers = [
            ("host", f"[{host}]" if ":" in host else host),
            ("user-agent", "openblip"),
            ("accept", "image/*"),
            ("accept-encoding", "identity"),
            ("connection", "close"),
        ]
        talk = h11.Connection(h11.CLIENT)
        writer.write(talk.send(h11.Request(method="GET", target=target, headers=headers)) or b"")
        writer.write(talk.send(h11.EndOfMessage()) or b"")
        body = bytearray()
        try:
            while True:
                event = talk.next_event()
                if event is h11.NEED_DATA:
                    talk.receive_data(await reader.read(_CHUNK))
                elif isinstance(event, h11.Response):
                    answer = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
                    if 300 <= event.status_code < 400 and "location" in answer:
                        return _Redirect(answer["location"])
                    self._check_answer(event.status_code, answer)
                elif isinstance(event, h11.Data):
                    body += event.data
                    self._check_size(len(body))
                elif isinstance(event, h11.EndOfMessage):
                    return bytes(body)
                elif not isinstance(event, h11.InformationalResponse):
                    raise UserError("image: the connection to the host was broken")
        except h11.RemoteProtocolError:
            raise UserError("image: the host broke off, or did not answer as HTTP says") from None

    def _check_answer(self, status: int, headers: dict[str, str]) -> None:
        if status != 200:
            raise UserError(f"image: the address gave the status {status}")
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if not kind.startswith("image/") and kind not in _BINARY:
            raise UserError("image: the address gave no image")
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise UserError("image: the address gave an image that is compressed once more")
        length = headers.get("content-length", "")
        self._check_size(int(length) if length.isdecimal() else 0)

    def _check_size(self, size: int) -> None:
        if size > self._max_bytes:
            raise UserError(f"image: the address gave more than {self._max_bytes:,} bytes")


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public network, also where it is an IPv4 address within an IPv6 one."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if ip in _NAT64:
            return is_public(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)))
        if ip.sixtofour is not None or ip.teredo is not None or ip.is_site_local:
            return False
    inner = ip.is_private or ip.is_loopback or ip.is_link_local or ip.is_multicast
    return ip.is_global and not (inner or ip.is_reserved or ip.is_unspecified)


def _is_half(character: str) -> bool:
    """Whether it is half of a character, which JSON may hold and UTF-8 may not."""
    return "\ud800" <= character <= "\udfff"


def _checked(domain: str) -> str:
    """A domain as `Addresses` compares it."""
    name = domain.strip().lower()
    plain = name.removeprefix("*.")
    with suppress(ValueError):
        ipaddress.ip_address(plain)
        return plain
    labels = plain.split(".")
    if not all(label and all(c.isalnum() or c in "-_" for c in label) and label.isascii() for label in labels):
        raise UserError(
            f'"{domain}" is no domain whose images can be opened; write one such as images.example.com, or '
            "*.example.com for all below it"
        )
    return name


async def _resolve(host: str, port: int) -> list[str]:
    """By the system."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(address[0]) for *_, address in found]


async def _connect(
    address: str, port: int, context: ssl.SSLContext | None, host: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """To the address, whatever the host's name would give now; the certificate must be the host's."""
    name = host if context is not None else None
    return await asyncio.open_connection(address, port, ssl=context, server_hostname=name)
