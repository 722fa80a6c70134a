"""What deciding took and came to: one shape of event, whether a batch, an inline call or a stress run decided.

A summary says what the decisions come to; telemetry adds how they were found: pairs of task and plan that were
considered and ruled out, queries, cache hits, the proof of optimality, and the time of each step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from cp_core.assignment.decision import Decision
from cp_core.assignment.summary import AssignmentSummary
from cp_core.models.registry import ModelRegistry

SUMMARY_EVENT = "assign.summary"
"""Kind of the event that every batch emits."""

PATHS = ("batch", "inline", "stress")


@dataclass(slots=True)
class AssignmentTelemetry:
    """Counts, timings and the proof of one batch, one inline decision, or many of either merged.

    Attributes:
        path: who decided: one of `PATHS`.
        strategy, config_hash: how it was decided.
        tasks: tasks looked at; one whose quota others took first is looked at again and counts again.
        summary: what the decisions come to; `count` keeps it.
        considered: pairs of task and plan that were considered.
        pruned: those that were ruled out before any search, by reason.
        queries: statements sent to the database.
        cache_hits, cache_misses: look-ups in the planner's cache.
        seconds: time by step; steps do not overlap.
        objective, bound: what was reached, and what no assignment exceeds; None where nothing was solved.
        inline: context of the inline decisions that a batch adjusts to; None when there was none.
        debug: counters of single searches; None unless flag DEBUG_CAPACITY_PROFILING is on.
    """

    path: str
    strategy: str
    config_hash: str
    tasks: int = 0
    summary: AssignmentSummary = field(default_factory=AssignmentSummary)
    considered: int = 0
    pruned: Counter[str] = field(default_factory=Counter)
    queries: int = 0
    cache_hits: int = 0
    cache_misses: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    objective: float | None = None
    bound: float | None = None
    inline: dict[str, Any] | None = None
    debug: Counter[str] | None = None

    def __post_init__(self) -> None:
        if self.path not in PATHS:
            raise ValueError(f"path is {self.path!r}; allowed are {', '.join(PATHS)}")

    @property
    def outcomes(self) -> Counter[str]:
        """Tasks by outcome."""
        return self.summary.outcomes

    @property
    def reasons(self) -> Counter[str]:
        """Tasks that were not assigned, by reason."""
        return self.summary.reasons

    @property
    def models(self) -> Counter[str]:
        """Assigned tasks by model."""
        return self.summary.models

    @property
    def gap(self) -> float | None:
        """Fraction of the bound that was not reached; None where nothing was solved."""
        if self.objective is None or self.bound is None:
            return None
        return max(0.0, 1.0 - self.objective / self.bound) if self.bound > 0 else 0.0

    @property
    def cache_hit_rate(self) -> float | None:
        """Share of look-ups that the cache could answer; None without look-ups."""
        lookups = self.cache_hits + self.cache_misses
        return self.cache_hits / lookups if lookups else None

    def count(self, decisions: Iterable[Decision], registry: ModelRegistry) -> None:
        """Count decisions in."""
        self.summary.count(decisions, registry)

    def profile(self, **counters: int) -> None:
        """Add to the debug counters, where they are wanted."""
        if self.debug is not None:
            self.debug.update(counters)

    @contextmanager
    def step(self, name: str, clock: Callable[[], float]) -> Iterator[None]:
        """Add the time that the block takes to step `name`, also when it raises.

        Args:
            clock: seconds that never go back, such as `time.monotonic`.
        """
        began = clock()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + clock() - began

    def merge(self, other: AssignmentTelemetry) -> None:
        """Count another one in. The objectives and bounds of several batches add up."""
        self.tasks += other.tasks
        self.summary.add(other.summary)
        self.considered += other.considered
        self.pruned.update(other.pruned)
        self.queries += other.queries
        self.cache_hits += other.cache_hits
        self.cache_misses += other.cache_misses
        for name, seconds in other.seconds.items():
            self.seconds[name] = self.seconds.get(name, 0.0) + seconds
        self.objective = _sum(self.objective, other.objective)
        self.bound = _sum(self.bound, other.bound)
        if other.inline is not None:
            self.inline = {**(self.inline or {}), **other.inline}
        if other.debug is not None:
            self.debug = (Counter() if self.debug is None else self.debug) + other.debug

    def to_event(self) -> dict[str, Any]:
        """The payload of an event, in plain JSON values. `debug` is there only when it was wanted."""
        event = {
            "path": self.path,
            "strategy": self.strategy,
            "config_hash": self.config_hash,
            "tasks": self.tasks,
            **self.summary.as_json(),
            "considered": self.considered,
            "pruned": dict(self.pruned),
            "queries": self.queries,
            "cache_hits": self.cache_hits,
            "cache_misses": self.cache_misses,
            "seconds": {**self.seconds, "total": sum(self.seconds.values())},
            "objective": self.objective,
            "bound": self.bound,
            "gap": self.gap,
            "inline": self.inline,
        }
        return event if self.debug is None else {**event, "debug": dict(self.debug)}


def _sum(one: float | None, other: float | None) -> float | None:
    if one is None or other is None:
        return other if one is None else one
    return one + other
