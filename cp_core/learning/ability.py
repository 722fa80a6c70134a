"""Which outcomes say something about what a model can do.

An attempt that ended because of the installation, the provider's load or the account says nothing about the model:
such attempts are left out where its success and quality are estimated. They stay in plain counts, and in cost.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cp_core.tasks.reasons import Reason

NOT_OF_THE_MODEL: frozenset[Reason] = frozenset(
    {
        Reason.RATE_LIMITED,
        Reason.OVERLOADED,
        Reason.SERVER_ERROR,
        Reason.CONNECTION,
        Reason.LEASE_EXPIRED,
        Reason.AUTH_FAILED,
        Reason.PROVIDER_QUOTA,
        Reason.CANCELLED,
    }
)
"""Reasons of a failure that any model would have met. All others count: a time-out, too, for a model that is too slow
for its tasks fails them."""


def tells_of_model(reason: pd.Series[str]) -> NDArray[np.bool_]:
    """Whether each attempt, by its reason of failure (missing: none), says something about its model."""
    return ~np.asarray(reason.isin([one.value for one in NOT_OF_THE_MODEL]), dtype=np.bool_)
