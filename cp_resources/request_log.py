"""The request log: a sample of the calls to providers, kept as JSON lines in files that only their owner reads.

A line holds the ids of task, execution, attempt and run, the request and the answer, both without secrets and
cut to a limit. A file holds a UTC day, and is removed after `keep_days`. Off by default.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

from structlog.contextvars import get_contextvars

from cp_core.execution.request_log import RequestLogPolicy, is_sampled
from cp_core.execution.scrubbing import strike_from_record, strike_secrets
from cp_resources.log import logger
from cp_resources.secrets import known_secrets

FOLDER = "requests"
LONGEST_SECRET = 16_384
"""Bytes looked at beyond the limit: a private key that begins before it is found whole."""
IDS = ("task", "execution", "attempt", "stage", "run", "model")
"""Correlation ids, as the worker binds them for its log lines."""
_KEYS_OF_HEADERS = frozenset(
    {"authorization", "proxy-authorization", "x-api-key", "api-key", "cookie", "set-cookie"}
)

_log = logger(__name__)


@dataclass
class Exchange:
    """One call as it goes on; whoever makes it fills in what comes back."""

    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    received: bytes | bytearray = b""


class RequestLog:
    """Writes lines into `<home>/requests`.

    Args:
        home: the installation's folder.
    """

    def __init__(self, home: Path, policy: RequestLogPolicy) -> None:
        self.folder = home / FOLDER
        self._policy = policy
        self._pruned_on: date | None = None

    @contextmanager
    def exchange(
        self, method: str, url: str, headers: Mapping[str, str], content: bytes | None
    ) -> Iterator[Exchange]:
        """Keep one call if its task is in the sample, however it ends."""
        ids = {name: value for name in IDS if (value := get_contextvars().get(name)) is not None}
        seen = Exchange()
        if not is_sampled(str(ids.get("task", "")), self._policy.sample):
            yield seen
            return
        started_at, started = datetime.now(UTC), time.perf_counter()
        error: BaseException | None = None
        try:
            yield seen
        except BaseException as raised:
            error = raised
            raise
        finally:
            self._write(
                started_at.date(),
                {
                    "at": started_at.isoformat(timespec="milliseconds"),
                    **ids,
                    "milliseconds": round((time.perf_counter() - started) * 1000, 1),
                    "method": method,
                    "url": url,
                    "request_headers": _without_keys(headers),
                    "request": self._cut(content or b""),
                    "status": seen.status,
                    "answer_headers": _without_keys(seen.headers),
                    "answer": self._cut(seen.received),
                    "error": error and f"{type(error).__name__}: {error}".removesuffix(": "),
                },
            )

    def _cut(self, content: bytes | bytearray) -> dict[str, Any]:
        """Text without secrets. They are struck out before the last cut, so that no half of one is left."""
        near = bytes(content[: self._policy.max_bytes + LONGEST_SECRET])
        text = strike_secrets(near.decode(errors="replace"), known_secrets())
        kept = text.encode()[: self._policy.max_bytes].decode(errors="ignore")
        return {"bytes": len(content), "is_cut": len(kept) < len(text), "text": kept}

    def _write(self, day: date, record: Mapping[str, Any]) -> None:
        """Append one line, in one write, so that lines of several workers do not mix.

        A full disk must not cost an attempt that was paid for: it is told in the log.
        """
        line = json.dumps(strike_from_record(record, known_secrets())) + "\n"
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self.prune(day)
            opened = os.open(self._file(day), os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                os.write(opened, line.encode())
            finally:
                os.close(opened)
        except OSError as error:
            _log.warning("request not logged", folder=str(self.folder), error=str(error))

    def prune(self, today: date) -> None:
        """Remove the files of days before the last `keep_days`; looks once a day."""
        if self._pruned_on == today:
            return
        self._pruned_on = today
        oldest = self._file(today - timedelta(days=self._policy.keep_days - 1))
        try:
            for path in self.folder.glob("????-??-??.jsonl"):
                if path.name < oldest.name:
                    path.unlink(missing_ok=True)
        except OSError as error:
            _log.warning("old requests not removed", folder=str(self.folder), error=str(error))

    def _file(self, day: date) -> Path:
        return self.folder / f"{day}.jsonl"


_current: ContextVar[RequestLog | None] = ContextVar("request_log", default=None)


@contextmanager
def kept_by(log: RequestLog | None) -> Iterator[None]:
    """Have the calls made within go to `log`."""
    token = _current.set(log)
    try:
        yield
    finally:
        _current.reset(token)


@contextmanager
def exchange(method: str, url: str, headers: Mapping[str, str], content: bytes | None) -> Iterator[Exchange]:
    """One call: kept by the log that is current, if any is."""
    log = _current.get()
    if log is None:
        yield Exchange()
        return
    with log.exchange(method, url, headers, content) as seen:
        yield seen


def request_log(home: Path, policy: RequestLogPolicy) -> RequestLog | None:
    """The log of an installation, with what is too old removed; None while it is off."""
    log = RequestLog(home, policy)
    log.prune(datetime.now(UTC).date())
    return log if policy.sample > 0 else None


def _without_keys(headers: Mapping[str, str]) -> dict[str, str]:
    return {name: "[key]" if name.lower() in _KEYS_OF_HEADERS else value for name, value in headers.items()}
