"""Texts as arrays of words, so that a vocabulary is looked up in a hundred thousand texts at once.

Texts are joined into one buffer of bytes; a word is a run of letters, digits and underscores in it, known by where it
starts and ends. Its number in the vocabulary is looked up by its first eight bytes and its length, and confirmed by the
rest of its bytes: nothing in Python happens per word, only per hit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

SPACE, POINT, SLASH, LAST_SEPARATOR = b" "[0], b"."[0], b"/"[0], b"/"[0]
"""In a text's form, every byte up to `LAST_SEPARATOR` separates words: space, hyphen, point and slash."""

_FORM = bytes(
    code
    if code >= 128 or chr(code) in "-./_"
    else ord("_")
    if chr(code) == "`"  # `migrate` names a thing and is not the word
    else ord(chr(code).lower() if chr(code).isalnum() else " ")
    for code in range(256)
)
_TYPOGRAPHIC = tuple(mark.encode() for mark in "‘’“”„«»–—…•·。、，「」（）\u00a0\u3000")
_PADDING = b"\n" * 64
_STRIDE = 8
_LABEL_PREFIX = re.compile(r"^.*[:/]")
_LABEL_GAP = re.compile(r"[\s_]+")


def label_key(label: str) -> str:
    """The form in which labels are compared: `Area: Front End`, `area/front_end` and `front-end` are one."""
    return _LABEL_GAP.sub("-", _LABEL_PREFIX.sub("", label.lower()).strip())


def phrase_key(phrase: str) -> str:
    """The form in which a phrase is looked up: lower case, words separated by one space."""
    return " ".join(form(phrase.lower().encode()).decode().translate({ord(mark): " " for mark in "-./"}).split())


def form(raw: bytes) -> bytes:
    """`raw` in lower case (ASCII letters only) with spaces for punctuation, byte for byte at the same place."""
    formed = raw.translate(_FORM)
    for mark in _TYPOGRAPHIC:
        formed = formed.replace(mark, b" " * len(mark))
    return formed


@dataclass(frozen=True)
class Buffer:
    """Texts one after another: text i starts at `starts[i]`, and a byte of `form` has its origin at the same place
    of `raw`. Around and between the texts is white space."""

    raw: bytes
    form: bytes
    codes: NDArray[np.uint8]
    starts: NDArray[np.int64]

    @classmethod
    def of(cls, texts: Sequence[bytes]) -> Buffer:
        """Join `texts` (UTF-8; letters outside ASCII in lower case)."""
        raw = b"".join((_PADDING, b"\n".join(texts), _PADDING))
        formed = form(raw)
        lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
        return cls(
            raw=raw,
            form=formed,
            codes=np.frombuffer(formed, dtype=np.uint8),
            starts=len(_PADDING) + np.concatenate(([0], np.cumsum(lengths[:-1] + 1))),
        )

    def text_at(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Which text each position is in."""
        return np.searchsorted(self.starts, positions, side="right") - 1

    def words(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Where every word starts, and where it ends (first byte after it)."""
        inside = self.codes > LAST_SEPARATOR
        edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1
        return edges[0::2], edges[1::2]


class Vocabulary:
    """Words, numbered from 1. Number 0 is any other word."""

    def __init__(self, words: Iterable[str]) -> None:
        self.words = ["", *dict.fromkeys(words)]
        self.number = {word: number for number, word in enumerate(self.words)}
        encoded = [word.encode() for word in self.words]
        strides = 1 + max(map(len, encoded)) // _STRIDE
        self._strides = np.array([_in_strides(word, strides) for word in encoded], dtype=np.uint64)
        self._lengths = np.array([len(word) for word in encoded])
        keys = _keys(self._strides[:, 0], self._lengths)
        self._multiplier, slots = _without_collision(keys)
        self._number_in_slot = np.zeros(_SLOTS, dtype=np.int16)
        self._number_in_slot[slots] = np.arange(len(self.words))
        self._key_in_slot = np.zeros(_SLOTS, dtype=np.uint64)
        self._key_in_slot[slots] = keys

    def numbers(self, buffer: Buffer, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.int16]:
        """The number of each word of `buffer`."""
        lengths = ends - starts
        keys = _keys(_bytes_at(buffer, starts, lengths), lengths)
        slots = _slots(keys, self._multiplier)
        numbers = np.where(self._key_in_slot[slots] == keys, self._number_in_slot[slots], 0).astype(np.int16)
        hits = np.flatnonzero(numbers)
        for stride in range(1, self._strides.shape[1]):
            rest = _bytes_at(buffer, starts[hits] + stride * _STRIDE, lengths[hits] - stride * _STRIDE)
            numbers[hits[rest != self._strides[numbers[hits], stride]]] = 0
        return numbers

    def among(self, words: Iterable[str]) -> NDArray[np.bool_]:
        """For each number, whether its word is one of `words`."""
        wanted = frozenset(words)
        return np.array([word in wanted for word in self.words])


_SLOTS = 2**14
_SLOT_SHIFT = np.uint64(64 - 14)
_LENGTH_WEIGHT = np.uint64(0x9E3779B97F4A7C15)
_LOW_BYTES = np.array([(1 << 8 * length) - 1 for length in range(_STRIDE + 1)], dtype=np.uint64)


def _in_strides(word: bytes, strides: int) -> list[int]:
    padded = word.ljust(strides * _STRIDE, b"\0")
    return [int.from_bytes(padded[at : at + _STRIDE], "little") for at in range(0, len(padded), _STRIDE)]


def _bytes_at(
    buffer: Buffer, starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> NDArray[np.uint64]:
    """Up to eight bytes from each start, as a little-endian number; none where the length is 0 or less."""
    every = np.ndarray((len(buffer.form) - _STRIDE + 1,), dtype="<u8", buffer=buffer.form, strides=(1,))
    return every[np.minimum(starts, len(every) - 1)] & _LOW_BYTES[np.clip(lengths, 0, _STRIDE)]


def _keys(first_bytes: NDArray[np.uint64], lengths: NDArray[np.int64]) -> NDArray[np.uint64]:
    return first_bytes ^ (lengths.astype(np.uint64) * _LENGTH_WEIGHT)


def _slots(keys: NDArray[np.uint64], multiplier: np.uint64) -> NDArray[np.uint64]:
    return (keys * multiplier) >> _SLOT_SHIFT


def _without_collision(keys: NDArray[np.uint64]) -> tuple[np.uint64, NDArray[np.uint64]]:
    """The first multiplier that gives every key a slot of its own, and the slots."""
    for attempt in count(1):
        multiplier = np.uint64((0xD6E8FEB86659FD93 * (2 * attempt + 1)) % 2**64)
        slots = _slots(keys, multiplier)
        if len(np.unique(slots)) == len(np.unique(keys)):
            return multiplier, slots
    raise AssertionError("unreachable")
