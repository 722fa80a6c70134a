"""The journal: one JSON line for every call, with what it was billed."""

from __future__ import annotations

import json
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_COUNTED = ("calls", "input_tokens", "cached_tokens", "cache_write_tokens", "output_tokens")


@dataclass(frozen=True)
class Entry:
    """One call. `ending` is how it went; tokens are as billed, the cached ones are part of `input_tokens`."""

    at: str
    provider: str
    wire: str
    model: str
    task: str | None
    attempt: str | None
    request_id: str
    status: int
    ending: str
    streamed: bool
    input_tokens: int
    cached_tokens: int
    cache_write_tokens: int
    output_tokens: int


class Journal:
    """Appends lines, each with a single write, so that several processes can share the file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)

    def write(self, entry: Entry) -> None:
        """Append the entry."""
        os.write(self._file, json.dumps(vars(entry)).encode() + b"\n")

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


def summary(path: Path) -> dict[str, Any]:
    """Return calls and billed tokens over all lines of the journal, in total, by model and by ending."""
    total: Counter[str] = Counter(dict.fromkeys(_COUNTED, 0))
    by_model: dict[str, Counter[str]] = defaultdict(Counter)
    by_ending: Counter[str] = Counter()
    for line in lines(path):
        counts = {"calls": 1, **{name: line[name] for name in _COUNTED[1:]}}
        total.update(counts)
        by_model[line["model"]].update(counts)
        by_ending[line["ending"]] += 1
    return {
        "total": dict(total),
        "by_model": {model: dict(counts) for model, counts in sorted(by_model.items())},
        "by_ending": dict(sorted(by_ending.items())),
    }


def lines(path: Path, task: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield the journal's lines, of one task if it is named; a line still being written is left out."""
    with path.open(encoding="utf-8") as file:
        for text in file:
            if text.endswith("\n"):
                line = json.loads(text)
                if task is None or line["task"] == task:
                    yield line
