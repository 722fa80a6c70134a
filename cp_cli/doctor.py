"""`control-panel doctor`: whether this installation can work, and what to do where it cannot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cp_resources.health import Finding
    from cp_resources.settings import Settings

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def doctor(
    online: Annotated[
        bool,
        typer.Option(
            "--online",
            help="Also call each provider once, for a token; the cost is shown, and not booked in the ledger.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Check database, configuration, keys, disk, clock, ledger and Dagster: exit code 0 when no check fails.

    A warning leaves the exit code 0. No key is ever shown. The embedded database is started if it does not run;
    nothing else is changed.
    """
    from cp_resources.health import Status
    from cp_resources.settings import Settings

    findings = list(_findings(Settings(), online=online))
    is_healthy = all(finding.status is not Status.FAIL for finding in findings)
    if as_json:
        import json
        from dataclasses import asdict

        checks = [asdict(finding) for finding in findings]
        typer.echo(json.dumps({"healthy": is_healthy, "checks": checks}))
    else:
        _print(findings)
    raise typer.Exit(0 if is_healthy else 1)


def _findings(settings: Settings, *, online: bool) -> Iterator[Finding]:
    from cp_cli.stack import is_up, webserver_url_of
    from cp_resources import connect, health
    from cp_resources.errors import UserError

    finding, loaded = health.configuration(settings)
    yield finding
    yield health.simulator(settings)
    if loaded is not None:
        yield from health.provider_keys(loaded.registry, settings)
    for name, check in (("dbt manifest", health.manifest), ("inbox", health.inbox), ("disk", health.disk)):
        yield health.guarded(name, lambda check=check: check(settings))  # type: ignore[misc]
    yield health.guarded(
        "Dagster",
        lambda: health.daemons(webserver_url_of(settings.home), is_up=is_up(settings.home)),
    )
    try:
        # a database of the owner's is looked at as it is; the embedded one is brought up to date as ever
        with connect.database(settings, migrate=settings.database_url is None) as database:
            yield from health.of_database(database, loaded, settings)
    except UserError as error:
        yield health.fail("database", str(error), "see docs/operations.md")
    if online and loaded is not None:
        yield from health.online(loaded.registry, settings, loaded.policies.execution)


def _print(findings: Sequence[Finding]) -> None:
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0), pad_edge=False)
    for _ in range(2):
        table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        said = escape(finding.found) + (f"\n[dim]-> {escape(finding.todo)}[/]" if finding.todo else "")
        table.add_row(f"[{_COLOURS[finding.status]}]{finding.status}[/]", finding.check, said)
    Console().print(table)
