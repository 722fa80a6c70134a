"""Taking task files in: rows are read, validated and stored; what cannot be taken goes to a rejects file.

The command `control-panel submit` and the sensor of the inbox both come through here.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from types import TracebackType

import psycopg

from cp_core.tasks.dependencies import judge
from cp_core.tasks.mapping import FieldMap, MappingError
from cp_core.tasks.submission import Problem, SubmissionError, TaskSubmission, extra_json, shown, validate
from cp_resources.database import DatabaseUnavailableError
from cp_resources.held_rows import HeldRow, HeldRows
from cp_resources.rejects import RejectsFile
from cp_resources.task_files import BadRow, Row, TaskFile, UnusableFileError, open_task_file
from cp_resources.tasks import Inserted, NewTask, TaskStore

TRANSACTION_ROWS = 10_000
TRANSACTION_BYTES = 16 * 1024**2
"""A transaction ends earlier when its rows take this much in the file, so that memory stays bounded."""

LISTED = 100
"""Most names that a report lists of each sort."""

_MADE_IDS = uuid.UUID("5b0f6a3e-6a57-4b6e-9a43-5c1d2f0e7a11")


@dataclass(frozen=True, slots=True)
class IntakeReport:
    """What came of one or more task files.

    Attributes:
        stored: tasks stored; in a dry run, rows that would be.
        duplicates: rows whose id or idempotency key was taken; they changed nothing.
        differing: ids of duplicates that say something else than the task stored under their id.
        rejected: rows, or ends of files, that could not be taken.
        seconds: time taken.
        rejects: files that hold the rejected rows.
        unread: names of fields that no rule reads, kept with their tasks as extra.
        nowhere: mapped paths that led to nothing in any row.
    """

    stored: int
    duplicates: int
    differing: tuple[str, ...]
    rejected: int
    seconds: float
    rejects: tuple[Path, ...]
    unread: tuple[str, ...]
    nowhere: tuple[str, ...]


class IntakeStoppedError(DatabaseUnavailableError):
    """The database failed midway. The text says how much is stored, and what to do."""


class Intake:
    """One submission: the rows of some files, then those rows that depend on other tasks.

    Rows are stored in transactions while the next ones are read. A row with dependencies waits on disk until
    all others are stored, so that it may stand before what it depends on, or in another file.

    Args:
        store: where tasks go; None validates only (dependencies on tasks outside of the files pass).
        mapping: how a row becomes the fields of a task.
        clock: the time of submission of rows that bring none.
        on_progress: is called now and then with the file being read.
    """

    def __init__(
        self,
        store: TaskStore | None,
        mapping: FieldMap | None = None,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        on_progress: Callable[[TaskFile], None] = lambda file: None,
    ) -> None:
        self._store = store
        self._mapping = mapping
        self._clock = clock
        self._on_progress = on_progress
        self._started = time.monotonic()
        self._counts = {"stored": 0, "duplicates": 0, "rejected": 0}
        self._differing: list[str] = []
        self._rejects: dict[Path, None] = {}
        self._unread: dict[str, None] = {}
        self._nowhere = set(mapping.paths.values()) if mapping else set()
        self._rows: list[NewTask] = []
        self._bytes = 0
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="intake")
        self._writing: Future[Inserted] | None = None
        self._held = HeldRows()

    def take(self, file: TaskFile, rejects: RejectsFile) -> None:
        """Take every row of a file.

        Raises:
            UnusableFileError: none of it could be read. Of a file that breaks off later, the rows before are
                taken, and the rest counts as one rejected row.
            IntakeStoppedError: the database failed.
        """
        row = None
        try:
            for number, row in enumerate(file.rows(self._check_columns_of(file))):
                if number % 1000 == 0:
                    self._on_progress(file)
                if isinstance(row, BadRow):
                    self._reject(rejects, row.line, [Problem(None, None, row.message)], row.text)
                else:
                    self._take_row(file, rejects, row, number)
        except UnusableFileError as error:
            if row is None:
                raise
            self._reject(rejects, None, [Problem(None, None, str(error))], b"")
        self._on_progress(file)

    def finish(self) -> IntakeReport:
        """Store what waits, decide on the rows with dependencies, and tell what came of it all.

        Raises:
            IntakeStoppedError: the database failed.
        """
        self._send()
        self._settle()
        self._take_held()
        self._send()
        self._settle()
        return self.report()

    @property
    def so_far(self) -> str:
        """What is stored by now, in a sentence."""
        counts = self._counts
        return f"{counts['stored']:,} tasks were stored, {counts['duplicates']:,} were there before."

    def report(self) -> IntakeReport:
        """What came of it so far."""
        return IntakeReport(
            **self._counts,
            differing=tuple(self._differing),
            seconds=time.monotonic() - self._started,
            rejects=tuple(self._rejects),
            unread=tuple(self._unread),
            nowhere=tuple(sorted(self._nowhere)),
        )

    def __enter__(self) -> Intake:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait for the transaction under way, so that the counts tell what is stored."""
        self._writer.shutdown(wait=True)
        if self._writing is not None and self._writing.exception() is None:
            self._count(self._writing.result())
        self._held.close()

    def _check_columns_of(self, file: TaskFile) -> Callable[[list[str]], None]:
        def check(columns: list[str]) -> None:
            try:
                (self._mapping or FieldMap()).check_columns(columns)
            except MappingError as error:
                raise UnusableFileError(f"{file.name}: {error}") from None

        return check

    def _take_row(self, file: TaskFile, rejects: RejectsFile, row: Row, number: int) -> None:
        try:
            submission = validate(self._fields(row), now=self._clock())
            extra = extra_json(submission)
        except SubmissionError as error:
            self._reject(rejects, row.line, error.problems, row.text)
            return
        if submission.model_extra and len(self._unread) < LISTED:
            self._unread |= dict.fromkeys(submission.model_extra)
        task = NewTask.of(submission, _task_id(submission, file, number), extra)
        if task.dependencies:
            self._held.add(task, rejects, row)
        else:
            self._add(task, len(row.text))

    def _fields(self, row: Row) -> dict[str, object]:
        if self._mapping is None:
            return row.fields
        if self._nowhere:
            self._nowhere &= self._mapping.leads_nowhere(row.fields)
        return self._mapping.apply(row.fields)

    def _reject(
        self, rejects: RejectsFile, line: int | None, problems: Iterable[Problem], row: bytes
    ) -> None:
        rejects.write(line, tuple(problems), row)
        self._counts["rejected"] += 1
        if rejects.path:
            self._rejects[rejects.path] = None

    def _add(self, task: NewTask, size: int) -> None:
        self._rows.append(task)
        self._bytes += size
        if len(self._rows) >= TRANSACTION_ROWS or self._bytes >= TRANSACTION_BYTES:
            self._send()

    def _send(self) -> None:
        """Hand the rows read so far to the writer, once it is through with those before."""
        self._settle()
        rows, self._rows, self._bytes = self._rows, [], 0
        if self._store is None:
            self._counts["stored"] += len(rows)
        elif rows:
            self._writing = self._writer.submit(self._store.insert, rows)

    def _settle(self) -> None:
        """Wait for the transaction under way."""
        if self._writing is None:
            return
        try:
            inserted = self._writing.result()
        except (psycopg.OperationalError, DatabaseUnavailableError) as error:
            raise self._stopped(error) from error
        self._writing = None
        self._count(inserted)

    def _count(self, inserted: Inserted) -> None:
        self._counts["stored"] += inserted.stored
        self._counts["duplicates"] += inserted.duplicates
        self._differing += inserted.differing[: LISTED - len(self._differing)]

    def _take_held(self) -> None:
        """Decide on the rows with dependencies, now that all others are stored."""
        held = self._held
        duplicates = self._known_ids(held.dependencies) | {
            held.keys[key] for key in self._known_keys(held.keys)
        }
        graph = {
            task_id: needed for task_id, needed in held.dependencies.items() if task_id not in duplicates
        }
        outside = {needed for row in graph.values() for needed in row if needed not in graph}
        unknown = outside - self._known_ids(outside) if self._store else set()
        verdict = judge(graph, unknown)
        for task_id in (*verdict.order, *duplicates):
            self._add_held(held.read(held.places[task_id]))
        for task_id, message in verdict.rejected.items():
            self._reject_held(held.read(held.places[task_id]), message)
        for first, place in held.repeats:
            if first in verdict.rejected:
                self._reject_held(held.read(place), f"repeats the id or key of {first!r}, which was rejected")
            else:
                self._add_held(held.read(place))

    def _add_held(self, row: HeldRow) -> None:
        self._add(row.task, len(row.text))

    def _reject_held(self, row: HeldRow, message: str) -> None:
        problem = Problem("dependencies", shown(row.task.dependencies), message)
        self._reject(self._held.rejects[row.rejects], row.line, [problem], row.text)

    def _known_ids(self, task_ids: Collection[str]) -> set[str]:
        return self._known(TaskStore.known_ids, task_ids)

    def _known_keys(self, keys: Collection[str]) -> set[str]:
        return self._known(TaskStore.known_keys, keys)

    def _known(
        self, ask: Callable[[TaskStore, Collection[str]], set[str]], values: Collection[str]
    ) -> set[str]:
        """Ask the store about values, a transaction's worth at a time."""
        if self._store is None:
            return set()
        left = iter(values)
        known: set[str] = set()
        try:
            while part := list(islice(left, TRANSACTION_ROWS)):
                known |= ask(self._store, part)
        except (psycopg.OperationalError, DatabaseUnavailableError) as error:
            raise self._stopped(error) from error
        return known

    def _stopped(self, error: Exception) -> IntakeStoppedError:
        cause = str(error).strip().partition("\n")[0]
        return IntakeStoppedError(
            f"the database failed midway ({cause}). {self.so_far} Submit the same again when it is back: what is "
            "stored counts as duplicate"
        )


