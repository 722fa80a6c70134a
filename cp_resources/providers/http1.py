"""A bare HTTP/1.1 connection over asyncio: one call at a time, its answer read by llhttp, the parser of Node.js.

What a client adds (a pool, redirects, cookies, proxies, compression) is not here. Its errors are httpx's, so that
whoever calls need not know which of the two made the call.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import cast

import httptools
import httpx

KEEPALIVE_SECONDS = 4.0
"""Below the five seconds after which common servers close an idle connection."""
HEAD_LIMIT = 100 * 1024
"""Most bytes that may come without any of a body among them: status line, headers, trailers."""
BUFFER_LIMIT = 256 * 1024
"""Bytes of a body that wait to be taken, above which no more are read."""
SECOND_ADDRESS_SECONDS = 0.25
"""How long a name's first address has to answer before the next is tried beside it (RFC 8305)."""


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds: to open a connection, and of silence within a call."""

    connect: float
    silence: float


@dataclass(frozen=True, slots=True)
class Incoming:
    """An answer that has begun. Header names are in lower case; `chunks` are as they come over the wire."""

    status: int
    headers: Mapping[str, str]
    chunks: AsyncIterable[bytes]
    close: Callable[[], Awaitable[None]]


class Http1Connection:
    """A connection to one origin, opened by its first call."""

    def __init__(self, tls: ssl.SSLContext, timeouts: Timeouts) -> None:
        self._tls = tls
        self._timeouts = timeouts
        self._origin: tuple[str, str, int] | None = None
        self._stream: Stream | None = None
        self._idle_since = 0.0

    def may_serve(self, url: str) -> bool:
        """Whether another call may go over it: it is open, idle for not too long, and leads there."""
        return (
            self._stream is not None
            and self._stream.is_free
            and time.monotonic() - self._idle_since < KEEPALIVE_SECONDS
            and _target(url).origin == self._origin
        )

    async def send(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes | None
    ) -> Incoming:
        """Send a request, and wait for the beginning of its answer. Not for HEAD.

        Raises:
            httpx.ConnectTimeout, httpx.ConnectError: there is no connection.
            httpx.ReadTimeout: it could not be sent within `timeouts.silence` seconds, or nothing came for so long.
            httpx.NetworkError, httpx.ProtocolError: it broke, or what came is not HTTP.
        """
        target = _target(url)
        request = _request(method, target, headers, content)
        if self._stream is None:
            self._stream = await _open(target.origin, self._tls, self._timeouts)
            self._origin = target.origin
        stream = self._stream
        await stream.ask(request)
        return Incoming(stream.status, stream.headers, stream.chunks(), self._close_answer)

    async def _close_answer(self) -> None:
        self._idle_since = time.monotonic()
        if self._stream and not self._stream.is_free:
            self._stream.abort()

    async def aclose(self) -> None:
        """Close it at once, whatever is under way."""
        if self._stream:
            self._stream.abort()


async def _open(origin: tuple[str, str, int], tls: ssl.SSLContext, timeouts: Timeouts) -> Stream:
    scheme, host, port = origin
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(timeouts.connect):
            _, stream = await loop.create_connection(
                lambda: Stream(loop, timeouts.silence),
                host,
                port,
                ssl=tls if scheme == "https" else None,
                happy_eyeballs_delay=SECOND_ADDRESS_SECONDS,
            )
    except TimeoutError as error:
        raise httpx.ConnectTimeout(f"no connection within {timeouts.connect:g} s") from error
    except OSError as error:
        raise httpx.ConnectError(str(error)) from error
    return stream


class Stream(asyncio.Protocol):
    """What goes over a connection, and what the parser makes of it: its `on_` methods are the parser's.

    Attributes:
        status, headers: of the answer under way, or the last one.
        is_free: nothing is under way, and another call may be made.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, silence: float) -> None:
        self.status = 0
        self.headers: dict[str, str] = {}
        self.is_free = False
        self._loop = loop
        self._silence = silence
        self._parser = httptools.HttpResponseParser(self)
        self._chunks: list[bytes] = []
        self._buffered = 0
        self._without_body = 0  # bytes since the last of a body
        self._has_begun = self._is_whole = False
        self._error: httpx.TransportError | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport

    async def ask(self, request: bytes) -> None:
        """Send a request, and wait until status and headers of its answer are there."""
        self.status, self.headers, self.is_free = 0, {}, False
        self._buffered = self._without_body = 0
        self._has_begun = self._is_whole = False
        self._chunks.clear()
        self._transport.resume_reading()
        self._transport.write(request)
        while not self._has_begun:
            await self._change()

    async def chunks(self) -> AsyncIterator[bytes]:
        """The answer's body as it comes."""
        while True:
            if self._chunks:
                chunk = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
                self._chunks.clear()
                self._buffered = 0
                self._transport.resume_reading()
                yield chunk
            elif self._is_whole:
                return
            else:
                await self._change()

    def abort(self) -> None:
        """Close at once."""
        self._fail(httpx.ReadError("the connection was closed from this side"))

    async def _change(self) -> None:
        """Wait until something comes, or more can be sent; raise what is wrong with the connection."""
        if self._error:
            raise self._error
        self._waiter = waiter = self._loop.create_future()
        timer = self._loop.call_later(self._silence, self._time_out)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter and not self._waiter.done():
            self._waiter.set_result(None)

    def _time_out(self) -> None:
        self._fail(httpx.ReadTimeout(f"silence for {self._silence:g} s"))

    def _fail(self, error: httpx.TransportError) -> None:
        self.is_free = False
        self._error = self._error or error
        self._transport.abort()
        self._wake()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.is_free = True

    def resume_writing(self) -> None:
        self._wake()

    def data_received(self, data: bytes) -> None:
        self._without_body += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            self._fail(httpx.RemoteProtocolError(f"what came is no answer in HTTP/1.1: {error}"))
            return
        if self._without_body > HEAD_LIMIT:
            self._fail(httpx.RemoteProtocolError(f"headers of more than {HEAD_LIMIT} bytes"))
        elif self._buffered > BUFFER_LIMIT:
            self._transport.pause_reading()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        if self._has_begun and not self._is_whole and error is None and not self._tells_its_length:
            self._is_whole = True  # as in HTTP/1.0: the end of the connection is the answer's
        if error:
            self._fail(httpx.ReadError(f"{type(error).__name__}: {error}"))
        else:
            self._fail(httpx.RemoteProtocolError("the server closed the connection before the answer's end"))

    def on_message_begin(self) -> None:
        if self.is_free or self._is_whole:
            raise ValueError("an answer that was not asked for")

    def on_header(self, raw_name: bytes, raw_value: bytes) -> None:
        if self._has_begun:
            return  # a trailer
        name, value = raw_name.decode("latin-1").lower(), raw_value.decode("latin-1")
        # one that comes twice is one with a comma, as the standard has it
        self.headers[name] = f"{self.headers[name]}, {value}" if name in self.headers else value

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if self.status >= 200:
            self._has_begun = True
        else:
            self.headers = {}  # such as 100 Continue: the answer itself is still to come

    def on_body(self, body: bytes) -> None:
        self._chunks.append(body)
        self._buffered += len(body)
        self._without_body = 0

    def on_message_complete(self) -> None:
        if not self._has_begun:
            return
        self._is_whole = True
        is_sent = not self._transport.get_write_buffer_size()
        self.is_free = self._error is None and is_sent and self._parser.should_keep_alive()

    @property
    def _tells_its_length(self) -> bool:
        return (
            "content-length" in self.headers or "chunked" in self.headers.get("transfer-encoding", "").lower()
        )


