"""What a person may submit as a task: the fields, their limits, and what is said of a row that breaks them.

Every way in (command line, inbox, API) validates a row here, so that one set of limits holds for all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    field_validator,
)

TITLE_CHARACTERS = 500
DESCRIPTION_CHARACTERS = 100_000
ID_CHARACTERS = 200
WORKSPACE_CHARACTERS = 200
LABELS = 50
LABEL_CHARACTERS = 100
DEPENDENCIES = 100
ESTIMATED_FILES = 1_000_000
ESTIMATED_LINES = 1_000_000_000
WORKSPACE_FILES = 1_000_000_000
MAX_ATTEMPTS = 10
EXTRA_BYTES = 64 * 1024
EARLIEST = datetime(2008, 1, 1, tzinfo=UTC)
LATEST = datetime(2200, 1, 1, tzinfo=UTC)
CLOCK_SKEW = timedelta(minutes=5)

PRIORITIES = ("P0", "P1", "P2", "P3", "P4")
DEFAULT_PRIORITY = 3
DEFAULT_WORKSPACE = "default"
DEFAULT_MAX_ATTEMPTS = 3

SHOWN_CHARACTERS = 100


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing wrong with a row: the field (None for the whole row), the value seen, what is allowed."""

    field: str | None
    value: str | None
    message: str

    def __str__(self) -> str:
        field = f"{self.field}: " if self.field else ""
        seen = f" (seen: {_printable(self.value)})" if self.value is not None else ""
        return f"{field}{self.message}{seen}"


class SubmissionError(ValueError):
    """A row that cannot become a task, with every problem found in it."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__("; ".join(map(str, problems)))
        self.problems = problems


def _number_as_text(value: object) -> object:
    return str(value) if type(value) is int else value


def _not_a_bool(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a whole number, not true or false")
    return value


def _split(value: object) -> object:
    """The parts of a comma-separated text, or of a list, without surrounding blanks, empties and repeats."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, list | tuple):
        raise ValueError("must be a list of texts, or one text with commas between")
    texts = [_number_as_text(part) for part in parts]
    try:
        return tuple(dict.fromkeys(filter(None, map(str.strip, texts))))  # type: ignore[arg-type]
    except TypeError:
        return texts  # for the type's own check to refuse


def _priority(value: object) -> int:
    name = value.strip().upper() if isinstance(value, str) else value
    if name not in PRIORITIES:
        raise ValueError(f"must be one of {', '.join(PRIORITIES)}")
    return PRIORITIES.index(name)


def _moment(value: object) -> datetime:
    example = "such as 2026-03-01T09:00:00Z or 2026-03-01T10:00:00+01:00"
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value.strip())
        except ValueError:
            raise ValueError(f"must be a date and time in ISO 8601 with its time zone, {example}") from None
    if not isinstance(value, datetime):
        raise ValueError(f"must be a text: a date and time in ISO 8601 with its time zone, {example}")
    if value.tzinfo is None:
        raise ValueError(f"has no time zone: write it {example}")
    if not EARLIEST <= value < LATEST:
        raise ValueError(f"must lie between the years {EARLIEST.year} and {LATEST.year - 1}")
    return value.astimezone(UTC)


def _visible(value: str) -> str:
    if not (value.isascii() and value.isprintable() and " " not in value):
        raise ValueError("may hold only visible ASCII characters, without blanks")
    return value


def _storable(value: str) -> str:
    if "\0" in value:
        raise ValueError("holds a NUL character (U+0000), which PostgreSQL cannot store")
    return value


Identifier = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=ID_CHARACTERS),
    BeforeValidator(_number_as_text),
    AfterValidator(_visible),
]
Title = Annotated[
    str, StringConstraints(min_length=1, max_length=TITLE_CHARACTERS), AfterValidator(_storable)
]
Description = Annotated[str, StringConstraints(max_length=DESCRIPTION_CHARACTERS), AfterValidator(_storable)]
Workspace = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=WORKSPACE_CHARACTERS),
    AfterValidator(_storable),
]
Label = Annotated[
    str, StringConstraints(min_length=1, max_length=LABEL_CHARACTERS), AfterValidator(_storable)
]
Priority = Annotated[int, BeforeValidator(_priority)]
Count = Annotated[int, BeforeValidator(_not_a_bool)]
Moment = Annotated[datetime, BeforeValidator(_moment)]


