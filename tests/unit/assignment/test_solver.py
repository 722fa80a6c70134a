"""The solver against brute force, against HiGHS, and at the edges."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, linprog, milp

from cp_core.assignment.solver import NO_PLAN, Problem, solve

SEED = 11


def problem(values, charges, draws, capacity, charge_plan=None) -> Problem:
    values = np.array(values, dtype=np.float32)
    return Problem(
        values=values,
        charges=np.array(charges, dtype=np.float32),
        charge_plan=np.arange(len(values)) if charge_plan is None else np.array(charge_plan),
        draws=np.array(draws, dtype=np.float64),
        capacity=np.array(capacity, dtype=np.float64),
    )


def random_problem(tasks: int, plans: int, accounts: int, seed: int, tightness: float = 0.4) -> Problem:
    rng = np.random.default_rng(seed)
    charges = rng.lognormal(3, 1, (plans, tasks)).round(1)
    draws = (rng.random((plans, accounts)) < 0.5).astype(float)
    capacity = tightness * (charges.mean(axis=1) @ draws) * tasks / plans + 1
    return problem(rng.uniform(-5, 100, (plans, tasks)).round(1), charges, draws, capacity)


def best_by_trying_all(given: Problem) -> float:
    plans, tasks = given.values.shape
    best = 0.0
    for choice in product(range(-1, plans), repeat=tasks):
        chosen = np.array(choice)
        if (given.use_of(chosen) <= given.capacity).all():
            best = max(best, given.worth_of(chosen))
    return best


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 3), st.integers(0, 10_000), st.floats(0.05, 2))
def test_small_batches_lie_between_feasible_and_the_bound(tasks, plans, accounts, seed, tightness):
    given_problem = random_problem(tasks, plans, accounts, seed, tightness)
    solution = solve(given_problem, seed=SEED)
    optimum = best_by_trying_all(given_problem)
    assert (given_problem.use_of(solution.choice) <= given_problem.capacity).all()
    assert solution.objective <= optimum + 1e-3
    assert optimum <= solution.bound * (1 + 1e-6) + 1e-3


@pytest.mark.parametrize("seed", range(3))
def test_bound_is_the_optimum_of_the_linear_relaxation(seed):
    given_problem = random_problem(400, 5, 4, seed)
    optimum = -_highs(given_problem, integral=False)
    solution = solve(given_problem, seed=SEED)
    assert solution.bound == pytest.approx(optimum, rel=2e-4)
    assert solution.bound >= optimum * (1 - 1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_objective_is_within_a_thousandth_of_a_mixed_integer_solver(seed):
    given_problem = random_problem(400, 4, 3, seed)
    assert solve(given_problem, seed=SEED).objective >= -_highs(given_problem, integral=True) * 0.999


def _highs(given_problem: Problem, *, integral: bool) -> float:
    plans, tasks = given_problem.values.shape
    once = np.tile(np.eye(tasks), plans)
    use = np.concatenate(
        [
            given_problem.draws[plan][:, None] * given_problem.charges[plan][None, :].astype(float)
            for plan in range(plans)
        ],
        axis=1,
    )
    matrix, limit = np.vstack([use, once]), np.concatenate([given_problem.capacity, np.ones(tasks)])
    cost = -given_problem.values.astype(float).ravel()
    if not integral:
        return linprog(cost, A_ub=matrix, b_ub=limit, bounds=(0, 1), method="highs").fun
    return milp(
        cost,
        constraints=LinearConstraint(matrix, ub=limit),
        integrality=np.ones(len(cost)),
        bounds=Bounds(0, 1),
        options={"mip_rel_gap": 1e-4, "time_limit": 30},
    ).fun


def test_prices_are_zero_where_quota_is_left_over_and_positive_where_it_is_short():
    # Ten tasks of 10 tokens; the first account takes four of them, the second would take a hundred.
    given_problem = problem([np.arange(1, 11)], [np.full(10, 10.0)], [[1, 1]], [40, 1000])
    solution = solve(given_problem, seed=SEED)
    assert solution.choice.tolist() == [NO_PLAN] * 6 + [0] * 4
    assert solution.objective == pytest.approx(7 + 8 + 9 + 10)
    assert solution.prices[1] == 0
    assert 6 / 10 - 1e-3 <= solution.prices[0] <= 7 / 10 + 1e-3


def test_escalation_charges_every_account_of_every_stage():
    given_problem = problem([[50.0]], [[30.0], [20.0]], [[1, 0], [0, 1]], [30, 20], charge_plan=[0, 0])
    solution = solve(given_problem, seed=SEED)
    assert solution.choice.tolist() == [0]
    assert solution.use.tolist() == [30, 20]


def test_same_seed_gives_the_same_solution_whatever_the_threads():
    given_problem = random_problem(70_000, 4, 3, seed=5)
    first, second = solve(given_problem, seed=SEED), solve(given_problem, seed=SEED, threads=3)
    assert np.array_equal(first.choice, second.choice)
    assert np.array_equal(first.prices, second.prices)


@pytest.mark.parametrize("tasks", [1_000, 60_000])
def test_gap_is_small_when_quota_is_short(tasks):
    assert solve(random_problem(tasks, 8, 12, seed=1), seed=SEED).gap <= (0.005 if tasks == 1_000 else 0.001)


@pytest.mark.parametrize("seed", range(3))
def test_heavy_tailed_tokens_leave_a_small_gap(seed):
    # The largest of these tasks takes thousands of times the median, so the dual has kinks of very different sizes.
    rng = np.random.default_rng(seed)
    tokens = rng.lognormal(10, 1.5, 10_000) * rng.lognormal(0, 0.2, (6, 10_000))
    draws = np.repeat(np.eye(3), 2, axis=0)
    capacity = tokens.mean(axis=0).sum() * np.array([0.05, 0.1, 0.2])
    values = rng.gamma(2, 20, 10_000) * rng.uniform(0.3, 1, (6, 10_000))
    assert solve(problem(values, tokens, draws, capacity), seed=SEED).gap <= 0.001


def test_twin_plans_leave_a_small_gap():
    # Nearly every task has next to no regret between the first two plans, yet only the third is short.
    rng = np.random.default_rng(4)
    tokens = np.repeat(rng.lognormal(5, 1, (1, 5_000)), 3, axis=0)
    values = rng.uniform(10, 100, 5_000) * np.array([[0.6], [0.6], [0.9]])
    capacity = tokens[0].sum() * np.array([0.5, 0.5, 0.2])
    given_problem = problem(values, tokens, np.eye(3), capacity)
    solution = solve(given_problem, seed=SEED)
    assert (given_problem.use_of(solution.choice) <= given_problem.capacity).all()
    assert solution.gap <= 0.001


def test_no_task():
    solution = solve(problem(np.empty((2, 0)), np.empty((2, 0)), [[1], [1]], [5]), seed=SEED)
    assert len(solution.choice) == 0
    assert solution.gap == 0


def test_no_capacity_gives_nothing_that_draws():
    solution = solve(problem([[9.0, 9.0]], [[1.0, 0.0]], [[1]], [0]), seed=SEED)
    assert solution.choice.tolist() == [NO_PLAN, 0]


def test_nothing_eligible():
    solution = solve(problem(np.full((2, 3), -np.inf), np.ones((2, 3)), [[1], [1]], [5]), seed=SEED)
    assert solution.choice.tolist() == [NO_PLAN] * 3
    assert solution.gap == 0


def test_plans_worth_less_than_nothing_are_left():
    assert solve(problem([[-1.0, 2.0]], [[1.0, 1.0]], [[1]], [5]), seed=SEED).choice.tolist() == [NO_PLAN, 0]


def test_equal_tasks_fill_the_account_exactly():
    solution = solve(
        problem(np.full((2, 1_000), 7.0), np.full((2, 1_000), 3.0), np.eye(2), [600, 300]), seed=SEED
    )
    assert (solution.choice != NO_PLAN).sum() == 300
    assert solution.use.tolist() == [600, 300]


def test_more_accounts_than_tasks():
    solution = solve(problem([[5.0, 6.0]], [[1.0, 1.0]], [np.ones(9)], np.full(9, 1.5)), seed=SEED)
    assert solution.choice.tolist() == [NO_PLAN, 0]


def test_unlimited_account_has_no_price():
    solution = solve(problem([[5.0, 6.0]], [[1.0, 1.0]], [[1]], [np.inf]), seed=SEED)
    assert solution.choice.tolist() == [0, 0]
    assert solution.prices.tolist() == [0]


@pytest.mark.parametrize(
    ("values", "charges", "capacity", "message"),
    [
        ([[np.nan]], [[1.0]], [1.0], r"values\[0, 0\] is nan"),
        ([[np.inf]], [[1.0]], [1.0], r"values\[0, 0\] is inf"),
        ([[1.0]], [[-1.0]], [1.0], r"charges\[0, 0\] is -1.0"),
        ([[1.0]], [[np.nan]], [1.0], r"charges\[0, 0\] is nan"),
        ([[1.0]], [[1.0]], [-1.0], r"capacity\[0\] is -1.0"),
        ([[1.0]], [[1.0]], [np.nan], r"capacity\[0\] is nan"),
        ([[1.0, 2.0]], [[1.0]], [1.0], "shapes do not fit"),
    ],
)
def test_wrong_numbers_are_refused_with_their_place(values, charges, capacity, message):
    with pytest.raises(ValueError, match=message):
        problem(values, charges, [[1.0]], capacity)