@dataclass(frozen=True, slots=True)
class _Target:
    """An address: where to connect (scheme, host, port), what to ask for, and the headers of every call to it."""

    origin: tuple[str, str, int]
    path: str
    headers: str


@lru_cache(maxsize=256)
def _target(url: str) -> _Target:
    parsed = httpx.URL(url)
    if parsed.scheme not in ("http", "https"):
        raise httpx.UnsupportedProtocol(f"{url}: neither http:// nor https://")
    return _Target(
        (
            parsed.scheme,
            parsed.raw_host.decode("ascii"),
            parsed.port or (443 if parsed.scheme == "https" else 80),
        ),
        parsed.raw_path.decode("ascii"),
        f"host: {parsed.netloc.decode('ascii')}\r\naccept: */*\r\nuser-agent: control-panel\r\n",
    )


def _request(method: str, target: _Target, headers: Mapping[str, str], content: bytes | None) -> bytes:
    for text in (*headers, *headers.values()):
        if not (text.isascii() and text.isprintable()):
            raise httpx.LocalProtocolError(
                "a header holds what no header may: only printable ASCII can be sent"
            )
    named = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
    length = "" if content is None else f"content-length: {len(content)}\r\n"
    head = f"{method} {target.path} HTTP/1.1\r\n{target.headers}{named}{length}\r\n"
    return head.encode("ascii") + (content or b"")
