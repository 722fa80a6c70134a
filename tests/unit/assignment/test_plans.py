"""Plans: what escalations are expected to give, worked by hand, and which are worth choosing from."""

from __future__ import annotations

import numpy as np
import pytest
from hand_made import MODELS, registry
from hypothesis import given
from hypothesis import strategies as st

from cp_core.assignment.calibration import Calibration, ModelTokens, TokenFactors, TraitWeights
from cp_core.assignment.options import Options
from cp_core.assignment.plans import CheckPolicy, PlanBook, PlanPolicy, escalations, plan_book
from cp_core.assignment.predict import PredictionPolicy, Predictor, shift_log_odds
from cp_core.models.registry import Tier
from cp_core.scoring.config import Complexity, Domain

TASK = {
    "domain": ["backend"],
    "complexity": ["moderate"],
    "input_mean": [20_000.0],
    "input_median": [15_000.0],
    "output_mean": [2_000.0],
    "output_median": [1_500.0],
}
POLICY = PredictionPolicy()


def paid_options(*names: str) -> Options:
    """Options of these models, each paid by the money budget only."""
    return Options(registry({name: MODELS[name] for name in names}, subscription=False))


def predictor(options: Options, calibration: Calibration = Calibration()) -> Predictor:  # noqa: B008 - immutable
    return Predictor([option.model for option in options], POLICY, calibration)


def position(options: Options, name: str) -> int:
    return next(index for index, option in enumerate(options) if option.model.name == name)


def test_an_escalation_is_worked_out_stage_by_stage():
    options = paid_options("haiku", "opus")  # success 0.5 and 0.9; $0.5/$2.5 and $5/$25 a million
    plan = (position(options, "haiku"), position(options, "opus"))
    check = CheckPolicy(sensitivity=0.8, specificity=0.9, rejection_log_odds=0.0)
    outlook = PlanBook([plan], options).outlook(predictor(options).predict(TASK), check)
    # accepted = 0.5*0.8 + 0.5*0.1 = 0.45, so opus is reached with 0.55
    assert outlook.success[0, 0] == pytest.approx(0.5 * 0.8 + 0.55 * 0.9)
    haiku, opus = 0.02 * 0.5 + 0.002 * 2.5, 0.02 * 5 + 0.002 * 25
    assert outlook.list_usd[0, 0] == pytest.approx(haiku + 0.55 * opus)
    assert outlook.charges[:, 0] == pytest.approx([haiku, 0.55 * opus])
    seconds = (
        2 + 2000 / POLICY.tokens_per_second[Tier.BUDGET],
        2 + 2000 / POLICY.tokens_per_second[Tier.PREMIUM],
    )
    assert outlook.seconds[0, 0] == pytest.approx(seconds[0] + 0.55 * seconds[1])


def test_a_rejection_makes_the_next_stage_less_likely_to_succeed():
    options = paid_options("haiku", "opus")
    plan = (position(options, "haiku"), position(options, "opus"))
    check = CheckPolicy(sensitivity=1.0, specificity=1.0, rejection_log_odds=-1.0)
    outlook = PlanBook([plan], options).outlook(predictor(options).predict(TASK), check)
    odds = 9 * np.exp(-1.0)
    assert outlook.success[0, 0] == pytest.approx(0.5 + 0.5 * odds / (1 + odds))


def test_a_perfect_check_and_independent_stages_fail_only_when_all_fail():
    options = paid_options("luna", "terra", "opus")  # 0.5, 0.7, 0.9
    plan = tuple(position(options, name) for name in ("luna", "terra", "opus"))
    check = CheckPolicy(sensitivity=1.0, specificity=1.0, rejection_log_odds=0.0)
    outlook = PlanBook([plan], options).outlook(predictor(options).predict(TASK), check)
    assert outlook.success[0, 0] == pytest.approx(1 - 0.5 * 0.3 * 0.1)


def test_prepaid_stages_take_tokens_and_no_money():
    options = Options(registry())
    prepaid = next(i for i, option in enumerate(options) if option.prepaid and option.model.name == "haiku")
    book = PlanBook([(prepaid,)], options)
    outlook = book.outlook(predictor(options).predict(TASK), CheckPolicy())
    assert outlook.charges[0, 0] == 22_000
    assert outlook.billed_usd[0, 0] == 0
    assert outlook.list_usd[0, 0] == pytest.approx(0.02 * 0.5 + 0.002 * 2.5)
    assert book.draws(["budget/api", "claude-max/5-hour", "claude-max/weekly"]).tolist() == [[0, 1, 1]]


