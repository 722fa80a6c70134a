"""`control-panel feedback`: evidence on finished work that came later, from CI or from a person."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cp_core.execution.feedback import Report
    from cp_resources.feedback import Rescored


class By(StrEnum):
    """Who found it out."""

    CI = "ci"
    PERSON = "person"
    WORKER = "worker-reported"


def feedback(
    task_id: Annotated[str, typer.Argument(help="The task's id.", show_default=False)],
    tests_passed: Annotated[
        int | None, typer.Option(help="Tests of the change that pass; goes with --tests-failed.")
    ] = None,
    tests_failed: Annotated[
        int | None, typer.Option(help="Tests of the change that fail; goes with --tests-passed.")
    ] = None,
    bugs_introduced: Annotated[int | None, typer.Option(help="Bugs that the change brought.")] = None,
    revisions_needed: Annotated[
        int | None, typer.Option(help="Rounds of work it took to make the change fit to merge.")
    ] = None,
    review_score: Annotated[float | None, typer.Option(help="A reviewer's score, 0 to 10.")] = None,
    review_note: Annotated[str | None, typer.Option(help="What the reviewer says to the score.")] = None,
    schema_valid: Annotated[
        bool | None,
        typer.Option(
            "--schema-valid/--schema-invalid", help="Whether the answer has the form that was asked for."
        ),
    ] = None,
    source: Annotated[
        By, typer.Option(help="Who found it out. What ci and person say counts before the worker's own word.")
    ] = By.CI,
    by: Annotated[
        str | None, typer.Option(help="Who reports. Default: your login name.", show_default=False)
    ] = None,
    attempt: Annotated[
        int | None, typer.Option(help="Which attempt. Default: the latest with work to judge.")
    ] = None,
    key: Annotated[
        str | None,
        typer.Option(
            "--id", help="Key of this report, such as a CI run's id: sent again it changes nothing."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Add evidence to a finished attempt of a task, and score its quality anew.

    A task that succeeded and now falls below execution.success_quality becomes failed, and the other way
    round. Every report is kept with who made it and what it changed.
    """
    report = _report(
        source=source.value,
        tests_passed=tests_passed,
        tests_failed=tests_failed,
        bugs_introduced=bugs_introduced,
        revisions_needed=revisions_needed,
        review_score=review_score,
        review_note=review_note,
        schema_valid=schema_valid,
    )

    from cp_cli.person import login_name
    from cp_resources import connect
    from cp_resources.configuration import load_configuration
    from cp_resources.feedback import FeedbackStore
    from cp_resources.settings import Settings

    settings = Settings()
    execution = load_configuration(settings.config_dir).policies.execution
    with connect.database(settings) as database:
        store = FeedbackStore(database, execution.success_quality)
        rescored = store.record(task_id, report, by=by or login_name(), attempt=attempt, key=key)
    _print(rescored, as_json=as_json)


def _report(**said: object) -> Report:
    from pydantic import ValidationError

    from cp_core.execution.feedback import Report
    from cp_resources.errors import UserError

    try:
        return Report.model_validate(said)
    except ValidationError as error:
        problems = []
        for problem in error.errors(include_url=False):
            option = "".join(f"--{str(part).replace('_', '-')}: " for part in problem["loc"])
            seen = f" (seen: {problem['input']!r})" if problem["loc"] else ""
            problems.append(f"{option}{problem['msg'].removeprefix('Value error, ')}{seen}")
        raise UserError("; ".join(problems)) from None


def _print(rescored: Rescored, *, as_json: bool) -> None:
    import json
    from dataclasses import asdict

    if as_json:
        typer.echo(json.dumps(asdict(rescored), default=str))
        return
    where = f"task {rescored.task_id}, attempt {rescored.attempt} ({rescored.model})"
    if not rescored.is_new:
        typer.echo(f"{where}: this report was recorded before; nothing changed")
        return
    typer.echo(f"{where}: quality {rescored.quality_before:.2f} -> {rescored.quality_after:.2f}")
    if rescored.state_after != rescored.state_before:
        typer.echo(f"the task was {rescored.state_before} and is now {rescored.state_after}")
    day = rescored.submission_day
    typer.echo(f"metrics of {day} follow with: control-panel backfill daily_learning --from {day}")
