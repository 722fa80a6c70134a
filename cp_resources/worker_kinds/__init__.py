"""Kinds of workers, a module each: what makes an attempt at a claimed task and says what came of it.

Claims, leases, retries and the ledger are the same for all of them: see `cp_resources.worker`.
"""

from __future__ import annotations

import asyncio
from typing import Protocol

from cp_core.execution.outcome import AttemptResult
from cp_resources.executions import ClaimedTask


class CutOffError(asyncio.CancelledError):
    """An attempt was cancelled, and something is known of what it had used by then.

    Attributes:
        result: with reason CANCELLED.
    """

    def __init__(self, result: AttemptResult) -> None:
        super().__init__("cut off")
        self.result = result


class NotBegunError(asyncio.CancelledError):
    """An attempt was cancelled while it still waited for its turn: nothing of it had begun."""


class WorkerKind(Protocol):
    """Makes attempts at the tasks of some providers' models."""

    @property
    def providers(self) -> frozenset[str]:
        """Names of the providers whose models it can have do a task."""
        ...

    async def attempt(self, claimed: ClaimedTask, *, seconds: float) -> AttemptResult:
        """Make one attempt, without retrying. Every failure is a result; only cancelling raises.

        A cancelled attempt ends what it began outside, and raises `CutOffError` where it can tell the use, or
        `NotBegunError`.

        Args:
            seconds: how long it may take, by the task's deadline; a kind may have a lower limit of its own.
        """
        ...
