"""What models take against the estimate."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cp_core.assignment.calibration import Calibration, ModelTokens, TokenFactors
from cp_core.learning.token_calibration import TokenCalibration, as_estimated, calibrate_tokens
from cp_core.scoring.config import Complexity, Domain
from cp_resources.configuration import load_configuration

SCORING = load_configuration(Path(__file__).parents[3] / "config").scoring
SIGMA = 0.6


def attempts(n: int, factor: float, seed: int = 0, **columns: object) -> pd.DataFrame:
    """Moderate backend attempts of one model that take `factor` times the estimate on average, log-normally."""
    draw = np.random.default_rng(seed)
    taken = factor * np.exp(draw.normal(-(SIGMA**2) / 2, SIGMA, n))
    frame = pd.DataFrame(
        {
            "execution": np.arange(n),
            "task": np.arange(n),
            "model": "haiku",
            "model_version": "1",
            "age_days": 0,
            "domain": "backend",
            "complexity": "moderate",
            "reason": None,
            "has_succeeded": True,
            "is_censored": False,
            "input_tokens": 27_500 * taken,
            "output_tokens": 3_500 * taken,
            "expected_input_tokens": 27_500.0,
            "expected_output_tokens": 3_500.0,
            "config_hash": "now",
        }
    )
    return frame.assign(**columns)


def learn(
    observations: pd.DataFrame, in_force: Calibration | None = None, **more: object
) -> TokenCalibration:
    return calibrate_tokens(observations, in_force or Calibration(), SCORING, max_change=0.1, **more)


def cell_of(found: TokenCalibration, kind: str = "input", domain: str = "backend"):
    (cell,) = [
        each for each in found.cells if (each.kind, each.domain, each.model) == (kind, domain, "haiku")
    ]
    return cell


def test_factors_say_what_a_model_takes_beyond_the_moved_base():
    found = learn(attempts(4000, 1.05))

    # The base moves to 1.05 of itself, which leaves nothing for the factor.
    assert found.scoring["estimate.mean_tokens.moderate.input"] == pytest.approx(27_500 * 1.05, rel=0.03)
    assert cell_of(found).factors.mean == pytest.approx(1.0, abs=0.03)
    assert cell_of(found).factors.median == pytest.approx(math.exp(-(SIGMA**2) / 2), abs=0.03)


def test_a_model_with_enough_attempts_in_no_domain_has_no_factors():
    thin = [attempts(8, 1.5, seed=n, domain=domain.value) for n, domain in enumerate(Domain)]
    found = learn(pd.concat(thin, ignore_index=True))
    assert (found.cells, found.tokens) == ((), {})


def test_the_interval_of_a_cell_is_that_of_its_attempts():
    factors = cell_of(learn(attempts(4000, 1.0))).factors
    median, reach = math.exp(-(SIGMA**2) / 2), math.exp(SIGMA * 1.2816)

    assert factors.low == pytest.approx(median / reach, rel=0.06)
    assert factors.high == pytest.approx(median * reach, rel=0.06)


def test_unseen_attempts_lie_in_the_interval_four_times_in_five():
    found = learn(attempts(4000, 1.0))

    (row,) = [row for row in found.coverage if row.kind == "output" and row.domain == Domain.BACKEND]
    assert row.attempts == 4000
    assert row.share == pytest.approx(0.8, abs=0.03)


def test_no_number_moves_further_than_its_cap():
    found = learn(attempts(500, 6.0))
    before = as_estimated("input", SCORING)
    after = found.tokens["haiku"][Domain.BACKEND].input

    base = found.scoring["estimate.mean_tokens.moderate.input"] / 27_500
    assert base == pytest.approx(1.1, rel=0.002)
    assert base <= 1.1
    # A model's tokens are base times factor: what the base took of the night's tenth, the factor may not take again.
    assert base * after.mean == pytest.approx(1.1)
    assert base * after.high == pytest.approx(before.high * 1.1)


def test_factors_in_force_are_where_the_next_night_starts():
    in_force = Calibration(
        tokens={"haiku": {Domain.BACKEND: ModelTokens(input=TokenFactors(mean=3.0, high=4.0))}}
    )

    found = learn(attempts(500, 6.0), in_force)
    base = found.scoring["estimate.mean_tokens.moderate.input"] / 27_500
    assert base * found.tokens["haiku"][Domain.BACKEND].input.mean == pytest.approx(3.3)


def test_bases_keep_rising_with_complexity():
    taken = pd.concat(
        [
            attempts(500, 6.0, complexity="simple", expected_input_tokens=7_500.0),
            attempts(500, 0.1, complexity="moderate"),
        ]
    )
    moved = learn(taken).scoring
    bases = [
        moved.get(f"estimate.mean_tokens.{level.value}.input", SCORING.estimate.mean_tokens[level].input)
        for level in Complexity
    ]

    assert bases == sorted(set(bases))


def test_what_was_cut_off_counts_as_more():
    whole = attempts(4000, 1.0)
    cut = whole["input_tokens"] > 27_500
    seen = whole.assign(
        input_tokens=whole["input_tokens"].clip(upper=27_500),
        is_censored=cut,
        has_succeeded=~cut,
        reason=np.where(cut, "TIMEOUT", None),
    )
    truth = float(whole["input_tokens"].mean() / 27_500)

    # 38 % are cut off. Left out, the rest averages about 0.6; taken as whole, about 0.75.
    assert taken(learn(seen)) == pytest.approx(truth, rel=0.06)
    assert taken(learn(seen[~cut])) < 0.7 * truth
    assert learn(seen).censored == int(cut.sum())


def taken(found: TokenCalibration) -> float:
    """Input tokens that a moderate backend task is found to take, over those of the estimate in force."""
    return (
        cell_of(found).factors.mean
        * found.scoring.get("estimate.mean_tokens.moderate.input", 27_500)
        / 27_500
    )


def test_an_attempt_counts_less_with_age():
    now, then = attempts(4000, 1.0), attempts(4000, 2.0, seed=1, age_days=60)
    # After 60 days, two half-lives, it counts a quarter: (1 + 2 / 4) / (1 + 1 / 4).
    assert taken(learn(pd.concat([now, then]))) == pytest.approx(1.2, rel=0.04)
    assert taken(learn(pd.concat([now, then.assign(age_days=0)]))) == pytest.approx(1.5, rel=0.04)


def test_attempts_of_a_models_older_version_count_no_more():
    then = attempts(4000, 3.0, seed=1, age_days=2)
    now = attempts(4000, 1.0, model_version="2", execution=range(4000, 8000))
    found = learn(pd.concat([then, now]))
    assert taken(found) == pytest.approx(1.0, rel=0.04)
    assert found.attempts == 4000


def test_attempts_that_failed_for_other_reasons_say_nothing():
    down = attempts(500, 0.01, has_succeeded=False, reason="OVERLOADED")

    assert learn(down) == TokenCalibration()


def test_poor_work_takes_tokens_like_any_other():
    assert learn(attempts(500, 1.0, has_succeeded=False, reason="LOW_QUALITY")).attempts == 500


def test_few_attempts_lean_on_those_of_the_other_domains():
    many = attempts(3000, 2.0)
    few = attempts(25, 2.6, seed=1, domain="testing", task=range(3000, 3025))
    elsewhere = attempts(3000, 2.0, seed=2, domain="ml", task=range(4000, 7000))
    found = learn(pd.concat([many, few, elsewhere]))

    base = found.scoring["estimate.mean_tokens.moderate.input"] / 27_500
    own = few["input_tokens"].mean() / 27_500 / base
    others = cell_of(found).factors.mean
    assert others < cell_of(found, domain="testing").factors.mean < own
    assert cell_of(found, domain="testing").coverage is None


def test_fewer_attempts_than_that_change_nothing():
    found = learn(attempts(19, 3.0))

    assert not found.tokens
    assert not found.scoring


def test_what_an_earlier_base_expected_is_put_in_terms_of_the_one_in_force():
    earlier = SCORING.model_copy(deep=True)
    earlier.estimate.mean_tokens[Complexity.MODERATE] = SCORING.estimate.mean_tokens[
        Complexity.MODERATE
    ].model_copy(update={"input": 13_750.0})
    old = attempts(3000, 1.0, config_hash="then", expected_input_tokens=13_750.0)

    found = learn(old, bases_of={"then": earlier})

    assert found.scoring.get("estimate.mean_tokens.moderate.input", 27_500) == pytest.approx(27_500, rel=0.03)
    assert cell_of(found).factors.mean == pytest.approx(1.0, abs=0.03)


def test_what_was_learned_survives_being_stored():
    found = learn(attempts(300, 1.4))

    assert TokenCalibration.model_validate(found.model_dump(mode="json")) == found


def test_no_attempts_teach_nothing():
    assert learn(attempts(0, 1.0)) == TokenCalibration()
