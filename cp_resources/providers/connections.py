"""The HTTP connections to a provider: opened, lent to one call at a time, kept while they are of use, closed.

Most calls go over a bare HTTP/1.1 connection: the layers of a client (cookies, redirects, authentication, a pool) do
nothing for such a call and cost several times as much as it. Where a client does something for it, obey a proxy or
check the address, the call goes through httpx.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Protocol
from urllib.request import getproxies

import httpx
from httpx_secure import httpx_ssrf_protection

from cp_core.execution.addresses import Address, may_be_called
from cp_core.execution.policy import ExecutionPolicy
from cp_core.tasks.reasons import Reason
from cp_resources.providers.http1 import KEEPALIVE_SECONDS, Http1Connection, Incoming, Timeouts
from cp_resources.providers.wire import ProviderError

SILENCE_ERRORS = (
    httpx.ReadTimeout,
    httpx.WriteTimeout,
    httpx.PoolTimeout,
)
"""What a call raises when the other side is silent for too long."""
CONNECTION_ERRORS = (httpx.HTTPError,)
"""What it raises when there is no connection, or one that breaks."""


class Connection(Protocol):
    """One connection, or what keeps one."""

    def may_serve(self, url: str) -> bool:
        """Whether another call may go over it."""
        ...

    async def send(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes | None
    ) -> Incoming:
        """Send a request, and wait for the beginning of its answer."""
        ...

    async def aclose(self) -> None:
        """Close it."""
        ...


class Connections:
    """Connections to one provider, each used by one call at a time.

    A pool within one client costs time in the square of its connections with every call; this costs nothing.

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
        self._idle: list[Connection] = []

    @asynccontextmanager
    async def exchange(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes | None
    ) -> AsyncIterator[Incoming]:
        """Send a request over the connection that was used last, or a new one, and lend its answer."""
        connection = await self._take(url)
        try:
            incoming = await connection.send(method, url, headers, content)
            try:
                yield incoming
            finally:
                await incoming.close()
        except asyncio.CancelledError:
            await connection.aclose()  # cut off in the middle: who uses it next could wait for it in vain
            raise
        except BaseException:
            self._idle.append(connection)
            raise
        self._idle.append(connection)

    async def aclose(self) -> None:
        """Close them all."""
        while self._idle:
            await self._idle.pop().aclose()

    async def _take(self, url: str) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.may_serve(url):
                return connection
            await connection.aclose()
        if self._through_proxy or self._guarded is not None:
            return _ThroughClient(self._client())
        policy = self._policy
        timeouts = Timeouts(connect=policy.connect_timeout_seconds, silence=policy.read_timeout_seconds)
        return Http1Connection(self._tls, timeouts)

    def _client(self) -> httpx.AsyncClient:
        client = httpx.AsyncClient(
            http2=False,
            follow_redirects=False,
            trust_env=self._through_proxy,
            verify=self._tls,
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


class _ThroughClient:
    """A client of httpx, which opens and renews its one connection by itself."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    def may_serve(self, url: str) -> bool:
        return True

    async def send(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes | None
    ) -> Incoming:
        request = self._client.build_request(method, url, headers=dict(headers), content=content)
        response = await self._client.send(request, stream=True)
        return Incoming(response.status_code, dict(response.headers), response.aiter_raw(), response.aclose)

    async def aclose(self) -> None:
        await self._client.aclose()


def _has_proxy() -> bool:
    return bool(getproxies().keys() & {"http", "https", "all"})
