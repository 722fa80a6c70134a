"""What the titles and descriptions of tasks say: phrases, paths and sizes. What they mean is for the rules.

HTML comments, code fences and web addresses hold templates, logs, examples and other places, so nothing is
taken from them, except from a diff: that states the change itself.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from cp_core.scoring.config import ScoringConfig
from cp_core.scoring.distinct import Distinct
from cp_core.scoring.paths import PathFinder
from cp_core.scoring.phrases import Mentions, PhraseFinder
from cp_core.scoring.stated import SizeFinder, size_of_diffs
from cp_core.scoring.words import Buffer, Vocabulary, Words, encode

_CHARACTERS_AT_ONCE = 400_000
"""As many as fit a processor's cache with the arrays of their words: twice as fast as all at once."""

_COMMENT = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_FENCE = "```"
_ADDRESS = re.compile(r"://\S*")


@dataclass(frozen=True)
class TextReading:
    """What the text of each row says, in the order of the rows.

    `paths` are the files and folders named, in lower case, and `named_files` how many of them are files;
    `stated_files` and `stated_lines` are the sizes stated, NaN where none is. `known_phrases` are the phrases
    that were looked for, and `found` where.
    """

    paths: Distinct[tuple[str, ...]]
    named_files: NDArray[np.int64]
    stated_files: NDArray[np.float64]
    stated_lines: NDArray[np.float64]
    known_phrases: Sequence[str]
    found: Mentions

    def mentions(self, phrases: Iterable[str], *, opening: bool = False) -> NDArray[np.bool_]:
        """Whether a row's title or the lead of its description holds one of `phrases`.

        With `opening`, whether the title starts with one.
        """
        wanted = frozenset(phrases)
        is_wanted = np.array([phrase in wanted for phrase in self.known_phrases], dtype=np.bool_)
        counts = is_wanted[self.found.phrases]
        if opening:
            counts &= self.found.opening
        mentioned = np.zeros(len(self.named_files), dtype=np.bool_)
        mentioned[self.found.rows[counts]] = True
        return mentioned


def read_texts(titles: Sequence[str], descriptions: Sequence[str], config: ScoringConfig) -> TextReading:
    """Read every title with its description."""
    phrases = PhraseFinder(_phrases_of(config), config.text.negations)
    paths, sizes = PathFinder(config.text), SizeFinder(config.size)
    finders = (phrases, paths, sizes)
    vocabulary = Vocabulary(sorted({word for finder in finders for word in finder.vocabulary_words}))
    for finder in finders:
        finder.bind(vocabulary)

    files, lines = np.full(len(titles), math.nan), np.full(len(titles), math.nan)
    found: list[Mentions] = []
    named: list[tuple[str, ...]] = [()] * len(titles)
    for rows in _portions(titles, descriptions):
        prose = _prose(descriptions[rows], files[rows], lines[rows])
        leads, texts = _encoded(titles[rows], prose, config.text.lead_characters)
        words = Words(Buffer.of(texts), vocabulary)
        found.append(phrases.find(words, words.buffer.starts + leads, rows.start))
        sizes.find(words, files[rows], lines[rows])
        for text, own in paths.find(words).items():
            named[rows.start + text] = own

    distinct = Distinct.of(named)
    return TextReading(
        paths=distinct,
        named_files=distinct.map(paths.count_files, np.int64),
        stated_files=files,
        stated_lines=lines,
        known_phrases=phrases.phrases,
        found=Mentions.joined(found),
    )


def _phrases_of(config: ScoringConfig) -> Iterator[str]:
    """Every phrase that a rule asks for."""
    yield from config.complexity.highly_complex_words
    yield from config.size.feature_words
    yield from config.time_bonus.blocking_production.phrases
    for rule in config.risks.rules.values():
        yield from rule.phrases


def _portions(titles: Sequence[str], descriptions: Sequence[str]) -> Iterator[slice]:
    lengths = [len(title) + len(text) for title, text in zip(titles, descriptions, strict=True)]
    portion = np.cumsum(lengths) // _CHARACTERS_AT_ONCE
    edges = [0, *(np.flatnonzero(np.diff(portion)) + 1).tolist(), len(lengths)]
    return (slice(first, last) for first, last in pairwise(edges))


def _prose(texts: Sequence[str], files: NDArray[np.float64], lines: NDArray[np.float64]) -> list[str]:
    """The texts without comments, code fences and web addresses.

    Where a code fence holds a diff, its size goes into `files` and `lines`.
    """
    prose = list(texts)
    for at, text in enumerate(texts):
        if "<!--" in text:
            text = _COMMENT.sub(" ", text)
        if _FENCE in text:
            blocks = text.split(_FENCE)  # prose and code by turns
            files[at], lines[at] = size_of_diffs(blocks[1::2])
            text = " ".join(blocks[::2])
        prose[at] = _ADDRESS.sub(" ", text) if "://" in text else text
    return prose


def _encoded(titles: Sequence[str], prose: Sequence[str], lead: int) -> tuple[NDArray[np.int64], list[bytes]]:
    """Title and prose of each row in bytes, and how many bytes the title and the lead of the prose are."""
    leads = [encode(f"{title}\n{text[:lead]}") for title, text in zip(titles, prose, strict=True)]
    texts = [
        first if len(text) <= lead else first + encode(text[lead:])
        for first, text in zip(leads, prose, strict=True)
    ]
    return np.fromiter(map(len, leads), dtype=np.int64, count=len(leads)), texts
