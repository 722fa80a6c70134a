"""Configuration: reads models.yaml, scoring.yaml and policies.yaml, and keeps every version that was used.

What was learned is laid over what the files say, and is part of the version.

What the keys mean is said by the pydantic models of `cp_core`; here is only how files become those models,
and how whatever is wrong in them is shown to a person.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal
from difflib import get_close_matches
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import psycopg
import yaml
from psycopg.types.json import Jsonb
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from cp_core.learning.learned import Learned
from cp_core.models.registry import ModelRegistry
from cp_core.policy.policies import Policies
from cp_core.scoring.config import ScoringConfig
from cp_resources.errors import UserError

MODELS_FILE = "models.yaml"
SCORING_FILE = "scoring.yaml"
POLICIES_FILE = "policies.yaml"

_LONGEST_VALUE_SHOWN = 80
_VALUE_STAYS_HIDDEN = {"secret", "extra_forbidden", "missing"}

Declared = TypeVar("Declared", bound=BaseModel)
Path_ = tuple[str | int, ...]


class ConfigurationError(UserError):
    """A configuration file is missing or wrong. The text names file, line, key, value and what is allowed."""


@dataclass(frozen=True)
class Configuration:
    """One version of everything a person configures."""

    registry: ModelRegistry
    scoring: ScoringConfig
    policies: Policies
    learned: Learned = field(default_factory=Learned)
    written_scoring: ScoringConfig | None = field(default=None, repr=False, compare=False)

    @property
    def files(self) -> Configuration:
        """The same without anything learned: what people wrote."""
        return Configuration(self.registry, self.written_scoring or self.scoring, self.policies)

    def with_learned(self, learned: Learned) -> Configuration:
        """This configuration with `learned` laid over it; it must not have anything laid over it yet.

        Raises:
            LearnedError: a key that was learned is not, or no longer, one of scoring.yaml's numbers.
        """
        return replace(
            self,
            scoring=learned.apply_to(self.scoring),
            learned=learned,
            written_scoring=self.scoring,
        )

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of the canonical JSON of all of it: the same for files that differ in layout only."""
        return hashlib.sha256(_canonical_json(self.as_dict()).encode()).hexdigest()

    def as_dict(self) -> dict[str, Any]:
        """The configuration as plain JSON values; each section validates to what it was made from."""
        content = {
            "models": _plain(self.registry.model_dump()),
            "scoring": _plain(self.scoring.model_dump()),
            "policies": _plain(self.policies.model_dump()),
        }
        if self.learned != Learned():
            content["learned"] = _plain(self.learned.model_dump())
        return content

    def remember(self, connection: psycopg.Connection) -> str:
        """Store this version in config_versions, unless it is there, and return its hash."""
        connection.execute(
            "INSERT INTO cp.config_versions (config_hash, content) VALUES (%s, %s) ON CONFLICT DO NOTHING",
            (self.content_hash, Jsonb(self.as_dict())),
        )
        return self.content_hash


def load_configuration(config_dir: Path) -> Configuration:
    """Read and validate the three files of `config_dir`.

    Raises:
        ConfigurationError: a file is missing, is not YAML, or declares what is not allowed.
    """
    return Configuration(
        registry=load_file(config_dir / MODELS_FILE, ModelRegistry),
        scoring=load_file(config_dir / SCORING_FILE, ScoringConfig),
        policies=load_file(config_dir / POLICIES_FILE, Policies),
    )


def load_file(path: Path, declared: type[Declared]) -> Declared:
    """Read one YAML file as `declared`.

    Raises:
        ConfigurationError: see `load_configuration`.
    """
    root = _parse(path)
    _refuse_repeated_keys(path, root)
    try:
        content = yaml.SafeLoader("").construct_document(root)
    except yaml.YAMLError as error:
        raise ConfigurationError(_not_yaml(path, error)) from error
    try:
        return declared.model_validate(content)
    except ValidationError as error:
        problems = [_describe(path, root, declared, detail) for detail in error.errors(include_url=False)]
        raise ConfigurationError("\n".join(problems)) from error


