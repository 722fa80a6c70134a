"""`control-panel assign`: the decision about one task, made now or shown, and why it is what it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from cp_resources.configuration import Configuration
    from cp_resources.database import Database
    from cp_resources.planner import Decided

_DEADLINE_SECONDS = 10.0  # a person waits, who would rather have an answer than a quick refusal


def assign(
    task_id: Annotated[str, typer.Argument(help="The task's id.", show_default=False)],
    explain: Annotated[
        bool, typer.Option("--explain", help="Say what was possible, what was not, and why.")
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the decision and its explanation as one JSON object.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be decided; reserve nothing, store no decision.")
    ] = False,
) -> None:
    """Decide which model does a task, reserve its quota, and say why.

    A task that is assigned already, or has ended, shows the decision it has.
    A task without a value score is scored first.
    """
    from cp_resources import connect
    from cp_resources.champion import ConfigurationStore
    from cp_resources.configuration import load_configuration
    from cp_resources.ledger import Ledger
    from cp_resources.planner import Planner
    from cp_resources.settings import Settings

    settings = Settings()
    files = load_configuration(settings.config_dir)
    with connect.database(settings) as database:
        configuration = ConfigurationStore(database).in_force(files)
        _score_if_unscored(database, configuration, task_id)
        ledger = Ledger(database)
        ledger.expire_pending()
        planner = Planner(database, ledger, configuration)
        decide = planner.rehearse if dry_run else planner.decide
        found = decide(task_id, deadline_seconds=_DEADLINE_SECONDS)
    if as_json:
        _print_json(found, dry_run)
        return
    typer.echo(_headline(found, dry_run))
    if explain:
        from cp_core.assignment.narration import in_words

        typer.echo(in_words(found.explanation, found.reason))
        typer.echo(f"configuration: {found.config_hash}")


def _score_if_unscored(database: Database, configuration: Configuration, task_id: str) -> None:
    from cp_resources.scores import ScoreStore

    store = ScoreStore(database)
    if store.score(task_id) is None:
        store.score_now(task_id, configuration)


def _headline(found: Decided, dry_run: bool) -> str:
    """The decision in a line or two."""
    from cp_core.assignment.narration import meaning

    at_stage = f", at stage {found.stage + 1} of {len(found.plan)}" if len(found.plan) > 1 else ""
    standing = "" if found.is_new else f" (decided before; the task is {found.state} now{at_stage})"
    rehearsed = " (dry run: nothing was reserved, no decision stored)" if found.is_new and dry_run else ""
    if found.reason is not None:
        outcome = f"{found.outcome}: {found.reason}, {meaning(found.reason)}"
        return f"{found.task_id}: {outcome}{standing}{rehearsed}"
    stages = " then, if its work is not accepted, ".join(
        f"{stage['model']}, paid by {stage['funding']}" for stage in found.plan
    )
    return (
        f"{found.task_id}: assigned to {stages}{standing}{rehearsed}\n"
        f"reserves {_reserved(found.plan)}; ${found.expected_cost_usd:,.4f} at list price"
        + "".join(_in_full(stage) for stage in found.plan[1:])
    )


def _in_full(stage: dict[str, Any]) -> str:
    """What a later stage takes once it is reached."""
    needs = stage.get("needs", stage["amounts"]).items()
    return (
        f"\n{stage['model']}, when reached: {', '.join(f'{_amount(*need)} of {need[0]}' for need in needs)}"
    )


def _reserved(plan: list[dict[str, Any]]) -> str:
    """What the whole plan reserves: the first stage in full, the others as far as they are expected."""
    from decimal import Decimal

    total: dict[str, Decimal] = {}
    for stage in plan:
        for account, amount in stage["amounts"].items():
            total[account] = total.get(account, Decimal(0)) + Decimal(amount)
    return ", ".join(f"{_amount(account, str(amount))} of {account}" for account, amount in total.items())


def _amount(account: str, amount: str) -> str:
    return f"${float(amount):,.4f}" if account.startswith("budget/") else f"{int(amount):,} tokens"


def _print_json(found: Decided, dry_run: bool) -> None:
    import json

    row: dict[str, Any] = {
        "task_id": found.task_id,
        "state": found.state,
        "stage": found.stage,
        "is_new": found.is_new,
        "dry_run": dry_run,
        "outcome": found.outcome,
        "reason": found.reason,
        "plan": found.plan,
        "expected_cost_usd": found.expected_cost_usd and str(found.expected_cost_usd),
        "config_hash": found.config_hash,
        "explanation": found.explanation,
    }
    typer.echo(json.dumps(row))
