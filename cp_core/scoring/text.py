"""What the titles and descriptions of tasks say: phrases, paths and stated sizes. What they mean is for the rules.

HTML comments and code fences hold templates, logs and examples, so nothing is taken from them, except from a diff: that
states the change itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from cp_core.scoring.config import ScoringConfig, TextRules
from cp_core.scoring.distinct import Distinct
from cp_core.scoring.words import LAST_SEPARATOR, POINT, QUOTE, SLASH, Buffer, Vocabulary, encode

_BYTES_AT_ONCE = 400_000  # what fits a processor's cache with its arrays: twice as fast as all at once
_REACH_OF_A_NEGATION = 3
_NUMBER_WORDS = {"one": 1, "single": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7}
_NUMBER_WORDS |= {"eight": 8, "nine": 9, "ten": 10, "eleven": 11, "twelve": 12, "dozen": 12}
_FILES, _LINES = ("file", "files"), ("line", "lines", "loc")
_REACH_OF_A_NUMBER = 40
_NUMBER_BEFORE = re.compile(  # "15+ ", "1,500 ", "2k ", "three new ", "one-"
    rf"(?<![\w.,])([0-9][0-9,.]*k?|{'|'.join(_NUMBER_WORDS)})\+?[\s-]{{1,3}}(?:[a-z]+[\s-]+)?\Z".encode()
)
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_FENCE = "```"
_ADDRESS = re.compile(r"://\S*")


@dataclass(frozen=True)
class TextReading:
    """What the text of each row says, in the order of the rows.

    `paths` are the files and folders named, in lower case, and `named_files` how many of them are files; `stated_files`
    and `stated_lines` are the sizes stated, NaN where none is.
    """

    paths: Distinct[tuple[str, ...]]
    named_files: NDArray[np.int64]
    stated_files: NDArray[np.float64]
    stated_lines: NDArray[np.float64]
    _phrases: list[str]
    _mention_row: NDArray[np.intp]
    _mention_phrase: NDArray[np.intp]
    _mention_opens: NDArray[np.bool_]

    def mentions(self, phrases: Iterable[str], *, opening: bool = False) -> NDArray[np.bool_]:
        """Whether a row's title or the lead of its description holds one of `phrases`, not negated.

        With `opening`, only as the first words of the title.
        """
        wanted = frozenset(phrases)
        counts = np.array([phrase in wanted for phrase in self._phrases], dtype=np.bool_)[
            self._mention_phrase
        ]
        if opening:
            counts &= self._mention_opens
        mentioned = np.zeros(len(self.named_files), dtype=np.bool_)
        mentioned[self._mention_row[counts]] = True
        return mentioned


def read_texts(titles: Sequence[str], descriptions: Sequence[str], config: ScoringConfig) -> TextReading:
    """Read every title with its description. Phrases are the configured ones; no others can be asked for later."""
    reader = _Reader(config, len(titles))
    for rows in _portions(titles, descriptions):
        reader.read(rows.start, titles[rows], descriptions[rows])
    return reader.reading()


def _portions(titles: Sequence[str], descriptions: Sequence[str]) -> Iterator[slice]:
    lengths = [len(title) + len(text) for title, text in zip(titles, descriptions, strict=True)]
    portion = np.cumsum(lengths) // _BYTES_AT_ONCE
    edges = [0, *(np.flatnonzero(np.diff(portion)) + 1).tolist(), len(lengths)]
    return (slice(first, last) for first, last in pairwise(edges))


class _Reader:
    """Reads portions of the rows, one after another, and joins what they say."""

    def __init__(self, config: ScoringConfig, rows: int) -> None:
        self._lead = config.text.lead_characters
        self._size = config.size
        self._paths = _PathNames(config.text)
        self._phrases = sorted(_phrases_of(config))
        self._vocabulary = Vocabulary(
            [
                *(word for phrase in self._phrases for word in phrase.split()),
                *config.text.negations,
                *config.text.file_extensions,
                *config.text.file_names,
                *_NUMBER_WORDS,
                *_FILES,
                *_LINES,
            ]
        )
        among = self._vocabulary.among
        self._phrase_numbers = [
            [self._vocabulary.number[word] for word in phrase.split()] for phrase in self._phrases
        ]
        self._starts_a_phrase = among(phrase.split()[0] for phrase in self._phrases)
        self._is_negation = among(config.text.negations)
        self._is_number_word = among(_NUMBER_WORDS)
        self._is_unit, self._is_file_unit = among((*_FILES, *_LINES)), among(_FILES)
        self._is_extension = among(config.text.file_extensions)
        self._is_file_name = among(config.text.file_names)
        self._stated_files, self._stated_lines = np.full(rows, math.nan), np.full(rows, math.nan)
        self._row_paths: list[tuple[str, ...]] = [()] * rows
        self._mentions = [(np.array([], np.intp), np.array([], np.intp), np.array([], np.bool_))]

    def read(self, first_row: int, titles: Sequence[str], descriptions: Sequence[str]) -> None:
        """Read the rows from `first_row` on."""
        prose = [
            self._prose(first_row + at, text) if _FENCE in text or "<!--" in text or "://" in text else text
            for at, text in enumerate(descriptions)
        ]
        leads = [encode(f"{title}\n{text[: self._lead]}") for title, text in zip(titles, prose, strict=True)]
        buffer = Buffer.of(
            [
                lead if len(text) <= self._lead else lead + encode(text[self._lead :])
                for lead, text in zip(leads, prose, strict=True)
            ]
        )
        words = _Words.of(buffer, self._vocabulary)
        self._find_phrases(first_row, words, leads)
        self._find_sizes(first_row, words)
        self._find_paths(first_row, words)

    def reading(self) -> TextReading:
        """What all the rows say."""
        paths = Distinct.of(self._row_paths).regroup(lambda own: tuple(dict.fromkeys(own)))
        rows, phrases, opens = zip(*self._mentions, strict=True)
        return TextReading(
            paths=paths,
            named_files=paths.map(self._paths.count_files, np.int64),
            stated_files=self._stated_files,
            stated_lines=self._stated_lines,
            _phrases=self._phrases,
            _mention_row=np.concatenate(rows),
            _mention_phrase=np.concatenate(phrases),
            _mention_opens=np.concatenate(opens),
        )

    def _prose(self, row: int, text: str) -> str:
        """`text` without comments, code fences and web addresses. A diff among these states the size of the row."""
        if "<!--" in text:
            text = _COMMENT.sub(" ", text)
        blocks = text.split(_FENCE)  # prose and code by turns
        if len(blocks) > 1:
            self._stated_files[row], self._stated_lines[row] = _size_of_diffs(blocks[1::2])
        return _ADDRESS.sub(" ", " ".join(blocks[::2]))

    def _find_phrases(self, first_row: int, words: _Words, leads: Sequence[bytes]) -> None:
        """Note which phrase stands where, unless it is negated or part of a name."""
        at = words.hits[~words.in_a_name(words.hits) & self._starts_a_phrase[words.numbers[words.hits]]]
        text = words.text(at)
        negated = np.zeros(len(at), dtype=np.bool_)
        for back in range(1, _REACH_OF_A_NEGATION + 1):
            negated |= self._is_negation[words.numbers_beside(at, -back, text)]
        in_lead = words.starts[at] < (words.buffer.starts + np.fromiter(map(len, leads), np.int64))[text]
        at, text = at[in_lead & ~negated], text[in_lead & ~negated]
        opens = words.starts[at - 1] < words.buffer.starts[text]
        for index, (first, *rest) in enumerate(self._phrase_numbers):
            found = words.numbers[at] == first
            for ahead, number in enumerate(rest, start=1):
                found &= words.numbers_beside(at, ahead, text) == number
            if found.any():
                rows = first_row + text[found]
                self._mentions.append((rows, np.full(len(rows), index), opens[found]))

    def _find_sizes(self, first_row: int, words: _Words) -> None:
        """Note the largest number of files and of lines that each text states."""
        at = words.hits[self._is_unit[words.numbers[words.hits]]]
        text = words.text(at)
        numbered = np.zeros(len(at), dtype=np.bool_)
        for back in (1, 2):  # "two files", "two new files"
            numbered |= self._is_number_word[words.numbers_beside(at, -back, text)]
            numbered |= words.starts_with_digit(at - back)
        at, text = at[numbered], text[numbered]
        starts = words.starts[at]
        first = np.maximum(words.buffer.starts[text], starts - _REACH_OF_A_NUMBER)
        spans = zip(first.tolist(), starts.tolist(), strict=True)
        sizes = np.array(
            [_number_before(words.buffer.raw[start:end]) for start, end in spans], dtype=np.float64
        )
        is_file = self._is_file_unit[words.numbers[at]]
        for column, counts, most in (
            (self._stated_files, is_file, self._size.most_stated_files),
            (self._stated_lines, ~is_file, self._size.most_stated_lines),
        ):
            counts &= sizes <= most
            np.fmax.at(column, first_row + text[counts], sizes[counts])

    def _find_paths(self, first_row: int, words: _Words) -> None:
        """Note the paths that each text names, in order of appearance."""
        buffer = words.buffer
        slashes = np.flatnonzero(buffer.codes == SLASH)
        slashes = slashes[buffer.codes[slashes - 1] > LAST_SEPARATOR]
        number, start = words.numbers[words.hits], words.starts[words.hits]
        after_point = (buffer.codes[start - 1] == POINT) & (buffer.codes[start - 2] > LAST_SEPARATOR)
        files = start[(self._is_extension[number] & after_point) | self._is_file_name[number]]
        positions = np.sort(np.concatenate((slashes, files)))
        end = 0
        for position, row in zip(positions.tolist(), buffer.text_at(positions).tolist(), strict=True):
            if position < end:
                continue  # another part of the same name
            name_start = buffer.form.rfind(b" ", 0, position) + 1
            end = buffer.form.find(b" ", position)
            if paths := self._paths[buffer.form[name_start:end]]:
                self._row_paths[first_row + row] += paths


@dataclass(frozen=True)
class _Words:
    """The words of a portion: where each starts and ends, its number in the vocabulary, and which are hits in it."""

    buffer: Buffer
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    numbers: NDArray[np.int16]
    hits: NDArray[np.intp]

    @classmethod
    def of(cls, buffer: Buffer, vocabulary: Vocabulary) -> _Words:
        numbers = vocabulary.numbers(buffer)
        return cls(buffer, *buffer.words, numbers, np.flatnonzero(numbers))

    def text(self, at: NDArray[np.intp]) -> NDArray[np.intp]:
        """Which text each of the words `at` is in."""
        return self.buffer.text_at(self.starts[at])

    def numbers_beside(
        self, at: NDArray[np.intp], distance: int, text: NDArray[np.intp]
    ) -> NDArray[np.int16]:
        """The numbers of the words so many words after (before, if negative) those `at`; 0 where the text ends."""
        beside = np.clip(at + distance, 0, max(len(self.starts) - 1, 0))
        start = self.starts[beside]
        inside = (
            (start >= self.buffer.starts[text]) & (start < self.buffer.ends[text]) & (beside == at + distance)
        )
        return self.numbers[beside] * inside

    def in_a_name(self, at: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Whether the words `at` are part of a path, a dotted name or inline code."""
        codes = self.buffer.codes
        before, after, next_after = codes[self.starts[at] - 1], codes[self.ends[at]], codes[self.ends[at] + 1]
        return np.asarray(
            np.isin(before, (SLASH, POINT, QUOTE))
            | np.isin(after, (SLASH, QUOTE))
            | ((after == POINT) & (next_after > LAST_SEPARATOR))
        )

    def starts_with_digit(self, at: NDArray[np.intp]) -> NDArray[np.bool_]:
        """Whether the words `at` start with a digit."""
        first = self.buffer.codes[self.starts[np.maximum(at, 0)]]
        return np.asarray((first >= ord("0")) & (first <= ord("9")))


