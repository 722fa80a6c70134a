"""Made-up matrices of outcomes: many models on many tasks, of several shapes.

No public matrix of many models comes with the data this is measured on, only a table of whole-benchmark figures
(aider's polyglot leaderboard). Models are drawn from it with their pass rate and cost a case; what a table cannot show
is assumed. Shapes, numbers and seeds were fixed before anything was measured on them:

- A task has difficulties ~ N(0, 1) in one to three directions. Models share them with loadings of 0.55 to 0.9 in all,
  spread over the directions: they mostly fail on the same tasks. Models of one family share some of what is left.
- Each model is better in some of six domains and worse in others.
- The text shows `visible` of the first difficulty's variance, through how often words of effort stand in it, and the
  domain; or it is nothing but a number.
- A task's cost goes with its size and its difficulty, differs by model, and may be higher where the work fails.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import ndtri

from cp_core.learning.backtest.outcomes import Outcomes

Doubles = NDArray[np.float64]

_DOMAINS = ("backend", "frontend", "infrastructure", "ml", "testing", "documentation")
_WORDS = 60
_VISIBLE_WORDS = 12
_SIZE, _NOISE = 0.5, 0.4  # deviations of a cost's logarithm: by the task's size, and by chance


@dataclass(frozen=True)
class Shape:
    """What a matrix is like.

    Attributes:
        models, tasks: how many.
        visible: share of the first difficulty's variance that the text shows, 0 to 1; None: tasks have no text.
        directions: of difficulty.
        families: of models; 0: none.
        family_share: of the variance of a model's own luck, what its family shares.
        bent: deviation of a model's ability between domains, on the probit scale.
        rates: least and largest success of models that are not from the leaderboard; their costs lie a hundredfold
            apart. None: rates and costs of the leaderboard.
        cost_by_difficulty: what a deviation of difficulty adds to the logarithm of a cost.
        failure_cost: cost of work that fails over that of work that succeeds.
    """

    models: int
    tasks: int
    visible: float | None
    directions: int = 1
    families: int = 0
    family_share: float = 0.5
    bent: float = 0.25
    rates: tuple[float, float] | None = None
    cost_by_difficulty: float = 0.3
    failure_cost: float = 1.0


def made_up_matrix(leaderboard: pd.DataFrame, shape: Shape, *, seed: int) -> tuple[pd.DataFrame, Outcomes]:
    """Tasks as a backtest takes them, and their outcomes.

    Args:
        leaderboard: pass_rate_2 (per cent), total_cost (US dollars) and test_cases of each of its models.
    """
    rng = np.random.default_rng(seed)
    rates, prices = _models(leaderboard, shape, rng)
    shown, hidden, size = rng.standard_normal((3, shape.tasks))
    visible = shape.visible or 0.0
    difficulty = rng.standard_normal((shape.directions, shape.tasks))
    difficulty[0] = np.sqrt(visible) * shown + np.sqrt(1 - visible) * hidden
    domain = rng.integers(len(_DOMAINS), size=shape.tasks)
    loading = _loadings(shape, rng)
    bent = rng.normal(0, shape.bent, (shape.models, len(_DOMAINS)))[:, domain]
    ability = ndtri(rates)[:, None] * np.sqrt(1 + shape.bent**2) + bent
    left = np.sqrt(1 - (loading**2).sum(axis=1))[:, None]
    success = (ability - loading @ difficulty + left * _luck(shape, rng) > 0).astype(np.float64)
    logs = _SIZE * size + shape.cost_by_difficulty * difficulty[0]
    logs = logs + rng.normal(0, _NOISE, success.shape)
    cost = prices[:, None] * np.exp(logs - (_SIZE**2 + shape.cost_by_difficulty**2 + _NOISE**2) / 2)
    cost *= np.where(success > 0, 1.0, shape.failure_cost)
    texts = (
        [f"case {number}" for number in range(shape.tasks)]
        if shape.visible is None
        else _texts(rng, domain, shown, size)
    )
    kinds = ["backend"] * shape.tasks if shape.visible is None else [_DOMAINS[d] for d in domain]
    return as_backtest(texts, kinds, success, cost, rng)


def as_backtest(
    texts: list[str], domains: list[str], success: Doubles, cost_usd: Doubles, rng: np.random.Generator
) -> tuple[pd.DataFrame, Outcomes]:
    """A full matrix (m, n) and the texts of its tasks in the form that a backtest takes."""
    models, tasks = success.shape
    ids = tuple(f"task-{number:05}" for number in range(tasks))
    frame = pd.DataFrame(
        {
            "title": "",
            "description": texts,
            "domain": domains,
            "complexity": "moderate",
            "value_score": rng.uniform(0, 100, tasks),
        },
        index=list(ids),
    )
    unknown = np.full(success.shape, np.nan)
    moments = pd.date_range("2026-01-01", periods=tasks, freq="h", tz="UTC")
    names = tuple(f"model-{number:02}" for number in range(models))
    return frame, Outcomes(ids, names, success, cost_usd, unknown, unknown, unknown, moments)


def _models(leaderboard: pd.DataFrame, shape: Shape, rng: np.random.Generator) -> tuple[Doubles, Doubles]:
    """Rates of success, and mean costs of a case, (m,) each."""
    if shape.rates is not None:
        prices = np.geomspace(0.001, 0.1, shape.models) * rng.lognormal(0, 0.3, shape.models)
        spread = np.linspace(*shape.rates, shape.models) + rng.normal(0, 0.03, shape.models)
        return np.clip(spread, 0.02, 0.98), prices
    real = leaderboard[(leaderboard["total_cost"] > 0.2) & (leaderboard["pass_rate_2"] > 10)]
    chosen = real.drop_duplicates("model").sample(shape.models, random_state=rng)
    return (
        chosen["pass_rate_2"].to_numpy() / 100,
        (chosen["total_cost"] / chosen["test_cases"]).to_numpy(),
    )


def _loadings(shape: Shape, rng: np.random.Generator) -> Doubles:
    """How much each model suffers from each direction of difficulty, most of it from the first, (m, directions)."""
    length = rng.uniform(0.55, 0.9, shape.models)[:, None]
    way = rng.normal(0, 0.5, (shape.models, shape.directions))
    way[:, 0] = 1.0
    return np.asarray(length * way / np.linalg.norm(way, axis=1, keepdims=True), dtype=np.float64)


def _luck(shape: Shape, rng: np.random.Generator) -> Doubles:
    """What the difficulties do not explain, ~ N(0, 1), (m, n)."""
    own = rng.standard_normal((shape.models, shape.tasks))
    if not shape.families:
        return own
    of = rng.integers(shape.families, size=shape.models)
    shared = rng.standard_normal((shape.families, shape.tasks))[of]
    share = shape.family_share
    return np.asarray(np.sqrt(share) * shared + np.sqrt(1 - share) * own, dtype=np.float64)


def _texts(rng: np.random.Generator, domain: NDArray[np.intp], shown: Doubles, size: Doubles) -> list[str]:
    """Words without meaning; how many of the twelve words of effort stand in a text goes with the shown difficulty."""
    texts = []
    for d, effort, length in zip(domain, shown, size, strict=True):
        count = max(10, int(_WORDS * np.exp(0.5 * length)))
        words = [f"word{n}" for n in rng.zipf(1.5, count) if n < 3000]
        words += [f"{_DOMAINS[d]}{n}" for n in rng.integers(30, size=count // 4)]
        efforts = rng.poisson(count / 10 * np.exp(0.7 * effort))
        words += [f"effort{n}" for n in rng.integers(_VISIBLE_WORDS, size=efforts)]
        texts.append(" ".join(rng.permutation(words)))
    return texts
