"""What was learned is laid over what people wrote, and refuses what does not fit."""

from __future__ import annotations

from pathlib import Path

import pytest

from cp_core.assignment.calibration import Calibration, TraitWeights
from cp_core.learning.learned import Learned, LearnedError
from cp_resources.configuration import load_configuration

CONFIGURATION = load_configuration(Path(__file__).parents[3] / "config")


def test_a_learned_number_replaces_the_one_of_the_file():
    learned = Learned(scoring={"priority_points.P1": 31.5, "estimate.mean_tokens.simple.input": 8000.0})
    scoring = CONFIGURATION.with_learned(learned).scoring
    assert scoring.priority_points["P1"] == 31.5
    assert scoring.estimate.mean_tokens["simple"].input == 8000.0
    assert scoring.priority_points["P0"] == CONFIGURATION.scoring.priority_points["P0"]


@pytest.mark.parametrize("key", ["priority_points.P9", "priority_points", "nothing.at.all"])
def test_a_key_that_names_no_number_is_refused(key):
    with pytest.raises(LearnedError, match=key):
        CONFIGURATION.with_learned(Learned(scoring={key: 1.0}))


def test_a_number_that_the_rules_refuse_is_refused():
    with pytest.raises(LearnedError, match="must rise"):
        CONFIGURATION.with_learned(Learned(scoring={"priority_points.P1": 60.0}))


def test_nothing_learned_leaves_the_version_as_it_is_and_something_makes_another():
    assert CONFIGURATION.with_learned(Learned()).content_hash == CONFIGURATION.content_hash
    learned = Learned(calibration=Calibration(success={"claude-haiku": {"backend": {"simple": 0.9}}}))
    assert CONFIGURATION.with_learned(learned).content_hash != CONFIGURATION.content_hash


def test_what_was_learned_survives_being_stored():
    learned = Learned(
        calibration=Calibration(
            success={"m": {"backend": {"simple": 0.9}}},
            tokens={"m": {"ml": {"output": {"mean": 1.2, "high": 2.0}}}},
            trait_model="f" * 64,
            traits=TraitWeights(success={"m": (0.25, -1.0)}),
        ),
        scoring={"priority_points.P1": 31.0},
    )
    stored = CONFIGURATION.with_learned(learned).as_dict()["learned"]
    assert Learned.model_validate(stored) == learned


def test_models_with_different_numbers_of_traits_are_refused():
    with pytest.raises(ValueError, match="a weight for each trait"):
        TraitWeights(success={"a": (1.0,), "b": (1.0, 2.0)})
