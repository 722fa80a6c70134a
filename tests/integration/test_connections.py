"""Connections to a provider: kept from call to call, renewed when the server closed them, through a proxy where one is
set. The server is made by hand, so that it says what really came over the wire.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from cp_core.execution.policy import ExecutionPolicy
from cp_resources.providers.connections import CONNECTION_ERRORS, Connections, tls_context

TLS = tls_context()
ANSWER = b"HTTP/1.1 200 OK\r\nX-Seen: one\r\nX-Seen: two\r\nContent-Length: 2\r\n\r\n{}"


@dataclass
class Server:
    """What came: first line and headers of each request, by connection."""

    calls_by_connection: list[list[str]] = field(default_factory=list)
    closes_after_each: bool = False
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
            for _ in range(3):
                statuses.append((await call(connections, server.url))[0])
                while not connections_are_closed(connections, server.url):
                    await asyncio.sleep(0.01)
            await connections.aclose()
            return statuses, server

    def connections_are_closed(connections: Connections, url: str) -> bool:
        return not any(one.may_serve(url) for one in connections._idle)

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
