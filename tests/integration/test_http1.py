"""A bare HTTP/1.1 connection: what it makes of the bytes that a server may send, and when it is kept."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mail_server import write_certificate

from cp_resources.providers.http1 import BUFFER_LIMIT, HEAD_LIMIT, Http1Connection, Stream, Timeouts

TIMEOUTS = Timeouts(connect=5, silence=5)
Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
Read = tuple[int, dict[str, str], bytes]


class Line(asyncio.Transport):
    """A connection without a network: what was done to it."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.unsent = 0
        self.is_paused = False
        self.is_aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def pause_reading(self) -> None:
        self.is_paused = True

    def resume_reading(self) -> None:
        self.is_paused = False

    def abort(self) -> None:
        self.is_aborted = True


def connected() -> tuple[Stream, Line]:
    stream, line = Stream(asyncio.get_running_loop(), 5.0), Line()
    stream.connection_made(line)
    return stream, line


async def read_pieces(pieces: list[bytes], *, ends: bool = False) -> tuple[Read, Stream]:
    """What a call reads that is answered by these pieces, and by the end of the connection if it `ends`."""
    stream, _ = connected()

    async def answer() -> None:
        for piece in pieces:
            stream.data_received(piece)
            await asyncio.sleep(0)
        if ends:
            stream.connection_lost(None)

    answering = asyncio.create_task(answer())
    await stream.ask(b"GET / HTTP/1.1\r\n\r\n")
    body = b"".join([chunk async for chunk in stream.chunks()])
    await answering
    return (stream.status, stream.headers, body), stream


ANSWERS: dict[str, tuple[bytes, Read]] = {
    "of known length": (
        b"HTTP/1.1 200 OK\r\nX-Id: 7\r\nContent-Length: 5\r\n\r\nhello",
        (200, {"x-id": "7", "content-length": "5"}, b"hello"),
    ),
    "in chunks, with an extension and a trailer": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"4;a=b\r\nhell\r\n1\r\no\r\n0\r\nX-After: 1\r\n\r\n",
        (200, {"transfer-encoding": "chunked"}, b"hello"),
    ),
    "after notices": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n"
        b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\nhi",
        (201, {"content-length": "2"}, b"hi"),
    ),
    "with a header that comes twice": (
        b"HTTP/1.1 429 Slow\r\nx-a: 1\r\nX-A: 2\r\ncontent-length: 0\r\n\r\n",
        (429, {"x-a": "1, 2", "content-length": "0"}, b""),
    ),
    "without a body": (b"HTTP/1.1 204 No Content\r\nx-a:\r\n\r\n", (204, {"x-a": ""}, b"")),
}


@pytest.mark.parametrize(("raw", "expected"), ANSWERS.values(), ids=ANSWERS)
@given(cuts=st.sets(st.integers(min_value=1, max_value=160), max_size=40))
def test_an_answer_is_the_same_wherever_the_network_cuts_it(
    raw: bytes, expected: Read, cuts: set[int]
) -> None:
    marks = sorted({0, len(raw), *(cut for cut in cuts if cut < len(raw))})
    read, stream = asyncio.run(read_pieces([raw[start:end] for start, end in pairwise(marks)]))

    assert read == expected
    assert stream.is_free


@pytest.mark.parametrize(
    "head", [b"HTTP/1.1 200 OK\r\n\r\n", b"HTTP/1.0 200 OK\r\nServer: old\r\n\r\n"], ids=["1.1", "1.0"]
)
def test_an_answer_that_does_not_tell_its_length_ends_with_the_connection(head: bytes) -> None:
    (status, _, body), stream = asyncio.run(read_pieces([head + b"hel", b"lo"], ends=True))

    assert (status, body) == (200, b"hello")
    assert not stream.is_free


BROKEN = {
    "nothing": b"",
    "half a head": b"HTTP/1.1 200 OK\r\nContent-Le",
    "half a body": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhel",
    "chunks without the last": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n",
    "a chunk of no size": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\nhel\r\n0\r\n\r\n",
    "no HTTP": b"SSH-2.0-OpenSSH_9.6\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "a length and chunks": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "another protocol": b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: h2c\r\n\r\n",
    "a head without end": b"HTTP/1.1 200 OK\r\n" + b"x-a: 1\r\n" * (HEAD_LIMIT // 8),
    "trailers without end": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n0\r\n"
    + b"x-a: 1\r\n" * (HEAD_LIMIT // 8),
}


@pytest.mark.parametrize("raw", BROKEN.values(), ids=BROKEN)
def test_what_is_no_whole_answer_is_a_protocol_error(raw: bytes) -> None:
    pieces = [raw[at : at + 4096] for at in range(0, len(raw), 4096)]

    with pytest.raises(httpx.RemoteProtocolError):
        asyncio.run(read_pieces(pieces, ends=True))


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhiHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi and more",
    ],
    ids=["closed by the server", "of an old server", "an answer too many", "bytes too many"],
)
def test_an_answer_after_which_the_connection_is_of_no_use_is_still_read(raw: bytes) -> None:
    (status, _, body), stream = asyncio.run(read_pieces([raw]))

    assert (status, body) == (200, b"hi")
    assert not stream.is_free


