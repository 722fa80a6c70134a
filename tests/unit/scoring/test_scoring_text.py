"""What is read from texts, and what is left alone: phrases, paths and stated sizes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from score_rows import CONFIG, reading

from cp_core.scoring.config import ScoringConfig


def mentions(phrase: str, description: str, title: str = "Fix it") -> bool:
    return bool(reading(description, title=title).mentions([phrase])[0])


@pytest.mark.parametrize(
    ("phrase", "text"),
    [
        ("refactor", "Refactor the parser."),
        ("refactor", "(refactor)"),
        ("refactor", "We want to “refactor”, soon"),
        ("migration", "db-migration"),
        ("breaking change", "This is a breaking change"),
        ("breaking change", "a BREAKING\nCHANGE!"),
        ("breaking change", "breaking-change"),
        ("production", "Not before Monday, but then production"),
    ],
)
def test_a_phrase_is_found_as_whole_words_in_any_case(phrase: str, text: str) -> None:
    assert mentions(phrase, text)


@pytest.mark.parametrize(
    ("phrase", "text"),
    [
        ("refactor", "refactorable prerefactor"),
        ("migrate", "run `migrate` first"),
        ("migrate", "call migrate_users"),
        ("migrate", "see db/migrate and migrate/db"),
        ("migrate", "app.migrate() or migrate.py"),
        ("breaking change", "breaking the change"),
        ("breaking change", "change breaking"),
        ("breaking", "no breaking changes"),
        ("breaking", "a non-breaking change"),
        ("breaking change", "It must not introduce any breaking change"),
        ("refactor", "Don't refactor"),
        ("refactor", "Don’t refactor"),
        ("refactor", "```\nrefactor\n```"),
        ("refactor", "an open fence ``` refactor"),
        ("refactor", "<!-- refactor -->"),
        ("production", "https://example.com/a?env=production"),
    ],
)
def test_a_phrase_is_not_found_in_names_negations_code_comments_or_addresses(phrase: str, text: str) -> None:
    assert not mentions(phrase, text)


def test_a_negation_reaches_three_words_and_not_into_another_task() -> None:
    assert mentions("refactor", "There is no time left to refactor")
    two = reading("Do not", "Refactor it", title="")
    assert two.mentions(["refactor"]).tolist() == [False, True]


def test_a_phrase_does_not_run_on_into_another_task() -> None:
    two = reading("It is breaking", "change", title="change")

    assert two.mentions(["breaking change"]).tolist() == [False, False]


def test_phrases_count_in_the_title_and_the_lead_of_the_description() -> None:
    lead = CONFIG.text.lead_characters

    assert mentions("refactor", "x", title="Refactor " + "y" * 500)
    assert mentions("refactor", " " * (lead - 8) + "refactor")
    assert not mentions("refactor", "x " * (lead // 2) + "refactor")
    assert mentions("refactor", "```\n" + "code\n" * 200 + "```\nPlease refactor")


def test_what_opens_a_title_is_told_apart() -> None:
    def opens(title: str) -> bool:
        return bool(reading("implement", title=title).mentions(["implement"], opening=True)[0])

    assert opens("Implement a thing")
    assert opens("[Implement] a thing")
    assert not opens("Please implement a thing")
    assert not opens("A thing")


@pytest.mark.parametrize(
    ("text", "paths"),
    [
        ("See src/app/Login.py, please", ("src/app/login.py",)),
        ("in `src/app/login.py:12` and (docs/a.md).", ("src/app/login.py", "docs/a.md")),
        ("[guide](docs/guide.md) and ./setup.cfg", ("docs/guide.md", "setup.cfg")),
        ("settings.py, values.prod.yaml and Dockerfile", ("settings.py", "values.prod.yaml", "dockerfile")),
        ("src/api/ twice: src/api", ("src/api",)),
        (".github/workflows/ci.yml", (".github/workflows/ci.yml",)),
        ("tests/テスト/x.py", ("tests/テスト/x.py",)),
        ("`a.py`/`b.py`", ("a.py", "b.py")),
    ],
)
def test_paths_are_read_in_lower_case_each_once(text: str, paths: tuple[str, ...]) -> None:
    [own] = reading(text).paths.values

    assert own == paths


@pytest.mark.parametrize(
    "text",
    [
        "and/or, text/html, Node.js, e.g. this, v1.2.3, self.value, 3.5",
        "/usr/lib/python3/os.py ~/.bashrc ../other/file.py",
        "https://github.com/acme/web/blob/main/README.md",
        "github.com/acme/web/main.go",
        "lib/site-packages/django/db.py node_modules/x/index.js",
        "```\nsrc/app.py\n```",
        "The end.Of a sentence. go",
        "a / b",
    ],
)
def test_what_is_no_path_in_the_workspace_is_left_alone(text: str) -> None:
    assert reading(text).paths.values == [()]


def test_files_of_one_name_count_once_and_folders_not_at_all() -> None:
    assert reading("a/x.py b/x.py x.py y.py src/api/").named_files.tolist() == [2]


@pytest.mark.parametrize(
    ("text", "files", "lines"),
    [
        ("15+ files", 15, None),
        ("about 1,500 lines in 3 files", 3, 1500),
        ("one-file change, 2k lines", 1, 2000),
        ("1.5k LOC", None, 1500),
        ("two new files and a dozen lines", 2, 12),
        ("10-12 files", 12, None),
        ("3 files, later 5 files", 5, None),
        ("Files: many. See line 12, lines 10 to 20", None, None),
        ("version 3.15 files", None, None),
        ("importing 10,000 files takes 90,000 lines of log", None, None),
        ("15\nlines", None, 15),
        ("12 of the lines", None, None),
        ("```\n30 files\n```", None, None),
    ],
)
def test_stated_sizes_are_read(text: str, files: int | None, lines: int | None) -> None:
    result = reading(text)

    assert result.stated_files.tolist() == pytest.approx([math.nan if files is None else files], nan_ok=True)
    assert result.stated_lines.tolist() == pytest.approx([math.nan if lines is None else lines], nan_ok=True)


def test_a_number_of_one_task_does_not_count_the_files_of_the_next() -> None:
    two = reading("There are 15", "", title="files")

    assert np.isnan(two.stated_files).all()


def test_a_diff_states_its_files_and_changed_lines() -> None:
    diff = "--- a/x.py\n+++ b/x.py\n@@ -1 +1,2 @@\n-old\n+new\n+more\n same\n--- a/y.py\n+++ b/y.py\n+z\n"
    result = reading(f"Something like\n```diff\n{diff}```\nwould do. 1 line each.", "```python\n+1\n```")

    assert result.stated_files.tolist() == pytest.approx([2, math.nan], nan_ok=True)
    assert result.stated_lines.tolist() == pytest.approx([4, math.nan], nan_ok=True)


# What stands in a text, and the words that a reader sees there: each with whether it can be a mention.
_SEEN = {
    "refactor": [("refactor", True)],
    "Refactor.": [("refactor", True)],
    "x/refactor": [("x", False), ("refactor", False)],
    "no": [("no", False)],
    "the": [("the", False)],
    "\n": [],
    "é": [("é", False)],
}


@settings(max_examples=100)
@given(st.lists(st.sampled_from(sorted(_SEEN)), max_size=12))
def test_a_word_is_found_where_reading_word_by_word_finds_it(pieces: list[str]) -> None:
    seen = [word for piece in pieces for word in _SEEN[piece]]
    expected = any(
        word == "refactor" and counts and "no" not in [before for before, _ in seen[max(0, at - 3) : at]]
        for at, (word, counts) in enumerate(seen)
    )

    assert mentions("refactor", " ".join(pieces), title="") == expected


def test_a_long_description_is_read_to_its_end_in_good_time() -> None:
    filler = "See the log of src/app/file.py, line 12. " * 20_000  # 0.8 MB
    result = reading(filler + "src/last.py and 15 files")

    assert result.paths.values == [("src/app/file.py", "src/last.py")]
    assert result.stated_files.tolist() == [15]


def test_words_of_any_language_can_be_configured() -> None:
    rules = CONFIG.complexity.model_copy(update={"highly_complex_words": ("überarbeiten", "移行")})
    config = ScoringConfig.model_validate(CONFIG.model_copy(update={"complexity": rules}).model_dump())

    result = reading("Bitte Überarbeiten!", "移行 する", "umbauen", config=config)

    assert result.mentions(rules.highly_complex_words).tolist() == [True, True, False]
