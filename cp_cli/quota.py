"""`control-panel quota`: what remains of every subscription window and money budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from cp_cli.tables import plain_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime
    from decimal import Decimal

    from rich.table import Table

    from cp_core.quota.account import Account, Unit

_COLOURS = {
    "FULL": "green",
    "MEDIUM": "green",
    "LOW": "yellow",
    "CRITICAL": "red",
    "EXHAUSTED": "bold red",
}


def quota(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object an account.")] = False,
) -> None:
    """Show what remains of every subscription window and budget.

    The accounts are those of models.yaml: new ones are opened first, and changed limits take effect.
    """
    from cp_resources import connect
    from cp_resources.configuration import load_configuration
    from cp_resources.ledger import Ledger
    from cp_resources.settings import Settings

    settings = Settings()
    registry = load_configuration(settings.config_dir).registry
    with connect.database(settings) as database:
        ledger = Ledger(database)
        ledger.open_accounts(registry)
        accounts = ledger.accounts()
    if as_json:
        _print_json(accounts)
        return
    from rich.console import Console

    Console().print(_table(accounts))


def _print_json(accounts: Sequence[Account]) -> None:
    import json

    for account in accounts:
        row = {
            "account": account.account,
            "unit": account.unit,
            "window": account.window,
            "limit": _plain(account.limit),
            "used": _plain(account.used),
            "pending": _plain(account.pending),
            "available": _plain(account.available),
            "state": account.state,
            "window_started_at": account.window_started_at and account.window_started_at.isoformat(),
            "resets_at": account.window_ends_at and account.window_ends_at.isoformat(),
        }
        typer.echo(json.dumps(row))


def _table(accounts: Sequence[Account]) -> Table:
    texts = ("window", "state", "resets (UTC)")
    table = plain_table(
        "account", "window", "limit", "used", "pending", "left", *texts[1:], left=texts, gap=1
    )
    for account in accounts:
        amounts = (account.limit, account.used, account.pending, account.available)
        table.add_row(
            account.account,
            account.window,
            *(_shown(amount, account.unit) for amount in amounts),
            f"[{_COLOURS[account.state]}]{account.state}[/]",
            _reset(account.window_ends_at),
        )
    return table


def _reset(ends_at: datetime | None) -> str:
    return f"{ends_at:%d %b %H:%M}" if ends_at else "with first use"


def _shown(amount: Decimal, unit: Unit) -> str:
    """Money to the cent; tokens in thousands or millions, as `--json` has the exact number."""
    if unit == "usd":
        return f"${amount:,.2f}"
    if amount >= 1_000_000:
        return f"{amount / 1_000_000:,.1f}M"
    if amount >= 1_000:
        return f"{amount / 1_000:,.1f}k"
    return f"{amount:,.0f}"


def _plain(amount: Decimal) -> int | float:
    return int(amount) if amount == int(amount) else float(amount)
