"""The shipped configuration, and what a person who edits it is told."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from pydantic import ValidationError
from score_rows import CONFIG, SHIPPED

from cp_core.scoring.config import Risk, ScoringConfig


def changed(where: str, value: Any) -> dict[str, Any]:
    """The shipped configuration with one value changed; `where` is its keys, joined by points."""
    config = copy.deepcopy(SHIPPED)
    *path, last = where.split(".")
    section = config
    for key in path:
        section = section[int(key) if isinstance(section, list) else key]
    section[last] = value
    return config


@pytest.mark.parametrize(
    ("where", "value", "message"),
    [
        ("priority_points.P1", 10.0, "priority_points, from P4 to P0 must rise: 10 follows 20"),
        ("priority_points.P5", 1, "priority_points needs exactly the keys P0, P1, P2, P3, P4"),
        ("priority_points.P0", float("nan"), "a finite number"),
        ("complexity.levels.moderate.max_files", 2, "levels.*.max_files must rise: 2 follows 2"),
        ("complexity.levels.complex.max_lines", None, "levels.complex needs both max_files and max_lines"),
        ("complexity.levels.highly_complex.max_files", 20, "highly_complex is the last step"),
        (
            "complexity.levels.huge",
            {"factor": 3},
            "Input should be 'simple', 'moderate', 'complex' or 'highly_",
        ),
        (
            "complexity.highly_complex_words",
            ["Refactor"],
            "'Refactor' can never be found; write words in lower",
        ),
        ("complexity.highly_complex_words", ["re-do"], "'re-do' can never be found"),
        (
            "size.lines_per_file",
            60,
            "gives the 2 files of a simple task more than its 100 lines; use at most 50",
        ),
        ("size.lines_filling_a_file", 100, "of a complex task over more than its 9 files; use at least 167"),
        ("time_bonus.deadlines.0.points", 3, "deadlines.points, from last to first must rise"),
        ("time_bonus.deadlines.0.within_hours", 48, "deadlines.within_hours must rise: 24 follows 48"),
        ("time_bonus.labels.hotfix", 101, "less than or equal to 100"),
        ("domains.default", "hardware", "Input should be 'infrastructure', 'backend'"),
        ("domains.rules.ml.factor", 0, "greater than 0"),
        ("risks.rules.staging.factor", 1.5, "rules.*.factor, from sandbox to production must rise"),
        ("estimate.mean_tokens.complex.input", 1, "mean_tokens.*.input must rise: 1 follows 27500"),
        ("estimate.sigma.output", -1, "greater than 0"),
        ("text.lead_charakters", 5, "Extra inputs are not permitted"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_allowed(where: str, value: Any, message: str) -> None:
    with pytest.raises(ValidationError) as error:
        ScoringConfig.model_validate(changed(where, value))

    assert message in str(error.value)


@pytest.mark.parametrize(
    ("section", "name", "message"),
    [
        ("domains", "ml", "rules lacks ml: each of infrastructure, backend"),
        ("risks", "sandbox", "rules lacks sandbox: each of production, staging"),
    ],
)
def test_a_domain_or_risk_without_a_rule_is_named(section: str, name: str, message: str) -> None:
    config = copy.deepcopy(SHIPPED)
    del config[section]["rules"][name]

    with pytest.raises(ValidationError, match=message):
        ScoringConfig.model_validate(config)


def test_what_was_stored_as_json_is_the_same_configuration() -> None:
    stored = json.loads(json.dumps(CONFIG.model_dump(mode="json")))

    assert ScoringConfig.model_validate(stored) == CONFIG


def test_labels_may_be_written_as_people_write_them() -> None:
    config = ScoringConfig.model_validate(changed("risks.rules.production.labels", ["Area: Breaking Change"]))

    assert config.risks.rules[Risk.PRODUCTION].labels == ("breaking-change",)


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        CONFIG.size = CONFIG.size  # type: ignore[misc]
