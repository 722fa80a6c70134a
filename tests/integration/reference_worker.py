"""A reference endpoint worker: the protocol of docs/workers.md, whole, on the standard library alone.

Tests say how it behaves; `tasks` are those it was given and `events` what was asked of it, in order.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

KEY = "planted-secret-7f3a"
RESULT = {
    "output": "Done.",
    "evidence": {"tests_passed": 5, "tests_failed": 0, "bugs_introduced": 0, "revisions_needed": 0},
    "usage": {"input_tokens": 2000, "cached_input_tokens": 500, "output_tokens": 300},
}


@dataclass
class Behaviour:
    """How the worker answers.

    Attributes:
        polls: times that it answers 202 before the result; 0 answers the task with the result at once.
        retry_after: header of each 202.
        status_url: in place of its own.
        first: answers given before all others, as (status, headers, body).
        result: body of the 200; text is sent as it is.
        called_off: body of the answer to DELETE.
    """

    polls: int = 0
    retry_after: str | None = "0.2"
    status_url: str | None = None
    first: list[tuple[int, Mapping[str, str], Any]] = field(default_factory=list)
    result: Any = field(default_factory=lambda: RESULT)
    called_off: Any = field(default_factory=dict)


class ReferenceWorker:
    """The worker in a thread of its own, on loopback. Use as a context manager."""

    def __init__(self, behaviour: Behaviour | None = None) -> None:
        self.behaviour = behaviour or Behaviour()
        self.tasks: dict[str, dict[str, Any]] = {}  # by idempotency key
        self.headers: list[dict[str, str]] = []
        self.events: list[str] = []
        self._polled = 0

    def __enter__(self) -> Self:
        worker = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                worker._serve(self)

            def do_GET(self) -> None:
                worker._serve(self)

            def do_DELETE(self) -> None:
                worker._serve(self)

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)

    def _serve(self, request: BaseHTTPRequestHandler) -> None:
        body = json.loads(request.rfile.read(int(request.headers.get("content-length", 0))) or b"null")
        self.events.append(f"{request.command} {request.path}")
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if self.behaviour.first:
            self._send(request, *self.behaviour.first.pop(0))
        elif request.headers.get("authorization") != f"Bearer {KEY}":
            error = {"type": "authentication_error", "message": f"not {request.headers.get('authorization')}"}
            self._send(request, 401, {}, {"error": error})
        elif request.command == "POST":
            self.tasks[request.headers["idempotency-key"]] = body
            self._send_state(request)
        elif request.command == "GET":
            self._polled += 1
            self._send_state(request)
        else:
            self._send(request, 200, {}, self.behaviour.called_off)

    def _send_state(self, request: BaseHTTPRequestHandler) -> None:
        if self._polled >= self.behaviour.polls:
            self._send(request, 200, {}, self.behaviour.result)
            return
        retry_after = {"retry-after": self.behaviour.retry_after} if self.behaviour.retry_after else {}
        self._send(request, 202, retry_after, {"status_url": self.behaviour.status_url or "/tasks/17"})

    def _send(
        self, request: BaseHTTPRequestHandler, status: int, headers: Mapping[str, str], body: Any
    ) -> None:
        content = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        request.send_response(status)
        for name, value in {"content-length": str(len(content)), **headers}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(content)
