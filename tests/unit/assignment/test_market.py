"""A market of two models, with every charge, price and fit worked out by hand.

The task takes 20,000 + 2,000 tokens. Haiku is half a chance at 22,000 prepaid tokens, or at 20,000 x $0.5/M + 2,000 x
$2.5/M = $0.015; terra is 0.7 at 20,000 x $1/M + 2,000 x $5/M = $0.03. The check accepts 0.5 x 0.9 + 0.5 x 0.2 = 0.55 of
haiku's work, so the escalation comes to terra with 0.45: it reserves $0.0135 for it, and succeeds with
0.5 x 0.9 + 0.45 x 0.7 = 0.765.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest
from hand_made import NOW, accounts, frame, registry, task

from cp_core.assignment.calibration import Calibration
from cp_core.assignment.eligibility import CODES
from cp_core.assignment.market import Catalogue, Market, lapsing_of, open_market
from cp_core.assignment.plans import CheckPolicy, PlanPolicy
from cp_core.assignment.predict import PredictionPolicy
from cp_core.assignment.solver import NO_PLAN
from cp_core.assignment.strategies import ObjectivePolicy, Strategy
from cp_core.tasks.reasons import Reason

PREPAID = "haiku (subscription:claude-max)"
PAID = "haiku (budget:api)"
TERRA = "terra (budget:api)"
ESCALATION = f"{PREPAID} > {TERRA}"
ACCOUNTS = ("claude-max/5-hour", "claude-max/weekly", "budget/api")

OFF = {name: {"enabled": False} for name in ("opus", "astra", "sonnet", "argon", "luna")}


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    check = CheckPolicy(sensitivity=0.9, specificity=0.8, rejection_log_odds=0)
    return Catalogue(
        registry(**OFF), PredictionPolicy(), PlanPolicy(check=check), ObjectivePolicy(), Calibration()
    )


def market(catalogue: Catalogue, *tasks: dict, codes: dict[tuple[int, str], Reason] | None = None) -> Market:
    """A market; `codes` rules out a task (by position) for every option of a model."""
    rows = [task(1), *tasks]
    option_codes = np.zeros((len(rows), len(catalogue.options)), dtype=np.int8)
    for (row, model), reason in (codes or {}).items():
        for column, option in enumerate(catalogue.options):
            if option.model.name == model:
                option_codes[row, column] = CODES.index(reason)
    tasks_frame = frame(*rows).assign(complexity="moderate", input_median=1.0, output_median=1.0)
    return open_market(
        tasks_frame, catalogue, accounts(registry(**OFF)), option_codes, np.full(len(rows), 0.5), now=NOW
    )


def plan(catalogue: Catalogue, label: str) -> int:
    return catalogue.labels.index(label)


def by_account(catalogue: Catalogue, amounts: np.ndarray) -> dict[str, float]:
    return dict(zip(catalogue.accounts, amounts.tolist(), strict=True))


def in_order(catalogue: Catalogue, **amounts: float) -> np.ndarray:
    """Amounts for five_hour, weekly and budget, in the catalogue's order of accounts."""
    given = dict(zip(ACCOUNTS, (amounts["five_hour"], amounts["weekly"], amounts["budget"]), strict=True))
    return np.array([given[account] for account in catalogue.accounts])


def test_plans_are_every_enabled_option_and_the_escalations_worth_having(catalogue: Catalogue):
    assert {PREPAID, PAID, TERRA, ESCALATION} <= set(catalogue.labels)
    assert not any(name in label for label in catalogue.labels for name in OFF)
    assert set(catalogue.accounts) == set(ACCOUNTS)


def test_success_of_an_escalation_counts_what_the_check_lets_through(catalogue: Catalogue):
    success = market(catalogue).outlook.success[:, 0]
    assert success[plan(catalogue, PREPAID)] == pytest.approx(0.5)
    assert success[plan(catalogue, TERRA)] == pytest.approx(0.7)
    assert success[plan(catalogue, ESCALATION)] == pytest.approx(0.765)


