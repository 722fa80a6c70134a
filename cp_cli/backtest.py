"""`control-panel backtest`: what the platform would have done with tasks whose outcomes are known."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cp_cli.tables import plain_table

if TYPE_CHECKING:
    from cp_core.learning.backtest.outcomes import Outcomes
    from cp_core.learning.backtest.report import BacktestReport
    from cp_core.models.registry import Tier


def backtest(
    tasks: Annotated[
        Path, typer.Option(dir_okay=False, help="Tasks, JSON lines: task_id, title, description, ...")
    ],
    outcomes: Annotated[
        Path,
        typer.Option(
            dir_okay=False, help="CSV: task_id, model, success (0/1 or quality 0-10), cost_usd, ..."
        ),
    ],
    models: Annotated[
        Path | None,
        typer.Option(dir_okay=False, help="models.yaml with the models' tiers. Default: by cost."),
    ] = None,
    folds: Annotated[int, typer.Option(min=2, max=50, help="Parts of which each is tested once.")] = 5,
    time_ordered: Annotated[
        bool,
        typer.Option("--time-ordered", help="Test each part on what was learned from earlier tasks only."),
    ] = False,
    checker_sensitivity: Annotated[
        float, typer.Option(min=0, max=1, help="Share of good work that the check accepts.")
    ] = 0.8,
    checker_specificity: Annotated[
        float, typer.Option(min=0, max=1, help="Share of bad work that the check rejects.")
    ] = 0.8,
    budget: Annotated[
        list[float] | None,
        typer.Option(
            help="Mean US dollars a task; repeatable. Default: 16, from the cheapest model's cost on."
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Parts, draws of the check and learning follow from it.")] = 7,
    html: Annotated[Path | None, typer.Option(dir_okay=False, help="Write a page with plots.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the whole report as JSON.")] = False,
) -> None:
    """Decide for tasks of known outcomes, by what is learned from the others, and tell what it would have come to."""
    from threadpoolctl import threadpool_limits

    from cp_core.assignment.plans import CheckPolicy
    from cp_core.learning.backtest.deciding import Terms
    from cp_core.learning.backtest.judging import backtest as run
    from cp_core.learning.backtest.outcomes import folds as random_folds
    from cp_core.learning.backtest.outcomes import in_time_order
    from cp_core.scoring.config import ScoringConfig
    from cp_resources.backtest_files import BacktestFileError, read_files
    from cp_resources.configuration import SCORING_FILE, load_file
    from cp_resources.settings import Settings

    wrong = [amount for amount in budget or () if not amount > 0]
    if wrong:
        raise BacktestFileError(f"--budget is {wrong[0]:g}; US dollars above 0 are allowed")
    scoring = load_file(Settings().config_dir / SCORING_FILE, ScoringConfig)
    read = read_files(tasks, outcomes, scoring)
    known = read.outcomes
    if len(known.tasks) < 2 * folds:
        raise BacktestFileError(
            f"{outcomes}: {len(known.tasks)} tasks have outcomes; {folds} folds need {2 * folds} or more"
        )
    if time_ordered:
        undated = known.submitted_at.isna()
        if undated.any():
            raise BacktestFileError(
                f"--time-ordered needs submitted_at of every task; task {known.tasks[int(undated.argmax())]!r} has none"
            )
        parts = in_time_order(known.submitted_at, folds)
        split = f"{len(parts)} blocks of time, each after what came before it"
        if not parts:
            raise BacktestFileError("--time-ordered: all tasks were submitted at the same moment")
    else:
        parts, split = random_folds(len(known.tasks), folds, seed=seed), f"{folds} random folds"
    terms = Terms(
        check=CheckPolicy(sensitivity=checker_sensitivity, specificity=checker_specificity),
        budgets=tuple(sorted(budget or ())),
        tiers=_tiers(models, known) if models else (),
        seed=seed,
    )
    notes = [*read.notes]
    if not models:
        notes.append(
            "tiers were inferred from the models' mean costs: the dearest quarter is premium, and so on"
        )
    with threadpool_limits(1):  # the matrices are small: threads would only wait for each other
        report = run(read.tasks, known, parts, terms, split=split, notes=notes)
    if html is not None:
        from cp_resources.backtest_page import page

        html.write_text(page(report), encoding="utf-8")
    if as_json:
        typer.echo(report.model_dump_json(indent=2))
    else:
        _print(report)
        if html is not None:
            typer.echo(f"page written to {html}")


def _tiers(path: Path, known: Outcomes) -> tuple[Tier, ...]:
    """Tiers of the models by the registry in `path`."""
    from cp_core.models.registry import ModelRegistry
    from cp_resources.backtest_files import BacktestFileError
    from cp_resources.configuration import load_file

    registry = load_file(path, ModelRegistry)
    missing = [name for name in known.models if name not in registry.models]
    if missing:
        raise BacktestFileError(
            f"{path}: model {missing[0]!r} of the outcomes is not declared; it declares "
            f"{', '.join(sorted(registry.models))}"
        )
    return tuple(registry.models[name].tier for name in known.models)


def _print(report: BacktestReport) -> None:
    from rich.console import Console

    console = Console()
    console.print(
        f"{report.tested:,} tasks, {len(report.models)} models, {report.split}; the check accepts "
        f"{report.sensitivity:.0%} of good work and rejects {report.specificity:.0%} of bad."
    )
    for note in report.notes:
        console.print(f"note: {note}", markup=False)
    table = plain_table("single way to decide", "accuracy", "cost a task")
    named = (report.random, report.tiered, report.accurate_sequence, report.frugal_sequence, report.oracle)
    for point in (*sorted(report.singles, key=lambda single: single.cost_usd), *named):
        table.add_row(point.name, f"{point.accuracy:.1%}", f"${point.cost_usd:.6g}")
    console.print(table)
    table = plain_table("curve", "AIQ shared range", "AIQ own range", "cost ratio")
    for curve in (report.ours_with_escalation, report.ours, report.best_fixed_sequence, report.zero_router):
        ratio = curve.cost_ratio_at_best_single
        table.add_row(
            curve.name,
            f"{curve.aiq_shared:.4f}",
            f"{curve.aiq:.4f}",
            "never" if ratio is None else f"{ratio:.3f}",
        )
    console.print(table)
    console.print(
        f"cost ratio: the least cost at the accuracy of {report.best_single}, over its own cost", markup=False
    )
    auc = "-" if report.success.auc is None else f"{report.success.auc:.3f}"
    console.print(
        f"success: AUC {auc}, Brier {report.success.brier:.4f} (training rates {report.success.brier_of_rates:.4f})"
    )
    if report.pair:
        console.print(
            f"{report.pair.strong} over {report.pair.weak}: APGR {report.pair.apgr:.3f}, "
            f"CPT(50) {report.pair.cpt_50:.1f} %, CPT(80) {report.pair.cpt_80:.1f} %",
            markup=False,
        )
