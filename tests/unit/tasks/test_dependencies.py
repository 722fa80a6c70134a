"""Which tasks of a batch may be stored, given what they depend on."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from cp_core.tasks.dependencies import judge


def test_tasks_come_after_what_they_depend_on():
    verdict = judge({"c": ["b"], "b": ["a"], "a": ["stored"]}, unknown=set())
    assert verdict.order == ("a", "b", "c")
    assert verdict.rejected == {}


def test_a_task_that_depends_on_an_unknown_one_is_rejected_and_so_is_what_depends_on_it():
    verdict = judge({"a": ["stored", "ghost"], "b": ["a"], "c": ["stored"]}, unknown={"ghost"})
    assert verdict.order == ("c",)
    assert verdict.rejected == {
        "a": "depends on 'ghost', which is no known task",
        "b": "depends on 'a', which was rejected",
    }


def test_a_circle_is_named_and_what_hangs_on_it_is_rejected():
    verdict = judge({"a": ["b"], "b": ["c"], "c": ["a"], "d": ["c"], "e": []}, unknown=set())
    assert verdict.order == ("e",)
    circle = "its dependencies run in a circle: a -> b -> c -> a"
    assert verdict.rejected == {
        "a": circle,
        "b": circle,
        "c": circle,
        "d": "depends on 'c', which was rejected",
    }


def test_a_task_on_itself_is_a_circle_of_one():
    assert judge({"a": ["a"]}, unknown=set()).rejected == {"a": "its dependencies run in a circle: a -> a"}


def test_a_circle_of_thousands_is_named_by_its_beginning():
    count = 5000
    ring = {str(n): [str((n + 1) % count)] for n in range(count)}
    verdict = judge(ring, unknown=set())
    assert len(verdict.rejected) == count
    assert verdict.rejected["0"].endswith(
        "0 -> 1 -> 2 -> 3 -> 4 -> 5 -> 6 -> 7 -> 8 -> 9 -> 10 -> 11 -> 12 "
        "-> 13 -> 14 -> 15 -> 16 -> 17 -> 18 -> … -> 0"
    )


_NAMES = st.sampled_from("abcdefgh")


@given(st.dictionaries(_NAMES, st.lists(_NAMES, max_size=4), max_size=8), st.sets(_NAMES))
def test_exactly_the_tasks_that_can_ever_run_are_stored(dependencies, outside):
    unknown = outside - dependencies.keys()
    verdict = judge(dependencies, unknown)

    runnable: set[str] = set()  # by brute force: run whatever can run until nothing more can
    while more := {
        task
        for task, needed in dependencies.items()
        if task not in runnable
        and all(one in runnable or (one not in dependencies and one not in unknown) for one in needed)
    }:
        runnable |= more

    assert set(verdict.order) == runnable
    assert verdict.rejected.keys() == dependencies.keys() - runnable
    seen: set[str] = set()
    for task in verdict.order:
        assert seen.issuperset(one for one in dependencies[task] if one in dependencies)
        seen.add(task)
    for message in verdict.rejected.values():
        steps = message.partition("circle: ")[2].split(" -> ") if "circle" in message else []
        assert all(after in dependencies[before] for before, after in pairwise(steps))
