"""How patient, how parallel and how demanding execution is: section `execution` of policies.yaml."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ExecutionPolicy(BaseModel):
    """Leases, concurrency, time limits, retries and the bar for quality."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    batch_size: int = Field(default=100, ge=1, le=1000, description="Most tasks of one claim or one commit.")
    concurrency: int = Field(default=64, ge=1, le=2000, description="Most calls of one worker at a time.")
    most_calls: int | None = Field(
        default=None, ge=1, le=100_000, description="Most calls of all workers at a time; none for no limit."
    )
    lease_seconds: float = Field(
        default=60, ge=1, le=3600, description="How long a claim lasts without a heartbeat."
    )
    heartbeat_seconds: float = Field(default=15, ge=0.1, description="How often a worker renews its leases.")
    drain_seconds: float = Field(
        default=30, ge=0, description="How long calls may still run after the worker was told to stop."
    )

    connect_timeout_seconds: float = Field(default=10, gt=0, description="To open a connection.")
    read_timeout_seconds: float = Field(default=300, gt=0, description="Longest silence within an answer.")
    timeout_seconds: float = Field(default=600, gt=0, description="For the whole call, connection included.")
    response_limit_bytes: int = Field(
        default=8_388_608, ge=1024, description="Longest answer that is read; a longer one is a failure."
    )

    output_headroom: float = Field(
        default=3.0, ge=1, description="Output limit of a call, as a multiple of the estimate's upper end."
    )
    output_tokens_floor: int = Field(
        default=4096, ge=1, description="Output limit of a call is never below this (or the model's own)."
    )

    most_retries_per_day: int | None = Field(
        default=None,
        ge=0,
        description="Most attempts of a UTC day, of all workers, that follow another of their task; what fails for a "
        "passing reason after that is queued for the next day. None for no limit.",
    )
    backoff_base_seconds: float = Field(default=1.0, ge=0, description="Ceiling of the first retry's delay.")
    backoff_cap_seconds: float = Field(default=60.0, ge=0, description="Ceiling of any retry's delay.")

    success_quality: float = Field(
        default=6.0,
        ge=0,
        le=10,
        description="Least quality (0 to 10) at which a task counts as succeeded; also the check between the "
        "stages of a plan.",
    )
    hand_on_work: bool = Field(
        default=False,
        description="Whether a later stage of a plan is shown what the one before answered. It costs its tokens.",
    )

    @model_validator(mode="after")
    def _heartbeat_renews_in_time(self) -> Self:
        if self.heartbeat_seconds > self.lease_seconds / 2:
            raise ValueError(
                f"heartbeat_seconds is {self.heartbeat_seconds:g} but must be at most half of lease_seconds "
                f"({self.lease_seconds:g}), or one lost heartbeat loses the lease"
            )
        return self
