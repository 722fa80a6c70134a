"""The token prior: how many input and output tokens a task will likely take, before anything was learned.

The configured numbers are means, because a plan that adds up tasks needs means: tokens of real runs have a
heavy right tail, and a sum of medians falls short of the total by a third. The spread is log-normal: with a
standard deviation s of the logarithm, median = mean / exp(s^2 / 2), and the q-quantile = median x exp(s
z(q)).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from cp_core.scoring.complexity import LEVELS
from cp_core.scoring.config import EstimateRules
from cp_core.scoring.domain import DOMAINS

INTERVAL = 0.8
"""Share of tasks whose tokens lie between low and high."""

_Z = NormalDist().inv_cdf((1 + INTERVAL) / 2)


@dataclass(frozen=True)
class TokenEstimate:
    """Tokens of each row: the mean, the median, and the ends of the 80 % interval."""

    mean: NDArray[np.float64]
    median: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def estimate_tokens(
    complexity: NDArray[np.intp],
    domain: NDArray[np.intp],
    workspace_files: NDArray[np.float64],
    rules: EstimateRules,
) -> tuple[TokenEstimate, TokenEstimate]:
    """Input and output tokens of each row.

    Args:
        complexity: indexes in `LEVELS`.
        domain: indexes in `DOMAINS`.
        workspace_files: number of files in the workspace, NaN where unknown.
        rules: section `estimate` of the configuration.
    """
    means = [rules.mean_tokens[level] for level in LEVELS]
    factors = [rules.domain_factors.get(each) for each in DOMAINS]
    input_mean = (
        np.array([mean.input for mean in means])[complexity]
        * np.array([factor.input if factor else 1.0 for factor in factors])[domain]
        * _workspace_factor(workspace_files, rules)
    )
    output_mean = (
        np.array([mean.output for mean in means])[complexity]
        * np.array([factor.output if factor else 1.0 for factor in factors])[domain]
    )
    return _spread(input_mean, rules.sigma.input), _spread(output_mean, rules.sigma.output)


def _workspace_factor(files: NDArray[np.float64], rules: EstimateRules) -> NDArray[np.float64]:
    limits = [workspace.more_than_files for workspace in rules.large_workspaces]
    factors = np.array([1.0, *(workspace.input_factor for workspace in rules.large_workspaces)])
    return factors[np.searchsorted(limits, np.nan_to_num(files, nan=0.0))]


def _spread(mean: NDArray[np.float64], sigma: float) -> TokenEstimate:
    median = mean / math.exp(sigma**2 / 2)
    reach = math.exp(sigma * _Z)
    return TokenEstimate(mean=mean, median=median, low=median / reach, high=median * reach)
