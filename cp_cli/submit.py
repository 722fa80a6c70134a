"""`control-panel submit`: tasks from files into the database."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cp_core.tasks import submission as limits

if TYPE_CHECKING:
    from cp_core.tasks.mapping import FieldMap
    from cp_resources.database import Database
    from cp_resources.intake import Intake, IntakeReport
    from cp_resources.rejects import RejectsFile
    from cp_resources.task_files import Format, TaskFile

UNUSABLE = 2
SOME_REJECTED = 3
INTERRUPTED = 130

STDIN = "-"
_SHOWN_REJECTS = 3
_SHOWN_IDS = 10
_OTHER_FIELDS = [field for field in limits.FIELDS if field not in ("title", "description")]


def submit(
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE", help="Task files, or - for standard input.", show_default=False),
    ],
    mapping: Annotated[
        list[str] | None,
        typer.Option(
            "--map",
            metavar="FIELD=PATH",
            help="Take FIELD of a task from PATH of a row, with dots into nested objects; repeatable.",
        ),
    ] = None,
    preset: Annotated[
        Literal["github"] | None,
        typer.Option(
            help="github: rows are issues of `gh issue list --json number,title,body,labels,url,createdAt`."
        ),
    ] = None,
    file_format: Annotated[
        Literal["jsonl", "json", "csv"] | None,
        typer.Option("--format", help="Format of the files. Default: by extension, else by content."),
    ] = None,
    rejects: Annotated[
        Path | None,
        typer.Option(help="Where rejected rows go. Default: FILE.rejects.jsonl; for - submit.rejects.jsonl."),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Validate only: open no database, store nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the counts as one JSON object.")] = False,
) -> None:
    # the text of --help is _HELP below, which quotes the limits
    from cp_resources.errors import UserError
    from cp_resources.intake import Intake
    from cp_resources.task_files import Format
    from cp_resources.tasks import TaskStore

    field_map = _field_map(mapping or [], preset)
    for file in files:
        if file != STDIN and not Path(file).exists():
            raise UserError(f"there is no file {file}")
    with ExitStack() as stack:
        store = None if dry_run else TaskStore(stack.enter_context(_database()))
        progress = stack.enter_context(_progress(files))
        sources = list(zip(files, _rejects_files(files, rejects, stack), strict=True))
        intake = Intake(store, field_map, on_progress=progress)
        try:
            with intake:
                unusable = _take(intake, sources, Format(file_format) if file_format else None)
                report = intake.finish()
        except KeyboardInterrupt:
            so_far = f"interrupted: {intake.so_far}"
            typer.echo(
                f"{so_far} Submit the same again for the rest: what is stored counts as duplicate", err=True
            )
            raise typer.Exit(INTERRUPTED) from None
    _print(report, field_map, dry_run=dry_run, as_json=as_json)
    if unusable or report.rejected:
        raise typer.Exit(UNUSABLE if unusable else SOME_REJECTED)


_PARAGRAPHS = (
    "Submit tasks from JSONL, JSON or CSV files, plain or gzipped.",
    f"A row needs a title or a description, and may have {', '.join(_OTHER_FIELDS)}. "
    "What else it holds is kept, and read by no rule.",
    "Good rows are stored, 10,000 a transaction; a row whose id or idempotency_key was seen before changes "
    "nothing; a bad row goes to the rejects file with its line, field, value and what is allowed.",
    f"Limits: title {limits.TITLE_CHARACTERS:,} characters, description {limits.DESCRIPTION_CHARACTERS:,}, "
    f"id {limits.ID_CHARACTERS:,}, workspace {limits.WORKSPACE_CHARACTERS:,}; {limits.LABELS:,} labels of "
    f"{limits.LABEL_CHARACTERS:,} characters, {limits.DEPENDENCIES:,} dependencies; a row 2 MiB, a file "
    "10 GiB unpacked.",
    "Exit code: 0 every row was taken, or there before; 3 some were rejected; 2 a file could not be read, or "
    "the database not be used; 130 interrupted.",
)
submit.__doc__ = "\n\n".join(_PARAGRAPHS)


def _take(intake: Intake, sources: Sequence[tuple[str, RejectsFile]], declared: Format | None) -> bool:
    """Take every file; tell whether there was one that could not be read at all, having said so."""
    from cp_resources.task_files import UnusableFileError, open_task_file

    unusable = False
    for file, rejects in sources:
        try:
            with open_task_file(file, declared) as opened:
                intake.take(opened, rejects)
        except UnusableFileError as error:
            typer.echo(f"error: {error}", err=True)
            unusable = True
    return unusable


def _field_map(specifications: Sequence[str], preset: str | None) -> FieldMap | None:
    from cp_core.tasks.mapping import FieldMap, MappingError
    from cp_resources.errors import UserError

    if not specifications and not preset:
        return None
    try:
        return FieldMap.parse(specifications, preset=preset)
    except MappingError as error:
        raise UserError(f"--map {error}") from None


@contextmanager
def _database() -> Iterator[Database]:
    from cp_resources import connect
    from cp_resources.settings import Settings

    with connect.database(Settings()) as database:
        yield database


def _rejects_files(files: Sequence[str], path: Path | None, stack: ExitStack) -> list[RejectsFile]:
    """Where each file's rejected rows go: next to it, or else into the working folder."""
    from cp_resources.rejects import RejectsFile

    if path is not None:
        return [stack.enter_context(RejectsFile(path))] * len(files)
    names = [f"{'submit' if file == STDIN else file}.rejects.jsonl" for file in files]
    return [stack.enter_context(RejectsFile(Path(name), Path(Path(name).name))) for name in names]


