"""A backtest's report as one self-contained page: tables, and plots as pictures within it."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING

from cp_core.learning.backtest.report import AmountError, BacktestReport, Curve, Point

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #1b2733 }
h1 { font-size: 1.7rem } h2 { font-size: 1.2rem; margin-top: 2.2rem }
table { border-collapse: collapse; margin: .6rem 0 } td, th { padding: .25rem .9rem .25rem 0; text-align: right }
td:first-child, th:first-child { text-align: left } th { font-weight: 600; border-bottom: 1px solid #9aa7b4 }
tr.ours td { font-weight: 600 } img { max-width: 100%; height: auto } p.note { color: #52606d }
td { vertical-align: top } td.plans { text-align: left; padding-left: 1.5rem }
"""
_COLOURS = {
    "ours with escalation": "#0b6e4f",
    "ours": "#2274a5",
    "best fixed sequence": "#d1495b",
    "zero router": "#8d99ae",
}


def page(report: BacktestReport) -> str:
    """The page, HTML."""
    parts = [
        f"<p>{_summary(report)}</p>",
        *(f'<p class="note">{escape(note)}</p>' for note in report.notes),
        "<h2>Cost and quality</h2>",
        _picture(report, _curves, "Accuracy over cost per task, of every way to decide"),
        _curve_table(report),
        "<h2>Single ways to decide</h2>",
        _point_table(report),
        "<h2>What ours chose</h2>",
        _settings_table(report.ours_with_escalation),
        "<h2>How well success was predicted</h2>",
        _success_table(report),
        _picture(report, _calibration, "What came of predictions, by their size"),
        "<h2>How well cost and tokens were predicted</h2>",
        _amount_table(report),
    ]
    if report.pair:
        parts += [
            "<h2>Two models, by RouteLLM's measures</h2>",
            _table(
                ("strong", "weak", "APGR", "CPT(50)", "CPT(80)"),
                [
                    (
                        report.pair.strong,
                        report.pair.weak,
                        f"{report.pair.apgr:.3f}",
                        f"{report.pair.cpt_50:.1f} %",
                        f"{report.pair.cpt_80:.1f} %",
                    )
                ],
            ),
        ]
    body = "\n".join(parts)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Backtest</title>'
        f"<style>{_STYLE}</style></head><body><h1>Backtest</h1>{body}</body></html>\n"
    )


def _summary(report: BacktestReport) -> str:
    best = next(point for point in report.singles if point.name == report.best_single)
    ratio = report.ours_with_escalation.cost_ratio_at_best_single
    reached = (
        f"Ours with escalation reaches that at {ratio:.0%} of its cost."
        if ratio is not None
        else "Ours with escalation does not reach that."
    )
    return escape(
        f"{report.tested:,} tasks decided with {len(report.models)} models, each by what was learned from other tasks "
        f"({report.split}); {report.share_observed:.0%} of pairs are known. The check between stages accepts "
        f"{report.sensitivity:.0%} of good work and rejects {report.specificity:.0%} of bad. The best single model is "
        f"{best.name}: {best.accuracy:.1%} at {_usd(best.cost_usd)} a task. {reached}"
    )


def _curve_table(report: BacktestReport) -> str:
    curves = (report.ours_with_escalation, report.ours, report.best_fixed_sequence, report.zero_router)
    rows = [
        (
            curve.name,
            f"{curve.aiq_shared:.4f}",
            f"{curve.aiq:.4f}",
            "never" if curve.cost_at_best_single is None else _usd(curve.cost_at_best_single),
            "" if curve.cost_ratio_at_best_single is None else f"{curve.cost_ratio_at_best_single:.2f}",
        )
        for curve in curves
    ]
    head = ("", "AIQ, shared range", "AIQ, own range", "cost at the best single model's accuracy", "ratio")
    return _table(head, rows, ours=("ours", "ours with escalation"))


def _point_table(report: BacktestReport) -> str:
    points = [
        *sorted(report.singles, key=lambda point: point.cost_usd),
        report.random,
        report.tiered,
        report.accurate_sequence,
        report.frugal_sequence,
        report.oracle,
    ]
    return _table(
        ("", "accuracy", "cost a task", "plans"),
        [(point.name, f"{point.accuracy:.1%}", _usd(point.cost_usd), _plans(point)) for point in points],
    )


