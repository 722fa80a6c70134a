"""Which tasks of a batch may be stored, given what they depend on."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

SHOWN_CYCLE = 20


@dataclass(frozen=True, slots=True)
class Verdict:
    """What becomes of a batch of tasks.

    Attributes:
        order: ids to store, each after everything it depends on.
        rejected: why each of the others cannot be stored.
    """

    order: tuple[str, ...]
    rejected: dict[str, str]


def judge(dependencies: Mapping[str, Collection[str]], unknown: Collection[str]) -> Verdict:
    """Decide which tasks may be stored: those whose dependencies are stored already, or may be.

    Args:
        dependencies: for each task of the batch, the ids it depends on.
        unknown: ids depended on that are neither in the batch nor stored.
    """
    rejected = {
        task: f"depends on {missing!r}, which is no known task"
        for task, needed in dependencies.items()
        if (missing := next((one for one in needed if one in unknown), None)) is not None
    }
    order = _storable(dependencies, rejected)
    stored = set(order)
    blocked = [task for task in dependencies if task not in stored and task not in rejected]
    obstacle = {
        task: next(one for one in dependencies[task] if one in dependencies and one not in stored)
        for task in blocked
    }
    for cycle in _cycles(obstacle):
        rejected |= dict.fromkeys(cycle, f"its dependencies run in a circle: {_shown(cycle)}")
    for task in blocked:
        rejected.setdefault(task, f"depends on {obstacle[task]!r}, which was rejected")
    return Verdict(tuple(order), rejected)


def _storable(dependencies: Mapping[str, Collection[str]], rejected: Collection[str]) -> list[str]:
    """The tasks that wait for no rejected task and stand in no circle, each after what it depends on."""
    sorter = TopologicalSorter(
        {task: [one for one in needed if one in dependencies] for task, needed in dependencies.items()}
    )
    with suppress(CycleError):  # what stands outside of circles is handed out all the same
        sorter.prepare()
    order: list[str] = []
    while ready := [task for task in sorter.get_ready() if task not in rejected]:
        order += ready
        sorter.done(*ready)
    return order


def _cycles(successor: Mapping[str, str]) -> list[list[str]]:
    """The circles of a graph in which every task has at most one successor."""
    cycles = []
    walked: set[str] = set()
    for start in successor:
        path: dict[str, None] = {}
        task: str | None = start
        while task is not None and task not in walked:
            walked.add(task)
            path[task] = None
            task = successor.get(task)
        if task in path:
            steps = list(path)
            cycles.append(steps[steps.index(task) :])
    return cycles


def _shown(cycle: list[str]) -> str:
    steps = cycle if len(cycle) <= SHOWN_CYCLE else [*cycle[: SHOWN_CYCLE - 1], "…"]
    return " -> ".join([*steps, cycle[0]])
