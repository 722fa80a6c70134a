"""Tables of the command line lose no name and no digit silently."""

from __future__ import annotations

import io

from rich.console import Console

from cp_cli.tables import plain_table


def shown(width: int) -> str:
    table = plain_table("model", "billed", "judged by", fold=["judged by"])
    table.add_row("gemini-3.5-flash-lite", "$249.99", "domain and complexity")
    console = Console(file=io.StringIO(), width=width)
    console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_texts_that_may_fold_give_way_before_names_and_figures() -> None:
    narrow = shown(42)
    assert "gemini-3.5-flash-lite" in narrow
    assert "$249.99" in narrow
    assert "domain and complexity" not in narrow
    assert {"domain", "complexity"} <= set(narrow.split())


def test_what_does_not_fit_at_all_says_so() -> None:
    assert "…" in shown(20)


def test_figures_stand_to_the_right_and_texts_to_the_left() -> None:
    heading, row = shown(80).splitlines()
    assert heading.index("billed") + len("billed") == row.index("$249.99") + len("$249.99")
    assert heading.index("judged by") == row.index("domain")
