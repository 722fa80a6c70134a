"""Values against outcomes, and weights after what people corrected."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cp_core.learning.learned import Learned
from cp_core.learning.value_calibration import ValueCalibration, calibrate_values
from cp_core.scoring.config import PRIORITIES, Domain, Risk
from cp_resources.configuration import load_configuration

SCORING = load_configuration(Path(__file__).parents[3] / "config").scoring
SAME_MODEL = {"model": "haiku", "model_version": "1", "age_days": 0, "reason": None}
NO_OUTCOMES = pd.DataFrame(
    {"execution": [], "score": [], "has_succeeded": [], "quality": []}, dtype="float64"
).assign(**SAME_MODEL)


def scored(*, tasks: int = 100, share: float = 1.0, **ratios: float) -> pd.DataFrame:
    """Tasks of every priority, domain and risk, of which a share was overridden by the product of the ratios that
    their names have."""
    rows = []
    for priority, domain, risk in product(range(5), Domain, Risk):
        ratio = math.prod(ratios.get(name, 1.0) for name in (f"P{priority}", domain.value, risk.value))
        corrected = round(tasks * share) if ratio != 1 else 0
        rows.append(
            {
                "priority": priority,
                "domain": domain.value,
                "risk": risk.value,
                "base": SCORING.priority_points[f"P{priority}"],
                "time_bonus": 0.0,
                "tasks": tasks,
                "corrections": corrected,
                "weight": float(tasks),
                "log_ratio": corrected * math.log(ratio),
                "squares": corrected * math.log(ratio) ** 2,
            }
        )
    return pd.DataFrame(rows)


def learn(frame: pd.DataFrame, **approved: float) -> ValueCalibration:
    return calibrate_values(
        NO_OUTCOMES,
        frame,
        SCORING,
        max_change=0.1,
        approved_risks={Risk(name): factor for name, factor in approved.items()},
    )


def proposed(found: ValueCalibration, key: str) -> float:
    (proposal,) = [each for each in found.proposals if each.key == key]
    return proposal.proposed / proposal.in_force


def test_a_weight_follows_what_people_corrected():
    found = learn(scored(P3=1.5))

    assert proposed(found, "priority_points.P3") == pytest.approx(1.5, rel=0.06)
    assert proposed(found, "priority_points.P0") == pytest.approx(1.0, abs=0.06)
    assert proposed(found, "domains.rules.ml.factor") == pytest.approx(1.0, abs=0.06)


def test_a_weight_moves_within_its_cap():
    assert learn(scored(P3=1.5)).scoring["priority_points.P3"] == pytest.approx(11, rel=0.002)
    assert learn(scored(ml=0.5)).scoring["domains.rules.ml.factor"] == pytest.approx(1.1 * 0.9, rel=0.002)


def test_scores_that_nobody_corrected_count_as_right():
    a_tenth = proposed(learn(scored(ml=1.5, share=0.1)), "domains.rules.ml.factor")

    assert a_tenth == pytest.approx(math.exp(0.1 * math.log(1.5)), abs=0.01)


def test_a_bonus_that_is_corrected_is_not_laid_to_the_priority():
    plain = scored()
    urgent = plain.assign(time_bonus=15.0, corrections=100)
    share = 15 / (urgent["base"] + 15)
    urgent = urgent.assign(log_ratio=100 * 0.4 * share, squares=100 * (0.4 * share) ** 2)

    found = learn(pd.concat([plain, urgent]))

    assert proposed(found, "priority_points.P4") == pytest.approx(1.0, abs=0.06)


def test_risks_are_proposed_but_stay_until_a_person_approves():
    found = learn(scored(production=1.3))

    (proposal,) = [each for each in found.proposals if each.key == "risks.rules.production.factor"]
    assert proposal.needs_approval
    assert proposal.proposed == pytest.approx(1.69, rel=0.05)
    assert "risks.rules.production.factor" not in found.scoring


def test_an_approved_risk_moves_no_further_than_approved_and_than_its_cap():
    production = "risks.rules.production.factor"

    assert learn(scored(production=1.3), production=1.35).scoring[production] == pytest.approx(1.35)
    assert learn(scored(production=1.3), production=1.9).scoring[production] == pytest.approx(1.43)
    assert production not in learn(scored(production=1.3), production=1.2).scoring


def test_risks_that_would_lose_their_order_stay():
    # staging would go from 1.1 to 0.99, below development's 1.0
    assert not any("risks" in key for key in learn(scored(staging=0.5), staging=0.5).scoring)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.sampled_from([*PRIORITIES, *Domain, *Risk]), st.floats(0.05, 20), max_size=6))
def test_whatever_is_corrected_priorities_stay_in_order_and_scoring_allows_it(ratios: dict[str, float]):
    found = learn(scored(**{str(name): ratio for name, ratio in ratios.items()}), production=3.0)

    rules = Learned(scoring=found.scoring).apply_to(SCORING)  # refuses priorities or risks out of order
    for key, number in found.scoring.items():
        before = next(each.in_force for each in found.proposals if each.key == key)
        assert abs(number - before) <= 0.1 * before * (1 + 1e-9)
    assert rules.priority_points["P0"] > rules.priority_points["P4"]


def test_a_few_corrections_change_nothing():
    few = scored()
    few.loc[0, ["corrections", "log_ratio", "squares"]] = [19, 19.0, 19.0]

    assert learn(few).proposals == ()
    assert learn(few).corrections == 19


def outcomes(n: int, slope: float) -> pd.DataFrame:
    draw = np.random.default_rng(0)
    score = draw.uniform(0, 100, n)
    return pd.DataFrame(
        {
            "execution": np.arange(n),
            "score": score,
            "has_succeeded": draw.random(n) < 0.5 + slope * (score - 50) / 100,
            "quality": 5 + slope * (score - 50) / 10 + draw.normal(0, 0.5, n),
        }
    ).assign(**SAME_MODEL)


def described(frame: pd.DataFrame) -> ValueCalibration:
    return calibrate_values(frame, scored(), SCORING, max_change=0.1, approved_risks={})


def test_values_that_go_with_outcomes_rise_by_decile():
    found = described(outcomes(4000, 0.4))

    assert len(found.deciles) == 10
    assert found.falls == ()
    success, quality = found.correlations
    assert success.low > 0.1
    assert quality.value > 0.8
    assert quality.low < quality.value < quality.high


def test_values_that_go_against_outcomes_are_named():
    assert described(outcomes(4000, -0.6)).falls == ("success", "quality")


def test_what_is_said_of_values_fades_and_ends_with_a_models_version():
    against, along = outcomes(4000, -0.6), outcomes(4000, 0.3).assign(execution=range(4000, 8000))
    old = pd.concat([against.assign(age_days=210), along], ignore_index=True)  # seven half-lives: 1 in 128
    assert described(old).falls == ()
    assert "quality" in described(pd.concat([against, along], ignore_index=True)).falls
    another = along.assign(model_version="2")
    assert described(pd.concat([against, another], ignore_index=True)) == described(another)


def test_a_correction_counts_less_with_age():
    fresh, faded = scored(P3=1.5), scored(ml=1.5)
    faded[["weight", "log_ratio", "squares"]] /= 16  # four half-lives
    found = learn(pd.concat([fresh, faded], ignore_index=True))
    # A part of 1 / 17 of what is known of ml says 1.5.
    assert proposed(found, "domains.rules.ml.factor") == pytest.approx(1.5 ** (1 / 17), abs=0.03)


def test_a_few_outcomes_are_held_against_nothing():
    assert described(outcomes(100, -0.6)).falls == ()


def test_nothing_done_is_described_as_nothing():
    found = described(NO_OUTCOMES)

    assert (found.deciles, found.correlations, found.falls) == ((), (), ())
    assert ValueCalibration.model_validate(found.model_dump(mode="json")) == found
