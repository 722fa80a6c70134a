"""The HTTP connections to a provider, and one call through them: bounded in time and in size.

TLS certificates are always verified, redirects are never followed, and answers are asked for uncompressed so
that their limit in bytes is what is really read.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx
from httpx_secure import httpx_ssrf_protection
from pydantic import ValidationError

from cp_core.execution.addresses import Address, may_be_called
from cp_core.execution.cost import MalformedUsageError, parse_usage
from cp_core.execution.failures import failure_reason, scrub
from cp_core.execution.limits import pause_seconds
from cp_core.execution.policy import ExecutionPolicy
from cp_core.execution.retry import retry_after_seconds
from cp_core.models.registry import Wire
from cp_core.tasks.reasons import Reason
from cp_resources.providers.streamed import MEDIA_TYPE, STREAMING, gather
from cp_resources.providers.wire import ProviderError
from cp_resources.request_log import exchange

KEEPALIVE_SECONDS = 4.0
"""Below the five seconds after which common servers close an idle connection."""

REQUEST_ID_LIMIT = 200
_REQUEST_ID_HEADERS = ("request-id", "x-request-id")


@dataclass(frozen=True, slots=True)
class Answer:
    """Status and JSON body of an answer that is no error. Header names are in lower case."""

    status: int
    body: Any
    request_id: str | None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def pause(self) -> float:
        """See `limits.pause_seconds`."""
        return pause_seconds(self.headers, datetime.now(UTC))


class Connections:
    """Connections to one provider, each a client of its own that one call uses at a time.

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
        self._through_proxy = through_proxy and guarded is None
        self._guarded = guarded
        self._idle: list[httpx.AsyncClient] = []

    @asynccontextmanager
    async def one(self) -> AsyncIterator[httpx.AsyncClient]:
        """Lend the connection that was used last, or a new one."""
        client = self._idle.pop() if self._idle else self._new()
        try:
            yield client
        except asyncio.CancelledError:
            await client.aclose()  # cut off in the middle: who uses it next could wait for it in vain
            raise
        except BaseException:
            self._idle.append(client)
            raise
        self._idle.append(client)

    async def aclose(self) -> None:
        """Close them all."""
        while self._idle:
            await self._idle.pop().aclose()

    def _new(self) -> httpx.AsyncClient:
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


async def post_json(
    connections: Connections,
    wire: Wire,
    url: str,
    body: Mapping[str, Any],
    *,
    headers: Mapping[str, str],
    secret: str,
    timeout_seconds: float,
    limit_bytes: int,
) -> Answer:
    """POST `body` and read the whole answer; see `request_json`."""
    return await request_json(
        connections,
        wire,
        "POST",
        url,
        body,
        headers=headers,
        secret=secret,
        timeout_seconds=timeout_seconds,
        limit_bytes=limit_bytes,
    )


async def request_json(
    connections: Connections,
    wire: Wire,
    method: str,
    url: str,
    body: Mapping[str, Any] | None,
    *,
    headers: Mapping[str, str],
    secret: str,
    timeout_seconds: float,
    limit_bytes: int,
) -> Answer:
    """Send a request and read the whole answer.

    Args:
        secret: the key among `headers`; struck out of every error text.
        timeout_seconds: for the whole call, however slowly the answer trickles in.
        limit_bytes: longest answer that is read.

    Raises:
        ProviderError: no answer in time, a broken or too long one, or an error of the provider.
    """
    try:
        async with asyncio.timeout(timeout_seconds):
            response, content, whole = await _exchange(connections, method, url, body, headers, limit_bytes)
    except (TimeoutError, httpx.ReadTimeout, httpx.WriteTimeout, httpx.PoolTimeout) as error:
        raise ProviderError(Reason.TIMEOUT, f"no whole answer within {timeout_seconds:g} s") from error
    except httpx.HTTPError as error:
        text = scrub(f"{type(error).__name__}: {error}", (secret,))
        raise ProviderError(Reason.CONNECTION, text) from error
    request_id = _request_id(response)
    if response.is_success and not whole:
        raise ProviderError(
            Reason.TRUNCATED,
            f"the answer is longer than {limit_bytes} bytes (execution.response_limit_bytes)",
            http_status=response.status_code,
            request_id=request_id,
        )
    is_stream = response.headers.get("content-type", "").startswith(MEDIA_TYPE) and wire in STREAMING
    if response.is_success and is_stream:
        parsed: Any = _streamed(wire, response, content, secret)
    else:
        parsed = _parse(content)
    if not response.is_success or _error_of(parsed):
        raise _provider_error(wire, response, parsed, content, secret)
    if not isinstance(parsed, dict):
        raise malformed("the body is not a JSON object", Answer(response.status_code, parsed, request_id))
    return Answer(response.status_code, parsed, request_id, dict(response.headers))


