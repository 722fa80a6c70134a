"""The switches of policies.yaml, by the names that operators know, and the file that ships."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from cp_core.policy.policies import Flags, Policies
from cp_resources.configuration import ConfigurationError, load_file

SHIPPED = Path(__file__).parents[3] / "config/policies.yaml"

NAMES = {
    "feat.auto_assign.retry_policy_v2": ("retry_policy_v2", True),
    "PLANNER_CACHE_ENABLED": ("planner_cache_enabled", True),
    "DEBUG_CAPACITY_PROFILING": ("debug_capacity_profiling", False),
    "feat.execution.prompt_caching": ("prompt_caching", True),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_flag_is_turned_by_its_name(name: str) -> None:
    attribute, default = NAMES[name]
    assert getattr(Policies().flags, attribute) is default
    turned = Policies.model_validate({"flags": {name: not default}}).flags
    assert getattr(turned, attribute) is not default
    others = [other for other, _ in NAMES.values() if other != attribute]
    assert all(getattr(turned, other) is getattr(Flags(), other) for other in others)


@pytest.mark.parametrize("value", ["yes", "true", 1, 0, None])
def test_only_true_and_false_turn_a_flag(value: Any) -> None:
    with pytest.raises(ValidationError, match="PLANNER_CACHE_ENABLED"):
        Policies.model_validate({"flags": {"PLANNER_CACHE_ENABLED": value}})


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("feat.auto_assign.retry_policy_v3", "feat.auto_assign.retry_policy_v2"),
        ("PLANNER_CACHE_ENABLE", "PLANNER_CACHE_ENABLED"),
        ("DEBUG_CAPACITY_PROFILE", "DEBUG_CAPACITY_PROFILING"),
    ],
)
def test_a_misspelt_flag_is_an_error_that_says_what_was_meant(
    misspelt: str, meant: str, tmp_path: Path
) -> None:
    file = tmp_path / "policies.yaml"
    file.write_text(f"flags:\n  {misspelt}: true\n")
    with pytest.raises(ConfigurationError) as raised:
        load_file(file, Policies)
    assert f"{file}:2: flags.{misspelt}: unknown key" in str(raised.value)
    assert f"did you mean '{meant}'?" in str(raised.value)


def test_a_flag_is_stored_under_the_name_it_is_turned_by() -> None:
    assert set(Policies().model_dump()["flags"]) == set(NAMES)


def test_the_shipped_file_writes_the_defaults_out() -> None:
    assert load_file(SHIPPED, Policies) == Policies()
    written = yaml.safe_load(SHIPPED.read_text("utf-8"))
    assert set(written) == set(Policies.model_fields)
    defaults = Policies().model_dump(mode="json")
    for section in set(written) - {
        "assignment",
        "execution",
        "notices",
    }:  # long: the file holds what is often set
        assert written[section] == defaults[section]
