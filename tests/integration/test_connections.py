"""Connections to a provider: kept from call to call, renewed when the server closed them, through a proxy where one is
set. The server is made by hand, so that it says what really came over the wire.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from mail_server import write_certificate

from cp_core.execution.policy import ExecutionPolicy
from cp_resources.providers.connections import (
    CONNECTION_ERRORS,
    SILENCE_ERRORS,
    Connections,
    tls_context,
)

TLS = tls_context()
ANSWER = b"HTTP/1.1 200 OK\r\nX-Seen: one\r\nX-Seen: two\r\nContent-Length: 2\r\n\r\n{}"


@dataclass
class Server:
    """What came: first line and headers of each request, by connection."""

    calls_by_connection: list[list[str]] = field(default_factory=list)
    closes_after_each: bool = False
    closed: int = 0
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        calls: list[str] = []
        self.calls_by_connection.append(calls)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = int(head.lower().split("content-length: ")[1].split("\r\n")[0])
                await reader.readexactly(length)
                calls.append(head)
                writer.write(ANSWER)
                await writer.drain()
                if self.closes_after_each:
                    break
        except asyncio.IncompleteReadError:
            pass
        finally:
            writer.close()
            self.closed += 1


@asynccontextmanager
async def running(server: Server) -> AsyncIterator[Server]:
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.url = f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    try:
        yield server
    finally:
        listening.close()


async def call(connections: Connections, url: str) -> tuple[int, dict[str, str], bytes]:
    async with connections.exchange("POST", url, {"x-id": "7"}, b'{"a": 1}') as incoming:
        content = b"".join([chunk async for chunk in incoming.chunks])
    return incoming.status, dict(incoming.headers), content


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)


def test_calls_one_after_another_go_over_one_connection() -> None:
    async def calls() -> tuple[list[tuple[int, dict[str, str], bytes]], Server]:
        async with running(Server()) as server:
            connections = Connections(ExecutionPolicy(), TLS)
            answers = [await call(connections, f"{server.url}/v1/chat?a=b") for _ in range(3)]
            await connections.aclose()
            return answers, server

    answers, server = asyncio.run(calls())

    assert answers == [(200, {"x-seen": "one, two", "content-length": "2"}, b"{}")] * 3
    [heads] = server.calls_by_connection
    assert len(heads) == 3
    assert heads[0].startswith("POST /v1/chat?a=b HTTP/1.1\r\n")
    lines = heads[0].lower().split("\r\n")
    assert {"x-id: 7", "content-length: 8", f"host: {server.url.removeprefix('http://')}"} <= set(lines)


def test_a_connection_that_the_server_closed_is_replaced() -> None:
    async def calls() -> tuple[list[int], Server]:
        async with running(Server(closes_after_each=True)) as server:
            connections = Connections(ExecutionPolicy(), TLS)
            statuses = []
            for number in range(1, 4):
                statuses.append((await call(connections, server.url))[0])
                while server.closed < number:
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.05)  # for the news to come to this side
            await connections.aclose()
            return statuses, server

    statuses, server = asyncio.run(calls())

    assert statuses == [200] * 3
    assert [len(calls) for calls in server.calls_by_connection] == [1, 1, 1]


def test_nobody_there_is_a_connection_error_and_the_next_call_tries_again() -> None:
    async def calls() -> int:
        connections = Connections(ExecutionPolicy(), TLS)
        async with running(Server()) as server:
            url = server.url
        with pytest.raises(CONNECTION_ERRORS):
            await call(connections, url)
        async with running(Server()) as server:
            status, _, _ = await call(connections, server.url)
        await connections.aclose()
        return status

    assert asyncio.run(calls()) == 200


@pytest.mark.parametrize("through_proxy", [True, False], ids=["asked for", "not asked for"])
def test_a_proxy_of_the_environment_is_used_where_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, through_proxy: bool
) -> None:
    async def calls() -> tuple[Server, Server]:
        async with running(Server()) as proxy, running(Server()) as server:
            monkeypatch.setenv("HTTP_PROXY", proxy.url)
            connections = Connections(ExecutionPolicy(), TLS, through_proxy=through_proxy)
            await call(connections, f"{server.url}/v1/chat")
            await connections.aclose()
            return proxy, server

    proxy, server = asyncio.run(calls())

    assert len(proxy.calls_by_connection) == int(through_proxy)
    assert len(server.calls_by_connection) == int(not through_proxy)
    if through_proxy:
        assert proxy.calls_by_connection[0][0].startswith(f"POST {server.url}/v1/chat HTTP/1.1\r\n")


Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def served(peer: Peer, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    server = await asyncio.start_server(peer, "localhost", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def answering(raw: bytes) -> Peer:
    async def peer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(raw)
        await writer.drain()
        writer.close()

    return peer


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Takes everything and says nothing."""
    await reader.read()
    writer.close()


