"""The HTTP connections to a provider: opened, lent to one call at a time, kept while they are of use, closed.

Calls go through aiohttp, whose parser is in C and whose pool costs the same however many connections it holds: a call
takes a third of the processor time that it takes through httpx. Where httpx does something for a call that aiohttp
does not, obey every kind of proxy or check the address that is connected to, the call goes through httpx.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from urllib.request import getproxies

import aiohttp
import httpx
from httpx_secure import httpx_ssrf_protection

from cp_core.execution.addresses import Address, may_be_called
from cp_core.execution.policy import ExecutionPolicy
from cp_core.tasks.reasons import Reason
from cp_resources.providers.wire import ProviderError

KEEPALIVE_SECONDS = 4.0
"""Below the five seconds after which common servers close an idle connection."""
HEADER_LIMIT = 64 * 1024
"""Longest header of an answer that is read, in bytes."""
USER_AGENT = "control-panel"

SILENCE_ERRORS = (
    httpx.ReadTimeout,
    httpx.WriteTimeout,
    httpx.PoolTimeout,
)
"""What a call raises when the other side is silent for too long."""
CONNECTION_ERRORS = (httpx.HTTPError,)
"""What it raises when there is no connection, or one that breaks."""


@dataclass(frozen=True, slots=True)
class Incoming:
    """An answer that has begun. Header names are in lower case; `chunks` are as they come over the wire."""

    status: int
    headers: Mapping[str, str]
    chunks: AsyncIterator[bytes]


class Connections:
    """Connections to one provider, each used by one call at a time. Errors are httpx's, whoever made the call.

    Args:
        tls: from `tls_context`, made once for all providers.
        through_proxy: obey HTTPS_PROXY and its kin; not for the simulator, which is on loopback.
        guarded: connect to public addresses only, and to those in these networks. A name is resolved once
            a connection, and the address that was checked is the one connected to. Never through a proxy,
            which would resolve the name anew.
    """

    def __init__(
        self,
        policy: ExecutionPolicy,
        tls: ssl.SSLContext,
        *,
        through_proxy: bool = True,
        guarded: Sequence[str] | None = None,
    ) -> None:
        self._policy = policy
        self._tls = tls
        self._through_proxy = through_proxy and guarded is None and _has_proxy()
        self._guarded = guarded
        self._session: aiohttp.ClientSession | None = None
        self._idle: list[httpx.AsyncClient] = []

    def exchange(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes | None
    ) -> AbstractAsyncContextManager[Incoming]:
        """Send a request over the connection that was used last, or a new one, and lend its answer."""
        if self._through_proxy or self._guarded is not None:
            return self._through_httpx(method, url, headers, content)
        return self._through_aiohttp(method, url, headers, content)

    async def aclose(self) -> None:
        """Close them all."""
        if self._session:
            await self._session.close()
        while self._idle:
            await self._idle.pop().aclose()

    @asynccontextmanager
    async def _through_aiohttp(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes | None
    ) -> AsyncIterator[Incoming]:
        self._session = self._session or self._new_session()
        with _told_by_httpx():
            try:
                response = await self._session.request(
                    method, url, headers=headers, data=content, allow_redirects=False
                )
            except aiohttp.ClientError:
                raise
            except ValueError as error:  # a line break in a header
                raise httpx.LocalProtocolError(str(error)) from error
            async with response:
                yield Incoming(response.status, _by_name(response.headers), response.content.iter_any())

    def _new_session(self) -> aiohttp.ClientSession:
        return aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=self._tls, keepalive_timeout=KEEPALIVE_SECONDS),
            timeout=aiohttp.ClientTimeout(
                total=None,
                connect=self._policy.connect_timeout_seconds,
                sock_read=self._policy.read_timeout_seconds,
            ),
            headers={"user-agent": USER_AGENT},
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            max_field_size=HEADER_LIMIT,
        )

    @asynccontextmanager
    async def _through_httpx(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes | None
    ) -> AsyncIterator[Incoming]:
        # A client for each call at a time: one client looks through its whole pool at every call.
        client = self._idle.pop() if self._idle else self._new_client()
        try:
            async with client.stream(method, url, headers=dict(headers), content=content) as response:
                yield Incoming(response.status_code, dict(response.headers), response.aiter_raw())
        except asyncio.CancelledError:
            await client.aclose()  # cut off in the middle: who uses it next could wait for it in vain
            raise
        except BaseException:
            self._idle.append(client)
            raise
        self._idle.append(client)

    def _new_client(self) -> httpx.AsyncClient:
        client = httpx.AsyncClient(
            http2=False,
            follow_redirects=False,
            trust_env=self._through_proxy,
            verify=self._tls,
            headers={"user-agent": USER_AGENT},
            limits=httpx.Limits(max_connections=1, keepalive_expiry=KEEPALIVE_SECONDS),
            timeout=httpx.Timeout(
                self._policy.read_timeout_seconds, connect=self._policy.connect_timeout_seconds
            ),
        )
        if self._guarded is None:
            return client
        return httpx_ssrf_protection(client, check_globally_reachable=False, custom_validator=self._checked)

    def _checked(self, host: str, address: Address, port: int) -> bool:
        if not may_be_called(address, self._guarded or ()):
            raise ProviderError(
                Reason.INVALID_REQUEST,
                f"{host} is at {address}, which is not a public address and not among the provider's "
                "allow_addresses in models.yaml",
            )
        return True


def tls_context() -> ssl.SSLContext:
    """How certificates are verified: always, against the usual authorities or those of SSL_CERT_FILE."""
    return httpx.create_ssl_context()


@contextmanager
def _told_by_httpx() -> Iterator[None]:
    """Errors of aiohttp as those of httpx."""
    try:
        yield
    except aiohttp.ConnectionTimeoutError as error:
        raise httpx.ConnectTimeout(str(error)) from error
    except aiohttp.ServerTimeoutError as error:
        raise httpx.ReadTimeout(str(error)) from error
    except aiohttp.ClientConnectorError as error:
        raise httpx.ConnectError(str(error)) from error
    except aiohttp.ClientError as error:
        raise httpx.NetworkError(f"{type(error).__name__}: {error}") from error


def _by_name(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers by name in lower case; one that comes twice is one with a comma, as the standard has it."""
    found: dict[str, str] = {}
    for name, value in headers.items():
        key = name.lower()
        found[key] = f"{found[key]}, {value}" if key in found else value
    return found


def _has_proxy() -> bool:
    return bool(getproxies().keys() & {"http", "https", "all"})
