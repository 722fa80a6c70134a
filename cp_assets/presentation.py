"""Metadata that a person reads in the Dagster UI: small tables and small pictures, as Markdown."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, datetime
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


def histogram(by_bin: Mapping[float, int], *, title: str, axis: str, width: float) -> MarkdownMetadataValue:
    """A picture of how many lie in each bin, named by its lower edge; "none" when nothing lies in any."""
    if not by_bin:
        return MetadataValue.md("none")
    figure, axes = _figure(title)
    axes.bar(list(by_bin), list(by_bin.values()), width=0.9 * width, align="edge", color=_COLOUR)
    axes.set_xlabel(axis)
    axes.set_ylabel("tasks")
    return _picture(figure, title)


def bars(by_name: Mapping[str, float], *, title: str, axis: str) -> MarkdownMetadataValue:
    """A picture of one bar a name, in the order given from the top; "none" when there are no names."""
    if not by_name:
        return MetadataValue.md("none")
    figure, axes = _figure(title, rows=len(by_name))
    axes.barh(list(by_name), list(by_name.values()), color=_COLOUR)
    axes.invert_yaxis()
    axes.set_xlabel(axis)
    return _picture(figure, title)


def _line(cells: Iterable[object]) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _cell(value: object) -> str:
    if value is None or value != value:  # NaN is what pandas has for missing
        return ""
    if isinstance(value, float | Decimal):
        return f"{value:,.4g}" if -1000 < value < 1000 else f"{value:,.0f}"
    if isinstance(value, bool | date | datetime) or not isinstance(value, int):
        return str(value).replace("|", "\\|").replace("\n", " ")
    return f"{value:,}"


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