async def got(
    url: str,
    *,
    policy: ExecutionPolicy | None = None,
    tls: ssl.SSLContext | None = None,
    headers: dict[str, str] | None = None,
) -> bytes:
    connections = Connections(policy or ExecutionPolicy(), tls or TLS)
    try:
        async with connections.exchange("GET", url, headers or {}, None) as incoming:
            return b"".join([chunk async for chunk in incoming.chunks])
    finally:
        await connections.aclose()


BROKEN = {
    "nothing": b"",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "half a body": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel",
    "chunks without the last": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n",
    "a chunk of no size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nhel\r\n0\r\n\r\n",
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "a header without end": b"HTTP/1.1 200 OK\r\nx-a: " + b"a" * 1_000_000,
}


@pytest.mark.parametrize("raw", BROKEN.values(), ids=BROKEN)
def test_what_is_no_whole_answer_is_an_error_of_the_connection(raw: bytes) -> None:
    async def call() -> bytes:
        async with served(answering(raw)) as port:
            return await got(f"http://localhost:{port}")

    with pytest.raises(CONNECTION_ERRORS):
        asyncio.run(call())


def test_an_answer_that_does_not_tell_its_length_ends_with_the_connection() -> None:
    async def call() -> bytes:
        async with served(answering(b"HTTP/1.0 200 OK\r\nServer: old\r\n\r\nhello")) as port:
            return await got(f"http://localhost:{port}")

    assert asyncio.run(call()) == b"hello"


def test_a_redirect_is_not_followed_and_nothing_is_unpacked() -> None:
    raw = b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nhi"

    async def call() -> bytes:
        async with served(answering(raw)) as port:
            return await got(f"http://localhost:{port}")

    assert asyncio.run(call()) == b"hi"


def test_a_server_that_says_nothing_is_given_up_on() -> None:
    async def call() -> None:
        async with served(silent) as port:
            await got(f"http://localhost:{port}", policy=ExecutionPolicy(read_timeout_seconds=0.1))

    with pytest.raises(SILENCE_ERRORS):
        asyncio.run(call())


def test_a_connection_that_does_not_come_about_is_given_up_on() -> None:
    async def call() -> None:
        async with served(silent) as port:  # it takes the greeting of TLS for a question
            await got(f"https://localhost:{port}", policy=ExecutionPolicy(connect_timeout_seconds=0.1))

    with pytest.raises(httpx.ConnectTimeout):
        asyncio.run(call())


@pytest.mark.parametrize("is_cancelled", [True, False], ids=["cancelled", "left by its reader"])
def test_a_connection_whose_answer_was_not_read_to_its_end_is_not_used_again(is_cancelled: bool) -> None:
    connected = 0

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connected
        connected += 1
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nhi")
        await reader.read()
        writer.close()

    async def call(connections: Connections, url: str) -> None:
        async with connections.exchange("GET", url, {}, None) as incoming:
            async for _ in incoming.chunks:
                if not is_cancelled:
                    return

    async def calls() -> None:
        connections = Connections(ExecutionPolicy(), TLS)
        async with served(endless) as port:
            for _ in range(2):
                task = asyncio.create_task(call(connections, f"http://localhost:{port}"))
                if is_cancelled:
                    await asyncio.wait([task], timeout=0.2)
                    task.cancel()
                await asyncio.wait([task])
                assert task.cancelled() == is_cancelled
            await connections.aclose()

    asyncio.run(calls())

    assert connected == 2


def test_a_header_that_would_be_more_than_a_header_is_not_sent() -> None:
    async def call() -> None:
        async with served(answering(ANSWER)) as port:
            await got(f"http://localhost:{port}", headers={"authorization": "secret\r\nx-evil: 1"})

    with pytest.raises(CONNECTION_ERRORS) as caught:
        asyncio.run(call())
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["ftp://localhost/", "localhost/v1"])
def test_an_address_that_is_not_of_the_web_is_refused(url: str) -> None:
    with pytest.raises(CONNECTION_ERRORS):
        asyncio.run(got(url))


@pytest.fixture
def authority(tmp_path: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context with a certificate for localhost, and a client's that trusts it."""
    certificate, key = write_certificate(tmp_path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    return server, ssl.create_default_context(cafile=str(certificate))


def test_a_certificate_that_is_trusted_and_names_the_host_is_accepted(
    authority: tuple[ssl.SSLContext, ssl.SSLContext],
) -> None:
    async def call() -> bytes:
        async with served(answering(ANSWER), authority[0]) as port:
            return await got(f"https://localhost:{port}", tls=authority[1])

    assert asyncio.run(call()) == b"{}"


@pytest.mark.parametrize(("host", "is_trusted"), [("localhost", False), ("127.0.0.1", True)])
def test_a_certificate_that_is_not_trusted_or_names_another_host_is_refused(
    authority: tuple[ssl.SSLContext, ssl.SSLContext], host: str, is_trusted: bool
) -> None:
    async def call() -> None:
        async with served(answering(ANSWER), authority[0]) as port:
            await got(f"https://{host}:{port}", tls=authority[1] if is_trusted else None)

    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        asyncio.run(call())