def test_an_answer_that_comes_before_the_question_is_never_taken_for_one() -> None:
    async def call() -> None:
        stream, line = connected()
        stream.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno")
        assert line.is_aborted
        assert not stream.is_free
        await stream.ask(b"GET / HTTP/1.1\r\n\r\n")

    with pytest.raises(httpx.RemoteProtocolError):
        asyncio.run(call())


def test_an_answer_to_half_a_question_is_read_and_the_connection_not_used_again() -> None:
    async def call() -> tuple[int, bool]:
        stream, line = connected()
        line.unsent = 10
        asyncio.get_running_loop().call_soon(
            stream.data_received, b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n"
        )
        await stream.ask(b"POST / HTTP/1.1\r\n\r\n")
        return stream.status, stream.is_free

    assert asyncio.run(call()) == (413, False)


def test_no_more_is_read_than_is_taken() -> None:
    async def call() -> list[bool]:
        stream, line = connected()
        asking = asyncio.create_task(stream.ask(b"GET / HTTP/1.1\r\n\r\n"))
        await asyncio.sleep(0)
        stream.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 999999999\r\n\r\n" + bytes(BUFFER_LIMIT))
        await asking
        paused = [line.is_paused]
        stream.data_received(b"x")
        paused.append(line.is_paused)
        await anext(stream.chunks())
        return [*paused, line.is_paused]

    assert asyncio.run(call()) == [False, True, False]


@asynccontextmanager
async def served(peer: Peer, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    server = await asyncio.start_server(peer, "localhost", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Takes everything and says nothing."""
    await reader.read()
    writer.close()


async def friendly(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
    await reader.read()
    writer.close()


async def status(
    url: str, *, timeouts: Timeouts = TIMEOUTS, tls: ssl.SSLContext | None = None, key: str = "k"
) -> int:
    connection = Http1Connection(tls or httpx.create_ssl_context(), timeouts)
    try:
        incoming = await connection.send("GET", url, {"authorization": key}, None)
        assert b"".join([chunk async for chunk in incoming.chunks]) == b"hi"
        await incoming.close()
        assert connection.may_serve(url)
        assert not connection.may_serve(f"{url}0")
        return incoming.status
    finally:
        await connection.aclose()
        assert not connection.may_serve(url)


def test_a_server_that_says_nothing_is_given_up_on() -> None:
    async def call() -> None:
        async with served(silent) as port:
            await status(f"http://localhost:{port}", timeouts=Timeouts(connect=5, silence=0.1))

    with pytest.raises(httpx.ReadTimeout):
        asyncio.run(call())


def test_a_connection_that_does_not_come_about_is_given_up_on() -> None:
    async def call() -> None:
        async with served(silent) as port:  # it takes the greeting of TLS for a question
            await status(f"https://localhost:{port}", timeouts=Timeouts(connect=0.1, silence=5))

    with pytest.raises(httpx.ConnectTimeout):
        asyncio.run(call())


@pytest.mark.parametrize("key", ["a\r\nx-evil: 1", "a\nb", "ké", "\0"])
def test_a_header_that_would_be_more_than_a_header_is_not_sent(key: str) -> None:
    async def call() -> None:
        async with served(friendly) as port:
            await status(f"http://localhost:{port}", key=key)

    with pytest.raises(httpx.LocalProtocolError) as caught:
        asyncio.run(call())
    assert key not in str(caught.value)


@pytest.mark.parametrize("url", ["ftp://localhost/", "localhost/v1"])
def test_an_address_that_is_not_of_the_web_is_refused(url: str) -> None:
    with pytest.raises(httpx.UnsupportedProtocol):
        asyncio.run(status(url))


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
    async def call() -> int:
        async with served(friendly, authority[0]) as port:
            return await status(f"https://localhost:{port}", tls=authority[1])

    assert asyncio.run(call()) == 200


@pytest.mark.parametrize(("host", "is_trusted"), [("localhost", False), ("127.0.0.1", True)])
def test_a_certificate_that_is_not_trusted_or_names_another_host_is_refused(
    authority: tuple[ssl.SSLContext, ssl.SSLContext], host: str, is_trusted: bool
) -> None:
    async def call() -> None:
        async with served(friendly, authority[0]) as port:
            await status(f"https://{host}:{port}", tls=authority[1] if is_trusted else None)

    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        asyncio.run(call())
