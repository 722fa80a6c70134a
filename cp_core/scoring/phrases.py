"""Finding the configured words and phrases where they mean what they say."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cp_core.scoring.words import Vocabulary, Words

_REACH_OF_A_NEGATION = 3


@dataclass(frozen=True)
class Mentions:
    """Which row mentions which phrase: three arrays of one entry a mention."""

    rows: NDArray[np.intp]
    phrases: NDArray[np.intp]
    opening: NDArray[np.bool_]

    @classmethod
    def joined(cls, parts: Iterable[Mentions]) -> Mentions:
        """All mentions of several portions."""
        some = [cls(np.array([], np.intp), np.array([], np.intp), np.array([], np.bool_)), *parts]
        return cls(
            np.concatenate([part.rows for part in some]),
            np.concatenate([part.phrases for part in some]),
            np.concatenate([part.opening for part in some]),
        )


class PhraseFinder:
    """Finds phrases (one word or several in a row) near the start of texts.

    Part of a name (`migrate`, db/migrate, app.migrate) is no mention, nor is a word up to three words after a
    negation ("no breaking changes", "must not introduce any breaking change").
    """

    def __init__(self, phrases: Iterable[str], negations: Iterable[str]) -> None:
        self.phrases = sorted(set(phrases))
        self._negations = frozenset(negations)
        self.vocabulary_words = {
            *self._negations,
            *(word for phrase in self.phrases for word in phrase.split()),
        }

    def bind(self, vocabulary: Vocabulary) -> None:
        """Learn the numbers that `vocabulary`, which has all of `vocabulary_words`, gave them."""
        self._numbers = [[vocabulary.number[word] for word in phrase.split()] for phrase in self.phrases]
        self._is_first = vocabulary.among(phrase.split()[0] for phrase in self.phrases)
        self._is_negation = vocabulary.among(self._negations)

    def find(self, words: Words, within: NDArray[np.int64], first_row: int) -> Mentions:
        """Mentions that start before position `within` of their text; text 0 is row `first_row`."""
        at, text = words.hits_among(self._is_first)
        counts = ~words.in_a_name(at) & (words.starts[at] < within[text])
        for back in range(1, _REACH_OF_A_NEGATION + 1):
            counts &= ~self._is_negation[words.numbers_beside(at, text, -back)]
        at, text = at[counts], text[counts]

        _, has_words_before = words.beside(at, text, -1)
        found = []
        for phrase, (first, *rest) in enumerate(self._numbers):
            here = words.numbers[at] == first
            for ahead, number in enumerate(rest, start=1):
                here &= words.numbers_beside(at, text, ahead) == number
            rows = first_row + text[here]
            found.append(Mentions(rows, np.full(len(rows), phrase), ~has_words_before[here]))
        return Mentions.joined(found)
