"""The whole of config/policies.yaml: one section a step, each described beside the rules that read it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from cp_core.assignment.policy import AssignmentPolicy
from cp_core.execution.policy import ExecutionPolicy
from cp_core.execution.request_log import RequestLogPolicy


class Policies(BaseModel):
    """Every written policy. A section that is left out has its defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    assignment: AssignmentPolicy = AssignmentPolicy()
    execution: ExecutionPolicy = ExecutionPolicy()
    request_log: RequestLogPolicy = RequestLogPolicy()
