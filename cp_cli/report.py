"""`control-panel report`: what some days came to, as a page of tables."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cp_cli.tables import plain_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from datetime import date
    from decimal import Decimal

    from rich.console import Console, RenderableType
    from rich.table import Table

    from cp_core.quota.account import Account
    from cp_resources.ledger import LedgerReport
    from cp_resources.report import Report


def report(
    days: Annotated[
        list[datetime] | None,
        typer.Option(
            "--day",
            formats=["%Y-%m-%d"],
            metavar="YYYY-MM-DD",
            help="Submission day (UTC); repeatable. Default: all days.",
        ),
    ] = None,
    learning: Annotated[
        bool, typer.Option("--learning", help="Show what was learned on one day instead, as Markdown.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="FILE", help="With --learning: write it as a page.")
    ] = None,
) -> None:
    """Show tasks, value, tokens, cost, quality and estimate error of some submission days."""
    if learning or html is not None:
        _learning(sorted({day.date() for day in days or []}), learning, html)
        return
    from rich.console import Console

    from cp_resources import connect
    from cp_resources.ledger import Ledger
    from cp_resources.report import days_with_tasks, read_report
    from cp_resources.settings import Settings

    with connect.database(Settings()) as database:
        chosen = tuple(sorted({day.date() for day in days})) if days else days_with_tasks(database)
        ledger = Ledger(database)
        print_report(Console(), read_report(database, chosen), ledger.accounts(), ledger.verify())


def _learning(days: Sequence[date], learning: bool, html: Path | None) -> None:
    from cp_resources import connect
    from cp_resources.errors import UserError
    from cp_resources.learning_report import LearningReports
    from cp_resources.settings import Settings

    if not learning:
        raise UserError("--html goes with --learning: give both")
    if len(days) != 1:
        raise UserError(
            f"--learning shows one day, and {len(days)} were given: name it with --day YYYY-MM-DD"
        )
    with connect.database(Settings()) as database:
        found = LearningReports(database).read(days[0])
    if found is None:
        raise UserError(
            f"nothing was learned on {days[0]} yet: daily_learning writes the report the night after, and "
            f"`control-panel backfill daily_learning --from {days[0]} --to {days[0]}` does it now"
        )
    page, markdown = found
    if html is None:
        typer.echo(_without_pictures(markdown))
        return
    try:
        html.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{html} cannot be written: {error.strerror}") from error
    typer.echo(f"written to {html}")


def _without_pictures(markdown: str) -> str:
    """The report as a terminal can show it."""
    return "\n".join(line for line in markdown.splitlines() if not line.startswith("!["))


def print_report(
    console: Console, figures: Report, accounts: Sequence[Account], ledger: LedgerReport
) -> None:
    """Print the figures of some days, what is left of every quota, and whether the ledger balances."""
    for part in _parts(figures, accounts, ledger):
        console.print(part)
        console.print()


def _parts(figures: Report, accounts: Sequence[Account], ledger: LedgerReport) -> Iterator[RenderableType]:
    yield _tasks(figures)
    yield _models(figures)
    if len(figures.stages) > 1:
        yield _stages(figures)
    yield _quotas(accounts)
    yield _estimates(figures)
    yield _verdict(ledger)


def _tasks(figures: Report) -> Table:
    days = " to ".join(map(str, dict.fromkeys([*figures.days[:1], *figures.days[-1:]]))) or "on no day"
    table = plain_table("state", "tasks", title=f"Tasks submitted {days}")
    for state, count in figures.by_state.items():
        table.add_row(state, f"{count:,}")
    table.add_section()
    table.add_row("value delivered", f"{figures.value_delivered:,.0f} of {figures.value_submitted:,.0f}")
    for reason, count in figures.reasons.items():
        table.add_row(f"attempts ended by {reason}", f"{count:,}")
    return table


def _models(figures: Report) -> Table:
    table = plain_table(
        *("model", "tries", "success", "quality", "input", "output", "list", "billed"), title="Models"
    )
    for line in figures.models:
        table.add_row(
            line.model,
            f"{line.attempts:,}",
            _percent(line.success_rate),
            _number(line.quality),
            _tokens(line.input_tokens),
            _tokens(line.output_tokens),
            f"${line.cost_usd:,.2f}",
            f"${line.billed_usd:,.2f}",
        )
    table.add_section()
    table.add_row(
        "all",
        f"{sum(line.attempts for line in figures.models):,}",
        *("", ""),
        _tokens(sum(line.input_tokens for line in figures.models)),
        _tokens(sum(line.output_tokens for line in figures.models)),
        f"${sum(line.cost_usd for line in figures.models):,.2f}",
        f"${sum(line.billed_usd for line in figures.models):,.2f}",
    )
    return table


def _stages(figures: Report) -> Table:
    """What came of trying a plan's models in order; a later stage is an escalation."""
    table = plain_table(
        *("stage", "tries", "success", "not good enough", "quality", "list", "billed"),
        title="Stages of plans",
    )
    for line in figures.stages:
        table.add_row(
            f"{line.stage}",
            f"{line.attempts:,}",
            f"{line.succeeded:,}",
            f"{line.low_quality:,}",
            _number(line.quality),
            f"${line.cost_usd:,.2f}",
            f"${line.billed_usd:,.2f}",
        )
    return table


def _quotas(accounts: Sequence[Account]) -> Table:
    table = plain_table("account", "limit", "used", "reserved", "left", "state", title="Quota")
    for account in accounts:
        show = "${:,.2f}".format if account.unit == "usd" else _tokens
        table.add_row(
            account.account,
            show(account.limit),
            show(account.used),
            show(account.pending),
            f"{account.remaining_share:.0%}",
            account.state.value,
        )
    return table


def _estimates(figures: Report) -> Table:
    estimates = figures.estimates
    table = plain_table(
        *("", "total / expected", "median task / median", "in 80 % interval"),
        title=f"Token estimates against {estimates.tasks:,} attempts that succeeded",
    )
    table.add_row(
        "input",
        _number(estimates.input_total_ratio),
        _number(estimates.input_median_ratio),
        _percent(estimates.input_in_interval),
    )
    table.add_row(
        "output",
        _number(estimates.output_total_ratio),
        _number(estimates.output_median_ratio),
        _percent(estimates.output_in_interval),
    )
    return table


def _verdict(ledger: LedgerReport) -> str:
    if ledger.balanced:
        return f"Ledger: [green]balanced[/green], {ledger.accounts} accounts recomputed from their transfers."
    return "\n".join(["Ledger: [red]NOT balanced[/red]", *(f"  {line}" for line in ledger.differences)])


def _tokens(count: int | Decimal) -> str:
    """A count of tokens, in millions."""
    return f"{count / 1_000_000:,.2f}M"


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"
