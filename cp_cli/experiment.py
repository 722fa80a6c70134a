"""`control-panel experiment`: comparing ways to score and decide on real tasks, from draft to conclusion."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cp_cli.tables import plain_table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cp_core.learning.experiments.verdict import ExperimentResult
    from cp_resources.experiments import Experiments, StoredExperiment

app = typer.Typer(add_completion=False, no_args_is_help=True)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The experiment.", show_default=False)]
Reason = Annotated[str, typer.Option(metavar="TEXT", help="Why; kept with it.", show_default=False)]
By = Annotated[str | None, typer.Option(help="Who. Default: your login name.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command()
def create(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="YAML; see config/experiments.", show_default=False)
    ],
    by: By = None,
) -> None:
    """Store a file's experiment as a draft. What is stored never changes; `start` begins it."""
    from cp_core.learning.experiments.definition import ExperimentDefinition
    from cp_resources.configuration import load_file

    definition = load_file(file, ExperimentDefinition)
    with _experiments() as experiments:
        is_new = experiments.create(definition, _who(by))
    name = definition.experiment
    typer.echo(
        f"{name} is a draft: begin it with `control-panel experiment start {name}`"
        if is_new
        else f"{name} is there already, just as this file defines it"
    )


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """Show every experiment, the newest first."""
    with _experiments() as experiments:
        found = experiments.all()
    if as_json:
        _print_json([_as_json(one) for one in found])
    elif found:
        _print_table(found)
    else:
        typer.echo("there is no experiment yet: `control-panel experiment create FILE` makes one")


@app.command()
def show(name: Name, as_json: AsJson = False) -> None:
    """Show an experiment's definition and state."""
    with _experiments() as experiments:
        found = experiments.get(name)
    if as_json:
        _print_json(_as_json(found))
        return
    import yaml

    typer.echo(yaml.safe_dump(_as_json(found), sort_keys=False, allow_unicode=True).rstrip())


@app.command()
def start(name: Name, by: By = None) -> None:
    """Begin to give arms to tasks that are submitted from now on."""
    from cp_resources import connect
    from cp_resources.champion import ConfigurationStore
    from cp_resources.configuration import load_configuration
    from cp_resources.experiments import Experiments
    from cp_resources.settings import Settings

    settings = Settings()
    with connect.database(settings) as database:
        configuration = ConfigurationStore(database).in_force(load_configuration(settings.config_dir))
        found = Experiments(database).start(name, configuration, _who(by))
    definition = found.definition
    typer.echo(
        f"{name} is running: {definition.traffic:.0%} of layer {definition.layer}, arms "
        + ", ".join(arm.name for arm in definition.arms)
    )


@app.command()
def stop(name: Name, reason: Reason, by: By = None) -> None:
    """End an experiment: from now on everything is decided by the configuration."""
    with _experiments() as experiments:
        experiments.stop(name, reason, _who(by))
    typer.echo(f"{name} is stopped")


@app.command()
def graduate(
    name: Name,
    reason: Reason,
    arm: Annotated[
        str | None, typer.Option(help="Default: the one that has proven better.", show_default=False)
    ] = None,
    by: By = None,
) -> None:
    """End an experiment in favour of an arm, and say what to write into the configuration.

    The configuration itself is not changed.
    """
    from cp_resources.experiments import ExperimentError

    with _experiments() as experiments:
        if arm is None:
            result = experiments.look(name, _today())
            arm = result.arm
            if arm is None:
                raise ExperimentError(
                    f"no arm of {name} has proven better ({result.verdict}: {result.reason}): name one with --arm, "
                    "or stop the experiment"
                )
        experiments.graduate(name, arm, reason, _who(by))
        chosen = next(one for one in experiments.get(name).definition.arms if one.name == arm)
    typer.echo(f"{name} has ended in favour of {arm}; nothing of the configuration has changed")
    for key, value in chosen.overrides.items():
        file, _, rest = key.partition(".")
        typer.echo(f"to keep it, write into {file}.yaml: {rest}: {value}")
    if chosen.learned_from:
        typer.echo(f"to keep it, promote configuration version {chosen.learned_from}")


@app.command()
def results(
    name: Name,
    day: Annotated[
        datetime | None,
        typer.Option(formats=["%Y-%m-%d"], metavar="YYYY-MM-DD", help="As of this day's end (UTC)."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what an experiment has come to. Look as often as you like: what is proven stays proven."""
    with _experiments() as experiments:
        result = experiments.look(name, day.date() if day else _today())
    if as_json:
        typer.echo(result.model_dump_json())
    else:
        _print_result(result)


def _print_result(result: ExperimentResult) -> None:
    from rich.console import Console

    table = plain_table(
        *("arm", "metric", "units", "control", "arm's", "difference", "sequence", "p", ""), fold=["metric"]
    )
    for one in result.comparisons:
        standing = "" if not one.is_proven else "better" if one.is_better else "worse"
        table.add_row(
            one.arm,
            one.measure.value if one.role == "goal" else f"{one.measure.value} (guardrail)",
            f"{one.control_units:,} / {one.units:,}",
            f"{one.control_mean:.4g}",
            f"{one.mean:.4g}",
            f"{one.difference:+.4g}",
            "too early" if one.low is None or one.high is None else f"{one.low:+.4g} to {one.high:+.4g}",
            f"{one.p_value:.3g}",
            standing,
        )
    console = Console()
    console.print(table)
    units = ", ".join(f"{arm} {count:,}" for arm, count in result.exposed.items())
    console.print(f"units: {units} (ratio {'as planned' if result.has_right_ratio else 'WRONG'})")
    console.print(f"day {result.days}: {result.verdict.value}: {result.reason}", highlight=False)


def _print_table(found: list[StoredExperiment]) -> None:
    from rich.console import Console

    table = plain_table(
        *("experiment", "state", "layer", "traffic", "arms", "started", "ended", "conclusion"),
        left=("state", "started", "ended"),
        fold=("layer", "arms", "conclusion"),
        gap=1,
    )
    for one in found:
        definition = one.definition
        table.add_row(
            definition.experiment,
            one.state,
            definition.layer,
            f"{definition.traffic:.0%}",
            ", ".join(f"{arm.name} {arm.weight}" for arm in definition.arms),
            f"{one.started_at:%Y-%m-%d}" if one.started_at else "",
            f"{one.ended_at:%Y-%m-%d}" if one.ended_at else "",
            one.conclusion or "",
        )
    Console().print(table)


def _as_json(one: StoredExperiment) -> dict[str, object]:
    times = {"created_at": one.created_at, "started_at": one.started_at, "ended_at": one.ended_at}
    return {
        **one.definition.model_dump(mode="json"),
        "state": one.state,
        **{name: moment.isoformat() if moment else None for name, moment in times.items()},
        "conclusion": one.conclusion,
    }


def _print_json(content: object) -> None:
    import json

    typer.echo(json.dumps(content, ensure_ascii=False))


def _who(by: str | None) -> str:
    from cp_cli.person import login_name

    return by or login_name()


def _today() -> date:
    return datetime.now(UTC).date()


@contextmanager
def _experiments() -> Iterator[Experiments]:
    from cp_resources import connect
    from cp_resources.experiments import Experiments
    from cp_resources.settings import Settings

    with connect.database(Settings()) as database:
        yield Experiments(database)
