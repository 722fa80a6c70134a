"""What the title and description of a task say: phrases, paths and stated sizes. What they mean is for the rules.

HTML comments and code fences hold templates, logs and examples, so no phrase, path or count is taken from them, except
from a diff: that states the change itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cp_core.scoring.config import ScoringConfig, SizeRules
from cp_core.scoring.distinct import Distinct
from cp_core.scoring.phrases import NOTHING, PhraseFinder
from cp_core.scoring.words import plain, split

_NUMBER_WORDS = {"one": 1, "single": 1, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7}
_NUMBER_WORDS |= {"eight": 8, "nine": 9, "ten": 10, "eleven": 11, "twelve": 12, "dozen": 12}
_FILES, _LINES = ("file", "files"), ("line", "lines", "loc")
_SIZE_UNITS = frozenset((*_FILES, *_LINES))
_STATED = re.compile(
    r"([0-9][0-9,.]{0,9}k?)\+?[\s-]{1,3}(?:[a-z]{1,20}[\s-])?(files?|lines?|loc)\b"
)
_REACH_OF_A_NUMBER = 2  # "two files", "two new files"
_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_FENCE = "```"


@dataclass(frozen=True)
class TextReading:
    """What each row's text says, in the order of the rows.

    `phrases` are the configured phrases found; `paths` the files and folders named, in lower case, and `named_files`
    how many of them are files; `stated_files` and `stated_lines` the sizes stated, NaN where none is.
    """

    phrases: Distinct[frozenset[str]]
    paths: Distinct[tuple[str, ...]]
    named_files: NDArray[np.int64]
    stated_files: NDArray[np.float64]
    stated_lines: NDArray[np.float64]


def read_texts(titles: Iterable[str], descriptions: Iterable[str], config: ScoringConfig) -> TextReading:
    """Read every title with its description, row by row."""
    reader = _Reader(config)
    readings = [reader.read(title, text) for title, text in zip(titles, descriptions, strict=True)]
    return TextReading(
        phrases=Distinct.of([reading[0] for reading in readings]),
        paths=Distinct.of([reading[1] for reading in readings]),
        named_files=np.array([reading[2] for reading in readings], dtype=np.int64),
        stated_files=np.array([reading[3] for reading in readings], dtype=np.float64),
        stated_lines=np.array([reading[4] for reading in readings], dtype=np.float64),
    )


class _Reader:
    """Reads one text after another with what was prepared from the configuration once.

    A text is split into words once; only where one of them is an alarm is there more to look for.
    """

    def __init__(self, config: ScoringConfig) -> None:
        self._lead = config.text.lead_characters
        self._size = config.size
        self._finder = PhraseFinder(_phrases_anywhere(config), config.text.negations)
        self._title_finder = PhraseFinder(config.size.feature_words, config.text.negations)
        self._extensions = frozenset(config.text.file_extensions)
        self._file_names = frozenset(config.text.file_names)
        self._no_paths = frozenset(config.text.no_paths)
        self._foreign_folders = frozenset(config.text.foreign_folders)
        self._alarms = (
            self._finder.first_words | self._title_finder.first_words | self._file_names | _SIZE_UNITS
        )
        self._path_of_word: dict[str, str] = {}

    def read(self, title: str, description: str) -> tuple[frozenset[str], tuple[str, ...], int, float, float]:
        """Phrases, paths, how many of these are files, stated files and stated lines (NaN: none) of a text."""
        files = lines = math.nan
        if "<!--" in description:
            description = _COMMENT.sub(" ", description)
        if _FENCE in description:
            blocks = description.split(_FENCE)  # prose and code by turns
            files, lines = _size_of_diffs(blocks[1::2])
            description = " ".join(blocks[::2])

        lead = plain(f"{title}\n{description[: self._lead]}")
        words = split(lead)
        alarms = self._alarms.intersection(words)
        phrases = self._phrases(title, words, alarms) if alarms else NOTHING

        may_name_paths = "/" in lead or "." in lead
        if len(description) > self._lead:
            rest = plain(description[self._lead :])
            words += split(rest)
            alarms = self._alarms.intersection(words)
            may_name_paths = may_name_paths or "/" in rest or "." in rest
        paths: tuple[str, ...] = ()
        if may_name_paths or not self._file_names.isdisjoint(alarms):
            paths = self._paths(words)
        if not _SIZE_UNITS.isdisjoint(alarms):
            stated_files, stated_lines = _stated_sizes(f"{title}\n{description}", words, self._size)
            files, lines = _larger(files, stated_files), _larger(lines, stated_lines)
        return phrases, paths, sum(map(self._is_file, paths)), files, lines

    def _phrases(self, title: str, lead: list[str], alarms: frozenset[str]) -> frozenset[str]:
        found = self._finder.find(lead, alarms)
        if self._title_finder.first_words.isdisjoint(alarms):
            return found
        return found | self._title_finder.find(split(plain(title)))

    def _paths(self, words: list[str]) -> tuple[str, ...]:
        """Paths inside the workspace, each once, in order of appearance."""
        names = self._file_names
        candidates = [word for word in words if "/" in word or "." in word or word in names]
        known = self._path_of_word
        for word in candidates:
            if word not in known:
                known[word] = self._path(word)
        return tuple(dict.fromkeys(path for word in candidates if (path := known[word])))

    def _path(self, word: str) -> str:
        """The path that a word names, without quotes and `./`; empty if it names none."""
        path = word.strip("`'").removeprefix("./")
        if path in self._no_paths:
            return ""
        if "/" not in path:
            return path if self._is_file(path) else ""
        folders = path.split("/")
        absolute, address = not folders[0], "." in folders[0].lstrip(".")  # an address: github.com/owner/name
        return "" if absolute or address or not self._foreign_folders.isdisjoint(folders) else path

    def _is_file(self, path: str) -> bool:
        name = path.rpartition("/")[2]
        return name in self._file_names or ("." in name and name.rpartition(".")[2] in self._extensions)


def _phrases_anywhere(config: ScoringConfig) -> set[str]:
    """The phrases that count in the title and in the lead of the description."""
    phrases = {*config.complexity.highly_complex_words, *config.time_bonus.blocking_production.phrases}
    return phrases.union(*(rule.phrases for rule in config.risks.rules.values()))


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


def _stated_sizes(text: str, words: list[str], rules: SizeRules) -> tuple[float, float]:
    """The largest count of files and of lines that `text` states; NaN where it states none.

    Most files and lines are mentioned without a number ("line 12", "the file"), which their words show soonest.
    """
    files, in_digits = _counted(words, _FILES)
    lines, too = _counted(words, _LINES)
    if in_digits or too:
        for amount, unit in _STATED.findall(text.lower()):
            number = _number(amount)
            if unit in _FILES:
                files = _larger(files, number if number <= rules.most_stated_files else math.nan)
            else:
                lines = _larger(lines, number if number <= rules.most_stated_lines else math.nan)
    return files, lines


def _counted(words: list[str], units: tuple[str, ...]) -> tuple[float, bool]:
    """The largest number in words before one of `units` (NaN: none), and whether digits come before one."""
    largest, in_digits = math.nan, False
    for unit in units:
        at = -1
        for _ in range(words.count(unit)):
            at = words.index(unit, at + 1)
            for word in words[max(0, at - _REACH_OF_A_NUMBER) : at]:
                in_digits = in_digits or word[0].isdecimal()
                if word in _NUMBER_WORDS:
                    largest = _larger(largest, _NUMBER_WORDS[word])
    return largest, in_digits


def _number(amount: str) -> float:
    """The whole number that `amount` writes; NaN for anything else, such as a version."""
    plain = amount.replace(",", "")
    if plain.endswith("k") and plain.count(".") <= 1:
        return float(plain[:-1]) * 1000
    return float(plain) if plain.isdecimal() else math.nan


def _larger(number: float, other: float) -> float:
    """The larger of two numbers, of which either may be missing (NaN)."""
    return other if math.isnan(number) or other > number else number
