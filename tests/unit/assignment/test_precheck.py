"""Capacity before any search, with figures that prove what is lacking."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cp_core.assignment.precheck import REASONS, Lack, Precheck
from cp_core.tasks.reasons import Reason

ACCOUNTS = ("max/5-hour", "max/weekly", "budget/api")
# prepaid premium (both windows), prepaid budget model (both windows), money premium
DRAWS = np.array([[True, True, False], [True, True, False], [False, False, True]])


def check(need, available, possible=(True, True, True), in_tier=(True, True, True)) -> Precheck:
    return Precheck(
        need=np.array([need], dtype=float),
        possible=np.array([possible]),
        in_tier=np.array([in_tier]) & np.array([possible]),
        draws=DRAWS,
        available=np.array(available, dtype=float),
        accounts=ACCOUNTS,
    )


def found(one: Precheck) -> Reason | None:
    return REASONS[int(one.codes()[0])]


def test_nothing_lacks_where_one_option_fits_exactly():
    assert found(check((100, 100, 1.5), (100, 100, 0))) is None


def test_where_no_option_fits_capacity_lacks_altogether_and_each_account_proves_it():
    one = check((100, 80, 1.5), (79, 500, 1.25))
    assert found(one) is Reason.INSUFFICIENT_GLOBAL_CAPACITY
    assert one.proof(0, int(one.codes()[0])) == [
        Lack("max/5-hour", needed_at_least=80, available=79),
        Lack("budget/api", needed_at_least=1.5, available=1.25),
    ]


def test_where_only_another_tier_fits_it_lacks_in_the_tier():
    one = check((100, 80, 1.5), (90, 500, 1.0), in_tier=(True, False, True))
    assert found(one) is Reason.INSUFFICIENT_TIER_CAPACITY
    assert one.proof(0, int(one.codes()[0])) == [
        Lack("max/5-hour", needed_at_least=100, available=90),
        Lack("budget/api", needed_at_least=1.5, available=1.0),
    ]


def test_a_task_that_may_be_given_nothing_does_not_lack_capacity():
    assert found(check((100, 80, 1.5), (0, 0, 0), possible=(False, False, False))) is None


@pytest.mark.parametrize("nothing", [np.zeros((0, 3)), np.zeros((2, 0))])
def test_no_task_or_no_option_is_no_lack(nothing):
    options = nothing.shape[1]
    one = Precheck(
        nothing,
        nothing.astype(bool),
        nothing.astype(bool),
        DRAWS[:options],
        np.zeros(3),
        ACCOUNTS,
    )
    assert one.codes().tolist() == [0] * len(nothing)


@given(st.data())
def test_a_finding_is_what_trying_every_option_finds_and_its_proof_holds(data):
    options, accounts = data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4))
    amounts = st.integers(0, 20).map(float)
    flags = st.booleans()
    draws = np.array(
        data.draw(
            st.lists(
                st.lists(flags, min_size=accounts, max_size=accounts).filter(any),
                min_size=options,
                max_size=options,
            )
        )
    )
    row = lambda of: np.array([data.draw(st.lists(of, min_size=options, max_size=options))])  # noqa: E731
    need, possible, in_tier = row(amounts), row(flags), row(flags)
    available = np.array(data.draw(st.lists(amounts, min_size=accounts, max_size=accounts)))
    names = tuple(f"a{number}" for number in range(accounts))
    one = Precheck(need, possible, in_tier & possible, draws, available, names)

    fitting = {
        option
        for option in range(options)
        if possible[0, option]
        and all(need[0, option] <= available[a] for a in range(accounts) if draws[option, a])
    }
    allowed = {option for option in range(options) if possible[0, option] and in_tier[0, option]}
    expected = None
    if possible.any() and not fitting:
        expected = Reason.INSUFFICIENT_GLOBAL_CAPACITY
    elif allowed and not fitting & allowed:
        expected = Reason.INSUFFICIENT_TIER_CAPACITY
    assert found(one) is expected
    if expected is not None:
        proof = one.proof(0, int(one.codes()[0]))
        assert proof
        for lack in proof:
            assert lack.needed_at_least > lack.available
            assert lack.available == available[names.index(lack.account)]
