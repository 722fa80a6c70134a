"""What a simulator is told when it starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cp_resources.simulator.weather import Storm


@dataclass(frozen=True, slots=True)
class Options:
    """The simulator's settings; shares are from 0 to 1.

    `latency_ms` is the median of a call of moderate size, `latency_spread` the standard deviation of its
    logarithm. `token_scale` multiplies the simulated agent turns in the usage; 0 bills only the prompt and
    the text. `models` names the models that are served; empty serves every name. `journal` is kept when it
    is given.
    """

    seed: int = 7
    latency_ms: float = 150.0
    latency_spread: float = 0.5
    failure_share: float = 0.05
    refusal_share: float = 0.01
    storms: tuple[Storm, ...] = ()
    token_scale: float = 1.0
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    models: frozenset[str] = frozenset()
    journal: Path | None = None
    max_body_bytes: int = 32 * 1024 * 1024