def _settings_table(curve: Curve) -> str:
    return _table(
        ("budget a task", "cost a task", "accuracy", "plans"),
        [
            (_usd(point.budget_usd or 0.0), _usd(point.cost_usd), f"{point.accuracy:.1%}", _plans(point))
            for point in curve.points
        ],
    )


def _success_table(report: BacktestReport) -> str:
    found = report.success
    return _table(
        ("pairs", "AUC", "Brier", "Brier of training rates", "calibration error"),
        [
            (
                f"{found.rows:,}",
                "-" if found.auc is None else f"{found.auc:.3f}",
                f"{found.brier:.4f}",
                f"{found.brier_of_rates:.4f}",
                f"{found.calibration_error:.3f}",
            )
        ],
    )


def _amount_table(report: BacktestReport) -> str:
    def row(name: str, found: AmountError) -> tuple[str, ...]:
        return (
            name,
            f"{found.rows:,}",
            f"{found.median_error:.1%}",
            f"{found.total_ratio:.3f}",
            f"{found.share_within_30:.1%}",
            f"{found.coverage:.1%}",
        )

    named = {"cost": report.cost, "input tokens": report.input_tokens, "output tokens": report.output_tokens}
    return _table(
        ("", "pairs", "median error", "predicted / actual total", "within 30 %", "80 % intervals cover"),
        [row(name, found) for name, found in named.items() if found is not None],
    )


def _plans(point: Point) -> str:
    return ", ".join(f"{plan} {share:.0%}" for plan, share in list(point.plans.items())[:3] if share >= 0.005)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], ours: Sequence[str] = ()) -> str:
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = [
        f"<tr{' class=ours' if row[0] in ours else ''}>"
        + "".join(
            f"<td{' class=plans' if name == 'plans' else ''}>{escape(cell)}</td>"
            for name, cell in zip(head, row, strict=True)
        )
        + "</tr>"
        for row in rows
    ]
    return f"<table><tr>{cells}</tr>{''.join(lines)}</table>"


def _picture(report: BacktestReport, draw: object, alt: str) -> str:
    from matplotlib.figure import Figure  # takes half a second to load

    figure = Figure(figsize=(8.6, 4.8), layout="constrained")
    draw(figure.add_subplot(), report)  # type: ignore[operator]
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130)
    picture = base64.b64encode(file.getvalue()).decode()
    return f'<img alt="{escape(alt)}" src="data:image/png;base64,{picture}">'


def _curves(axes: Axes, report: BacktestReport) -> None:
    from cp_core.learning.routing import non_decreasing_hull

    for curve in (report.zero_router, report.best_fixed_sequence, report.ours, report.ours_with_escalation):
        costs, accuracies = [p.cost_usd for p in curve.points], [p.accuracy for p in curve.points]
        colour = _COLOURS[curve.name]
        axes.plot(*non_decreasing_hull(costs, accuracies), color=colour, label=curve.name, linewidth=2)
        if curve is not report.zero_router:
            axes.plot(costs, accuracies, ".", color=colour, markersize=5)
    axes.plot(
        [p.cost_usd for p in report.singles],
        [p.accuracy for p in report.singles],
        "x",
        color="#52606d",
        label="models",
    )
    for point, mark in ((report.random, "v"), (report.tiered, "s"), (report.oracle, "*")):
        axes.plot([point.cost_usd], [point.accuracy], mark, label=point.name, markersize=9, linestyle="none")
    if min(p.cost_usd for p in report.singles) > 0:
        axes.set_xscale("log")
    axes.set_xlabel("US dollars a task")
    axes.set_ylabel("share of tasks done well")
    axes.grid(alpha=0.25)
    axes.legend(loc="lower right", fontsize=8)


def _calibration(axes: Axes, report: BacktestReport) -> None:
    bins = report.success.calibration
    axes.plot([0, 1], [0, 1], color="#9aa7b4", linewidth=1)
    axes.plot([b.predicted for b in bins], [b.happened for b in bins], color="#2274a5", linewidth=1)
    largest = max(b.rows for b in bins)
    axes.scatter(
        [b.predicted for b in bins],
        [b.happened for b in bins],
        s=[20 + 180 * b.rows / largest for b in bins],
        color="#2274a5",
    )
    axes.set_xlabel("predicted success (larger dots: more pairs)")
    axes.set_ylabel("share that succeeded")
    axes.grid(alpha=0.25)


def _usd(amount: float) -> str:
    return f"${amount:.4f}" if amount >= 0.01 else f"${amount:.3g}"
