"""Metadata that a person reads in the Dagster UI: small tables and small pictures, as Markdown."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from io import BytesIO
from typing import TYPE_CHECKING, Any

from dagster import MarkdownMetadataValue, MetadataValue

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_INCHES = (5.6, 2.4)
_DOTS_PER_INCH = 72
_COLOUR = "#4f6bed"
_MARKUP = re.compile(r"[\\|\[<`]")
"""What in a text that somebody else wrote could end a cell, fetch a picture, link elsewhere or be HTML."""


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> MarkdownMetadataValue:
    """A Markdown table; "none" when there are no rows."""
    lines = [_line(_cell(value) for value in row) for row in rows]
    if not lines:
        return MetadataValue.md("none")
    return MetadataValue.md("\n".join([_line(columns), _line("---" for _ in columns), *lines]))


def counts(column: str, by_value: Mapping[Any, int]) -> MarkdownMetadataValue:
    """A table of how often each value occurs, in the order given, with its share."""
    total = sum(by_value.values())
    rows = ((value, count, f"{count / total:.1%}") for value, count in by_value.items() if count)
    return table([column, "count", "share"], rows)


def histogram(
    by_bin: Mapping[float, int], *, title: str, axis: str, width: float, upto: float
) -> MarkdownMetadataValue:
    """A picture of how many tasks lie in each bin, named by its lower edge, on an axis from 0 to `upto`.

    "none" when nothing lies in any.
    """
    if not by_bin:
        return MetadataValue.md("none")
    figure, axes = _figure(title)
    axes.bar(list(by_bin), list(by_bin.values()), width=0.9 * width, align="edge", color=_COLOUR)
    axes.set_xlim(0, upto)
    axes.set_xlabel(axis)
    axes.set_ylabel("tasks")
    return _picture(figure, title)


def bars(
    by_name: Mapping[str, float], *, title: str, axis: str, upto: float | None = None
) -> MarkdownMetadataValue:
    """A picture of one bar a name, in the order given from the top, on an axis from 0 to `upto` if given.

    "none" when there are no names.
    """
    if not by_name:
        return MetadataValue.md("none")
    figure, axes = _figure(title, rows=len(by_name))
    axes.barh(list(by_name), list(by_name.values()), color=_COLOUR)
    axes.invert_yaxis()
    axes.set_xlim(0, upto)
    axes.set_xlabel(axis)
    return _picture(figure, title)


def bands(
    days: Sequence[date],
    by_name: Mapping[str, Sequence[tuple[float, float | None, float | None]]],
    *,
    title: str,
    axis: str,
) -> MarkdownMetadataValue:
    """A picture of numbers over days: a line each, and around it the band from its low to its high end.

    "none" when there is no day.

    Args:
        by_name: the number, and its low and high end or None, on each of the last days; shorter where one began late.
    """
    if not days or not any(by_name.values()):
        return MetadataValue.md("none")
    figure, axes = _figure(title)
    axes.xaxis_date()
    for name, numbers in by_name.items():
        shown = list(days)[len(days) - len(numbers) :]
        [drawn] = axes.plot(_since_1970(shown), [middle for middle, _, _ in numbers], label=name, marker=".")
        known = [
            (day, low, high)
            for day, (_, low, high) in zip(shown, numbers, strict=True)
            if low is not None and high is not None
        ]
        if known:
            at, low, high = (list(column) for column in zip(*known, strict=True))
            axes.fill_between(_since_1970(at), low, high, color=drawn.get_color(), alpha=0.2)
    axes.axhline(0, color="grey", linewidth=0.8)
    axes.set_ylabel(axis)
    axes.legend(fontsize=8)
    figure.autofmt_xdate()
    return _picture(figure, title)


def lines(by_series: Mapping[str, Mapping[date, float]], *, title: str, axis: str) -> MarkdownMetadataValue:
    """A picture of one line a series over days. "none" when there are no series."""
    if not by_series:
        return MetadataValue.md("none")
    figure, axes = _figure(title)
    axes.xaxis_date()
    for name, by_day in by_series.items():
        axes.plot(_since_1970(by_day), list(by_day.values()), marker=".", label=name)
    axes.set_ylim(bottom=0)
    axes.set_ylabel(axis)
    axes.legend(fontsize=7, frameon=False)
    figure.autofmt_xdate()
    return _picture(figure, title)


def _since_1970(days: Iterable[date]) -> list[int]:
    """Days since the beginning of 1970, as matplotlib counts them."""
    return [(day - date(1970, 1, 1)).days for day in days]


def _line(cells: Iterable[object]) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _cell(value: object) -> str:
    if value is None or value != value:  # NaN is what pandas has for missing
        return ""
    if isinstance(value, float | Decimal):
        number = float(value)
        return f"{number:,.4g}" if abs(number) < 1000 else f"{number:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    if isinstance(value, datetime):
        return f"{value.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    return _MARKUP.sub(r"\\\g<0>", " ".join(str(value).splitlines()))


def _figure(title: str, rows: int = 0) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure  # only when a picture is drawn: it takes half a second to load

    width, height = _INCHES
    figure = Figure(figsize=(width, max(height, 0.3 * rows + 0.9)), dpi=_DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots()
    axes.set_title(title, fontsize=10, loc="left")
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _picture(figure: Figure, title: str) -> MarkdownMetadataValue:
    png = BytesIO()
    figure.savefig(png, format="png")
    return MetadataValue.md(f"![{title}](data:image/png;base64,{base64.b64encode(png.getvalue()).decode()})")
