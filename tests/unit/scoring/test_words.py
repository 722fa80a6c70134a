"""Words in a buffer against the plain way of finding them: one text, one regular expression, one set."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cp_core.scoring.words import Buffer, Vocabulary, Words, encode, label_key, phrase_key

# Words around the eight and sixteen bytes that a key is made of, with twins in all but the middle or the end.
KNOWN = ["a", "no", "migrate", "migrates", "migrated", "migration", "migrations", "refactoring", "implementation",
         "implementations", "überarbeiten", "日本語", "datenbankmigration", "x" * 40]  # fmt: skip
texts = st.lists(st.sampled_from(KNOWN) | st.text("abMIGRATE_é-./ `'\n", max_size=20), max_size=8).map(
    " ".join
)


def found(texts: list[str]) -> list[list[str]]:
    """The known words of each text, by way of a buffer."""
    vocabulary = Vocabulary(KNOWN)
    buffer = Buffer.of([encode(text) for text in texts])
    words = Words(buffer, vocabulary)
    result: list[list[str]] = [[] for _ in texts]
    for at in words.hits:
        [text] = buffer.text_at(words.starts[[at]])
        result[text].append(vocabulary.words[words.numbers[at]])
    return result


@given(st.lists(texts, max_size=6))
def test_the_known_words_of_every_text_are_found_and_no_others(texts: list[str]) -> None:
    expected = [[word for word in re.findall(r"\w+", text.lower()) if word in KNOWN] for text in texts]

    assert found(texts) == expected


@pytest.mark.parametrize("size", [1, 2, 50, 800])
def test_a_vocabulary_of_any_size_tells_its_words_apart(size: int) -> None:
    words = [f"word{number}{'y' * (number % 23)}" for number in range(size)]
    vocabulary = Vocabulary(words)

    numbers = vocabulary.numbers(Buffer.of([" ".join([*words, "word", "other"]).encode()]))

    assert [vocabulary.words[number] for number in numbers] == [*words, "", ""]


def test_typographic_punctuation_separates_words() -> None:
    assert found(["“migrate”—no…", "migrate、日本語。"]) == [["migrate", "no"], ["migrate", "日本語"]]


def test_text_that_is_no_unicode_is_read_around() -> None:
    assert found(["migrate \ud800 no"]) == [["migrate", "no"]]


@pytest.mark.parametrize(
    ("label", "key"),
    [
        ("Hotfix", "hotfix"),
        ("area/frontend", "frontend"),
        ("Area: Front End", "front-end"),
        ("kind:bug_report", "bug-report"),
        ("good first issue", "good-first-issue"),
        ("non-production", "non-production"),
        ("", ""),
    ],
)
def test_labels_are_compared_without_prefix_case_and_spacing(label: str, key: str) -> None:
    assert label_key(label) == key


def test_phrases_are_compared_in_lower_case_with_single_spaces() -> None:
    assert phrase_key("  Breaking-Change,  API ") == "breaking change api"
