"""What a stress run measured: kept as JSON, shown beside an earlier run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

from cp_resources.errors import UserError


class StressReportError(UserError):
    """A report cannot be read or written."""


@dataclass(frozen=True, slots=True)
class StressReport:
    """The figures of one run.

    Attributes:
        made_at: UTC, ISO 8601. version: of this program.
        machine, load: what it ran on and what was asked, see `stress.Load`; `config_hash`: under which configuration.
        seconds: how long the planners took; the batch before them `batch_seconds`, at most `batch_gap` from its bound
            (None: the strategy solves nothing).
        decisions: made by planners; `decisions_per_second`; `p50_ms`, `p95_ms`, `p99_ms`: time of one.
        cache_hit_rate: share of look-ups that the planner's cache answered; None without a cache.
        considered, pruned: pairs of task and plan, and those ruled out, by reason.
        outcomes, reasons: decisions by outcome, and those that assigned nothing by reason.
        timeouts: decisions that ran out of time; `repeats`: offers of tasks that were decided already.
        races_lost: reservations for which another planner was faster; each was planned anew.
        assigned_twice: tasks with two assignments: must be 0.
        ledger_differences: what the ledger's verification found: must be empty.
    """

    made_at: str
    version: str
    machine: dict[str, Any]
    load: dict[str, Any]
    config_hash: str
    seconds: float
    batch_seconds: float
    batch_gap: float | None
    decisions: int
    decisions_per_second: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    cache_hit_rate: float | None
    considered: int
    pruned: dict[str, int]
    outcomes: dict[str, int]
    reasons: dict[str, int]
    timeouts: int
    repeats: int
    races_lost: int
    assigned_twice: int
    ledger_differences: list[str]

    @property
    def is_sound(self) -> bool:
        """Whether the ledger balances and no task was assigned twice."""
        return not self.ledger_differences and not self.assigned_twice


class Line(NamedTuple):
    """One figure, before and after; `ratio` is after over before where that says something."""

    figure: str
    before: str
    after: str
    ratio: str


def read_report(path: Path) -> StressReport:
    """An earlier report.

    Raises:
        StressReportError: there is none at `path`, or it is something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise StressReportError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise StressReportError(
            f"{path} is not JSON: name a report that `control-panel stress` wrote"
        ) from error
    names = {field.name for field in fields(StressReport)}
    if not isinstance(content, dict) or set(content) != names:
        raise StressReportError(
            f"{path} is no report of this version's `control-panel stress`: run it again to get a new baseline"
        )
    return StressReport(**content)


def write_report(path: Path, report: StressReport, baseline: StressReport | None) -> Path:
    """Write `report` as JSON to `path` and, beside the baseline, as Markdown next to it; return the latter's path.

    Raises:
        StressReportError: the folder cannot be written to.
    """
    page = path.with_suffix(".md")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(report), indent=2) + "\n", encoding="utf-8")
        page.write_text(_markdown(report, baseline), encoding="utf-8")
    except OSError as error:
        raise StressReportError(f"the report cannot be written to {path}: {error.strerror}") from error
    return page


def lines(report: StressReport, baseline: StressReport | None) -> list[Line]:
    """The figures to show, most telling first."""
    figures: dict[str, tuple[Callable[[StressReport], float | None], str]] = {
        "decisions": (lambda run: run.decisions, "{:,}"),
        "decisions per second": (lambda run: run.decisions_per_second, "{:,.1f}"),
        "p50, ms": (lambda run: run.p50_ms, "{:,.2f}"),
        "p95, ms": (lambda run: run.p95_ms, "{:,.2f}"),
        "p99, ms": (lambda run: run.p99_ms, "{:,.2f}"),
        "cache hit rate": (lambda run: run.cache_hit_rate, "{:.1%}"),
        "gap of the batch": (lambda run: run.batch_gap, "{:.3%}"),
        "batch, s": (lambda run: run.batch_seconds, "{:,.2f}"),
        "pairs considered": (lambda run: run.considered, "{:,}"),
        "timeouts": (lambda run: run.timeouts, "{:,}"),
        "offers of decided tasks": (lambda run: run.repeats, "{:,}"),
        "races lost": (lambda run: run.races_lost, "{:,}"),
        "assigned twice": (lambda run: run.assigned_twice, "{:,}"),
        "ledger differences": (lambda run: len(run.ledger_differences), "{:,}"),
    }
    shown = [
        _line(name, get(baseline) if baseline else None, get(report), form)
        for name, (get, form) in figures.items()
    ]
    for title, part in (("outcome", "outcomes"), ("reason", "reasons"), ("pruned", "pruned")):
        after, before = getattr(report, part), getattr(baseline, part) if baseline else {}
        shown += [
            _line(f"{title}: {name}", before.get(name, 0) if baseline else None, after.get(name, 0), "{:,}")
            for name in dict.fromkeys([*after, *before])
        ]
    return shown


def differences(report: StressReport, baseline: StressReport) -> list[str]:
    """What makes two runs hard to compare."""
    mine, other = asdict(report), asdict(baseline)
    unlike = [
        f"{part}.{name} was {other[part].get(name)} and is {value}"
        for part in ("load", "machine")
        for name, value in mine[part].items()
        if other[part].get(name) != value
    ]
    if report.config_hash != baseline.config_hash:
        unlike.append("the configuration has changed")
    return unlike


def _line(figure: str, before: float | None, after: float | None, form: str) -> Line:
    was, is_now = ("" if value is None else form.format(value) for value in (before, after))
    return Line(figure, was, is_now, f"{after / before:.2f}" if before and after is not None else "")


def _markdown(report: StressReport, baseline: StressReport | None) -> str:
    asked = ", ".join(f"{name} {value}" for name, value in report.load.items())
    ran = ", ".join(f"{name} {value}" for name, value in report.machine.items())
    verdict = "The ledger verifies, and no task was assigned twice." if report.is_sound else "**Not sound.**"
    page = [f"# Stress run of {report.made_at}", "", f"Load: {asked}. Machine: {ran}. {verdict}", ""]
    page += [f"- {difference}" for difference in report.ledger_differences]
    if baseline is None:
        page += ["| figure | value |", "|---|---:|"]
        page += [f"| {line.figure} | {line.after} |" for line in lines(report, None)]
    else:
        page += [f"Before: {baseline.made_at}."]
        page += [f"- {unlike}" for unlike in differences(report, baseline)]
        page += ["", "| figure | before | after | ratio |", "|---|---:|---:|---:|"]
        page += [
            f"| {line.figure} | {line.before} | {line.after} | {line.ratio} |"
            for line in lines(report, baseline)
        ]
    return "\n".join(page) + "\n"
