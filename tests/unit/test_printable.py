"""What other people wrote, shown on a terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cp_core.printable import printable


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("Fix the login", "Fix the login"),
        ("Größe 大小 🙂", "Größe 大小 🙂"),
        ("\x1b[2J", "\\x1b[2J"),
        ("\x9b31m", "\\x9b31m"),
        ("a\rb\nc", "a\\rb\\nc"),
        ("abc\u202edef", "abc\\u202edef"),
    ],
)
def test_what_steers_a_terminal_is_spelt_out_and_all_else_stays(written: str, shown: str) -> None:
    assert printable(written) == shown


@given(st.text())
def test_whatever_is_written_can_be_printed(text: str) -> None:
    assert printable(text).isprintable()
