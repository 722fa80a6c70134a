"""Risk: what a mistake would touch, by labels, else paths, else words; the highest that the source names."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache

import numpy as np
from numpy.typing import NDArray

from cp_core.scoring.config import Risk, RiskRules
from cp_core.scoring.distinct import Distinct
from cp_core.scoring.text import TextReading

RISKS = tuple(Risk)
_BETWEEN_WORDS = re.compile(r"[\W_]+")


def risks_of(
    labels: Distinct[frozenset[str]],
    text: TextReading,
    rules: RiskRules,
) -> NDArray[np.intp]:
    """The index in `RISKS` of each row's risk, from the first source that names one."""
    by_label = {label: RISKS.index(risk) for risk in RISKS for label in rules.rules[risk].labels}
    by_folder = {folder: RISKS.index(risk) for risk in RISKS for folder in rules.rules[risk].folders}
    by_file_word = {word: RISKS.index(risk) for risk in RISKS for word in rules.rules[risk].file_words}

    def of_labels(own: frozenset[str]) -> int:
        return min((by_label[label] for label in own if label in by_label), default=_NONE)

    @cache
    def of_path(path: str) -> int:
        return min(_of_path(path, by_folder, by_file_word, rules.meaningless_folders), default=_NONE)

    by_phrase = [text.mentions(rules.rules[risk].phrases) for risk in RISKS]
    named = [
        labels.map(of_labels, np.intp),
        text.paths.map(lambda own: min(map(of_path, own), default=_NONE), np.intp),
        np.select(by_phrase, list(range(len(RISKS))), _NONE),
    ]
    default = RISKS.index(rules.default)
    return np.select([risk != _NONE for risk in named], named, default).astype(np.intp)


def risk_factor(risk: NDArray[np.intp], rules: RiskRules) -> NDArray[np.float64]:
    """What the risk multiplies the score by."""
    return np.array([rules.rules[each].factor for each in RISKS])[risk]


_NONE = len(RISKS)


def _of_path(
    path: str, by_folder: Mapping[str, int], by_file_word: Mapping[str, int], meaningless: tuple[str, ...]
) -> Iterator[int]:
    """The risks that one path names: by whole folders or branches, and by the words of its file's name."""
    inner = f"/{path}/"
    for folder in meaningless:
        inner = inner.replace(f"/{folder}/", "/")
    *folders, name = inner.strip("/").split("/")
    if "." not in name:
        folders.append(name)
    else:
        yield from (by_file_word[word] for word in _BETWEEN_WORDS.split(name) if word in by_file_word)
    yield from (by_folder[folder] for folder in folders if folder in by_folder)