def _task_id(submission: TaskSubmission, file: TaskFile, number: int) -> str:
    """The row's own id, or one that is always the same for the same key, or the same row of the same file."""
    if submission.id is not None:
        return submission.id
    if submission.idempotency_key is not None:
        return f"task-{uuid.uuid5(_MADE_IDS, f'key {submission.idempotency_key}')}"
    return f"task-{uuid.uuid5(_MADE_IDS, f'row {number} of {file.identity}')}"


SETTLED_SECONDS = 5.0
"""How long a file in the inbox must have been left alone: it may still be being written."""

_UNFINISHED = (".part", ".tmp")
_TAKING, _DONE, _REJECTED = "taking", "done", "rejected"


def pending_files(inbox: Path, *, settled_seconds: float = SETTLED_SECONDS) -> list[Path]:
    """Files of the inbox that `take_file` can take now, the oldest first.

    Those are the plain files in the folder itself that nobody wrote to lately, and files whose taking broke
    off. Names that begin with a dot or end in .part or .tmp, symbolic links and subfolders are left alone.
    """
    now = time.time()
    broken_off = _plain_files(inbox / _TAKING)
    settled = [
        (changed, path)
        for changed, path in _plain_files(inbox)
        if not path.name.startswith(".")
        and path.suffix.lower() not in _UNFINISHED
        and abs(now - changed) >= settled_seconds  # a clock that is ahead must not keep a file for ever
    ]
    return [path for _, path in sorted(broken_off) + sorted(settled)]


