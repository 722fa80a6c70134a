"""`control-panel evaluate`: what a configuration would have earned on decisions that were logged."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cp_core.learning.evaluation import Evaluation


def evaluate(
    policy: Annotated[
        str,
        typer.Argument(
            help="A folder of configuration files, or champion, challenger, previous, or the beginning of a hash.",
            show_default=False,
        ),
    ],
    until: Annotated[
        datetime | None,
        typer.Option(
            "--until",
            formats=["%Y-%m-%d"],
            metavar="YYYY-MM-DD",
            help="Last submission day (UTC). Default: the newest that has decisions.",
        ),
    ] = None,
    days: Annotated[int, typer.Option("--days", min=1, max=400, help="Submission days to look at.")] = 7,
    confidence: Annotated[
        float, typer.Option("--confidence", min=0.5, max=0.999, help="Of the intervals.")
    ] = 0.95,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Estimate what a configuration would have earned a decision: IPS, SNIPS and doubly robust, without trying it.

    Told from decisions by prices, each with the probability that exploration drew it with. Where fewer than 100
    effective decisions speak for the configuration, nothing is said.
    """
    from dataclasses import asdict
    from datetime import timedelta

    from cp_core.learning.evaluation import evaluate as evaluated
    from cp_resources import connect
    from cp_resources.champion import ConfigurationStore
    from cp_resources.configuration import load_configuration
    from cp_resources.logged_decisions import LoggedDecisions
    from cp_resources.settings import Settings

    settings = Settings()
    with connect.database(settings) as database:
        store, logged = ConfigurationStore(database), LoggedDecisions(database)
        files = load_configuration(settings.config_dir)
        last = until.date() if until else logged.last_day()
        first = last - timedelta(days=days - 1)
        selections = logged.made_again(first, last, store.in_force(files), store.named(policy, files))
    found = evaluated(selections, confidence=confidence, seed=last.toordinal())
    if as_json:
        import json

        typer.echo(json.dumps({"first": str(first), "last": str(last), **asdict(found)}, indent=2))
        return
    typer.echo(
        f"tasks submitted from {first} to {last}: {found.decisions:,} decisions that could be made again"
    )
    for line in _lines(found, confidence):
        typer.echo(line)


def _lines(found: Evaluation, confidence: float) -> list[str]:
    """What there is to say, in words."""
    if found.earned is None or found.agrees is None:
        return [
            "there is nothing to tell from: decisions by prices that exploration could have drawn otherwise"
        ]
    lines = [
        f"it would have decided the same in {found.agrees:.1%} of them",
        f"earned, in value points a decision: {found.earned:.3f}",
    ]
    for name, estimate in (("IPS", found.ips), ("SNIPS", found.snips), ("doubly robust", found.dr)):
        if estimate.refused is not None:
            return [*lines, f"cannot tell: {estimate.refused}"]
        lines.append(
            f"{name + ':':<15}{estimate.value:.3f}, {confidence:.0%} interval {estimate.low:.3f} to {estimate.high:.3f}"
        )
    weights = found.dr
    return [*lines, f"effective decisions {weights.ess:,.1f}, largest weight {weights.largest_weight:,.2f}"]
