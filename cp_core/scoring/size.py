"""How many files and lines a task touches: as given with it, as its text states, or estimated from its text.

A number given with the task counts as it is. Where one is missing, it is the one that the text states ("15+
files", "about 300 lines", a diff in a code fence). Where that is missing too, a known number of lines gives
the files and a known number of files the lines, never so many that they outweigh what is known. A task with
neither has as many files as its text names, else as many as its words suggest.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray

from cp_core.scoring.config import SizeRules
from cp_core.scoring.text import TextReading


class SizeSource(StrEnum):
    """Where the best known of files and lines came from."""

    GIVEN = "given"
    STATED = "stated"
    ESTIMATED = "estimated"


LARGEST = 2**31 - 1
"""What a column of files or lines can hold."""


@dataclass(frozen=True)
class Sizes:
    """Files and lines of each row, and the index in `SizeSource` of where they came from."""

    files: NDArray[np.int64]
    lines: NDArray[np.int64]
    source: NDArray[np.intp]


def sizes_of(
    given_files: NDArray[np.float64],
    given_lines: NDArray[np.float64],
    text: TextReading,
    large: NDArray[np.bool_],
    rules: SizeRules,
) -> Sizes:
    """Files and lines of each row.

    Args:
        given_files: files given with the task, NaN where none are.
        given_lines: likewise, lines.
        text: what the text says.
        large: whether words of the text or labels call the task highly complex.
        rules: section `size` of the configuration.
    """
    files = np.where(np.isnan(given_files), text.stated_files, given_files)
    lines = np.where(np.isnan(given_lines), text.stated_lines, given_lines)
    no_files, no_lines = np.isnan(files), np.isnan(lines)

    files = np.where(no_files, np.ceil(lines / rules.lines_filling_a_file), files)
    files = np.where(no_files & no_lines, _files_by_text(text, large, rules), files)
    lines = np.where(no_lines, files * rules.lines_per_file, lines)

    unknown = no_files & no_lines
    ungiven = np.isnan(given_files) & np.isnan(given_lines)
    return Sizes(
        files=np.minimum(files, LARGEST).astype(np.int64),
        lines=np.minimum(lines, LARGEST).astype(np.int64),
        source=np.select([unknown, ungiven], [2, 1], default=0).astype(np.intp),
    )


def _files_by_text(text: TextReading, large: NDArray[np.bool_], rules: SizeRules) -> NDArray[np.int64]:
    """Files of a task that neither gives nor states a number: those it names, else what its words suggest."""
    feature = text.mentions(rules.feature_words, opening=True)
    by_words = np.select([large, feature], [rules.large_files, rules.feature_files], rules.default_files)
    return np.where(text.named_files > 0, text.named_files, by_words)
