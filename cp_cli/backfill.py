"""`control-panel backfill`: launch a job for each of a range of submission days, while the platform is up."""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum
from typing import Annotated

import typer


class Job(StrEnum):
    """A job that works on a submission day."""

    PROCESS_QUEUE = "process_queue"
    DAILY_LEARNING = "daily_learning"


def backfill(
    job: Annotated[Job, typer.Argument(help="The job.")],
    first: Annotated[
        datetime,
        typer.Option(
            "--from", formats=["%Y-%m-%d"], metavar="YYYY-MM-DD", help="First submission day (UTC)."
        ),
    ],
    last: Annotated[
        datetime | None,
        typer.Option(
            "--to",
            formats=["%Y-%m-%d"],
            metavar="YYYY-MM-DD",
            help="Last submission day. Default: the first.",
        ),
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port of Dagster's webserver.")] = 3000,
) -> None:
    """Launch a run of JOB for each submission day from --from to --to, through the running webserver."""
    import httpx

    from cp_resources.dagster_api import DagsterApi
    from cp_resources.errors import UserError

    last = last or first
    if last < first:
        raise UserError(f"--to {last:%Y-%m-%d} lies before --from {first:%Y-%m-%d}")
    days = [first.date() + timedelta(days=number) for number in range((last - first).days + 1)]
    url = f"http://127.0.0.1:{port}"
    api = DagsterApi(url)
    try:
        launched = api.backfill(job, days)
    except httpx.TransportError as error:
        raise UserError(
            f"Dagster's webserver does not answer at {url} ({error}): start it with `control-panel up`, or "
            "name its port with --port"
        ) from error
    finally:
        api.close()
    typer.echo(
        f"{job}: {len(days)} {'run' if len(days) == 1 else 'runs'} launched; watch {url}/runs/b/{launched}"
    )
