"""No night moves a number further than its cap."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cp_core.learning.limits import cap, cap_in_order

POSITIVE = st.floats(1e-6, 1e6)
LIMIT = st.floats(0.01, 0.2)


def test_what_is_near_is_taken_and_what_is_far_is_approached():
    assert cap(40.0, 42.0, 0.1) == 42.0
    assert cap(40.0, 60.0, 0.1) == pytest.approx(44.0)
    assert cap(40.0, 1.0, 0.1) == pytest.approx(36.0)


@given(POSITIVE, st.floats(allow_nan=False), LIMIT)
def test_no_number_moves_beyond_its_cap(before: float, after: float, limit: float):
    assert abs(cap(before, after, limit) - before) <= limit * before * (1 + 1e-9)


@given(POSITIVE, POSITIVE, POSITIVE, LIMIT)
def test_a_larger_number_is_never_capped_below_a_smaller_one(before: float, a: float, b: float, limit: float):
    low, high = sorted((a, b))
    assert cap(before, low, limit) <= cap(before, high, limit)


@given(
    st.lists(POSITIVE, min_size=5, max_size=5, unique=True), st.lists(POSITIVE, min_size=5, max_size=5), LIMIT
)
def test_numbers_that_rise_still_rise_and_none_passes_its_cap(
    before: list[float], after: list[float], limit: float
):
    before = [place + number for place, number in enumerate(sorted(before))]
    moved = cap_in_order(before, after, limit)

    assert moved == sorted(set(moved))
    assert all(abs(new - old) <= limit * old * (1 + 1e-9) for old, new in zip(before, moved, strict=True))


def test_what_was_learned_out_of_order_is_put_in_order_first():
    # ln 4 and ln 1 are pooled to ln 2: both move toward 2
    assert cap_in_order([1.9, 2.1], [4.0, 1.0], 0.2) == pytest.approx([0.99 * 2 + 0.019, 0.99 * 2 + 0.021])


@pytest.mark.parametrize(
    ("before", "after", "limit"),
    [(0.0, 1.0, 0.1), (1.0, 2.0, 0.0), (1.0, 2.0, 0.3), (1.0, float("nan"), 0.1)],
)
def test_what_cannot_be_capped_is_refused(before: float, after: float, limit: float):
    with pytest.raises(ValueError, match=r"must be|is not a number"):
        cap(before, after, limit)
