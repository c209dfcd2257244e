"""Images by address: what is opened, by a resolver and connections of the test, and what never is."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import httpx
import openai
import pytest
from serving_http import serving_at
from serving_small import StandIn, png

from openblip.core.errors import UserError
from openblip.serving.addresses import Addresses, is_public
from openblip.serving.app import Service

PUBLIC, OTHER, PRIVATE = "93.184.216.34", "2606:2800:220:1::1", "10.0.0.5"
IMAGE = png(1)


def answer(body: bytes = IMAGE, kind: str = "image/png", status: str = "200 OK", **headers: str) -> bytes:
    """As a host sends it."""
    more = {name.replace("_", "-"): value for name, value in headers.items()}
    fields = {"content-type": kind, "content-length": str(len(body)), **more}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"HTTP/1.1 {status}\r\n{lines}\r\n".encode() + body


def sent_on(location: str) -> bytes:
    return answer(b"", status="302 Found", location=location)


Answering = bytes | Callable[[asyncio.StreamWriter], Awaitable[None]]


class Net:
    """Names, and what the hosts behind IP addresses send; keeps what was resolved, connected to and requested.

    Args:
        names: each the addresses that its resolutions give, one list after the other, the last one again.
        hosts: by IP address what each request gets.
    """

    def __init__(self, names: Mapping[str, Sequence[list[str]]], hosts: Mapping[str, Sequence[Answering]]) -> None:
        self.names = {name: list(found) for name, found in names.items()}
        self.hosts = {address: list(found) for address, found in hosts.items()}
        self.resolved: list[str] = []
        self.connected: list[tuple[str, int, bool, str]] = []
        self.requests: list[str] = []

    async def resolve(self, host: str, port: int) -> list[str]:
        """As `Resolve`."""
        self.resolved.append(host)
        if host not in self.names:
            raise OSError("no such name")
        found = self.names[host]
        return found.pop(0) if len(found) > 1 else found[0]

    async def connect(self, address: str, port: int, context: ssl.SSLContext | None, host: str) -> Any:
        """As `Connect`, to a port of this machine that plays the host."""
        self.connected.append((address, port, context is not None, host))
        if context is not None:
            assert context.check_hostname
            assert context.verify_mode == ssl.CERT_REQUIRED
        if address not in self.hosts:
            raise ConnectionRefusedError
        sends = self.hosts[address].pop(0)

        async def host_speaks(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            self.requests.append((await reader.readuntil(b"\r\n\r\n")).decode())
            try:
                if isinstance(sends, bytes):
                    writer.write(sends)
                    await writer.drain()
                else:
                    await sends(writer)
            except ConnectionError:
                pass
            writer.close()

        server = await asyncio.start_server(host_speaks, "127.0.0.1", 0)
        try:
            return await asyncio.open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
        finally:
            server.close()


def opened(net: Net, address: str, **options: Any) -> bytes:
    settings = {"max_bytes": 100_000, "seconds": 20.0, **options}
    made = Addresses(["images.example.com", "*.below.org"], resolve=net.resolve, connect=net.connect, **settings)
    return asyncio.run(made.open(address))


def refused(net: Net, address: str, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        opened(net, address, **options)
    return str(caught.value)


def simple(*sends: Answering) -> Net:
    """One public host."""
    return Net({"images.example.com": [[PUBLIC]]}, {PUBLIC: list(sends)})


def test_an_image_of_an_allowed_domain_is_opened() -> None:
    net = simple(answer())
    assert opened(net, "http://images.example.com/a b.png?x=ü&y=1#part".replace(" ", "%20")) == IMAGE
    assert net.connected == [(PUBLIC, 80, False, "images.example.com")]
    lines = net.requests[0].split("\r\n")
    assert lines[0] == "GET /a%20b.png?x=%C3%BC&y=1 HTTP/1.1"
    assert "host: images.example.com" in [line.lower() for line in lines]
    assert not any(line.lower().startswith(("cookie", "authorization")) for line in lines)


def test_tls_is_for_the_hosts_name_at_the_pinned_address() -> None:
    net = Net({"a.b.below.org": [[OTHER, PUBLIC]]}, {PUBLIC: [answer()]})
    assert opened(net, "HTTPS://A.b.below.org:443/") == IMAGE
    assert net.connected == [(OTHER, 443, True, "a.b.below.org"), (PUBLIC, 443, True, "a.b.below.org")]


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("http://other.com/a.png", "addresses of other.com are not opened"),
        ("http://images.example.com.evil.org/a.png", "are not opened"),
        ("http://evilimages.example.com/", "are not opened"),
        ("http://below.org/", "are not opened"),
        ("http://images.example.com@evil.org/", "user's name"),
        ("http://me:secret@images.example.com/", "user's name"),
        ("http://evil.org\\@images.example.com/", "a character that no address may"),
        ("http://images.example.com/\r\nx: y", "a character that no address may"),
        ("http://images.example.com:8080/", "port 80 (http) and 443"),
        ("https://images.example.com:80/", "port 80 (http) and 443"),
        ("http://images.example.com:99999/", "this is no address"),
        ("http://[::1/", "this is no address"),
        ("ftp://images.example.com/", "begins with http"),
        ("file:///etc/passwd", "begins with http"),
        ("http:///a.png", "addresses of no host are not opened"),
        ("http://127.0.0.1/", "addresses of 127.0.0.1 are not opened"),
        ("http://2130706433/", "are not opened"),
        ("http://images.example.com./", "are not opened"),
        ("http://ïmages.example.com/", "are not opened"),
        ("http://images.example.com/\ud83d", "a character that no address may"),
        (f"http://{'a' * 64}.below.org/", "is not known"),
        ("http://a..below.org/", "is not known"),
    ],
)
def test_what_is_not_allowed_is_not_even_resolved(address: str, said: str) -> None:
    net = simple(answer())
    assert said in refused(net, address)
    assert net.resolved == net.connected == []


def test_a_host_may_have_letters_that_are_not_ascii() -> None:
    net = Net({"ü.below.org": [[PUBLIC]]}, {PUBLIC: [answer()]})
    assert opened(net, "http://ü.below.org/") == IMAGE
    assert "host: xn--tda.below.org" in net.requests[0].lower()


def test_public_addresses_are_told_from_others() -> None:
    for address in (PUBLIC, OTHER, "::ffff:93.184.216.34", "64:ff9b::5db8:d822", "8.8.8.8"):
        assert is_public(address), address
    for address in (
        *("127.0.0.1", "127.9.9.9", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
        *("169.254.169.254", "100.64.0.1", "192.0.0.1", "198.18.0.1", "192.0.2.1", "224.0.0.1", "239.1.1.1"),
        *("240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "fec0::1"),
        *("ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1"),
        *("64:ff9b::a9fe:a9fe", "::127.0.0.1", "2002:7f00:1::", "2002:a00:1::", "2001:0:1::", "2001:db8::1"),
        *("localhost", "", "1.2.3", "0x7f.0.0.1"),
    ):
        assert not is_public(address), address


@pytest.mark.parametrize("found", [[PRIVATE], ["::ffff:127.0.0.1"], [PUBLIC, "169.254.169.254"], ["::1", PUBLIC]])
def test_a_host_with_an_address_that_is_not_public_is_refused(found: list[str]) -> None:
    net = Net({"images.example.com": [found]}, {})
    sentence = refused(net, "http://images.example.com/")
    assert "lies in a network that is not public" in sentence
    assert not any(address in sentence for address in found)
    assert net.connected == []


def test_a_name_that_is_bound_anew_has_no_effect() -> None:
    """DNS rebinding: the first resolution is public, the next one would be private."""
    net = Net({"images.example.com": [[PUBLIC], [PRIVATE]]}, {PUBLIC: [answer()], PRIVATE: [answer(b"secret")]})
    assert opened(net, "http://images.example.com/") == IMAGE
    assert net.resolved == ["images.example.com"]
    assert [one[0] for one in net.connected] == [PUBLIC]


def test_a_redirect_to_the_same_name_bound_anew_is_refused() -> None:
    net = Net(
        {"images.example.com": [[PUBLIC], [PRIVATE]]}, {PUBLIC: [sent_on("/b.png")], PRIVATE: [answer(b"secret")]}
    )
    assert "not public" in refused(net, "http://images.example.com/")
    assert [one[0] for one in net.connected] == [PUBLIC]


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("http://169.254.169.254/latest/meta-data", "addresses of 169.254.169.254 are not opened"),
        ("http://inner.below.org/", "lies in a network that is not public"),
        ("http://images.example.com:6379/", "port 80"),
        ("//other.com/", "addresses of other.com are not opened"),
        ("http://[", "no address"),
        ("//[x/", "no address"),
        (f"http://{'a' * 64}.below.org/", "is not known"),
        ("file:///etc/passwd", "begins with http"),
        ("gopher://images.example.com/", "begins with http"),
        ("http://gone.below.org/", "the host gone.below.org is not known"),
        ("http://closed.below.org/", "the host closed.below.org cannot be reached"),
    ],
)
def test_every_redirect_is_checked(location: str, said: str) -> None:
    net = Net(
        {"images.example.com": [[PUBLIC]], "inner.below.org": [[PRIVATE]], "closed.below.org": [["8.8.4.4"]]},
        {PUBLIC: [sent_on(location)], PRIVATE: [answer(b"secret")]},
    )
    assert said in refused(net, "http://images.example.com/")
    assert PRIVATE not in [one[0] for one in net.connected]


def test_redirects_are_followed_a_few_times() -> None:
    three = [sent_on(f"/{number}") for number in range(3)]
    net = simple(*three, answer())
    assert opened(net, "http://images.example.com/start") == IMAGE
    assert [one.split()[1] for one in net.requests] == ["/start", "/0", "/1", "/2"]
    assert len(net.resolved) == 4, "each connection has its own check"
    assert "more than 3 times" in refused(simple(*three, sent_on("/3"), answer()), "http://images.example.com/")


def test_https_is_not_left() -> None:
    net = simple(sent_on("http://images.example.com/"))
    assert "from https to http" in refused(net, "https://images.example.com/")


async def endless(writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: image/png\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"1000\r\n" + b"x" * 4096 + b"\r\n")
        await writer.drain()


async def silent(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(60)


async def dripping(writer: asyncio.StreamWriter) -> None:
    """Each byte comes soon, the headers never end."""
    writer.write(b"HTTP/1.1 200 OK\r\nx: ")
    while True:
        writer.write(b"a")
        await writer.drain()
        await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("sends", "said"),
    [
        (answer(b"x" * 100_001), "more than 100,000 bytes"),
        (answer(b"", content_length="100001"), "more than 100,000 bytes"),
        (endless, "more than 100,000 bytes"),
        (silent, "no image within 0.5 seconds"),
        (dripping, "no image within 0.5 seconds"),
        (answer(b"<html>", "text/html"), "gave no image"),
        (answer(b"{}", "application/json; charset=utf-8"), "gave no image"),
        (answer(content_encoding="gzip"), "compressed once more"),
        (answer(status="404 Not Found"), "the status 404"),
        (answer(status="204 No Content", body=b""), "the status 204"),
        (answer(b"", status="302 Found"), "the status 302"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "did not answer as HTTP says"),
        (b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 50_000, "did not answer as HTTP says"),
        (answer()[:-10], "did not answer as HTTP says"),
        (b"", "the host broke off"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_too_large_too_slow_or_no_image_is_refused(sends: Answering, said: str) -> None:
    seconds = 0.5 if sends in (silent, dripping) else 20.0
    assert said in refused(simple(sends), "http://images.example.com/", seconds=seconds)


def test_sizes_up_to_the_bound_and_storage_services_are_taken() -> None:
    body = b"x" * 100_000
    assert opened(simple(answer(body, "binary/octet-stream")), "http://images.example.com/") == body


@pytest.mark.parametrize("domain", ["", "*", "http://a.com", "a.com/", "a..com", "a.com:80", "ü.de", "*.*.com"])
def test_what_is_no_domain_is_refused_at_the_start(domain: str) -> None:
    with pytest.raises(UserError, match="is no domain whose images can be opened"):
        Addresses([domain], max_bytes=1)


# Over the service --------------------------------------------------------------------------------------------


def test_all_endpoints_open_allowed_addresses_alone() -> None:
    net = simple(*[answer()] * 4)
    opener = Addresses(["images.example.com"], max_bytes=100_000, resolve=net.resolve, connect=net.connect)
    made = StandIn()
    with serving_at(Service(made, opener=opener)) as address, httpx.Client(base_url=address, timeout=60) as client:
        for path, sent in (
            ("/v1/caption", {"image": "http://images.example.com/a.png"}),
            ("/v1/hf/one", {"inputs": "http://images.example.com/a.png"}),
        ):
            assert client.post(path, json=sent).status_code == 200
            assert made.asked[-1].image == IMAGE
        form = client.post("/v1/caption", files={"x": ("", "")}, data={"image": "http://images.example.com/a.png"})
        assert form.status_code == 422
        other = client.post("/v1/caption", json={"image": "http://other.com/a.png"})
        assert (other.status_code, other.json()) == (
            422,
            {"error": "image: addresses of other.com are not opened; send the image itself"},
        )
        shown = {"type": "image_url", "image_url": {"url": "http://evil.org/"}}
        with pytest.raises(openai.BadRequestError, match=r"addresses of evil\.org are not opened"):
            openai.OpenAI(base_url=f"{address}/v1", api_key="none").chat.completions.create(
                model="one",
                messages=[{"role": "user", "content": [shown]}],  # type: ignore[list-item]
            )
    assert len(net.connected) == 3
