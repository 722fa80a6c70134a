"""The `control-panel` command: the table of its commands, and what becomes of an error.

A command's module is imported only when that command runs, so that `--help` and small commands answer
at once.
"""

from __future__ import annotations

import signal
import sys
from importlib import import_module
from importlib.metadata import version
from typing import Annotated, Any, NamedTuple, NoReturn

import typer
from typer.core import TyperGroup
from typer.main import get_command, get_group

from cp_resources.errors import UserError


class Command(NamedTuple):
    """Where a command lives, as module:attribute (a function or a Typer app), and its line in `--help`."""

    target: str
    help: str


COMMANDS = {
    "demo": Command("cp_cli.demo:demo", "Run the main job on bundled tasks with simulated models."),
    "up": Command("cp_cli.up:up", "Start Dagster's webserver and daemon; Ctrl-C stops them."),
    "worker": Command("cp_cli.worker:worker", "Execute runs that the platform on another machine launches."),
    "submit": Command("cp_cli.submit:submit", "Submit tasks from a JSONL, JSON or CSV file."),
    "score": Command("cp_cli.score:score", "Show a task's value score, or override it with a reason."),
    "assign": Command("cp_cli.assign:assign", "Decide which model does a task, and say why."),
    "backfill": Command("cp_cli.backfill:backfill", "Launch a job for a range of submission days."),
    "stress": Command("cp_cli.stress:stress", "Put a load of made-up tasks on the planner."),
    "backtest": Command(
        "cp_cli.backtest:backtest", "Decide for tasks of known outcomes, to see what comes of it."
    ),
    "evaluate": Command(
        "cp_cli.evaluate:evaluate", "Tell from the log what another configuration would have earned."
    ),
    "quota": Command("cp_cli.quota:quota", "Show what remains of every subscription window and budget."),
    "ledger": Command("cp_cli.ledger:app", "Verify the quota ledger."),
    "notices": Command("cp_cli.notices:notices", "Show which notices wait or failed, and deliver them."),
    "config": Command(
        "cp_cli.config:app", "Show what is in force, and promote or roll back what was learned."
    ),
    "watch": Command("cp_cli.watch:watch", "Show how far the work is, second by second."),
    "models": Command("cp_cli.models:app", "Show which models do a kind of task best."),
    "report": Command("cp_cli.report:report", "Show what some days came to."),
    "cancel": Command("cp_cli.cancel:cancel", "Cancel tasks, a day, a batch, a run, a model's, or all."),
    "feedback": Command("cp_cli.feedback:feedback", "Add evidence from CI or a review to a task's work."),
    "experiment": Command("cp_cli.experiment:app", "Compare ways to score and decide on real tasks."),
    "breaker": Command("cp_cli.breaker:app", "Show which models are left alone, and try one again."),
    "doctor": Command("cp_cli.doctor:doctor", "Check the installation, and say what to do about it."),
    "simulate": Command("cp_cli.simulate:simulate", "Serve simulated models on a local port."),
    "db": Command("cp_cli.db:app", "Show or upgrade the database's schema."),
    "clean-data": Command("cp_cli.clean_data:clean_data", "Forget the embedded database, after asking."),
}


class LazyGroup(TyperGroup):
    """Lists commands from `COMMANDS`, and imports a command when it is invoked."""

    def resolve_command(self, ctx: Any, args: list[str]) -> tuple[str | None, Any, list[str]]:
        """Swap the listed placeholder for the real command."""
        name, _, rest = super().resolve_command(ctx, args)
        return (name, load(name), rest) if name else (name, None, rest)


def load(name: str) -> Any:
    """Import the command called `name` and return it as a click command."""
    module, attribute = COMMANDS[name].target.split(":")
    target = getattr(import_module(module), attribute)
    if isinstance(target, typer.Typer):
        command: Any = get_group(target)
        command.name, command.help = name, COMMANDS[name].help
        return command
    single = typer.Typer(add_completion=False)
    single.command(name)(target)
    return get_command(single)


app = typer.Typer(
    cls=LazyGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)
for _name, _command in COMMANDS.items():
    app.command(_name, help=_command.help)(lambda: None)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"control-panel {version('control-panel')}")
        raise typer.Exit


@app.callback()
def control_panel(
    show_version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Decides which language model does which task, within the quotas you already pay for."""


def run() -> NoReturn:
    """Run the command line: exit code 2 and one sentence for an error that a person can mend."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)  # what a command started is stopped as after Ctrl-C
    try:
        app(prog_name="control-panel")
    except UserError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit(0)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    run()
