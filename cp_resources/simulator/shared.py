"""What the processes of one simulator must agree on: rate limits and cached prefixes, in memory-mapped files.

Every method takes the time as `now`, in seconds of one clock that all processes share.
"""

from __future__ import annotations

import fcntl
import math
import mmap
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

MINIMUM_PREFIX_TOKENS = 1024
"""A prefix shorter than this is never cached."""

DEFAULT_TTL_SECONDS = 300.0


class MappedFile:
    """A file of zeros at first, mapped into every process that opens it, with one lock for all of them."""

    def __init__(self, path: Path, size: int) -> None:
        self._file = path.open("a+b")
        fcntl.flock(self._file, fcntl.LOCK_EX)
        if path.stat().st_size < size:
            self._file.truncate(size)
        fcntl.flock(self._file, fcntl.LOCK_UN)
        self._map = mmap.mmap(self._file.fileno(), size)

    @contextmanager
    def locked(self) -> Iterator[mmap.mmap]:
        """Hold the lock; a process that dies lets go of it."""
        fcntl.flock(self._file, fcntl.LOCK_EX)
        try:
            yield self._map
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)

    def close(self) -> None:
        """Unmap and close the file."""
        self._map.close()
        self._file.close()


@dataclass(frozen=True, slots=True)
class Allowance:
    """What the rate limits say about a call: `exceeded` is "requests", "tokens" or None (admitted).

    `remaining` is at least 0, `reset` is in seconds until the limit is whole again, `retry_after` in seconds
    until a call may pass. A limit that is not set is missing from the three mappings.
    """

    exceeded: str | None
    limit: dict[str, int]
    remaining: dict[str, int]
    reset: dict[str, float]
    retry_after: float


NO_LIMITS = Allowance(None, {}, {}, {}, 0.0)


class RateLimits:
    """Token buckets, one for requests and one for tokens per minute, for each provider and model.

    A bucket holds one minute's worth. A call passes while both buckets have something left and may then
    overdraw the tokens, as its use is only known at its end: the debt delays the calls after it.
    """

    _SLOT = struct.Struct("<Qddd")  # key, requests left, tokens left, time of the last call
    _SLOTS = 4096

    def __init__(self, path: Path, requests_per_minute: int | None, tokens_per_minute: int | None) -> None:
        self._limits = {
            name: limit
            for name, limit in (("requests", requests_per_minute), ("tokens", tokens_per_minute))
            if limit is not None
        }
        self._file = MappedFile(path, self._SLOTS * self._SLOT.size)

    def take(self, model: str, tokens: int, now: float) -> Allowance:
        """Charge one request and `tokens` to `model`, or say what is exceeded and charge nothing."""
        if not self._limits:
            return NO_LIMITS
        key = _digest(model)
        with self._file.locked() as memory:
            offset, left = self._refilled(memory, key, now)
            lacking = {
                name: (1 - left[name]) * 60 / limit for name, limit in self._limits.items() if left[name] < 1
            }
            exceeded = max(lacking, key=lambda name: lacking[name]) if lacking else None
            if exceeded is None:
                left["requests"] -= 1
                left["tokens"] -= tokens
            self._SLOT.pack_into(memory, offset, key, left["requests"], left["tokens"], now)
        return Allowance(
            exceeded=exceeded,
            limit=self._limits,
            remaining={name: max(int(left[name]), 0) for name in self._limits},
            reset={name: (limit - left[name]) * 60 / limit for name, limit in self._limits.items()},
            retry_after=max(lacking.values(), default=0.0),
        )

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _refilled(self, memory: mmap.mmap, key: int, now: float) -> tuple[int, dict[str, float]]:
        for probe in range(self._SLOTS):
            offset = (key + probe) % self._SLOTS * self._SLOT.size
            found, requests, tokens, updated = self._SLOT.unpack_from(memory, offset)
            if found == 0:
                return offset, {
                    "requests": 0.0,
                    "tokens": 0.0,
                    **{n: float(v) for n, v in self._limits.items()},
                }
            if found == key:
                left = {"requests": requests, "tokens": tokens}
                for name, limit in self._limits.items():
                    left[name] = min(left[name] + limit / 60 * max(now - updated, 0.0), float(limit))
                return offset, left
        raise RuntimeError(f"more than {self._SLOTS} models under rate limits")


@dataclass(frozen=True, slots=True)
class Prefix:
    """The first `tokens` of a prompt to a model, known by `key`, a hash of all their text."""

    key: int
    tokens: int
    ttl: float = DEFAULT_TTL_SECONDS


def prefixes_of(scope: str, blocks: Iterable[tuple[str, int, float]]) -> list[Prefix]:
    """Return the prefix that ends with each of `blocks`.

    A block is its text, how many tokens the prompt has up to its end, and its time to live in seconds.
    `scope` keeps apart what never shares a cache: the models of the providers.
    """
    source = blake2b(scope.encode("utf-8", "surrogatepass"))
    prefixes = []
    for text, tokens, ttl in blocks:
        source.update(b"\x1f" + text.encode("utf-8", "surrogatepass"))
        prefixes.append(Prefix(_number(source.digest()), tokens, ttl))
    return prefixes


class PromptCache:
    """Which prefixes are cached until when. A full neighbourhood forgets the prefix that expires first."""

    _SLOT = struct.Struct("<Qd")  # key, time of expiry
    _SLOTS = 1 << 20
    _PROBES = 16

    def __init__(self, path: Path) -> None:
        self._file = MappedFile(path, self._SLOTS * self._SLOT.size)

    def longest(self, prefixes: Sequence[Prefix], now: float) -> Prefix | None:
        """Return the longest of `prefixes` that is cached, and keep it for another time to live."""
        if not prefixes:
            return None
        with self._file.locked() as memory:
            for prefix in sorted(prefixes, key=lambda prefix: -prefix.tokens):
                offset, key, expires = self._find(memory, prefix.key)
                if key == prefix.key and expires > now:
                    self._SLOT.pack_into(memory, offset, key, max(expires, now + prefix.ttl))
                    return prefix
        return None

    def write(self, prefixes: Sequence[Prefix], now: float) -> None:
        """Cache `prefixes`: from now on, until they expire, `longest` finds them."""
        if not prefixes:
            return
        with self._file.locked() as memory:
            for prefix in prefixes:
                offset, key, expires = self._find(memory, prefix.key)
                kept = expires if key == prefix.key else 0.0
                self._SLOT.pack_into(memory, offset, prefix.key, max(kept, now + prefix.ttl))

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _find(self, memory: mmap.mmap, wanted: int) -> tuple[int, int, float]:
        """Return offset, key and expiry of the slot that holds `wanted`, or else of the one to overwrite."""
        oldest = (0, 0, math.inf)
        for probe in range(self._PROBES):
            offset = (wanted + probe) % self._SLOTS * self._SLOT.size
            key, expires = self._SLOT.unpack_from(memory, offset)
            if key in (wanted, 0):
                return offset, key, expires
            if expires < oldest[2]:
                oldest = (offset, key, expires)
        return oldest


def _digest(text: str) -> int:
    return _number(blake2b(text.encode()).digest())


def _number(digest: bytes) -> int:
    return int.from_bytes(digest[:8], "big") or 1  # 0 marks an empty slot