class _PathNames(dict[bytes, tuple[str, ...]]):
    """The paths inside the workspace that a run of characters without space names; each run is looked at once."""

    def __init__(self, rules: TextRules) -> None:
        super().__init__()
        self._extensions = frozenset(rules.file_extensions)
        self._file_names = frozenset(rules.file_names)
        self._no_paths = frozenset(rules.no_paths)
        self._foreign_folders = frozenset(rules.foreign_folders)

    def __missing__(self, run: bytes) -> tuple[str, ...]:
        parts = run.decode().split(chr(QUOTE))
        paths = (part.strip("-").rstrip("./-").removeprefix("./") for part in parts)
        self[run] = tuple(path for path in paths if self._is_path(path))
        return self[run]

    def count_files(self, paths: tuple[str, ...]) -> int:
        """How many files are among `paths`. Those of the same name count once: `a.py`, `src/a.py`, `b/src/a.py`."""
        return len({path.rpartition("/")[2] for path in paths if self._is_file(path)})

    def _is_file(self, path: str) -> bool:
        """Whether a path ends in a file: a known extension, or a known name without one."""
        name = path.rpartition("/")[2]
        return name in self._file_names or ("." in name and name.rpartition(".")[2] in self._extensions)

    def _is_path(self, path: str) -> bool:
        if path in self._no_paths:
            return False
        if "/" not in path:
            return self._is_file(path)
        root, *folders = path.split("/")
        is_address = "." in root.lstrip(".")  # github.com/owner/name
        return (
            root not in ("", "..") and not is_address and self._foreign_folders.isdisjoint((root, *folders))
        )


def _phrases_of(config: ScoringConfig) -> set[str]:
    return {
        *config.complexity.highly_complex_words,
        *config.size.feature_words,
        *config.time_bonus.blocking_production.phrases,
        *(phrase for rule in config.risks.rules.values() for phrase in rule.phrases),
    }


def _size_of_diffs(blocks: list[str]) -> tuple[float, float]:
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


def _number_before(text: bytes) -> float:
    """The whole number that ends `text`, with at most a word behind it; NaN where there is none."""
    stated = _NUMBER_BEFORE.search(text.lower())
    if stated is None:
        return math.nan
    amount = stated[1].decode().replace(",", "")
    if amount in _NUMBER_WORDS:
        return _NUMBER_WORDS[amount]
    if amount.endswith("k") and amount.count(".") <= 1:
        return float(amount[:-1]) * 1000
    return float(amount) if amount.isdecimal() else math.nan
