"""`control-panel notices`: what the outbox still holds, and its delivery on request."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from cp_resources.outbox import Deliveries, Undelivered, UndeliveredNotice

_DELIVER_SECONDS = 300.0
_MOST_LISTED = 1000


def notices(
    deliver: Annotated[bool, typer.Option("--deliver", help="Send now what is due.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Give notices whose tries are used up their tries again.")
    ] = False,
    limit: Annotated[int, typer.Option(min=0, max=_MOST_LISTED, help="Most notices to list.")] = 20,
    as_json: Annotated[bool, typer.Option("--json", help="Print everything as one JSON object.")] = False,
) -> None:
    """Show which notices wait and which could not be delivered, and why; deliver them with --deliver."""
    from cp_resources import connect
    from cp_resources.configuration import load_configuration
    from cp_resources.notifiers.chosen import open_notifier
    from cp_resources.notifiers.message import NoticeSetupError
    from cp_resources.outbox import Outbox
    from cp_resources.settings import Settings

    settings = Settings()
    policy = load_configuration(settings.config_dir).policies.notices
    done: Deliveries | None = None
    obstacle: str | None = None
    with connect.database(settings) as database:
        outbox = Outbox(database, policy)
        if retry_failed:
            outbox.retry_failed()
        if deliver:
            done = outbox.deliver_due(open_notifier(policy, settings.home), seconds=_DELIVER_SECONDS)
        else:
            try:
                open_notifier(policy, settings.home)
            except NoticeSetupError as error:
                obstacle = str(error)
        counts, listed = outbox.undelivered(), outbox.listed(limit)
    if as_json:
        _print_json(policy.sink, done, counts, listed, obstacle)
    else:
        _print(policy.sink, done, counts, listed, obstacle)


def _print(
    sink: str,
    done: Deliveries | None,
    counts: Undelivered,
    listed: Sequence[UndeliveredNotice],
    obstacle: str | None,
) -> None:
    if done is not None:
        typer.echo(f"delivered {done.delivered}; put off {done.put_off}; failed for good {done.failed}")
    oldest = f"; the oldest since {_moment(counts.oldest_at)}" if counts.oldest_at else ""
    typer.echo(
        f"to {sink}: {counts.waiting} waiting ({counts.due} due now), {counts.failed} failed for good{oldest}"
    )
    for notice in listed:
        when = f"again at {_moment(notice.next_try_at)}" if notice.next_try_at else "failed for good"
        tried = f"{notice.tries} tries, {when}: {notice.error}" if notice.error else "not tried yet"
        typer.echo(f"  {notice.task_id} {notice.kind}: {tried}")
    if (unlisted := counts.waiting + counts.failed - len(listed)) > 0:
        typer.echo(f"  and {unlisted} more; see --limit")
    if counts.failed:
        typer.echo("`control-panel notices --retry-failed --deliver` tries the failed ones again")
    if obstacle:
        typer.echo(f"nothing can be delivered: {obstacle}", err=True)


def _print_json(
    sink: str,
    done: Deliveries | None,
    counts: Undelivered,
    listed: Sequence[UndeliveredNotice],
    obstacle: str | None,
) -> None:
    import json
    from dataclasses import asdict

    printed: dict[str, Any] = {
        "sink": sink,
        "obstacle": obstacle,
        "delivery": done and asdict(done),
        **asdict(counts),
        "undelivered": [asdict(notice) for notice in listed],
    }
    typer.echo(json.dumps(printed, default=lambda moment: moment.isoformat()))


def _moment(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M:%S} UTC"