def test_escalations_rise_in_tier_and_leave_out_what_is_disabled():
    options = Options(registry(subscription=False, terra={"enabled": False}))
    for plan in escalations(options, 3):
        tiers = [int(options.tier[option]) for option in plan]
        assert tiers == sorted(tiers, reverse=True)
        assert len(set(tiers)) == len(tiers)
        assert all(options[option].model.name != "terra" for option in plan)


def test_a_book_holds_every_single_option_and_no_more_plans_than_asked_for():
    options = Options(registry())
    book = plan_book(options, predictor(options), PlanPolicy(most_stages=3, most_plans=20))
    assert {plan for plan in book.plans if len(plan) == 1} == {(option,) for option in range(len(options))}
    assert len(book) <= 20


def test_more_single_options_than_plans_are_refused():
    options = Options(registry())
    with pytest.raises(ValueError, match=r"most_plans is 3, but \d+ single options are enabled"):
        plan_book(options, predictor(options), PlanPolicy(most_plans=3))


def test_what_was_learned_replaces_the_prior_in_its_cell_only():
    options = paid_options("haiku")
    learned = Calibration(
        success={"haiku": {Domain.BACKEND: {Complexity.MODERATE: 0.8}}},
        tokens={"haiku": {Domain.BACKEND: ModelTokens(input=TokenFactors(mean=1.5, median=1.2, high=2.0))}},
    )
    expected = predictor(options, learned).predict(TASK)
    assert expected.success[0, 0] == pytest.approx(0.8)
    assert expected.input_mean[0, 0] == pytest.approx(30_000)
    assert expected.input_median[0, 0] == pytest.approx(24_000)  # 1.2 times the mean that was estimated
    assert expected.output_mean[0, 0] == pytest.approx(2_000)
    elsewhere = predictor(options, learned).predict({**TASK, "domain": ["frontend"]})
    assert elsewhere.success[0, 0] == pytest.approx(0.5)
    assert elsewhere.input_median[0, 0] == pytest.approx(15_000)


def test_traits_move_success_on_the_log_odds_scale_and_tokens_on_the_logarithm():
    options = paid_options("haiku")
    weights = TraitWeights(success={"haiku": (1.0, 0.0)}, output={"haiku": (0.0, np.log(2))})
    learned = Calibration(trait_model="a" * 64, traits=weights)
    seen = predictor(options, learned).predict({**TASK, "traits": np.array([[0.5, 1.0]])})
    assert seen.success[0, 0] == pytest.approx(1 / (1 + np.exp(-0.5)))  # the prior is 0.5
    assert seen.output_mean[0, 0] == pytest.approx(4_000)
    assert seen.input_mean[0, 0] == pytest.approx(20_000)
    unseen = predictor(options, learned).predict(TASK)
    assert unseen.success[0, 0] == pytest.approx(0.5)


def test_complexity_moves_the_prior_on_the_log_odds_scale():
    options = paid_options("haiku")
    simple = predictor(options).predict({**TASK, "complexity": ["simple"]}).success[0, 0]
    assert simple == pytest.approx(1 / (1 + np.exp(-0.6)))


@given(st.floats(0, 1), st.floats(-3, 3))
def test_shifting_log_odds_stays_a_probability_and_can_be_undone(probability, shift):
    moved = shift_log_odds(np.array(probability), shift)
    assert 0 <= moved <= 1
    assert shift_log_odds(moved, -shift) == pytest.approx(probability, abs=1e-9)


@given(
    st.lists(st.floats(0.01, 0.99), min_size=2, max_size=2),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_an_escalation_never_charges_more_than_all_its_stages(abilities, sensitivity, specificity):
    options = paid_options("haiku", "opus")
    plan = (position(options, "haiku"), position(options, "opus"))
    learned = Calibration(
        success={
            "haiku": {Domain.BACKEND: {Complexity.MODERATE: abilities[0]}},
            "opus": {Domain.BACKEND: {Complexity.MODERATE: abilities[1]}},
        }
    )
    predictions = predictor(options, learned).predict(TASK)
    check = CheckPolicy(sensitivity=sensitivity, specificity=specificity)
    outlook = PlanBook([plan], options).outlook(predictions, check)
    assert 0 <= outlook.success[0, 0] <= 1
    assert outlook.list_usd[0, 0] <= predictions.list_usd.sum() + 1e-12
    assert outlook.list_usd[0, 0] >= predictions.list_usd[plan[0], 0] - 1e-12