def take_file(path: Path, store: TaskStore, inbox: Path) -> IntakeReport | None:
    """Take one file of the inbox: claim it in taking/, store its rows, and put it into done/ or rejected/.

    A file of which any row was rejected goes to rejected/ with its rejects file beside it, one that cannot be
    read with an .error.txt. When the taking breaks off, the file stays in taking/ and is taken again: ids
    make that harmless, and a row without an id or key gets one made of the file's content and the row's
    position.

    Returns:
        What came of it; None when another process has the file.

    Raises:
        UnusableFileError: it is a symbolic link, which is left where it is.
        IntakeStoppedError: the database failed; the file stays in taking/.
    """
    if path.is_symlink():
        raise UnusableFileError(f"{path} is a symbolic link: put the file itself into the inbox")
    for folder in (_TAKING, _DONE, _REJECTED):
        (inbox / folder).mkdir(parents=True, exist_ok=True)
    claimed = path if path.parent == inbox / _TAKING else _claim(path, inbox)
    with _locked(claimed) as mine:
        if not mine:
            return None
        report = _take_claimed(claimed, store, inbox)
        claimed.replace(inbox / (_REJECTED if report.rejected else _DONE) / claimed.name)
    return report


def _take_claimed(claimed: Path, store: TaskStore, inbox: Path) -> IntakeReport:
    dropped = claimed.name.split("-", 2)[-1]  # the name that a person knows it by
    rejects_path = inbox / _REJECTED / f"{claimed.name}.rejects.jsonl"
    rejects_path.unlink(missing_ok=True)  # of a taking that broke off
    with Intake(store) as intake, RejectsFile(rejects_path) as rejects:
        try:
            with open_task_file(claimed, identity=_digest(claimed)) as file:
                intake.take(file, rejects)
            return intake.finish()
        except UnusableFileError as error:
            explanation = inbox / _REJECTED / f"{claimed.name}.error.txt"
            explanation.write_text(
                f"{str(error).replace(str(claimed), dropped).replace(claimed.name, dropped)}\n"
            )
            return replace(intake.report(), rejected=1, rejects=(explanation,))


def _plain_files(folder: Path) -> list[tuple[float, Path]]:
    """Files right in `folder` with the time of their last change."""
    if not folder.is_dir():
        return []
    with os.scandir(folder) as entries:
        return [
            (entry.stat(follow_symlinks=False).st_mtime, Path(entry.path))
            for entry in entries
            if entry.is_file(follow_symlinks=False)
        ]


def _claim(path: Path, inbox: Path) -> Path:
    """Move a file to where only its taker touches it, under a name that is harmless and unique."""
    clean = re.sub(r"[^A-Za-z0-9._-]+", "_", path.name)[-100:]
    claimed = inbox / _TAKING / f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}-{clean}"
    with suppress(FileNotFoundError):  # another process was faster
        path.rename(claimed)
    return claimed


@contextmanager
def _locked(path: Path) -> Iterator[bool]:
    """Tell whether this process may take a claimed file. The lock goes when the process does."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except PermissionError:
        yield True  # reading it will say so
        return
    except OSError:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UnusableFileError(f"cannot read {path}: {error.strerror}") from None
