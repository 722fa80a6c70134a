"""The whole of config/policies.yaml: one section a step, each described beside the rules that read it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from cp_core.assignment.exploration import ExplorationPolicy
from cp_core.assignment.fairness import FairnessPolicy
from cp_core.assignment.inline import InlinePolicy
from cp_core.assignment.plans import PlanPolicy
from cp_core.assignment.policy import AssignmentPolicy
from cp_core.assignment.predict import PredictionPolicy
from cp_core.assignment.retry import AssignmentRetryPolicy
from cp_core.assignment.strategies import ObjectivePolicy
from cp_core.execution.breaker import BreakerPolicy
from cp_core.execution.policy import ExecutionPolicy
from cp_core.execution.prompt import PromptPolicy
from cp_core.execution.request_log import RequestLogPolicy
from cp_core.learning.policy import LearningPolicy
from cp_core.policy.notices import NoticePolicy


class Flags(BaseModel):
    """Section `flags`: switches that an operator may turn without changing a policy. Only true and false will do."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, populate_by_name=True, serialize_by_alias=True
    )

    retry_policy_v2: bool = Field(
        default=True,
        alias="feat.auto_assign.retry_policy_v2",
        description="Whether assignment itself is tried again by the table of passing and lasting reasons.",
    )
    planner_cache_enabled: bool = Field(
        default=True,
        alias="PLANNER_CACHE_ENABLED",
        description="Whether a process remembers what it decided for equal tasks at equal capacity.",
    )
    debug_capacity_profiling: bool = Field(
        default=False,
        alias="DEBUG_CAPACITY_PROFILING",
        description="Whether telemetry carries counters of every search.",
    )
    prompt_caching: bool = Field(
        default=True,
        alias="feat.execution.prompt_caching",
        description="Whether prompts are marked for providers' caches, and one call goes first to fill them.",
    )


class Policies(BaseModel):
    """Every written policy. A section that is left out has its defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    assignment: AssignmentPolicy = AssignmentPolicy()
    prediction: PredictionPolicy = PredictionPolicy()
    plans: PlanPolicy = PlanPolicy()
    objective: ObjectivePolicy = ObjectivePolicy()
    fairness: FairnessPolicy = FairnessPolicy()
    exploration: ExplorationPolicy = ExplorationPolicy()
    inline: InlinePolicy = InlinePolicy()
    assignment_retry: AssignmentRetryPolicy = AssignmentRetryPolicy()
    execution: ExecutionPolicy = ExecutionPolicy()
    breaker: BreakerPolicy = BreakerPolicy()
    prompt: PromptPolicy = PromptPolicy()
    request_log: RequestLogPolicy = RequestLogPolicy()
    notices: NoticePolicy = NoticePolicy()
    learning: LearningPolicy = LearningPolicy()
    flags: Flags = Flags()
