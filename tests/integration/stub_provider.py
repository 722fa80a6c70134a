"""A provider on loopback that answers what a test tells it to, in good and in bad manners."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self


@dataclass(frozen=True)
class Call:
    """One request as it arrived; header names in lower case."""

    path: str
    headers: Mapping[str, str]
    body: dict[str, Any]

    @property
    def task(self) -> str:
        return self.headers["x-control-panel-task"]

    @property
    def attempt(self) -> int:
        return int(self.headers["x-control-panel-attempt"])


@dataclass(frozen=True)
class Reply:
    """What the provider sends, and how badly.

    It waits for `after`, then for `delay` seconds; with `trickle` each byte takes so many seconds; with
    `cut_after` the connection ends after so many bytes of the body.
    """

    body: Any = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    after: threading.Event | None = None
    delay: float = 0.0
    trickle: float = 0.0
    cut_after: int | None = None


class StubProvider:
    """A server in a thread of its own. Use as a context manager; `calls` are those that arrived, in order."""

    def __init__(self, answer: Callable[[Call], Reply]) -> None:
        self.calls: list[Call] = []
        self.busiest = 0
        self._answer = answer
        self._busy = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        starting = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._serve, "127.0.0.1", 0), self._loop
        )
        self._server = starting.result(10)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    async def _stop(self) -> None:
        self._server.close()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)
        }
        body = json.loads(await reader.readexactly(int(headers["content-length"])))
        call = Call(head[0].split(" ")[1], headers, body)
        self.calls.append(call)
        self._busy += 1
        self.busiest = max(self.busiest, self._busy)
        try:
            return await self._send(self._answer(call), writer)
        finally:
            self._busy -= 1

    async def _send(self, reply: Reply, writer: asyncio.StreamWriter) -> bool:
        while reply.after and not reply.after.is_set():
            await asyncio.sleep(0.01)
        await asyncio.sleep(reply.delay)
        content = reply.body if isinstance(reply.body, bytes) else json.dumps(reply.body).encode()
        headers = {
            "content-type": "application/json",
            "content-length": str(len(content)),
            **reply.headers,
        }
        lines = [f"HTTP/1.1 {reply.status} Said", *(f"{name}: {value}" for name, value in headers.items())]
        writer.write("\r\n".join([*lines, "", ""]).encode())
        sent = content[: reply.cut_after]
        if reply.trickle:
            for byte in sent:
                writer.write(bytes([byte]))
                await writer.drain()
                await asyncio.sleep(reply.trickle)
        else:
            writer.write(sent)
            await writer.drain()
        return reply.cut_after is None


def evidence_block(*, passed: int = 5, failed: int = 0) -> str:
    counts = {"tests_passed": passed, "tests_failed": failed, "bugs_introduced": 0, "revisions_needed": 0}
    return f"```evidence\n{json.dumps(counts)}\n```"


def openai_answer(
    text: str | None,
    *,
    finish: str = "stop",
    prompt: int = 100,
    cached: int = 0,
    completion: int = 20,
    **message: Any,
) -> dict[str, Any]:
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_790_000_000,
        "model": "some-model",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text, **message},
                "logprobs": None,
                "finish_reason": finish,
            }
        ],
        "usage": {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {"cached_tokens": cached},
        },
    }


def responses_answer(
    *parts: dict[str, Any],
    status: str = "completed",
    incomplete: str | None = None,
    error: dict[str, Any] | None = None,
    input_tokens: int = 100,
    cached: int = 0,
    output_tokens: int = 20,
) -> dict[str, Any]:
    message = {"id": "msg_1", "type": "message", "status": status, "role": "assistant", "content": [*parts]}
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1_790_000_000,
        "status": status,
        "error": error,
        "incomplete_details": {"reason": incomplete} if incomplete else None,
        "model": "some-model",
        "output": [{"id": "rs_1", "type": "reasoning", "summary": []}, *([message] if parts else [])],
        "usage": {
            "input_tokens": input_tokens,
            "input_tokens_details": {"cached_tokens": cached, "cache_write_tokens": 0},
            "output_tokens": output_tokens,
            "output_tokens_details": {"reasoning_tokens": 4},
            "total_tokens": input_tokens + output_tokens,
        },
    }


def output_text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def anthropic_answer(
    text: str, *, stop: str = "end_turn", fresh: int = 100, read: int = 0, written: int = 0, output: int = 20
) -> dict[str, Any]:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": "some-model",
        "content": [{"type": "text", "text": text}],
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": {
            "input_tokens": fresh,
            "cache_read_input_tokens": read,
            "cache_creation_input_tokens": written,
            "output_tokens": output,
        },
    }


def openai_error(message: str, kind: str, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def anthropic_error(message: str, kind: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": message}, "request_id": "req_1"}