def _parse(path: Path) -> yaml.Node:
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"{path} does not exist: CP_CONFIG_DIR must name a folder that holds "
            f"{MODELS_FILE}, {SCORING_FILE} and {POLICIES_FILE}"
        ) from error
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"{path} is not UTF-8 text (byte {error.start})") from error
    except yaml.YAMLError as error:
        raise ConfigurationError(_not_yaml(path, error)) from error
    if root is None:
        raise ConfigurationError(f"{path} is empty: a mapping of keys is needed")
    return root


def _not_yaml(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f"{path}:{mark.line + 1}" if mark else str(path)
    return f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}"


def _refuse_repeated_keys(path: Path, root: yaml.Node) -> None:
    repeated = [
        f"{path}:{key.start_mark.line + 1}: {_dotted(where)}: this key stands here a second time"
        for where, key in _repeated_keys(root)
    ]
    if repeated:
        raise ConfigurationError("\n".join(repeated))


def _repeated_keys(node: yaml.Node, path: Path_ = ()) -> Iterator[tuple[Path_, yaml.Node]]:
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            yield from _repeated_keys(item, (*path, index))
    if isinstance(node, yaml.MappingNode):
        seen: set[Hashable] = set()
        for key, value in node.value:
            if isinstance(key.value, str):
                if key.value in seen:
                    yield (*path, key.value), key
                seen.add(key.value)
            yield from _repeated_keys(value, (*path, str(key.value)))


def _describe(path: Path, root: yaml.Node, declared: type[BaseModel], detail: ErrorDetails) -> str:
    keys = tuple(part for part in detail["loc"] if part != "[key]")
    what = detail["msg"]
    if detail["type"] == "missing":
        what = "this key is needed and is missing"
    if detail["type"] == "extra_forbidden":
        what = f"unknown key{_suggestion(str(keys[-1]), _keys_allowed(declared, keys[:-1]))}"
    if detail["type"] in {"model_type", "dict_type"}:
        what = "a mapping of keys is needed"
    seen = "" if detail["type"] in _VALUE_STAYS_HIDDEN else f" (seen: {_shown(detail['input'])})"
    return f"{path}:{_line(root, keys)}: {_dotted(keys)}: {what}{seen}"


def _dotted(path: Path_) -> str:
    dotted = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
    return dotted.removeprefix(".") or "the whole file"


def _line(root: yaml.Node, path: Path_) -> int:
    """Line of the key at `path`, or of the nearest mapping or list around it."""
    node, mark = root, root.start_mark
    for part in path:
        if isinstance(node, yaml.MappingNode):
            found = [(key, value) for key, value in node.value if key.value == str(part)]
            if not found:
                break
            mark, node = found[0][0].start_mark, found[0][1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            mark = node.start_mark
    return mark.line + 1


def _keys_allowed(annotation: Any, path: Path_) -> list[str]:
    """Keys of the pydantic model that stands at `path` below `annotation`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        fields = {field.alias or name: field for name, field in annotation.model_fields.items()}
        if not path:
            return list(fields)
        field = fields.get(str(path[0]))
        return _keys_allowed(field.annotation, path[1:]) if field else []
    inner = get_args(annotation)
    if get_origin(annotation) is dict:
        return _keys_allowed(inner[1], path[1:])
    if get_origin(annotation) in {tuple, list}:
        return _keys_allowed(inner[0], path[1:])
    return next((keys for choice in inner if (keys := _keys_allowed(choice, path))), [])


def _suggestion(name: str, allowed: list[str]) -> str:
    near = get_close_matches(name, allowed, n=1)
    if near:
        return f": did you mean {near[0]!r}?"
    return f": one of {', '.join(allowed)} is allowed" if allowed else ""


def _shown(value: object) -> str:
    shown = str(value) if isinstance(value, Decimal) else repr(value)
    return shown if len(shown) <= _LONGEST_VALUE_SHOWN else f"{shown[:_LONGEST_VALUE_SHOWN]}..."


def _canonical_json(content: object) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _plain(value: Any) -> Any:
    """JSON values only. Sets are sorted and decimals lose trailing zeros: equal means the same text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, set | frozenset):
        return sorted(_plain(item) for item in value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    if isinstance(value, Decimal):
        return format(value.normalize(), "f")
    return value
