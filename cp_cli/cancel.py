"""`control-panel cancel`: ends tasks, one by one or by the batch."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated
from uuid import UUID

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cp_core.tasks.states import TaskState
    from cp_resources.cancellation import Cancelled, Selection


def cancel(
    task_ids: Annotated[
        list[str] | None, typer.Argument(metavar="TASK", help="Ids of tasks.", show_default=False)
    ] = None,
    day: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], metavar="YYYY-MM-DD", help="Those submitted on this day (UTC)."),
    ] = None,
    batch: Annotated[
        UUID | None, typer.Option(metavar="ID", help="Those last decided in this assignment batch.")
    ] = None,
    run: Annotated[
        str | None, typer.Option(metavar="ID", help="Those last decided, or executed now, by this run.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(metavar="MODEL", help="Those assigned to this model, or running with it.")
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Every unfinished task.")] = False,
    reason: Annotated[
        str, typer.Option(metavar="TEXT", help="Why; kept with each task.", show_default=False)
    ] = "",
    by: Annotated[
        str | None, typer.Option(help="Who cancels. Default: your login name.", show_default=False)
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Cancel unfinished tasks: those named, or those that all the options given fit.

    What nobody works on is cancelled at once and its reserved quota given back. A running task is cancelled when its
    worker has stopped the call, about a second later; if the work was done first, it stays done. Anything but tasks
    by name is asked about first, with how many it is. A repeat changes nothing.
    """
    selection = _selection(task_ids, day, batch, run, model, everything=everything)
    if not reason.strip():
        raise _usage("say why with --reason TEXT: it is kept with each task")

    from cp_cli.person import login_name
    from cp_resources import connect
    from cp_resources.cancellation import CancellationStore
    from cp_resources.ledger import Ledger
    from cp_resources.settings import Settings

    with connect.database(Settings()) as database:
        store = CancellationStore(database, Ledger(database))
        if not selection.task_ids and not yes:
            found = store.preview(selection)
            typer.echo(_preview(found), err=as_json)
            if not found:
                return
            typer.confirm("Cancel them?", abort=True, err=as_json)
        cancelled = store.cancel(selection, by=by or login_name(), reason=reason.strip())
    _print(cancelled, as_json=as_json)


def _selection(
    task_ids: list[str] | None,
    day: datetime | None,
    batch: UUID | None,
    run: str | None,
    model: str | None,
    *,
    everything: bool,
) -> Selection:
    from cp_resources.cancellation import Selection

    narrowed = day is not None or batch is not None or run is not None or model is not None
    ways = [bool(task_ids), narrowed, everything]
    if sum(ways) != 1:
        raise _usage(
            "say which tasks: their ids, or one or more of --day, --batch, --run and --model, or --all alone"
            + ("; these were mixed" if any(ways) else "")
        )
    return Selection(
        task_ids=tuple(dict.fromkeys(task_ids or ())),
        day=day and day.date(),
        batch=batch,
        run_id=run,
        model=model,
    )


def _usage(text: str) -> Exception:
    from cp_resources.errors import UserError

    return UserError(text)


def _preview(found: Mapping[TaskState, int]) -> str:
    if not found:
        return "No unfinished task fits; nothing to cancel."
    counts = ", ".join(f"{count:,} {state}" for state, count in found.items())
    return f"This cancels {sum(found.values()):,} tasks: {counts}."


def _print(cancelled: Cancelled, *, as_json: bool) -> None:
    if as_json:
        import json
        from dataclasses import asdict

        typer.echo(json.dumps(asdict(cancelled)))
        return
    lines = [
        (cancelled.at_once, "cancelled"),
        (cancelled.requested, "running: their workers are told to stop"),
        (cancelled.requested_before, "running: their workers were told before"),
        *(
            (count, f"already {state}: left as they are")
            for state, count in sorted(cancelled.too_late.items())
        ),
    ]
    for count, what in lines:
        if count:
            typer.echo(f"{count:,} {what}")
    if not any(count for count, _ in lines):
        typer.echo("no unfinished task fits; nothing to cancel")
