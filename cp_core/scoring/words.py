"""Texts as arrays of words, so that a vocabulary is looked up in thousands of texts at once.

Texts are joined into one buffer of bytes. A word is a run of letters, digits and underscores in it, known by
where it starts and ends, and found in the vocabulary by a key of 64 bits. In Python nothing happens per word,
only per hit.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
from numpy.typing import NDArray

SPACE, QUOTE, HYPHEN, POINT, SLASH = b" +-./"
LAST_SEPARATOR = SLASH
"""In the form of a text every byte up to this one separates words. White space and most punctuation are
`SPACE`,
back quotes are `QUOTE`; hyphen, point and slash stay, because they hold names together."""


def _formed(code: int) -> int:
    if code >= 128 or chr(code) in "-./_":
        return code
    if chr(code) == "`":
        return QUOTE
    return ord(chr(code).lower()) if chr(code).isalnum() else SPACE


_FORM = bytes(map(_formed, range(256)))
_OTHER_PUNCTUATION = re.compile("[‘’“”„«»–—…•·。、，「」（）：；！？\u00a0\u3000]")
_SEPARATORS = re.compile(r"[-+./\s]+")
_LABEL_PREFIX = re.compile(r"^.*[:/]")
_LABEL_GAP = re.compile(r"[\s_]+")
_PADDING = b"\n" * 16


def label_key(label: str) -> str:
    """The form in which labels are compared: `Area: Front End`, `area/front_end` and `front-end` are one."""
    return _LABEL_GAP.sub("-", _LABEL_PREFIX.sub("", label.lower()).strip())


def phrase_key(phrase: str) -> str:
    """The form in which a phrase is looked up: lower case, words separated by one space."""
    return _SEPARATORS.sub(" ", encode(phrase).translate(_FORM).decode()).strip()


def encode(text: str) -> bytes:
    """`text` as a `Buffer` takes it: UTF-8; beyond ASCII also in lower case, with spaces for punctuation."""
    if text.isascii():
        return text.encode("ascii")
    return _OTHER_PUNCTUATION.sub(" ", text.lower()).encode("utf-8", "replace")


@dataclass(frozen=True)
class Buffer:
    """Texts one after another, with white space around and between them.

    Text i is from `starts[i]` to `ends[i]`. `form` is `raw` in lower case with spaces for punctuation, byte
    for byte at the same place, and `codes` is `form` as an array. `words` are where each word starts and ends
    (the byte after its last).
    """

    raw: bytes
    form: bytes
    codes: NDArray[np.uint8]
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    words: tuple[NDArray[np.int64], NDArray[np.int64]]

    @classmethod
    def of(cls, texts: Sequence[bytes]) -> Buffer:
        """Join texts, each from `encode`."""
        raw = b"".join((_PADDING, b"\n".join(texts), _PADDING))
        form = raw.translate(_FORM)
        codes = np.frombuffer(form, dtype=np.uint8)
        inside = codes > LAST_SEPARATOR
        edges = np.flatnonzero(inside[1:] != inside[:-1]) + 1
        lengths = np.fromiter(map(len, texts), dtype=np.int64, count=len(texts))
        ends = len(_PADDING) + np.cumsum(lengths + 1) - 1
        return cls(raw, form, codes, ends - lengths, ends, words=(edges[0::2], edges[1::2]))

    def text_at(self, positions: NDArray[np.int64]) -> NDArray[np.intp]:
        """Which text each position is in."""
        return np.searchsorted(self.starts, positions, side="right") - 1


class Vocabulary:
    """Words, numbered from 1; 0 stands for every other word.

    A word is known by its first eight bytes, its last eight, and its length.
    """

    def __init__(self, words: Iterable[str]) -> None:
        self.words = ["", *dict.fromkeys(words)]
        self.number = {word: number for number, word in enumerate(self.words)}
        own = Buffer.of([word.encode() for word in self.words])
        self._key_of_number = _keys(own, own.starts, own.ends)
        self._multiplier, self._shift, slots = _slots_apart(self._key_of_number)
        self._number_in_slot = np.zeros(2 ** int(64 - self._shift), dtype=np.int16)
        self._number_in_slot[slots] = np.arange(len(self.words))

    def numbers(self, buffer: Buffer) -> NDArray[np.int16]:
        """The number of each word of `buffer`."""
        keys = _keys(buffer, *buffer.words)
        numbers: NDArray[np.int16] = self._number_in_slot[(keys * self._multiplier) >> self._shift]
        numbers[self._key_of_number[numbers] != keys] = 0
        return numbers

    def among(self, words: Iterable[str]) -> NDArray[np.bool_]:
        """For each number, whether its word is one of `words`."""
        wanted = frozenset(words)
        return np.array([word in wanted for word in self.words])


class Words:
    """The words of texts: where each starts and ends, its number in a vocabulary, and which are hits in it.

    A word is meant by its place among all words; arrays of such places are called `at`, and the text that
    each is in `text`.
    """

    def __init__(self, buffer: Buffer, vocabulary: Vocabulary) -> None:
        self.buffer = buffer
        self.starts, self.ends = buffer.words
        self.numbers = vocabulary.numbers(buffer)
        self.hits = np.flatnonzero(self.numbers)

    def hits_among(self, wanted: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Words whose number is wanted (an array from `Vocabulary.among`), and the text of each."""
        at = self.hits[wanted[self.numbers[self.hits]]]
        return at, self.buffer.text_at(self.starts[at])

    def beside(
        self, at: NDArray[np.intp], text: NDArray[np.intp], distance: int
    ) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
        """The words `distance` places after (if negative: before) those `at`, and whether in their text."""
        other = np.clip(at + distance, 0, max(len(self.starts) - 1, 0))
        start = self.starts[other]
        inside = (start >= self.buffer.starts[text]) & (start < self.buffer.ends[text])
        return other, inside & (other == at + distance)

    def numbers_beside(
        self, at: NDArray[np.intp], text: NDArray[np.intp], distance: int
    ) -> NDArray[np.int16]:
        """The numbers of the words `beside`; 0 where the text has none."""
        other, inside = self.beside(at, text, distance)
        return np.where(inside, self.numbers[other], np.int16(0))

    def in_a_name(self, at: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Whether the words `at` are part of a path, a dotted name or inline code."""
        codes = self.buffer.codes
        before, after, next_after = codes[self.starts[at] - 1], codes[self.ends[at]], codes[self.ends[at] + 1]
        return np.asarray(
            np.isin(before, (SLASH, POINT, QUOTE))
            | np.isin(after, (SLASH, QUOTE))
            | ((after == POINT) & (next_after > LAST_SEPARATOR))
        )


_EIGHT = 8
_LOW_BYTES = np.array([(1 << 8 * length) - 1 for length in range(_EIGHT + 1)], dtype=np.uint64)
_MIX_LENGTH, _MIX_END = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)
"""Odd numbers without a pattern: 2^64 over the golden ratio, and the multiplier of a public hash function."""


def _keys(buffer: Buffer, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> NDArray[np.uint64]:
    """The key of each word: its first eight bytes, mixed with its length and a longer one's last eight."""
    lengths = ends - starts
    eight_at = np.ndarray((len(buffer.form) - _EIGHT + 1,), dtype="<u8", buffer=buffer.form, strides=(1,))
    keys: NDArray[np.uint64] = eight_at[starts] & _LOW_BYTES[np.minimum(lengths, _EIGHT)]
    keys ^= lengths.astype(np.uint64) * _MIX_LENGTH
    longer = np.flatnonzero(lengths > _EIGHT)
    keys[longer] ^= eight_at[ends[longer] - _EIGHT] * _MIX_END
    return keys


def _slots_apart(keys: NDArray[np.uint64]) -> tuple[np.uint64, np.uint64, NDArray[np.uint64]]:
    """A multiplier and a shift that give each key a slot of its own, and these slots (multiplicative
    hashing).

    With as many slots as pairs of keys, every second multiplier does.
    """
    shift = np.uint64(64 - max(8, 2 * len(keys).bit_length() - 1))
    for attempt in count():
        multiplier = np.uint64((int(_MIX_END) + attempt * (int(_MIX_LENGTH) - 1)) % 2**64)  # stays odd
        slots = (keys * multiplier) >> shift
        if len(np.unique(slots)) == len(np.unique(keys)):
            return multiplier, shift, slots
    raise AssertionError("count() does not end")
