"""Which calls are kept whole, and for how long: section `request_log` of policies.yaml."""

from __future__ import annotations

import hashlib

from pydantic import BaseModel, ConfigDict, Field


class RequestLogPolicy(BaseModel):
    """The request log. It is off unless `sample` says otherwise: it holds what tasks say and models answer."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    sample: float = Field(
        default=0.0, ge=0, le=1, description="Share of tasks whose calls are kept: 0 none, 1 all."
    )
    max_bytes: int = Field(
        default=65_536, ge=256, le=8_388_608, description="Most bytes kept of a request, and of an answer."
    )
    keep_days: int = Field(default=7, ge=1, le=3650, description="Days until a day's file is removed.")


def is_sampled(task: str, sample: float) -> bool:
    """Whether the calls of a task are kept: all its attempts or none, the same in every process."""
    drawn = int.from_bytes(hashlib.sha256(task.encode()).digest()[:8], "big")
    return drawn < sample * 2**64
