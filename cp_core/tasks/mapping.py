"""Other people's field names: a map from paths in their rows to a task's fields, and ready-made presets."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from cp_core.tasks.submission import FIELDS, PRIORITIES

_ABSENT = object()


class MappingError(ValueError):
    """A map that names no field of a task, or no path. The text says what is allowed."""


def value_at(document: Any, path: str) -> Any:
    """The value at a dotted path, or None where the path leads nowhere.

    A name that itself holds dots is found first. A path that meets a list collects from its members, so that
    `labels.name` of `{"labels": [{"name": "a"}, {"name": "b"}]}` is `["a", "b"]`.
    """
    if isinstance(document, list):
        return [found for member in document if (found := value_at(member, path)) is not None]
    if not isinstance(document, Mapping):
        return None
    if path in document:
        return document[path]
    name, _, rest = path.partition(".")
    return value_at(document[name], rest) if rest and name in document else None


def github_issue(issue: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a task in one issue of `gh issue list --json number,title,body,labels,url,createdAt`.

    The id is `owner/repository#number` and the workspace `owner/repository`, both from the url. The priority
    is that of the most urgent label that names one (see `priority_of_label`).
    """
    labels = issue.get("labels") or []
    if isinstance(labels, list):
        labels = [label.get("name") if isinstance(label, Mapping) else label for label in labels]
    place = _ISSUE_URL.search(str(issue.get("url")))
    number = issue.get("number")
    return {
        **{name: value for name, value in issue.items() if name not in _ISSUE_FIELDS},
        "id": f"{place['repository']}#{place['number']}" if place else number and f"#{number}",
        "title": issue.get("title"),
        "description": issue.get("body"),
        "labels": labels,
        "priority": min(filter(None, map(priority_of_label, labels)), default=None),
        "workspace": place and place["repository"],
        "submitted_at": issue.get("createdAt"),
    }


def priority_of_label(label: object) -> str | None:
    """The priority a label names, or None.

    `P0` to `P4` count alone or beside the word priority (`P1`, `priority/P1`, `P1-high`); critical, urgent,
    high, medium, normal, low and lowest only beside one of these (`priority: high`), because `low` alone may
    say anything. A label that says more (`high priority customer`) names none.
    """
    words = re.split(r"[\s:/_-]+", str(label).strip().lower())
    spoken = [word for word in words if word not in ("priority", "prio")]
    named = [word.upper() if word.upper() in PRIORITIES else _SPOKEN_PRIORITIES.get(word) for word in spoken]
    numbered = any(word.upper() in PRIORITIES for word in spoken)
    if not (numbered or len(spoken) < len(words)):
        return None
    return None if None in named else min(filter(None, named), default=None)


PRESETS: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {"github": github_issue}


@dataclass(frozen=True, slots=True)
class FieldMap:
    """How a row of a file becomes the fields of a task.

    Attributes:
        preset: a function of `PRESETS`, applied first.
        paths: dotted path by field. Where a path leads to a value, that value is the field's; elsewhere the
            row keeps what it has under the field's own name.
    """

    preset: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    paths: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, specifications: Iterable[str], *, preset: str | None = None) -> FieldMap:
        """Read `field=path` specifications.

        Raises:
            MappingError: one is not of that form, names no field of a task, or names a field twice.
        """
        if preset is not None and preset not in PRESETS:
            raise MappingError(f"there is no preset {preset!r}; there is {', '.join(PRESETS)}")
        paths: dict[str, str] = {}
        for specification in specifications:
            name, equals, path = (part.strip() for part in specification.partition("="))
            if not equals or not path:
                raise MappingError(f"{specification!r} is not a map: write field=path, such as id=issue.key")
            if name not in FIELDS:
                raise MappingError(
                    f"{specification!r}: {name!r} is not a field of a task{did_you_mean(name, FIELDS)}; "
                    f"the fields are {', '.join(FIELDS)}"
                )
            if name in paths:
                raise MappingError(
                    f"{name} is mapped twice, from {paths[name]!r} and from {path!r}; keep one"
                )
            paths[name] = path
        return cls(PRESETS[preset] if preset else None, paths)

    def apply(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of a task in `row`, with whatever else it holds under its own names."""
        fields = self.preset(row) if self.preset else dict(row)
        for name, path in self.paths.items():
            value = value_at(row, path)
            if value is None:
                continue
            if path not in FIELDS:
                fields.pop(path, None)
            fields[name] = value
        return fields

    def check_columns(self, columns: Iterable[str]) -> None:
        """Make sure that a table with these columns can hold tasks.

        Raises:
            MappingError: a mapped path is no column, or no column says anything about a task.
        """
        columns = list(columns)
        for name, path in self.paths.items():
            if path not in columns:
                raise MappingError(
                    f"{name}={path}: there is no column {path!r}{did_you_mean(path, columns)}; "
                    f"the columns are {', '.join(columns)}"
                )
        known = {*FIELDS, *self.paths.values()}
        if not self.preset and known.isdisjoint(columns):
            raise MappingError(
                f"neither JSON nor a CSV file whose first line names fields of a task: it begins with "
                f"{', '.join(columns)[:100]!r}, where fields such as title and description were "
                "expected; with other names, say which is which with --map field=column"
            )

    def leads_nowhere(self, row: Mapping[str, Any]) -> set[str]:
        """The paths that find nothing in `row`."""
        return {path for path in self.paths.values() if value_at(row, path) is None}


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """` (did you mean 'priority'?)`, or nothing when no allowed name is near."""
    close = get_close_matches(name.lower(), allowed, n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""


_ISSUE_URL = re.compile(r"//[^/]+/(?P<repository>[^/\s]+/[^/\s]+)/(?:issues|pull)/(?P<number>\d+)")
_ISSUE_FIELDS = ("id", "title", "body", "labels", "createdAt")
_SPOKEN_PRIORITIES = {
    "critical": "P0",
    "urgent": "P0",
    "high": "P1",
    "medium": "P2",
    "normal": "P2",
    "low": "P3",
    "lowest": "P4",
}
