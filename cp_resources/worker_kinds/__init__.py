"""Kinds of workers, a module each: what makes an attempt at a claimed task and says what came of it.

Claims, leases, retries and the ledger are the same for all of them: see `cp_resources.worker`.
"""

from __future__ import annotations

from typing import Protocol

from cp_core.execution.outcome import AttemptResult
from cp_resources.executions import ClaimedTask


class WorkerKind(Protocol):
    """Makes attempts at the tasks of some providers' models."""

    @property
    def providers(self) -> frozenset[str]:
        """Names of the providers whose models it can have do a task."""
        ...

    async def attempt(self, claimed: ClaimedTask, *, seconds: float) -> AttemptResult:
        """Make one attempt, without retrying. Every failure is a result; only cancelling raises.

        Args:
            seconds: how long it may take, by the task's deadline; a kind may have a lower limit of its own.
        """
        ...
