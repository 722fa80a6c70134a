"""What texts say of success: learned where they say something, within the cap, and proven on later days."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import expit, logit

from cp_core.assignment.calibration import Calibration, TraitWeights
from cp_core.assignment.predict import Predictor, trait_matrix
from cp_core.learning.candidate import TEXTS, Examples, Found, Ground, make_candidate
from cp_core.learning.gates.changes import change_caps
from cp_core.learning.gates.evidence import Evidence
from cp_core.learning.gates.holdout import forward_holdout
from cp_core.learning.gates.placebo import placebo
from cp_core.learning.learned import Learned
from cp_core.learning.policy import LearningPolicy
from cp_core.learning.text_effects import TextFit, TextRows, fit_effects_of_texts, largest_step, shifts
from cp_core.learning.texts import TextsFound, learn_texts
from cp_core.learning.traits_seen import TraitsSeen, chosen_tasks, text_shifts
from cp_resources.configuration import load_configuration

SHIPPED = load_configuration(Path(__file__).parents[3] / "config")
GROUND = Ground(SHIPPED.registry, SHIPPED.policies.prediction, SHIPPED.scoring, Learned())
EXPECTED = GROUND.expectations()
FIRST, SECOND = EXPECTED.models[:2]
EYE, OTHER = "e" * 64, "o" * 64
POLICY = LearningPolicy()
CHANCE = SHIPPED.registry.models[FIRST].capability["backend"]


def attempts(count: int, effect: float, *, days: int = 20, seed: int = 1) -> tuple[pd.DataFrame, TraitsSeen]:
    """Attempts at tasks of four traits, one each, of which the first moves success by `effect` for the first model and
    the other way for the second; `days` old at most."""
    generator = np.random.default_rng(seed)
    traits = np.clip(generator.normal(size=(count, 4)), -3, 3)
    model = generator.integers(0, 2, count)
    chance = expit(logit(CHANCE) + np.where(model == 0, effect, -effect) * traits[:, 0])
    rows = pd.DataFrame(
        {
            "task": np.arange(count) + seed * 1_000_000,
            "model": np.array([FIRST, SECOND])[model],
            "domain": "backend",
            "complexity": "moderate",
            "age_days": generator.integers(POLICY.holdout_days, days, count).astype(float),
            "has_succeeded": generator.random(count) < chance,
            "is_censored": False,
            "input_tokens": 1000,
            "output_tokens": 100,
            "expected_input_tokens": 1000.0,
            "expected_output_tokens": 100.0,
        }
    )
    return rows, TraitsSeen.of(rows["task"].to_numpy(), traits)


def learned(rows: pd.DataFrame, seen: TraitsSeen) -> TextsFound:
    return learn_texts(rows, EXPECTED, EYE, seen, POLICY, seed=7)


class TestEffects:
    def test_what_is_common_and_what_is_a_models_own_are_found(self):
        generator = np.random.default_rng(4)
        traits, of = generator.normal(size=(8000, 5)), generator.integers(0, 2, 8000)
        true = np.array([[0.8, 0.5, 0, 0, 0], [0.8, -0.5, 0, 0, 0]])
        rows = TextRows(traits, of, np.zeros(8000), np.ones(8000), 2)
        won = (generator.random(8000) < expit(shifts(true, rows))).astype(float)
        found = fit_effects_of_texts(rows, won, np.arange(8000), seed=1)
        # standard errors are 2 / sqrt(4000) = 0.03; shrinkage takes a few hundredths more
        assert found == pytest.approx(true, abs=0.15)

    def test_texts_that_say_nothing_are_shrunk_to_nothing(self):
        generator = np.random.default_rng(5)
        traits, of = generator.normal(size=(3000, 30)), generator.integers(0, 3, 3000)
        rows = TextRows(traits, of, np.zeros(3000), np.ones(3000), 3)
        won = (generator.random(3000) < 0.5).astype(float)
        found = fit_effects_of_texts(rows, won, np.arange(3000), seed=1)
        # unshrunk effects have a deviation of 2 / sqrt(1000) = 0.063 each, so 0.35 for 30 of them together
        assert shifts(found, rows).std() < 0.1

    def test_a_model_without_attempts_has_no_effects_of_its_own(self):
        rows = TextRows(np.ones((10, 2)), np.zeros(10, dtype=int), np.zeros(10), np.ones(10), 2)
        _, own = TextFit(rows).effects(np.ones(10))
        assert (own[1] == 0).all()

    def test_one_night_goes_as_far_as_the_cap_lets_it(self):
        # from 0.5 a night may go to 0.575, which is 0.3023 log-odds of the 2.1972 to 0.9
        step = largest_step(np.array([0.5]), np.zeros(1), np.array([logit(0.9)]), 0.15)
        assert step == pytest.approx(logit(0.575) / logit(0.9))
        assert largest_step(np.array([0.5]), np.zeros(1), np.array([0.1]), 0.15) == 1

    def test_one_extreme_text_in_two_hundred_does_not_hold_up_the_rest(self):
        then = np.array([3.0] + [0.1] * 199)
        assert largest_step(np.full(200, 0.5), np.zeros(200), then, 0.15) == 1
        assert largest_step(np.full(199, 0.5), np.zeros(199), then[:199], 0.15) < 0.11

    @given(
        st.lists(
            st.tuples(st.floats(0.01, 0.99), st.floats(-3, 3), st.floats(-3, 3)), min_size=1, max_size=20
        ),
        st.floats(0.01, 0.2),
    )
    def test_no_success_moves_further_than_the_cap(self, rows, limit):
        chance, now, then = np.array(rows).T
        step = largest_step(chance, now, then, limit)
        before, after = (expit(logit(chance) + shift) for shift in (now, now + step * (then - now)))
        assert 0 <= step <= 1
        assert (np.abs(after / before - 1) <= limit * (1 + 1e-6)).all()


class TestLearning:
    def test_texts_that_decide_are_taken_with_the_right_sign_for_each_model(self):
        found = learned(*attempts(6000, 1.0))
        assert found.trait_model == EYE
        assert found.success[FIRST][0] > 0.6
        assert found.success[SECOND][0] < -0.6
        assert found.brier is not None
        assert found.brier[1] < found.brier[0]
        assert "taken" in found.says

    def test_texts_that_say_nothing_are_left_aside(self):
        found = learned(*attempts(6000, 0.0))
        assert found.trait_model is None
        assert "left aside" in found.says
        assert found.saved is not None

    def test_with_little_data_kinds_stand_alone(self):
        found = learned(*attempts(400, 1.0))
        assert found.trait_model is None
        assert "200 of each are needed" in found.says

    def test_texts_that_no_longer_say_what_they_said_are_left_aside(self):
        before, seen = attempts(6000, 1.0)
        after, seen_after = attempts(2000, -1.0, days=4, seed=2)
        before["age_days"] += 4
        both = TraitsSeen.of(
            np.concatenate([seen.tasks, seen_after.tasks]), np.vstack([seen.traits, seen_after.traits])
        )
        assert learned(pd.concat([before, after]), both).trait_model is None

    def test_what_is_in_force_fades_only_when_it_saves_nothing_and_stays_with_little_data(self):
        kept = {"is_in_force": True, "seed": 7}
        few, seen = attempts(400, 1.0)
        stays = learn_texts(few, EXPECTED, EYE, seen, POLICY, **kept)
        assert (stays.trait_model, stays.success) == (EYE, {})
        assert learn_texts(few.iloc[:0], EXPECTED, EYE, seen, POLICY, **kept).trait_model == EYE
        before, seen = attempts(6000, 1.0)
        after, seen_after = attempts(2000, -1.0, days=4, seed=2)
        both = TraitsSeen.of(
            np.concatenate([seen.tasks, seen_after.tasks]), np.vstack([seen.traits, seen_after.traits])
        )
        turned = pd.concat([before.assign(age_days=before["age_days"] + 4), after])
        assert learn_texts(turned, EXPECTED, EYE, both, POLICY, **kept).trait_model is None

    def test_the_same_attempts_give_the_same_in_any_order(self):
        rows, seen = attempts(3000, 1.0)
        assert learned(rows, seen) == learned(rows, seen)

    def test_without_outcomes_there_is_nothing(self):
        rows, seen = attempts(10, 1.0)
        assert learned(rows.iloc[:0], seen).trait_model is None


class TestSeen:
    def test_tasks_whose_text_was_not_looked_at_are_not_moved(self):
        seen = TraitsSeen.of(np.array([5, 3]), np.array([[1.0, 0.0], [0.0, 2.0]]))
        calibration = Calibration(trait_model=EYE, traits=TraitWeights(success={FIRST: (0.5, 0.25)}))
        rows = pd.DataFrame({"task": [3, 4, 5, 5], "model": [FIRST, FIRST, FIRST, SECOND]})
        assert text_shifts(rows, calibration, {EYE: seen}).tolist() == [0.5, 0, 0.5, 0]
        assert text_shifts(rows, calibration, {OTHER: seen}).tolist() == [0, 0, 0, 0]
        assert text_shifts(rows, Calibration(), {EYE: seen}).tolist() == [0, 0, 0, 0]

    def test_a_choice_of_tasks_is_the_same_every_night(self):
        tasks = pd.Series([9, 1, 9, 4, 7])
        assert chosen_tasks(tasks, 10).tolist() == [1, 4, 7, 9]
        chosen = chosen_tasks(tasks, 2)
        assert chosen.tolist() == chosen_tasks(tasks.iloc[::-1], 2).tolist()
        assert set(chosen) < {1, 4, 7, 9}


class TestPrediction:
    def test_traits_of_another_length_or_none_are_not_read(self):
        found = trait_matrix([None, (1.0, 2.0), (1.0, 2.0, 3.0)], 2)
        assert found.tolist() == [[0, 0], [1, 2], [0, 0]]

    def test_the_traits_of_a_task_move_its_success_and_no_other(self):
        calibration = Calibration(trait_model=EYE, traits=TraitWeights(success={FIRST: (1.0, 0.0)}))
        predictor = Predictor([SHIPPED.registry.models[FIRST]], SHIPPED.policies.prediction, calibration)
        tokens = {
            f"{kind}_{which}": [100.0] * 3 for kind in ("input", "output") for which in ("mean", "median")
        }
        kinds = {"domain": ["backend"] * 3, "complexity": ["moderate"] * 3}
        found = predictor.predict({**kinds, **tokens, "traits": [(1.0, 9.0), None, (-1.0, 9.0)]}).success[0]
        assert found == pytest.approx(expit(logit(CHANCE) + np.array([1, 0, -1])))


def candidate_of(texts: TextsFound, ground: Ground, seen: dict[str, TraitsSeen], rows: pd.DataFrame):
    return make_candidate(Found(texts=texts), ground, 0.15, Examples(rows.drop_duplicates("task"), seen))


def over(calibration: Calibration) -> Ground:
    return replace(GROUND, learned=Learned(calibration=calibration))


class TestCandidate:
    rows, seen = attempts(2000, 1.0)
    found = TextsFound(trait_model=EYE, success={FIRST: (1.0, 0.0, 0.0, 0.0)}, says="taken")

    def moved(self, ground: Ground = GROUND, found: TextsFound | None = None):
        return candidate_of(found or self.found, ground, {EYE: self.seen}, self.rows)

    def test_a_night_goes_part_of_the_way_and_further_nights_arrive(self):
        first = self.moved()
        [change] = first.changes
        assert change.key == f"{TEXTS}{FIRST}"
        assert pytest.approx(change.before, abs=1e-6) == CHANCE
        assert change.before < change.after < change.found
        weight = first.learned.calibration.traits.success[FIRST][0]
        assert 0 < weight < 0.5
        ground = GROUND
        for _ in range(40):
            ground = over(self.moved(ground).learned.calibration)
        assert ground.learned.calibration.traits.success[FIRST][0] == pytest.approx(1.0)
        assert ground.learned.calibration.trait_model == EYE
        assert self.moved(ground).changes == ()

    def test_texts_that_are_left_aside_fade_until_nothing_is_left(self):
        ground = over(Calibration(trait_model=EYE, traits=TraitWeights(success=self.found.success)))
        aside = TextsFound(says="left aside")
        weights = []
        while ground.learned.calibration.trait_model:
            ground = over(self.moved(ground, aside).learned.calibration)
            weights.append(ground.learned.calibration.traits.success.get(FIRST, (0.0,))[0])
            assert len(weights) < 40
        assert weights == sorted(weights, reverse=True)
        assert weights[0] > 0.5
        assert ground.learned.calibration == Calibration()

    def test_weights_of_another_trait_model_wait_until_those_in_force_have_faded(self):
        ground = over(Calibration(trait_model=OTHER, traits=TraitWeights(success={FIRST: (0.5, 0, 0, 0)})))
        seen = {EYE: self.seen, OTHER: self.seen}
        made = candidate_of(self.found, ground, seen, self.rows).learned.calibration
        assert made.trait_model == OTHER
        assert 0 < made.traits.success[FIRST][0] < 0.5

    def test_what_there_is_too_little_data_about_stays(self):
        ground = over(Calibration(trait_model=EYE, traits=TraitWeights(success=self.found.success)))
        kept = self.moved(ground, TextsFound(trait_model=EYE, says="stays as it is"))
        assert kept.learned == ground.learned

    def test_what_was_not_looked_into_stays(self):
        ground = over(Calibration(trait_model=EYE, traits=TraitWeights(success=self.found.success)))
        kept = make_candidate(Found(), ground, 0.15, Examples(self.rows, {EYE: self.seen}))
        assert kept.learned == ground.learned
        assert kept.changes == ()


class TestGates:
    """Evidence in which texts decide, and nothing else is off."""

    earlier, seen = attempts(6000, 1.0)
    later, seen_later = attempts(3000, 1.0, seed=2)
    both = TraitsSeen.of(
        np.concatenate([seen.tasks, seen_later.tasks]), np.vstack([seen.traits, seen_later.traits])
    )

    def evidence(self, **changes) -> Evidence:
        found = learned(self.earlier, self.seen)
        candidate = candidate_of(found, GROUND, {EYE: self.both}, self.earlier)
        later = self.later.assign(age_days=0.0)
        made = Evidence(
            GROUND, candidate, POLICY, self.earlier, later, decided=1, ended=1, seed=3, seen={EYE: self.both}
        )
        return replace(made, **changes)

    def test_texts_that_decide_pass(self):
        evidence = self.evidence()
        assert evidence.candidate.changes
        found = forward_holdout(evidence)
        assert found.has_passed
        assert found.figures["what texts say"]["low"] > 0
        assert change_caps(evidence).has_passed
        assert placebo(evidence).has_passed

    def test_texts_that_mislead_on_later_days_do_not(self):
        wrong, seen = attempts(3000, -1.0, seed=2)
        assert (seen.tasks == self.seen_later.tasks).all()
        evidence = self.evidence(later=wrong.assign(age_days=0.0))
        assert not forward_holdout(evidence).has_passed
        assert not placebo(evidence).has_passed

    def test_the_placebo_finds_out_texts_whose_outcomes_were_shuffled(self):
        won = np.random.default_rng(8).permutation(self.earlier["has_succeeded"].to_numpy())
        later = self.later.assign(
            age_days=0.0,
            has_succeeded=np.random.default_rng(9).permutation(self.later["has_succeeded"].to_numpy()),
        )
        assert not placebo(
            self.evidence(earlier=self.earlier.assign(has_succeeded=won), later=later)
        ).has_passed

    def test_texts_that_move_success_further_than_a_night_may_are_found(self):
        evidence = self.evidence()
        calibration = Calibration(trait_model=EYE, traits=TraitWeights(success={FIRST: (1.0, 0, 0, 0)}))
        too_far = replace(evidence.candidate, learned=Learned(calibration=calibration))
        found = change_caps(replace(evidence, candidate=too_far))
        assert not found.has_passed
        assert FIRST in found.says

    def test_tasks_whose_text_was_not_seen_are_not_judged(self):
        evidence = self.evidence(seen={EYE: self.seen})
        assert not forward_holdout(evidence).has_passed
