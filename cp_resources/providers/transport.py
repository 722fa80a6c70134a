"""One call to a provider: bounded in time and in size.

TLS certificates are always verified, redirects are never followed, and answers are asked for uncompressed so
that their limit in bytes is what is really read.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from pydantic import ValidationError

from cp_core.execution.cost import MalformedUsageError, parse_usage
from cp_core.execution.failures import failure_reason, scrub
from cp_core.execution.limits import pause_seconds
from cp_core.execution.retry import retry_after_seconds
from cp_core.models.registry import Wire
from cp_core.tasks.reasons import Reason
from cp_resources.providers.connections import CONNECTION_ERRORS, SILENCE_ERRORS, Connections
from cp_resources.providers.streamed import MEDIA_TYPE, STREAMING, gather
from cp_resources.providers.wire import ProviderError
from cp_resources.request_log import exchange

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


@dataclass(frozen=True, slots=True)
class _Response:
    """An answer as it came; `content` is a little over the limit where it `is_whole` not."""

    status: int
    headers: Mapping[str, str]
    content: bytearray
    is_whole: bool = True

    @property
    def is_success(self) -> bool:
        return 200 <= self.status < 300


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
            response = await _exchange(connections, method, url, body, headers, limit_bytes)
    except (TimeoutError, *SILENCE_ERRORS) as error:
        raise ProviderError(Reason.TIMEOUT, f"no whole answer within {timeout_seconds:g} s") from error
    except CONNECTION_ERRORS as error:
        text = scrub(f"{type(error).__name__}: {error}", (secret,))
        raise ProviderError(Reason.CONNECTION, text) from error
    request_id = _request_id(response.headers)
    if response.is_success and not response.is_whole:
        raise ProviderError(
            Reason.TRUNCATED,
            f"the answer is longer than {limit_bytes} bytes (execution.response_limit_bytes)",
            http_status=response.status,
            request_id=request_id,
        )
    is_stream = response.headers.get("content-type", "").startswith(MEDIA_TYPE) and wire in STREAMING
    if response.is_success and is_stream:
        parsed: Any = _streamed(wire, response, secret)
    else:
        parsed = _parse(response.content)
    if not response.is_success or _error_of(parsed):
        raise _provider_error(wire, response, parsed, secret)
    if not isinstance(parsed, dict):
        raise malformed("the body is not a JSON object", Answer(response.status, parsed, request_id))
    return Answer(response.status, parsed, request_id, response.headers)


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
) -> _Response:
    content = None if body is None else json.dumps(body, ensure_ascii=True).encode()
    kind = {} if body is None else {"content-type": "application/json"}
    sent = {**kind, "accept-encoding": "identity", **headers}
    received = bytearray()
    with exchange(method, url, sent, content) as seen:
        async with connections.exchange(method, url, sent, content) as incoming:
            seen.status, seen.headers, seen.received = incoming.status, incoming.headers, received
            async for chunk in incoming.chunks:
                received += chunk
                if len(received) > limit_bytes:
                    return _Response(incoming.status, incoming.headers, received, is_whole=False)
    return _Response(incoming.status, incoming.headers, received)


def _streamed(wire: Wire, response: _Response, secret: str) -> dict[str, Any]:
    """The body of an answer that came as a stream.

    Raises:
        ProviderError: an event of it was an error, or it ended before its end; with the usage that it told.
    """
    gathered = gather(wire, bytes(response.content))
    if gathered.error is None and gathered.is_whole:
        return gathered.body
    if gathered.error is not None:
        error = _provider_error(wire, response, {"error": gathered.error}, secret)
    else:
        error = ProviderError(
            Reason.CONNECTION,
            "the stream ended before the answer did",
            http_status=response.status,
            request_id=_request_id(response.headers),
        )
    with suppress(MalformedUsageError):
        error.usage = parse_usage(wire, gathered.body["usage"]) if gathered.body.get("usage") else None
    raise error


def _parse(content: bytes | bytearray) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _error_of(parsed: Any) -> Any:
    """The error object of a body; some gateways send one with status 200."""
    return parsed.get("error") if isinstance(parsed, dict) else None


def _provider_error(wire: Wire, response: _Response, parsed: Any, secret: str) -> ProviderError:
    error = _error_of(parsed)
    fields = error if isinstance(error, dict) else {}
    said = fields.get("message") or error or response.content[:2000].decode(errors="replace")
    code = fields.get("code")
    status = response.status
    if response.is_success:
        status = code if isinstance(code, int) and 400 <= code < 600 else 500
    now = datetime.now(UTC)
    retry_after = retry_after_seconds(response.headers, now)
    reason = failure_reason(wire, status, str(fields.get("type") or ""), str(code or ""), str(said))
    return ProviderError(
        reason,
        scrub(str(said), (secret,)) or f"HTTP status {response.status} without a text",
        http_status=response.status,
        request_id=_request_id(response.headers),
        retry_after=retry_after,
        pause=max(pause_seconds(response.headers, now), retry_after or 0.0)
        if reason is Reason.RATE_LIMITED
        else 0.0,
    )


def _request_id(headers: Mapping[str, str]) -> str | None:
    found = next((headers[name] for name in _REQUEST_ID_HEADERS if name in headers), None)
    return found[:REQUEST_ID_LIMIT] if found else None
