"""The frame of policies.yaml."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from cp_core.assignment.policy import AssignmentPolicy
from cp_core.execution.policy import ExecutionPolicy
from cp_core.policy.policies import Policies


def test_a_section_that_is_left_out_has_its_defaults() -> None:
    assert Policies.model_validate({}) == Policies(assignment=AssignmentPolicy(), execution=ExecutionPolicy())


def test_an_unknown_section_is_refused() -> None:
    with pytest.raises(ValidationError, match="asignment"):
        Policies.model_validate({"asignment": {}})
