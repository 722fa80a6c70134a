"""Fairness over time and between workspaces: what waiting is worth, who is served first, and who has had enough."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Doubles = NDArray[np.float64]


class FairnessPolicy(BaseModel):
    """Section `fairness` of policies.yaml: what waiting is worth, and how much a workspace may have at once.

    A task that has waited `overdue_hours` is served before every task that has not, oldest first. So a task that fits
    into a fresh window waits at most `overdue_hours`, plus the windows that the overdue tasks before it fill.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    points_per_hour: float = Field(
        default=0.25, ge=0, description="Value points that an hour of waiting adds."
    )
    overdue_hours: float = Field(default=72.0, gt=0, description="After this wait a task is served first.")
    workspace_caps: dict[str, Annotated[int, Field(ge=0)]] = Field(
        default={}, description="Most tasks of a workspace that are assigned or running at once."
    )

    def rooms(self, busy: Mapping[str, int]) -> dict[str, int]:
        """How many more tasks each capped workspace may have.

        Args:
            busy: tasks assigned or running, by workspace.
        """
        return {name: max(0, cap - busy.get(name, 0)) for name, cap in self.workspace_caps.items()}

    def aged(self, values: Doubles, waiting_hours: Doubles) -> Doubles:
        """Values with what waiting has added. A clock that ran backwards adds nothing."""
        return values + self.points_per_hour * np.maximum(waiting_hours, 0.0)

    def overdue(self, waiting_hours: Doubles) -> NDArray[np.intp]:
        """Positions of the tasks that have waited too long, oldest first."""
        late = np.flatnonzero(waiting_hours >= self.overdue_hours)
        return late[np.argsort(-waiting_hours[late], kind="stable")]


def beyond_room(
    workspaces: pd.Series, rooms: Mapping[str, int], order: NDArray[np.intp]
) -> NDArray[np.bool_]:
    """Which tasks stand, in `order`, behind as many of their workspace as it has room for.

    Args:
        workspaces: of n tasks.
        rooms: how many more tasks each capped workspace may have.
        order: positions of the tasks that want a plan, those to be preferred first.
    """
    beyond = np.zeros(len(workspaces), dtype=bool)
    for workspace, room in rooms.items():
        own = order[(workspaces == workspace).to_numpy()[order]]
        beyond[own[room:]] = True
    return beyond