def malformed(what: str, answer: Answer) -> ProviderError:
    """The error of a 200 that does not follow the wire format: the provider's fault, worth another try."""
    return ProviderError(
        Reason.SERVER_ERROR,
        scrub(f"malformed answer: {what}"),
        http_status=answer.status,
        request_id=answer.request_id,
    )


def wrong_fields(error: ValidationError) -> str:
    """Which fields of an answer are wrong, without what stands in them."""
    return "; ".join(
        f"{'.'.join(str(part) for part in problem['loc'])}: {problem['msg']}"
        for problem in error.errors()[:3]
    )


async def _exchange(
    connections: Connections,
    method: str,
    url: str,
    body: Mapping[str, Any] | None,
    headers: Mapping[str, str],
    limit_bytes: int,
) -> tuple[httpx.Response, bytes, bool]:
    """The response, its body up to a little over the limit, and whether that is the whole body."""
    content = None if body is None else json.dumps(body, ensure_ascii=True).encode()
    kind = {} if body is None else {"content-type": "application/json"}
    sent = {**kind, "accept-encoding": "identity", **headers}
    received = bytearray()
    with exchange(method, url, sent, content) as seen:
        async with (
            connections.one() as http,
            http.stream(method, url, content=content, headers=sent) as response,
        ):
            seen.status, seen.headers, seen.received = response.status_code, response.headers, received
            async for chunk in response.aiter_raw():
                received += chunk
                if len(received) > limit_bytes:
                    return response, bytes(received), False
    return response, bytes(received), True


def _streamed(wire: Wire, response: httpx.Response, content: bytes, secret: str) -> dict[str, Any]:
    """The body of an answer that came as a stream.

    Raises:
        ProviderError: an event of it was an error, or it ended before its end; with the usage that it told.
    """
    gathered = gather(wire, content)
    if gathered.error is None and gathered.is_whole:
        return gathered.body
    if gathered.error is not None:
        error = _provider_error(wire, response, {"error": gathered.error}, content, secret)
    else:
        error = ProviderError(
            Reason.CONNECTION,
            "the stream ended before the answer did",
            http_status=response.status_code,
            request_id=_request_id(response),
        )
    with suppress(MalformedUsageError):
        error.usage = parse_usage(wire, gathered.body["usage"]) if gathered.body.get("usage") else None
    raise error


def _parse(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _error_of(parsed: Any) -> Any:
    """The error object of a body; some gateways send one with status 200."""
    return parsed.get("error") if isinstance(parsed, dict) else None


def _provider_error(
    wire: Wire, response: httpx.Response, parsed: Any, content: bytes, secret: str
) -> ProviderError:
    error = _error_of(parsed)
    fields = error if isinstance(error, dict) else {}
    said = fields.get("message") or error or content[:2000].decode(errors="replace")
    code = fields.get("code")
    status = response.status_code
    if response.is_success:
        status = code if isinstance(code, int) and 400 <= code < 600 else 500
    now = datetime.now(UTC)
    retry_after = retry_after_seconds(response.headers, now)
    reason = failure_reason(wire, status, str(fields.get("type") or ""), str(code or ""), str(said))
    return ProviderError(
        reason,
        scrub(str(said), (secret,)) or f"HTTP status {response.status_code} without a text",
        http_status=response.status_code,
        request_id=_request_id(response),
        retry_after=retry_after,
        pause=max(pause_seconds(response.headers, now), retry_after or 0.0)
        if reason is Reason.RATE_LIMITED
        else 0.0,
    )


def _request_id(response: httpx.Response) -> str | None:
    found = next((response.headers[name] for name in _REQUEST_ID_HEADERS if name in response.headers), None)
    return found[:REQUEST_ID_LIMIT] if found else None
