"""Domain: the part of a system a task is about, by its labels, else paths it names, else its workspace."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache

import numpy as np
from numpy.typing import NDArray

from cp_core.scoring.config import Domain, DomainRule, DomainRules
from cp_core.scoring.distinct import Distinct

DOMAINS = tuple(Domain)
_KINDS_OF_WORK = (Domain.DOCUMENTATION, Domain.TESTING)
_AREAS = (Domain.INFRASTRUCTURE, Domain.ML, Domain.FRONTEND, Domain.BACKEND)
PRECEDENCE = (*_KINDS_OF_WORK, *_AREAS)
"""Which domain wins where one source names several: a kind of work says more than an area, and among areas
the more
particular one says more than the backend, which most tasks touch."""

_BETWEEN_WORDS = re.compile(r"[\W_]+")


class DomainSource(StrEnum):
    """What a task's domain was taken from, in the order in which they are asked."""

    LABELS = "labels"
    PATHS = "paths"
    WORKSPACE = "workspace"
    DEFAULT = "default"


@dataclass(frozen=True)
class Domains:
    """The index in `DOMAINS` of each row's domain, and the index in `DomainSource` of what named it."""

    domain: NDArray[np.intp]
    source: NDArray[np.intp]


def domains_of(
    labels: Distinct[frozenset[str]],
    paths: Distinct[tuple[str, ...]],
    workspaces: Distinct[str],
    rules: DomainRules,
) -> Domains:
    """The domain of each row, from the first source that names one."""
    by_label = _lookup(rules.rules, lambda rule: rule.labels)
    by_path_word = _lookup(rules.rules, lambda rule: rule.path_words)
    by_workspace_word = _lookup(rules.rules, lambda rule: rule.workspace_words)

    @cache
    def of_path(path: str) -> Domain | None:
        return _first(_BETWEEN_WORDS.split(path), by_path_word)

    named = [
        labels.map(lambda own: _index(_first(own, by_label)), np.intp),
        paths.map(lambda own: _index(_of_paths(map(of_path, own))), np.intp),
        workspaces.map(lambda name: _index(_of_workspace(name, by_workspace_word)), np.intp),
        np.full(len(labels.codes), DOMAINS.index(rules.default)),
    ]
    sources = [domain >= 0 for domain in named]
    return Domains(
        domain=np.select(sources, named).astype(np.intp),
        source=np.select(sources, list(range(len(named)))).astype(np.intp),
    )


def domain_factor(domain: NDArray[np.intp], rules: DomainRules) -> NDArray[np.float64]:
    """What the domain multiplies the score by."""
    return np.array([rules.rules[each].factor for each in DOMAINS])[domain]


def _lookup(
    rules: Mapping[Domain, DomainRule], keys: Callable[[DomainRule], Iterable[str]]
) -> dict[str, Domain]:
    """Which domain a word or label names; the first in `PRECEDENCE` where several claim it."""
    return {key: domain for domain in reversed(PRECEDENCE) for key in keys(rules[domain])}


def _first(keys: Iterable[str], lookup: Mapping[str, Domain]) -> Domain | None:
    named = {lookup[key] for key in keys if key in lookup}
    return next((domain for domain in PRECEDENCE if domain in named), None)


def _of_paths(domains: Iterable[Domain | None]) -> Domain | None:
    """The area that most paths name; documentation or testing only where no path names an area.

    A change in `src/` often brings its tests and its page of documentation along.
    """
    named = [domain for domain in domains if domain]
    areas = [domain for domain in named if domain in _AREAS] or named
    return max(PRECEDENCE, key=areas.count) if areas else None


def _of_workspace(name: str, lookup: Mapping[str, Domain]) -> Domain | None:
    last = name.lower().rstrip("/").rpartition("/")[2]
    return _first(_BETWEEN_WORDS.split(last), lookup)


def _index(domain: Domain | None) -> int:
    return -1 if domain is None else DOMAINS.index(domain)
