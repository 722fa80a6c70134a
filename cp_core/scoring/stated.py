"""Finding the sizes that texts state: "15+ files", "about 1,500 lines", "two new files", or a diff."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cp_core.scoring.config import SizeRules
from cp_core.scoring.words import Vocabulary, Words

_NUMBER_WORDS = {"one": 1, "single": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7}
_NUMBER_WORDS |= {"eight": 8, "nine": 9, "ten": 10, "eleven": 11, "twelve": 12, "dozen": 12}
_FILES, _LINES = ("file", "files"), ("line", "lines", "loc")
_REACH_IN_WORDS = 2
_REACH_IN_BYTES = 40
_NUMBER_AT_THE_END = re.compile(  # "15+ ", "1,500 ", "2k ", "three new ", "one-"
    rf"(?<![\w.,])([0-9][0-9,.]*k?|{'|'.join(_NUMBER_WORDS)})\+?[\s-]{{1,3}}(?:[a-z]+[\s-]+)?\Z".encode()
)


class SizeFinder:
    """Finds the largest number of files and of lines that each text states."""

    def __init__(self, rules: SizeRules) -> None:
        self._rules = rules
        self.vocabulary_words = {*_NUMBER_WORDS, *_FILES, *_LINES}

    def bind(self, vocabulary: Vocabulary) -> None:
        """Learn the numbers that `vocabulary`, which has all of `vocabulary_words`, gave them."""
        self._is_unit = vocabulary.among((*_FILES, *_LINES))
        self._is_file_unit = vocabulary.among(_FILES)
        self._is_number = vocabulary.among(_NUMBER_WORDS)

    def find(self, words: Words, files: NDArray[np.float64], lines: NDArray[np.float64]) -> None:
        """Raise `files` and `lines` (one entry a text, NaN where unknown) to what the text states."""
        at, text = words.hits_among(self._is_unit)
        # Most files and lines are mentioned without a number; only the others are worth a regular expression.
        numbered = np.zeros(len(at), dtype=np.bool_)
        for back in range(1, _REACH_IN_WORDS + 1):
            other, inside = words.beside(at, text, -back)
            first = words.buffer.codes[words.starts[other]]
            is_digit = (first >= ord("0")) & (first <= ord("9"))
            numbered |= inside & (is_digit | self._is_number[words.numbers[other]])
        at, text = at[numbered], text[numbered]

        unit_starts = words.starts[at]
        from_here = np.maximum(words.buffer.starts[text], unit_starts - _REACH_IN_BYTES)
        spans = zip(from_here.tolist(), unit_starts.tolist(), strict=True)
        sizes = np.array(
            [_number_at_the_end(words.buffer.raw[start:end]) for start, end in spans], np.float64
        )
        is_file = self._is_file_unit[words.numbers[at]]
        of_files = is_file & (sizes <= self._rules.most_stated_files)
        of_lines = ~is_file & (sizes <= self._rules.most_stated_lines)
        np.fmax.at(files, text[of_files], sizes[of_files])
        np.fmax.at(lines, text[of_lines], sizes[of_lines])


def size_of_diffs(blocks: Sequence[str]) -> tuple[float, float]:
    """Files and changed lines of the diffs among blocks of code; NaN without a diff."""
    files: set[str] = set()
    changed = 0
    for block in blocks:
        if not block.lower().startswith(("diff", "patch")):
            continue
        for line in block.splitlines():
            if line.startswith("+++ "):
                files.add(line)
            elif line.startswith(("+", "-")) and not line.startswith("---"):
                changed += 1
    return len(files) or math.nan, changed or math.nan


def _number_at_the_end(text: bytes) -> float:
    """The whole number that ends `text`, with at most a word behind it; NaN where there is none."""
    stated = _NUMBER_AT_THE_END.search(text.lower())
    if stated is None:
        return math.nan
    amount = stated[1].decode().replace(",", "")
    if amount in _NUMBER_WORDS:
        return _NUMBER_WORDS[amount]
    if amount.endswith("k") and amount.count(".") <= 1:
        return float(amount[:-1]) * 1000
    return float(amount) if amount.isdecimal() else math.nan
