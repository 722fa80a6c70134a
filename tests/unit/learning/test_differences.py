"""Differences of configurations: every key that differs, and weights of texts in words."""

from __future__ import annotations

from cp_core.learning.differences import differences


def test_keys_that_differ_are_named_and_others_are_not():
    found = differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "c": 3}, "d": {"e": 4}})
    assert [(each.key, each.before, each.after) for each in found] == [("a.c", 2, 3), ("d.e", None, 4)]


def test_weights_of_texts_are_told_by_number_and_size():
    def version(*weights: float) -> dict:
        return {"learned": {"calibration": {"traits": {"success": {"haiku": list(weights)}}}}}

    [found] = differences(version(3.0, 4.0), version(0.0, 2.0))
    assert found.key == "learned.calibration.traits.success.haiku"
    assert found.before.startswith("2 weights, size 5.000 (")
    assert found.after.startswith("2 weights, size 2.000 (")
    assert differences(version(3.0, 4.0), version(3.0, 4.0)) == []
    assert len(differences(version(3.0, 4.0), version(4.0, 3.0))) == 1