def test_need_is_what_a_plan_takes_of_each_account(catalogue: Catalogue):
    need = market(catalogue).need_of(0)
    taken = {
        PREPAID: (22_000, 22_000, 0),
        PAID: (0, 0, 0.015),
        TERRA: (0, 0, 0.03),
        ESCALATION: (22_000, 22_000, 0.0135),
    }
    for label, amounts in taken.items():
        expected = dict(zip(ACCOUNTS, amounts, strict=True))
        assert by_account(catalogue, need[plan(catalogue, label)]) == pytest.approx(expected)


def test_prepaid_charges_are_whole_tokens_as_they_are_reserved(catalogue: Catalogue):
    opened = market(catalogue, task(2, input_mean=100.2, output_mean=10.1))
    need = by_account(catalogue, opened.need_of(1)[plan(catalogue, PREPAID)])
    assert need["claude-max/weekly"] == 111


def test_price_is_that_of_everything_a_plan_draws_on(catalogue: Catalogue):
    prices = in_order(catalogue, five_hour=1e-4, weekly=1e-5, budget=100.0)
    price = market(catalogue).price(prices)[:, 0]
    assert price[plan(catalogue, PREPAID)] == pytest.approx(2.2 + 0.22)
    assert price[plan(catalogue, PAID)] == pytest.approx(1.5)
    assert price[plan(catalogue, TERRA)] == pytest.approx(3.0)
    assert price[plan(catalogue, ESCALATION)] == pytest.approx(2.42 + 1.35)


def test_a_plan_fits_when_every_account_has_all_it_takes(catalogue: Catalogue):
    opened = market(catalogue)
    plans = [plan(catalogue, label) for label in (PREPAID, PAID, TERRA, ESCALATION)]

    def fit(**left: float) -> list[bool]:
        return opened.fits(in_order(catalogue, **left))[plans, 0].tolist()

    assert fit(five_hour=22_000, weekly=22_000, budget=0.03) == [True, True, True, True]
    assert fit(five_hour=21_999, weekly=22_000, budget=0.03) == [False, True, True, False]
    assert fit(five_hour=22_000, weekly=22_000, budget=0.014) == [True, False, False, True]
    assert fit(five_hour=0, weekly=0, budget=0) == [False] * 4


def test_use_adds_up_over_the_tasks_that_get_a_plan(catalogue: Catalogue):
    opened = market(catalogue, task(2, input_mean=2_000, output_mean=200), task(3))
    choice = np.array([plan(catalogue, ESCALATION), plan(catalogue, PREPAID), NO_PLAN], dtype=np.int16)
    expected = {"claude-max/5-hour": 24_200, "claude-max/weekly": 24_200, "budget/api": 0.0135}
    assert by_account(catalogue, opened.use_of(choice)) == pytest.approx(expected)


def test_what_was_taken_is_gone_and_never_less_than_nothing_is_left(catalogue: Catalogue):
    opened = market(catalogue)
    less = opened.with_less(in_order(catalogue, five_hour=300_000, weekly=9e9, budget=0.5))
    left = {"claude-max/5-hour": 700_000, "claude-max/weekly": 0, "budget/api": 99.5}
    assert by_account(catalogue, less.capacity) == pytest.approx(left)
    assert by_account(catalogue, opened.capacity)["claude-max/5-hour"] == 1_000_000


def test_a_part_of_the_market_has_its_tasks_and_its_share(catalogue: Catalogue):
    part = market(catalogue, task(2, 80.0, input_mean=2_000, output_mean=200)).of(np.array([1]), 0.25)
    assert part.values.tolist() == [80.0]
    assert part.need_of(0)[plan(catalogue, TERRA)].sum() == pytest.approx(0.003)
    assert by_account(catalogue, part.capacity)["budget/api"] == pytest.approx(25)