class TaskSubmission(BaseModel):
    """One validated row. Fields it does not know are kept aside in `model_extra`, which no rule reads.

    It is made by `validate`, which also takes null for absent and a title from the description.
    """

    model_config = ConfigDict(frozen=True, extra="allow")

    id: Identifier | None = Field(default=None, description="Id of the task; made when absent.")
    idempotency_key: Identifier | None = Field(
        default=None, description="A second row with the same key is a duplicate."
    )
    title: Title
    description: Description = ""
    priority: Priority = Field(
        default=DEFAULT_PRIORITY, description="P0 (most urgent) to P4; 0 to 4 once validated."
    )
    labels: Annotated[tuple[Label, ...], BeforeValidator(_split), Field(max_length=LABELS)] = ()
    workspace: Workspace = DEFAULT_WORKSPACE
    estimated_files: Count | None = Field(default=None, ge=0, le=ESTIMATED_FILES)
    estimated_lines: Count | None = Field(default=None, ge=0, le=ESTIMATED_LINES)
    workspace_files: Count | None = Field(default=None, ge=0, le=WORKSPACE_FILES)
    dependencies: Annotated[
        tuple[Identifier, ...], BeforeValidator(_split), Field(max_length=DEPENDENCIES)
    ] = Field(default=(), description="Ids of tasks that must have succeeded before this one runs.")
    submitted_at: Moment
    deadline: Moment | None = None
    max_attempts: Count = Field(default=DEFAULT_MAX_ATTEMPTS, ge=1, le=MAX_ATTEMPTS)

    @field_validator("dependencies")
    @classmethod
    def _not_on_itself(cls, value: tuple[str, ...], info: ValidationInfo) -> tuple[str, ...]:
        if info.data.get("id") in value:
            raise ValueError("a task cannot depend on itself")
        return value

    @field_validator("deadline")
    @classmethod
    def _after_submission(cls, value: datetime | None, info: ValidationInfo) -> datetime | None:
        submitted_at = info.data.get("submitted_at")
        if value is not None and submitted_at is not None and value <= submitted_at:
            raise ValueError(f"must lie after the task's submission, {submitted_at.isoformat()}")
        return value


FIELDS = tuple(TaskSubmission.model_fields)
"""Names a row may use. Any other name is kept as extra."""


def validate(fields: Mapping[str, Any], *, now: datetime) -> TaskSubmission:
    """Turn the fields of one row into a task. Null means absent; a title may come from the description.

    Args:
        fields: values by field name, as parsed from JSON, or texts as in CSV.
        now: the time of submission of a row that brings none; one that does may not lie ahead of it.

    Raises:
        SubmissionError: with one problem for each field that breaks a rule.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    given.setdefault("submitted_at", now)
    title, description = given.get("title", ""), given.get("description", "")
    if isinstance(title, str) and isinstance(description, str):
        given["title"] = " ".join(title.split()) or _first_line(description)
    try:
        submission = TaskSubmission.model_validate(given)
    except ValidationError as error:
        raise SubmissionError(*map(_problem, error.errors(include_url=False))) from None
    if submission.submitted_at > now + CLOCK_SKEW:
        raise SubmissionError(
            Problem(
                "submitted_at", shown(fields["submitted_at"]), f"lies in the future: now is {now.isoformat()}"
            )
        )
    return submission


def extra_json(submission: TaskSubmission) -> str | None:
    """What else the row held, as JSON that PostgreSQL can store; None when there was nothing.

    Raises:
        SubmissionError: it is too large, or holds NUL characters or numbers that JSON has no word for.
    """
    extra = submission.model_extra
    if not extra:
        return None
    try:
        text = json.dumps(extra, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise SubmissionError(Problem(None, None, f"an extra field cannot be stored: {error}")) from None
    size = len(text.encode())
    if size > EXTRA_BYTES:
        largest = max(extra, key=lambda name: len(json.dumps(extra[name])))
        raise SubmissionError(
            Problem(
                largest,
                shown(extra[largest]),
                f"the fields that are not a task's own take {size:,} bytes together, at most {EXTRA_BYTES:,} "
                "are kept; this is the largest: leave it out",
            )
        )
    if _ESCAPED_NUL.search(text):
        raise SubmissionError(
            Problem(
                None, None, "an extra field holds a NUL character (U+0000), which PostgreSQL cannot store"
            )
        )
    return text


def shown(value: object) -> str:
    """A value for a message: a text as it is, anything else as JSON, cut after `SHOWN_CHARACTERS`."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= SHOWN_CHARACTERS else text[: SHOWN_CHARACTERS - 1] + "…"


_ESCAPED_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")


def _printable(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)[1:-1]  # a value must not steer the terminal it is printed on


def _first_line(description: str) -> str:
    line = description.lstrip().partition("\n")[0][: 2 * TITLE_CHARACTERS]
    return " ".join(line.replace("\0", "").split())[:TITLE_CHARACTERS].rstrip()


def _problem(error: Any) -> Problem:
    """One of pydantic's errors, in the words of this project."""
    place, kind, value, context = error["loc"], error["type"], error["input"], error.get("ctx", {})
    field = str(place[0]) if place else None
    if field == "title" and value == "":
        return Problem(
            field, None, "a task needs a title, or a description whose first line can be its title"
        )
    wording = _WORDINGS.get(kind)
    if wording is None:
        return Problem(field, shown(value), error["msg"].removeprefix("Value error, "))
    size = len(value) if isinstance(value, str | list | tuple) else None
    return Problem(field, shown(value), wording.format(size=size, **context))


_WORDINGS = {
    "string_type": "must be a text",
    "string_too_short": "must not be empty",
    "string_too_long": "has {size:,} characters; at most {max_length:,} are allowed",
    "too_long": "has {actual_length:,} entries; at most {max_length:,} are allowed",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "int_parsing_size": "must be a smaller number",
    "greater_than_equal": "must be at least {ge:,}",
    "less_than_equal": "must be at most {le:,}",
}
