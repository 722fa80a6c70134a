"""Gates: each passes and fails where it should, and a placebo is found out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cp_core.assignment.calibration import Calibration, ModelTokens, TokenFactors
from cp_core.learning.candidate import Candidate, Change, Found, Ground, make_candidate
from cp_core.learning.corrections import correct, learn_success
from cp_core.learning.gates.changes import change_caps, something_changed
from cp_core.learning.gates.coverage import intervals_cover
from cp_core.learning.gates.evidence import Evidence
from cp_core.learning.gates.holdout import forward_holdout
from cp_core.learning.gates.judge import GATES, judge
from cp_core.learning.gates.placebo import placebo
from cp_core.learning.gates.samples import enough_outcomes, outcomes_are_complete, sample_ratio
from cp_core.learning.gates.selection import COLUMNS, guardrails, selection_is_no_worse
from cp_core.learning.gates.verdict import REQUIRED, Verdict, missing
from cp_core.learning.learned import Learned, LearnedError
from cp_core.learning.policy import LearningPolicy
from cp_core.scoring.config import Complexity
from cp_resources.configuration import load_configuration

SHIPPED = load_configuration(Path(__file__).parents[3] / "config")
GROUND = Ground(SHIPPED.registry, SHIPPED.policies.prediction, SHIPPED.scoring, Learned())
BELIEVED = GROUND.expectations()
MODELS = BELIEVED.models[:4]


def attempts(share: dict[str, float], count: int, age_days: float, seed: int) -> pd.DataFrame:
    """Moderate backend tasks, `count` a model, that succeed as often as `share` says."""
    generator = np.random.default_rng(seed)
    model = np.repeat(list(share), count)
    return pd.DataFrame(
        {
            "task": np.arange(len(model)),
            "model": model,
            "domain": "backend",
            "complexity": "moderate",
            "age_days": age_days,
            "has_succeeded": generator.random(len(model)) < np.repeat(list(share.values()), count),
            "is_censored": False,
            "input_tokens": 1000,
            "output_tokens": 100,
            "expected_input_tokens": 1000.0,
            "expected_output_tokens": 100.0,
        }
    )


def believed(model: str) -> float:
    return SHIPPED.registry.models[model].capability["backend"]


def evidence(off: float = 0.0, **changes) -> Evidence:
    """The first two of four models succeed `off` more often than is believed."""
    share = {m: believed(m) + off * (at < 2) for at, m in enumerate(MODELS)}
    earlier, later = attempts(share, 1500, 10.0, 1), attempts(share, 1000, 0.0, 2)
    candidate = make_candidate(Found(success=learn_success(earlier, BELIEVED)), GROUND, 0.15)
    made = Evidence(GROUND, candidate, LearningPolicy(), earlier, later, decided=100, ended=100, seed=3)
    return replace(made, **changes)


def decisions(n: int = 2000, **changes) -> pd.DataFrame:
    generator = np.random.default_rng(5)
    explored = generator.random(n) < 0.1
    frame = pd.DataFrame(
        {
            "domain": "backend",
            "reward": 50.0 * (generator.random(n) < 0.7),
            "propensity": np.where(explored, 0.1, 0.9),
            "target": (~explored).astype(float),
            "predicted": 35.0,
            "predicted_target": 35.0,
            "kept_probability": 0.9,
            "explored": explored,
            **{
                f"{what}_{when}": 1.0
                for what in ("success", "usd", "seconds")
                for when in ("before", "after")
            },
        }
    )
    return frame.assign(**changes)


def test_every_required_gate_is_asked_and_no_other():
    assert list(GATES) == list(REQUIRED)
    assert [verdict.gate for verdict in judge(evidence(), "abc")] == list(REQUIRED)


def test_what_is_missing_is_named():
    verdicts = {gate: Verdict(gate=gate, has_passed=True, against="a", says="x") for gate in REQUIRED}
    assert missing(verdicts, "a") == []
    assert len(missing(verdicts, "b")) == len(REQUIRED)
    assert len(missing({}, "a")) == len(REQUIRED)
    failed = verdicts["placebo"].model_copy(update={"has_passed": False, "says": "no better than chance"})
    assert missing({**verdicts, "placebo": failed}, "a") == ["placebo: no better than chance"]


class TestSamples:
    def test_open_or_cut_off_work_holds_a_candidate_back(self):
        assert outcomes_are_complete(evidence(decided=100, ended=90)).has_passed
        assert not outcomes_are_complete(evidence(decided=100, ended=89)).has_passed
        cut = evidence().later.assign(is_censored=True)
        assert not outcomes_are_complete(evidence(later=cut)).has_passed

    def test_too_few_outcomes_hold_it_back(self):
        few = evidence().later.iloc[:199]
        assert not enough_outcomes(evidence(later=few)).has_passed
        assert enough_outcomes(evidence()).has_passed

    def test_exploration_that_drew_otherwise_than_it_said_is_found(self):
        assert sample_ratio(evidence(selections=decisions())).has_passed
        # 2,000 decisions at 10 %: 200 are to be expected with a deviation of 13.4; none at all is 14.9 deviations off
        assert not sample_ratio(evidence(selections=decisions(explored=False))).has_passed
        assert not sample_ratio(evidence(unbalanced={"prompt": 1e-6})).has_passed


class TestHoldout:
    def test_what_is_right_about_later_days_passes(self):
        found = forward_holdout(evidence(off=-0.15))
        assert found.has_passed
        assert found.figures["success"]["low"] > 0

    def test_what_is_wrong_about_later_days_does_not(self):
        right = evidence(off=-0.15)
        other_way = attempts({m: believed(m) for m in MODELS}, 1000, 0.0, 9)
        assert not forward_holdout(replace(right, later=other_way)).has_passed

    def test_a_candidate_that_changes_nothing_has_nothing_to_show(self):
        same = evidence(candidate=Candidate(Learned(), ()))
        assert not forward_holdout(same).has_passed
        assert not something_changed(same).has_passed


class TestPlacebo:
    def test_shuffled_outcomes_are_refused(self):
        true = evidence(off=-0.15)
        assert placebo(true).has_passed
        for seed in range(5):
            won = np.random.default_rng(seed).permutation(true.earlier["has_succeeded"].to_numpy())
            earlier = true.earlier.assign(has_succeeded=won)
            candidate = make_candidate(Found(success=learn_success(earlier, BELIEVED)), GROUND, 0.15)
            shuffled = replace(true, earlier=earlier, candidate=candidate)
            assert not shuffled.moves("success.") or not placebo(shuffled).has_passed


class TestSelection:
    def test_below_the_least_effective_sample_it_cannot_tell_and_holds_back(self):
        found = selection_is_no_worse(evidence(off=-0.15, selections=decisions(n=50)))
        assert not found.has_passed
        assert "cannot tell" in found.says

    def test_the_same_selection_is_no_worse(self):
        assert selection_is_no_worse(evidence(off=-0.15, selections=decisions(n=5000))).has_passed

    def test_a_selection_that_earned_nothing_is_worse(self):
        frame = decisions(n=5000)
        frame = frame.assign(
            target=frame["explored"].astype(float),
            reward=np.where(frame["explored"], 0.0, frame["reward"]),
            predicted=np.where(frame["explored"], 0.0, 35.0),
            predicted_target=0.0,
        )
        assert not selection_is_no_worse(evidence(off=-0.15, selections=frame)).has_passed

    def test_a_written_policy_selects_as_before(self):
        assert selection_is_no_worse(evidence(off=-0.15)).has_passed
        assert guardrails(evidence(off=-0.15)).has_passed

    @pytest.mark.parametrize(
        ("column", "value", "passes"),
        [
            ("success_after", 0.98, True),
            ("success_after", 0.96, False),
            ("usd_after", 1.09, True),
            ("usd_after", 1.11, False),
            ("seconds_after", 1.19, True),
            ("seconds_after", 1.21, False),
        ],
    )
    def test_guardrails_stop_a_domain_from_getting_worse(self, column, value, passes):
        assert guardrails(evidence(selections=decisions(**{column: value}))).has_passed is passes

    def test_the_columns_are_those_that_are_made(self):
        assert set(decisions().columns) == set(COLUMNS)


class TestCoverage:
    def candidate(self, low: float, high: float) -> Candidate:
        factors = TokenFactors(mean=1.1, median=1.0, low=low, high=high)
        tokens = {model: {"backend": ModelTokens(input=factors, output=factors)} for model in MODELS}
        learned = Learned(calibration=Calibration.model_validate({"tokens": tokens}))
        return Candidate(learned, (Change(key="tokens.x", before=1.0, found=1.1, after=1.1),))

    @pytest.mark.parametrize(("share", "passes"), [(0.8, True), (0.78, True), (0.6, False), (0.95, False)])
    def test_intervals_have_to_hold_four_of_five(self, share, passes):
        later = evidence().later.reset_index(drop=True)
        outside = later.index >= share * len(later)
        later = later.assign(
            input_tokens=np.where(outside, 5000, 1000), output_tokens=np.where(outside, 500, 100)
        )
        judged = evidence(later=later, candidate=self.candidate(0.5, 2.0))
        assert intervals_cover(judged).has_passed is passes


class TestCaps:
    def test_a_number_that_moves_too_far_is_found_however_it_got_there(self):
        cells = {MODELS[0]: {"backend": {"moderate": believed(MODELS[0]) * 0.8}}}
        far = Learned(calibration=Calibration.model_validate({"success": cells}))
        assert not change_caps(evidence(candidate=Candidate(far, ()))).has_passed
        points = Learned(scoring={"priority_points.P0": 50.0})
        assert not change_caps(evidence(candidate=Candidate(points, ()))).has_passed
        assert change_caps(evidence(off=-0.3)).has_passed

    def test_a_base_and_a_factor_together_move_no_further_than_a_number_may(self):
        twice = TokenFactors(mean=2.0, median=2.0, low=2.0, high=2.0)
        bases = {
            f"estimate.mean_tokens.{level.value}.input": 2.0
            * GROUND.scoring.estimate.mean_tokens[level].input
            for level in Complexity
        }
        tokens = {MODELS[0]: {"backend": ModelTokens(input=twice, output=twice)}}
        made = make_candidate(Found(tokens=tokens, scoring=bases), GROUND, 0.1)
        now, then = GROUND.expectations(), GROUND.expectations(made.learned)
        row = now.models.index(MODELS[0])
        assert (then.input / now.input)[row].max() == pytest.approx(1.1, abs=1e-3)  # the bases take all of it
        assert (then.output / now.output)[row].max() == pytest.approx(1.1, abs=1e-3)  # the factor alone
        assert change_caps(evidence(candidate=made, policy=LearningPolicy(max_change=0.1))).has_passed
        tenth = TokenFactors(mean=1.1, median=1.1, low=1.0, high=2.0)
        both = Calibration.model_validate({"tokens": {MODELS[0]: {"backend": {"input": tenth.model_dump()}}}})
        far = Learned(calibration=both, scoring=made.learned.scoring, written=made.learned.written)
        assert not change_caps(
            evidence(candidate=Candidate(far, ()), policy=LearningPolicy(max_change=0.11))
        ).has_passed

    @settings(max_examples=25)
    @given(st.floats(0.001, 0.999), st.floats(0.05, 0.2))
    def test_a_candidate_never_moves_further_than_it_may(self, wanted, limit):
        found = Found(success={MODELS[0]: {"backend": {"moderate": wanted}}})
        for change in make_candidate(found, GROUND, limit).changes:
            assert change.share <= limit + 1e-4

    def test_numbers_of_the_scoring_remember_what_the_file_said(self):
        made = make_candidate(Found(scoring={"priority_points.P0": 80.0}), GROUND, 0.1)
        assert made.learned.scoring == {"priority_points.P0": pytest.approx(44.0)}
        assert made.learned.written == {"priority_points.P0": 40.0}

    def test_numbers_that_do_not_go_together_are_left_as_they_are(self):
        wanted = {"priority_points.P0": 33.0, "priority_points.P1": 40.0}  # P1 would be worth more than P0
        close = replace(
            GROUND,
            scoring=SHIPPED.scoring.model_copy(
                update={"priority_points": {**SHIPPED.scoring.priority_points, "P0": 32.0, "P1": 31.0}}
            ),
        )
        made = make_candidate(Found(scoring={**wanted, "priority_points.P0": 31.5}), close, 0.1)
        assert made.learned.scoring == {}
        assert made.changes == ()

    def test_unknown_models_and_keys_are_left_aside(self):
        found = Found(success={"no-such-model": {"backend": {"moderate": 0.5}}}, scoring={"no.such": 1.0})
        assert make_candidate(found, GROUND, 0.1).changes == ()


class TestCorrections:
    def test_outcomes_as_expected_move_nothing(self):
        n = np.zeros_like(BELIEVED.success)
        n[:2, :] = 100.0
        assert correct(BELIEVED.success, n, n * BELIEVED.success) == pytest.approx(BELIEVED.success, abs=1e-9)

    def test_much_evidence_moves_a_model_to_what_came(self):
        n = np.full_like(BELIEVED.success, 1e6)
        truth = np.clip(BELIEVED.success * 0.8, 0, 0.999)
        truth[::2] = BELIEVED.success[::2]
        moved = correct(BELIEVED.success, n, n * truth)
        possible = BELIEVED.success > 0
        assert moved[possible] == pytest.approx(truth[possible], abs=0.01)

    def test_without_outcomes_nothing_is_known(self):
        nothing = np.zeros_like(BELIEVED.success)
        assert (correct(BELIEVED.success, nothing, nothing) == BELIEVED.success).all()


class TestFitting:
    def test_a_key_that_a_person_changed_since_is_left_out(self):
        learned = Learned(scoring={"priority_points.P0": 42.0}, written={"priority_points.P0": 39.0})
        fit, left_out = learned.fitting(SHIPPED.registry, SHIPPED.scoring)
        assert fit == Learned()
        assert "a person changed it from 39 to 40" in left_out[0]

    def test_what_fits_stays_as_it_is(self):
        learned = Learned(scoring={"priority_points.P0": 42.0}, written={"priority_points.P0": 40.0})
        assert learned.fitting(SHIPPED.registry, SHIPPED.scoring) == (learned, [])

    def test_numbers_that_break_the_rules_together_are_all_left_out(self):
        learned = Learned(scoring={"priority_points.P0": 1.0})
        fit, left_out = learned.fitting(SHIPPED.registry, SHIPPED.scoring)
        assert fit == Learned()
        assert left_out
        with pytest.raises(LearnedError):
            learned.apply_to(SHIPPED.scoring)
