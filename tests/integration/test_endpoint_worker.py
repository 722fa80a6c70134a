"""The endpoint worker against the reference worker: the protocol, its failures, and where it may be."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from contextlib import suppress
from decimal import Decimal
from typing import Any

import pytest
from claimed_tasks import claimed, registry
from reference_worker import KEY, RESULT, Behaviour, ReferenceWorker

from cp_core.execution.cost import Usage
from cp_core.execution.outcome import AttemptResult
from cp_core.execution.policy import ExecutionPolicy
from cp_core.tasks.reasons import Reason
from cp_resources.settings import Settings
from cp_resources.worker_kinds import endpoint
from cp_resources.worker_kinds.endpoint import EndpointWorker

POLICY = ExecutionPolicy(connect_timeout_seconds=20, read_timeout_seconds=20, response_limit_bytes=4096)
LOOPBACK = ["127.0.0.0/8"]
INF = float("inf")


@pytest.fixture(autouse=True)
def key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORKER_KEY", KEY)
    monkeypatch.setattr(endpoint, "CANCEL_SECONDS", 20.0)


def worker(url: str, *, allow: list[str] = LOOPBACK, **provider: Any) -> EndpointWorker:
    given = {"wire": "endpoint", "base_url": url, "api_key_env": "WORKER_KEY", "allow_addresses": allow}
    return EndpointWorker(registry({**given, **provider}), POLICY, Settings())


def attempt(kind: EndpointWorker, *, seconds: float = INF) -> AttemptResult:
    async def run() -> AttemptResult:
        async with kind:
            return await kind.attempt(claimed(), seconds=seconds)

    result = asyncio.run(run())
    assert KEY not in f"{result.error}"
    return result


def test_a_task_is_posted_and_its_result_judged_and_priced() -> None:
    with ReferenceWorker() as reference:
        result = attempt(worker(reference.url))

    assert (result.reason, result.quality, result.output, result.http_status) == (None, 10.0, "Done.", 200)
    assert result.usage == Usage(2000, 500, 0, 300)
    assert result.cost_usd == Decimal("0.0032")  # 2,000 at 1 dollar and 300 at 4 dollars a million
    [[idempotency_key, body]] = reference.tasks.items()
    assert idempotency_key == str(claimed().reservation)
    assert body == {
        "task_id": "t-1",
        "attempt": 2,
        "title": "A title",
        "description": "What to do",
        "labels": ["bug"],
        "workspace": "acme/web",
        "model": "agent-1",
        # 4,096 tokens is the least that a call may answer with
        "limits": {"seconds": 600, "output_tokens": 4096, "response_bytes": 4096},
    }
    assert reference.headers[0]["x-control-panel-task"] == "t-1"


def test_a_task_that_takes_longer_is_asked_for_until_it_is_done() -> None:
    with ReferenceWorker(Behaviour(polls=3)) as reference:
        result = attempt(worker(reference.url))

    assert result.reason is None
    assert reference.events == ["POST /tasks", *["GET /tasks/17"] * 3]


def test_the_endpoint_says_how_long_to_wait_between_looks() -> None:
    started = time.monotonic()
    with ReferenceWorker(Behaviour(polls=1, retry_after="1")) as reference:
        attempt(worker(reference.url))

    assert time.monotonic() - started >= 1


def test_a_look_that_fails_for_a_while_does_not_lose_the_task() -> None:
    trouble = [
        (202, {"retry-after": "0.2"}, {"status_url": "/tasks/17"}),
        (503, {"retry-after": "0.2"}, ""),
        (429, {"retry-after": "0.2"}, ""),
    ]
    with ReferenceWorker(Behaviour(first=trouble)) as reference:
        assert attempt(worker(reference.url)).reason is None


def test_looks_that_keep_failing_end_the_attempt_and_the_endpoint_is_told() -> None:
    accepted = (202, {"retry-after": "0"}, {"status_url": "/tasks/17"})
    trouble = [accepted, *[(503, {"retry-after": "0"}, "")] * endpoint.FAILED_POLLS]
    with ReferenceWorker(Behaviour(first=trouble)) as reference:
        result = attempt(worker(reference.url))

    assert result.reason is Reason.OVERLOADED
    assert reference.events.count("DELETE /tasks/17") == 1


@pytest.mark.parametrize(
    ("answer", "reason", "retry_after"),
    [
        ((429, {"retry-after": "7"}, ""), Reason.RATE_LIMITED, 7.0),
        ((401, {}, {"error": {"message": f"wrong key {KEY}"}}), Reason.AUTH_FAILED, None),
        ((400, {}, {"error": {"message": "unknown workspace"}}), Reason.INVALID_REQUEST, None),
        ((500, {}, ""), Reason.SERVER_ERROR, None),
        ((200, {}, {"error": {"type": "overloaded", "message": "later"}}), Reason.OVERLOADED, None),
        ((200, {}, "no JSON"), Reason.SERVER_ERROR, None),
        ((200, {}, {"evidence": {}}), Reason.SERVER_ERROR, None),
        ((200, {}, {"output": "x", "usage": {"input_tokens": -1}}), Reason.SERVER_ERROR, None),
        ((200, {}, {"output": "x" * 5000}), Reason.TRUNCATED, None),
    ],
)
def test_a_failure_has_the_reason_of_its_status_and_words(
    answer: Any, reason: Reason, retry_after: float | None
) -> None:
    with ReferenceWorker(Behaviour(first=[answer])) as reference:
        result = attempt(worker(reference.url))

    assert (result.reason, result.retry_after) == (reason, retry_after)
    assert result.error


def test_a_task_that_failed_while_it_was_waited_for_is_not_asked_for_again() -> None:
    failed = {"error": {"code": "content_filter", "message": "no"}}
    with ReferenceWorker(Behaviour(polls=1, result=failed)) as reference:
        result = attempt(worker(reference.url))

    assert result.reason is Reason.CONTENT_FILTERED
    assert reference.events[:2] == ["POST /tasks", "GET /tasks/17"]
    assert reference.events.count("GET /tasks/17") == 1


@pytest.mark.parametrize("evidence", [None, {}, {"tests_passed": "all"}, {"tests_passed": 1}])
def test_work_without_readable_evidence_is_not_good_enough(evidence: Any) -> None:
    with ReferenceWorker(Behaviour(result={**RESULT, "evidence": evidence})) as reference:
        result = attempt(worker(reference.url))

    assert (result.reason, result.quality) == (Reason.LOW_QUALITY, 0.0)


def test_usage_that_is_not_reported_is_counted_by_length() -> None:
    with ReferenceWorker(Behaviour(result={**RESULT, "output": "x" * 30, "usage": None})) as reference:
        assert attempt(worker(reference.url)).usage.output_tokens == 10


def test_an_endpoint_that_takes_too_long_is_told_to_stop() -> None:
    with ReferenceWorker(Behaviour(polls=10**6)) as reference:
        result = attempt(worker(reference.url, timeout_seconds=0.7))

    assert result.reason is Reason.TIMEOUT
    assert reference.events.count("DELETE /tasks/17") == 1


@pytest.mark.parametrize(
    ("told", "usage"),
    [
        ({"usage": {"input_tokens": 1000, "output_tokens": 500}}, Usage(1000, 0, 0, 500)),
        ({"usage": {"input_tokens": -1}}, Usage()),
        ({"usage": "much"}, Usage()),
    ],
    ids=["told", "malformed", "no object"],
)
def test_an_endpoint_may_tell_what_a_task_that_it_stopped_had_used(told: Any, usage: Usage) -> None:
    with ReferenceWorker(Behaviour(polls=10**6, called_off=told)) as reference:
        result = attempt(worker(reference.url, timeout_seconds=0.7))

    assert (result.reason, result.usage) == (Reason.TIMEOUT, usage)


def test_a_cancelled_attempt_tells_the_endpoint_to_stop() -> None:
    async def run(reference: ReferenceWorker) -> None:
        async with worker(reference.url) as kind:
            running = asyncio.create_task(kind.attempt(claimed(), seconds=INF))
            while len(reference.events) < 2:
                await asyncio.sleep(0.01)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running

    with ReferenceWorker(Behaviour(polls=10**6)) as reference:
        asyncio.run(run(reference))
    assert reference.events.count("DELETE /tasks/17") == 1


def test_an_endpoint_that_could_not_be_told_to_stop_is_told_again() -> None:
    """A server that ends the connection of the first DELETE without a word."""
    seen: list[str] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
                await reader.readexactly(int(length[1]) if length else 0)
                method = head.split()[0]
                seen.append(method)
                if method == "DELETE" and seen.count("DELETE") == 1:
                    break
                if method == "GET":
                    running.cancel()
                    continue
                body = b'{"status_url": "/tasks/17"}' if method == "POST" else b"{}"
                status = b"202 Accepted\r\nretry-after: 0" if method == "POST" else b"200 OK"
                writer.write(b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n%s" % (status, len(body), body))
        writer.close()

    async def run() -> None:
        nonlocal running
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server, worker(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as kind:
            running = asyncio.create_task(kind.attempt(claimed(), seconds=INF))
            with pytest.raises(asyncio.CancelledError):
                await running

    running: asyncio.Task[AttemptResult]
    asyncio.run(run())
    assert seen == ["POST", "GET", "DELETE", "DELETE"]


@pytest.mark.parametrize(
    "status_url",
    [
        "http://169.254.169.254/x",
        "//elsewhere.example/x",
        "/../admin",
        "/tasks/..",
        "@elsewhere.example",
        "/a?b",
    ],
)
def test_the_status_is_below_the_base_url_or_nowhere(status_url: str) -> None:
    with ReferenceWorker(Behaviour(polls=5, status_url=status_url)) as reference:
        result = attempt(worker(reference.url))

    assert result.reason is Reason.SERVER_ERROR
    assert reference.events == ["POST /tasks"]


def test_an_address_that_is_not_public_is_refused_for_good_unless_it_is_listed() -> None:
    with ReferenceWorker() as reference:
        refused = attempt(worker(reference.url, allow=["10.0.0.0/8"]))
        assert reference.events == []
        allowed = attempt(worker(reference.url, allow=["127.0.0.1"]))

    assert refused.reason is Reason.INVALID_REQUEST
    assert "allow_addresses" in str(refused.error)
    assert allowed.reason is None


def named(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> list[str]:
    """Let worker.example be at each of these addresses in turn, and then at the last; return who asked."""
    real, asked = socket.getaddrinfo, []
    left = list(addresses)

    def resolve(host: Any, port: Any, *args: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        if name != "localhost":
            return real(host, port, *args, **options)
        asked.append(name)
        address = left.pop(0) if len(left) > 1 else left[0]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, int(port)))]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return asked


def test_a_name_is_judged_by_the_address_it_leads_to(monkeypatch: pytest.MonkeyPatch) -> None:
    named(monkeypatch, "127.0.0.1")
    with ReferenceWorker() as reference:
        url = f"http://localhost:{reference.port}"
        refused = attempt(worker(url, allow=[]))
        assert reference.events == []
        allowed = attempt(worker(url, allow=["127.0.0.1"]))

    assert refused.reason is Reason.INVALID_REQUEST
    assert "localhost is at 127.0.0.1" in str(refused.error)
    assert allowed.reason is None


def test_a_name_that_changes_its_address_after_the_check_is_not_asked_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = named(monkeypatch, "127.0.0.1", "10.255.255.1")
    with ReferenceWorker(Behaviour(polls=2)) as reference:
        result = attempt(worker(f"http://localhost:{reference.port}"))

    assert result.reason is None
    assert asked == ["localhost"]


def test_a_redirect_is_not_followed() -> None:
    with ReferenceWorker() as elsewhere:
        moved = (307, {"location": f"{elsewhere.url}/tasks"}, "")
        with ReferenceWorker(Behaviour(first=[moved])) as reference:
            result = attempt(worker(reference.url))

    assert result.reason is Reason.INVALID_REQUEST
    assert elsewhere.events == []


def test_a_task_whose_answer_was_lost_is_posted_again_under_the_same_key() -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.close()

    async def run() -> AttemptResult:
        server = await asyncio.start_server(cut, "127.0.0.1", 0)
        async with server, worker(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}") as kind:
            return await kind.attempt(claimed(), seconds=INF)

    seen: list[str] = []
    result = asyncio.run(run())

    assert result.reason is Reason.CONNECTION
    keys = [
        line for head in seen for line in head.lower().split("\r\n") if line.startswith("idempotency-key")
    ]
    assert keys == [f"idempotency-key: {claimed().reservation}"] * 2


def test_with_the_simulator_no_endpoint_is_served() -> None:
    given = {"wire": "endpoint", "base_url": "https://w.example", "api_key_env": "WORKER_KEY"}
    kind = EndpointWorker(registry(given), POLICY, Settings(simulator_url="http://127.0.0.1:9"))

    assert kind.providers == frozenset()