@contextmanager
def _progress(files: Sequence[str]) -> Iterator[Callable[[TaskFile], None]]:
    """A bar over the bytes of all files, on a terminal; nothing elsewhere."""
    if not sys.stderr.isatty():
        yield lambda file: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    known = all(Path(name).is_file() for name in files)
    total = sum(Path(name).stat().st_size for name in files) if known else None
    read: dict[str, int] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        bar = bars.add_task("submit", total=total)

        def show(file: TaskFile) -> None:
            read[file.name] = file.position
            bars.update(bar, description=Path(file.name).name, completed=sum(read.values()))

        yield show


def _print(report: IntakeReport, field_map: FieldMap | None, *, dry_run: bool, as_json: bool) -> None:
    if as_json:
        typer.echo(
            json.dumps(
                {
                    "dry_run": dry_run,
                    "stored": 0 if dry_run else report.stored,
                    "valid": report.stored + report.duplicates,
                    "duplicates": report.duplicates,
                    "differing_duplicates": report.differing,
                    "rejected": report.rejected,
                    "seconds": round(report.seconds, 3),
                    "rejects": [str(path) for path in report.rejects],
                    "unread_fields": report.unread,
                    "paths_that_led_nowhere": report.nowhere,
                }
            )
        )
        return
    word = "valid" if dry_run else "stored"
    typer.echo(
        f"{word} {report.stored:,} · duplicates {report.duplicates:,} · rejected {report.rejected:,} · "
        f"{report.seconds:.1f} s"
    )
    for path in report.rejects:
        _print_rejects(path)
    if report.differing:
        ids = ", ".join(report.differing[:_SHOWN_IDS])
        more = ", …" if len(report.differing) > _SHOWN_IDS else ""
        typer.echo(
            "warning: these duplicates differ from the task stored under their id, which stays as it is: "
            f"{ids}{more}",
            err=True,
        )
    for place in report.nowhere:
        typer.echo(f"warning: no row has anything at {place}, which --map names", err=True)
    if report.unread:
        typer.echo(f"kept, but read by no rule: {', '.join(map(_with_suggestion, report.unread))}", err=True)


def _print_rejects(path: Path) -> None:
    """Show the beginning of a rejects file, and name it."""
    from itertools import islice

    from cp_core.tasks.submission import Problem

    if not path.is_file():
        return  # a device, as in --rejects /dev/null
    with path.open() as lines:
        for entry in map(json.loads, islice(lines, _SHOWN_REJECTS)):
            problem = Problem(entry["field"], entry["value"], entry["message"])
            typer.echo(f"line {entry['line']}: {problem}" if entry["line"] else str(problem), err=True)
    typer.echo(f"rejected rows, to mend and submit again: {path}", err=True)


def _with_suggestion(name: str) -> str:
    from cp_core.tasks.mapping import did_you_mean

    return f"{name}{did_you_mean(name, limits.FIELDS)}"