def test_tasks_left_out_are_eligible_for_nothing_and_count_as_no_pruning(catalogue: Catalogue):
    opened = market(catalogue, task(2))
    without = opened.without(np.array([False, True]))
    assert without.eligible[:, 0].all()
    assert not without.eligible[:, 1].any()
    assert without.pruned() == {}
    assert opened.without(np.array([False, False])) is opened


def test_pairs_are_pruned_by_the_reason_of_their_first_stage_that_is_not_allowed(catalogue: Catalogue):
    opened = market(
        catalogue,
        task(2),
        codes={
            (0, "terra"): Reason.BREAKER_OPEN,
            (1, "haiku"): Reason.FAILED_BEFORE,
            (1, "terra"): Reason.BREAKER_OPEN,
        },
    )
    with_terra = sum("terra" in label for label in catalogue.labels)
    with_haiku = sum("haiku" in label for label in catalogue.labels)
    alone = plan(catalogue, TERRA)
    # task 1 loses every plan with terra; task 2 every plan with haiku (also those that go on to terra), and terra alone
    assert opened.pruned() == {"BREAKER_OPEN": with_terra + 1, "FAILED_BEFORE": with_haiku}
    assert CODES[opened.codes[alone, 1]] is Reason.BREAKER_OPEN


def test_worth_is_value_times_success_less_money_and_nothing_where_not_eligible(catalogue: Catalogue):
    worth = market(catalogue, codes={(0, "terra"): Reason.BREAKER_OPEN}).worth(Strategy.MAXIMIZE_VALUE)[:, 0]
    assert worth[plan(catalogue, PREPAID)] == pytest.approx(50 * 0.5)
    assert worth[plan(catalogue, PAID)] == pytest.approx(50 * 0.5 - 10 * 0.015)
    assert worth[plan(catalogue, TERRA)] == -np.inf
    assert worth[plan(catalogue, ESCALATION)] == -np.inf


def test_clearing_gives_scarce_tokens_to_the_task_that_is_worth_more(catalogue: Catalogue):
    codes = {(row, "terra"): Reason.BREAKER_OPEN for row in range(2)}
    opened = market(catalogue, task(2, 80.0), codes=codes)
    scarce = opened.with_less(in_order(catalogue, five_hour=1_000_000 - 30_000, weekly=0, budget=100))
    solution = scarce.clear(scarce.worth(Strategy.MAXIMIZE_VALUE), seed=1)
    assert solution.choice.tolist() == [NO_PLAN, plan(catalogue, PREPAID)]
    assert solution.objective == pytest.approx(40.0)


def test_an_account_that_the_ledger_does_not_have_is_named(catalogue: Catalogue):
    some = [account for account in accounts(registry(**OFF)) if account.account != "claude-max/weekly"]
    rows = frame(task()).assign(complexity="moderate", input_median=1.0, output_median=1.0)
    with pytest.raises(LookupError, match=r"no account claude-max/weekly: open the registry's accounts"):
        open_market(
            rows,
            catalogue,
            some,
            np.zeros((1, len(catalogue.options)), np.int8),
            np.array([0.5]),
            now=NOW,
        )


@pytest.mark.parametrize(("hours_left", "lapsing"), [(5, 0.0), (1, 0.8), (0, 1.0), (-1, 1.0)])
def test_a_five_hour_window_lapses_as_its_end_comes_nearer(hours_left: float, lapsing: float):
    [window] = [account for account in accounts(registry()) if account.account == "claude-max/5-hour"]
    opened = replace(window, window_started_at=NOW, window_ends_at=NOW + timedelta(hours=hours_left))
    assert lapsing_of(opened, NOW) == pytest.approx(lapsing)
    assert lapsing_of(window, NOW) == 0  # closed


def test_money_never_lapses():
    [budget] = [account for account in accounts(registry()) if account.account == "budget/api"]
    assert lapsing_of(budget, NOW) == 0
