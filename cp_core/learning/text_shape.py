"""The shape of a text: how much of what kind of characters and marks it has. It says nothing of what is meant."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

COUNTED: dict[str, re.Pattern[str]] = {
    "words": re.compile(r"[A-Za-z]+"),
    "long words": re.compile(r"[A-Za-z]{8,}"),
    "numbers": re.compile(r"\d+"),
    "digits": re.compile(r"\d"),
    "marks": re.compile(r"[^\w\s]"),
    "runs of marks": re.compile(r"[^\w\s]+"),
    "lines": re.compile(r"\n"),
    "capitals": re.compile(r"[A-Z]"),
    "other scripts": re.compile(r"[^\x00-\x7f]"),
    "letters beside digits": re.compile(r"\b(?:[a-z]+\d|\d+[a-z])\w*"),
    "commands": re.compile(r"\\[a-z]+"),
    "options": re.compile(r"(?m)^\s*\(?(?:[A-J]|\d{1,2})[.)]"),
    "code": re.compile(r"```|\bdef |\breturn\b|\bclass |[{};]$", re.MULTILINE),
    "questions": re.compile(r"\?"),
    "wide spaces": re.compile(r" {2,}"),
}
"""What is counted, beside the characters."""


def count_shape(texts: Sequence[str]) -> NDArray[np.float64]:
    """How often each of `COUNTED` occurs in each of n texts, and last how many characters it has: (n, k)."""
    rows = [[*(len(each.findall(text)) for each in COUNTED.values()), len(text)] for text in texts]
    return np.array(rows, dtype=np.float64).reshape(len(texts), len(COUNTED) + 1)
