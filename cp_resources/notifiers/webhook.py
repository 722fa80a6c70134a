"""The webhook sink: each notice is one POST, signed, to an address that was checked before it was connected to.

Signature and header names are those of https://www.standardwebhooks.com, so a receiver verifies with a library.
`httpx-secure` resolves the name, asks `WebhookPolicy.may_reach`, and connects to that very address. Redirects are
not followed, proxies not used, certificates always verified.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from ipaddress import IPv4Address, IPv6Address
from urllib.parse import urlsplit

import httpx
from httpx_secure import SSRFProtectionError, httpx_ssrf_protection

from cp_core.execution.failures import scrub
from cp_core.execution.retry import retry_after_seconds
from cp_core.policy.notices import NoticePolicy
from cp_resources.notifiers.message import Message, NoticeSetupError, Sent

_SHOWN_OF_ANSWER = 200
_SECRET_PREFIX = "whsec_"  # noqa: S105


class WebhookNotifier:
    """Posts notices to one address.

    Args:
        url: checked by `require_web_address`.
        secret: signs the posts; None leaves them unsigned.
    """

    def __init__(self, url: str, secret: str | None, policy: NoticePolicy) -> None:
        self._url = url
        self._key = None if secret is None else signing_key(secret)
        self._hidden = tuple(filter(None, (secret, url, urlsplit(url).path.strip("/"), urlsplit(url).query)))
        self._is_encrypted = url.startswith("https://")
        self._policy = policy

    def send(self, messages: Sequence[Message]) -> Mapping[str, Sent]:
        """See `Notifier.send`."""
        return asyncio.run(self._send_all(messages))

    async def _send_all(self, messages: Sequence[Message]) -> dict[str, Sent]:
        deadline = time.monotonic() + self._policy.batch_seconds
        waiting = iter(messages)
        sent: dict[str, Sent] = {}
        refusals: list[SSRFProtectionError] = []

        async def post_one_after_another(http: httpx.AsyncClient) -> None:
            for message in _until(deadline, waiting):
                try:
                    sent[message.id] = await self._post(http, message)
                except SSRFProtectionError as error:
                    refusals.append(error)
                    return

        async with self._client() as http, asyncio.TaskGroup() as group:
            for _ in range(min(self._policy.webhook.concurrency, len(messages))):
                group.create_task(post_one_after_another(http))
        if refusals and not sent:
            raise self._refused(refusals[0]) from None
        return sent

    def _client(self) -> httpx.AsyncClient:
        client = httpx.AsyncClient(
            follow_redirects=False,
            trust_env=False,  # a proxy would resolve the name itself
            verify=httpx.create_ssl_context(),  # the usual authorities, or those of SSL_CERT_FILE
            timeout=self._policy.timeout_seconds,
        )
        return httpx_ssrf_protection(
            client, check_globally_reachable=False, custom_validator=self._may_connect, dns_cache_size=0
        )

    def _may_connect(self, host: str, address: IPv4Address | IPv6Address, port: int) -> bool:
        return self._policy.webhook.may_reach(address, encrypted=self._is_encrypted)

    async def _post(self, http: httpx.AsyncClient, message: Message) -> Sent:
        body = json.dumps(message.payload).encode()
        try:
            async with asyncio.timeout(self._policy.timeout_seconds):
                async with http.stream(
                    "POST", self._url, content=body, headers=self._headers(message, body)
                ) as response:
                    answer = await _start_of(response, self._policy.webhook.response_limit_bytes)
        except SSRFProtectionError:
            raise
        except (TimeoutError, httpx.TimeoutException):
            return Sent(delivered=False, error=f"no answer within {self._policy.timeout_seconds:g} s")
        except httpx.HTTPError as error:
            return Sent(delivered=False, error=self._scrubbed(f"{type(error).__name__}: {error}"))
        if response.is_success:
            return Sent(delivered=True)
        return Sent(
            delivered=False,
            error=self._scrubbed(_told(response, answer)),
            retry_after=retry_after_seconds(response.headers, datetime.now(UTC)),
        )

    def _headers(self, message: Message, body: bytes) -> dict[str, str]:
        timestamp = str(int(time.time()))
        headers = {
            "content-type": "application/json",
            "accept-encoding": "identity",
            "user-agent": "control-panel",
            "idempotency-key": message.id,
            "webhook-id": message.id,
            "webhook-timestamp": timestamp,
        }
        if self._key is not None:
            headers["webhook-signature"] = signature(self._key, message.id, timestamp, body)
        return headers

    def _scrubbed(self, text: str) -> str:
        return scrub(text, self._hidden)

    def _refused(self, error: SSRFProtectionError) -> NoticeSetupError:
        why = "is not public" if self._is_encrypted else "is not listed for plain http://"
        return NoticeSetupError(
            f"notices.webhook.url: {error.hostname} is {error.ip_addr}, which {why}: add its network to "
            "notices.webhook.allowed_networks if notices may go there, or use a public https:// address"
        )


def signing_key(secret: str) -> bytes:
    """The bytes of a secret: base64 after `whsec_`, else the text itself.

    Raises:
        ValueError: what follows `whsec_` is not base64.
    """
    if not secret.startswith(_SECRET_PREFIX):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(_SECRET_PREFIX), validate=True)
    except binascii.Error as error:
        raise ValueError("what follows whsec_ is not base64") from error


def signature(key: bytes, message_id: str, timestamp: str, body: bytes) -> str:
    """The header `webhook-signature`: HMAC-SHA256 over id, time and body."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def _until(deadline: float, messages: Iterator[Message]) -> Iterator[Message]:
    while time.monotonic() < deadline and (message := next(messages, None)) is not None:
        yield message


async def _start_of(response: httpx.Response, limit: int) -> bytes:
    received = bytearray()
    async for chunk in response.aiter_raw():
        received += chunk
        if len(received) >= limit:
            break
    return bytes(received[:limit])


def _told(response: httpx.Response, answer: bytes) -> str:
    if response.is_redirect:
        return f"answered {response.status_code}: redirects are not followed; name the final address"
    text = answer[:_SHOWN_OF_ANSWER].decode(errors="replace")
    return f"answered {response.status_code}{': ' if text else ''}{text}"
