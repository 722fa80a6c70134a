"""How commands show tables: columns without rules, so that names stay whole in 80 characters and lines can be cut."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table


def plain_table(
    *columns: str,
    left: Collection[str] = (),
    fold: Collection[str] = (),
    title: str | None = None,
    gap: int = 2,
) -> Table:
    """A table of texts in its first column and figures in the others.

    Args:
        left: further columns of texts.
        fold: columns of texts that give way where the terminal is narrow: they go on in the next line. Others end in an
            ellipsis when even that is not enough, so that nobody takes a part of a number for the whole.
        gap: spaces between columns.
    """
    from rich.table import Table

    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        header_style="dim",
        box=None,
        padding=(0, gap, 0, 0),
        pad_edge=False,
        min_width=len(title) if title else None,
    )
    for position, column in enumerate(columns):
        is_text = position == 0 or column in left or column in fold
        folds = column in fold
        table.add_column(
            column,
            justify="left" if is_text else "right",
            no_wrap=not folds,
            overflow="fold" if folds else "ellipsis",
        )
    return table
