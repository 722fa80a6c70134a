"""How many tokens a model will take for a task, judged by the task's text: the mean, the median, an 80 % interval.

Two learners see the same features of a text and predict the logarithm of its tokens with every model at once: ridge
regression and a forest of extremely randomised trees (Geurts et al., Machine Learning 63, 2006, 3). How they are
mixed is decided on tasks that neither had seen, and so are the factors that make medians halve, totals agree and
intervals cover. Attempts that were cut off are censored: what they would have used is taken from the residuals beyond
theirs (Buckley and James, Biometrika 66, 1979, 429).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.decomposition import TruncatedSVD
from sklearn.ensemble import ExtraTreesRegressor
from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
from sklearn.linear_model import LinearRegression, Ridge
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler

from cp_core.learning.survival import Survival
from cp_core.learning.text_shape import count_shape

Doubles = NDArray[np.float64]
Truths = NDArray[np.bool_]

INTERVAL = 0.8
"""Share of tasks whose tokens lie between low and high."""

MOST_ROWS = 20_000
"""Tasks learned from at most; beyond it, a random choice of them. Text tells no more from more of it."""

_CATEGORIES = ("domain", "complexity", "workspace", "risk", "priority")
_WORD = r"(?u)\w+|[^\w\s]"
_FOLDS = 5
_FEWEST_FOR_TREES = 60
_FAR = 0.5
_MIXTURES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class TokenRange:
    """Tokens of n tasks with m models; each a frame indexed by task with a column a model.

    Attributes:
        mean: for sums, such as a quota plan.
        median: for a single task.
        low, high: ends of the 80 % interval.
    """

    mean: pd.DataFrame
    median: pd.DataFrame
    low: pd.DataFrame
    high: pd.DataFrame


@dataclass(frozen=True)
class TokenPredictions:
    """Input and output tokens."""

    input: TokenRange
    output: TokenRange


class TokenModel:
    """Learned from the texts of tasks and what models used for them. Make it with `fit`."""

    def __init__(self, texts: _Texts, models: pd.Index[Any], kinds: Mapping[str, _Kind]) -> None:
        self._texts = texts
        self._models = models
        self._kinds = kinds

    @classmethod
    def fit(cls, tasks: pd.DataFrame, usage: pd.DataFrame, *, seed: int) -> Self:
        """Learn.

        Args:
            tasks: indexed by task, each once, with title and description (text); where they are there also domain,
                complexity, workspace, risk and priority.
            usage: one row an attempt, with task (of the index), model, input_tokens and output_tokens (missing where
                not known), and, where it is there, is_censored: it was cut off, so that both are lower bounds.
                Several attempts of a task with a model count as their mean.
            seed: of every random choice.

        Raises:
            ValueError: nothing to learn from, or usage of a task that `tasks` does not have.
        """
        strange = ~usage["task"].isin(tasks.index)
        if strange.any():
            raise ValueError(
                f"usage of task {usage.loc[strange, 'task'].iloc[0]!r}, which is not among the tasks"
            )
        used = tasks[tasks.index.isin(usage["task"].unique())]
        if used.empty:
            raise ValueError("no usage to learn tokens from")
        if len(used) > MOST_ROWS:
            used = used.sample(MOST_ROWS, random_state=seed)
            usage = usage[usage["task"].isin(used.index)]
        models = pd.Index(sorted(usage["model"].unique()))
        texts = _Texts(used, seed)
        counts, features = texts.of(used)
        kinds = {
            kind: _Kind(
                counts[:, :said], features, *_matrix(usage, f"{kind}_tokens", used.index, models), seed
            )
            for kind, said in (("input", counts.shape[1]), ("output", 0))
        }
        return cls(texts, models, kinds)

    def predict(self, tasks: pd.DataFrame) -> TokenPredictions:
        """Predict for tasks like those of `fit`, with every model that was seen there."""
        counts, features = self._texts.of(tasks)
        return TokenPredictions(
            **{
                kind: self._range(each.log_tokens(counts, features), each, tasks)
                for kind, each in self._kinds.items()
            }
        )

    def _range(self, log_tokens: Doubles, kind: _Kind, tasks: pd.DataFrame) -> TokenRange:
        def frame(logarithms: Doubles) -> pd.DataFrame:
            return pd.DataFrame(np.exp(logarithms), index=tasks.index, columns=self._models)

        return TokenRange(
            mean=frame(log_tokens + kind.mean),
            median=frame(log_tokens + kind.median),
            low=frame(log_tokens + kind.low),
            high=frame(log_tokens + kind.high),
        )


class _Texts:
    """Features of texts: their shape, and what they are about as directions in the space of hashed words."""

    def __init__(self, tasks: pd.DataFrame, seed: int) -> None:
        texts = _joined(tasks)
        self._words = HashingVectorizer(
            n_features=2**16,
            ngram_range=(1, 2),
            token_pattern=_WORD,
            alternate_sign=False,
            norm=None,
        )
        counted = self._words.transform(texts).tocsc()
        self._kept = np.flatnonzero(
            np.diff(counted.indptr) >= min(2, len(tasks))
        )  # a word of one text tells nothing
        self._weights = TfidfTransformer(sublinear_tf=True)
        words = self._weights.fit_transform(counted[:, self._kept])
        directions = min(48, *words.shape) - 1
        self._directions = TruncatedSVD(directions, random_state=seed).fit(words) if directions > 1 else None
        self._scale = StandardScaler().fit(self._raw(tasks, texts)[1])

    def of(self, tasks: pd.DataFrame) -> tuple[Doubles, Doubles]:
        """Counts of the shape (n, k) and standardised features (n, f)."""
        counts, raw = self._raw(tasks, _joined(tasks))
        return counts, self._scale.transform(raw)

    def _raw(self, tasks: pd.DataFrame, texts: list[str]) -> tuple[Doubles, Doubles]:
        counts = count_shape(texts)
        parts = [np.log1p(counts), counts / np.maximum(counts[:, -1:], 1)]
        if self._directions is not None:
            parts.append(
                self._directions.transform(
                    self._weights.transform(self._words.transform(texts)[:, self._kept])
                )
            )
        return counts, np.hstack(parts)


class _Kind:
    """Input tokens, or output tokens, with every model.

    Args:
        counts: what of n tasks' texts the tokens add up from: (n, k); k may be 0.
        features: (n, f).
        tokens: (n, m) with every model; NaN where it did not do the task.
        is_censored: (n, m).

    Attributes:
        mean, median, low, high: (m,), added to the logarithm that the learners predict.
    """

    def __init__(
        self, counts: Doubles, features: Doubles, tokens: Doubles, is_censored: Truths, seed: int
    ) -> None:
        logs, is_known = np.log(np.maximum(tokens, 1)), ~np.isnan(tokens)
        self._counted = _token_weights(counts, _completed(logs))
        start = logs - self._from_counts(counts)
        target = _completed(start)
        for _ in range(2 if is_censored.any() else 0):
            guess = _ridge_out_of_fold(features, target, seed)
            target = _completed(_uncensored(start, guess, is_censored))
        self._ridge = Ridge(_PENALTY).fit(features, target)
        self._trees, guesses = _forest(features, target, seed)
        ridge = _ridge_out_of_fold(features, target, seed)
        self._share_of_trees = _best_mixture(ridge, guesses, start, is_known & ~is_censored)
        residuals = start - _mixed(ridge, guesses, self._share_of_trees)
        self.mean, self.median, self.low, self.high = _calibrated(
            residuals, tokens, logs - residuals, is_known, is_censored
        )

    def log_tokens(self, counts: Doubles, features: Doubles) -> Doubles:
        """Logarithm of the tokens, before the calibration: (n, m)."""
        models = len(self.mean)
        ridge = self._ridge.predict(features).reshape(len(features), models)
        trees = self._trees.predict(features).reshape(ridge.shape) if self._trees is not None else ridge
        return self._from_counts(counts) + _mixed(ridge, trees, self._share_of_trees)

    def _from_counts(self, counts: Doubles) -> Doubles:
        amounts = _with_one(counts[:, : len(self._counted) - 1])
        return np.asarray(np.log(np.maximum(amounts @ self._counted, 1)), dtype=np.float64)


_PENALTY = 30.0


def _joined(tasks: pd.DataFrame) -> list[str]:
    texts = tasks["title"].fillna("").astype(str) + "\n" + tasks["description"].fillna("").astype(str)
    for name in _CATEGORIES:
        if name in tasks:
            texts = texts + f"\n{name}is" + tasks[name].astype(str).str.replace(r"\W+", "", regex=True)
    return list(texts)


def _matrix(
    usage: pd.DataFrame, column: str, tasks: pd.Index[Any], models: pd.Index[Any]
) -> tuple[Doubles, Truths]:
    """Tokens by task and model, NaN where there are none, and whether they are lower bounds."""
    censored = usage["is_censored"].astype(float) if "is_censored" in usage else 0.0
    cells = (
        usage.assign(tokens=usage[column].astype(float), censored=censored)
        .dropna(subset="tokens")
        .groupby(["task", "model"], observed=True)[["tokens", "censored"]]
        .agg({"tokens": "mean", "censored": "max"})
    )

    def of(name: str) -> Doubles:
        wide = cells[name].unstack("model")
        return np.asarray(wide.reindex(index=tasks, columns=models), dtype=np.float64)

    return of("tokens"), np.nan_to_num(of("censored")) > 0


def _completed(logs: Doubles) -> Doubles:
    """The matrix with every cell filled: a model that did not do a task stands as far from its own median there as
    the models that did it stand from theirs."""
    typical = pd.DataFrame(logs).median().fillna(0).to_numpy()
    aside = pd.DataFrame(logs - typical).mean(axis="columns").fillna(0).to_numpy()
    return np.where(np.isnan(logs), typical + aside[:, None], logs)


def _token_weights(counts: Doubles, logs: Doubles) -> Doubles:
    """Non-negative tokens for each thing counted in a text, by least squares of the relative error: (k + 1, m)."""
    amounts = _with_one(counts)
    fit = LinearRegression(fit_intercept=False, positive=True).fit
    return np.column_stack([fit(amounts * np.exp(-log)[:, None], np.ones(len(log))).coef_ for log in logs.T])


def _with_one(counts: Doubles) -> Doubles:
    return np.column_stack([counts, np.ones(len(counts))])


def _ridge_out_of_fold(features: Doubles, target: Doubles, seed: int) -> Doubles:
    """What ridge regression says of each row that it has not seen; the median where there are too few rows."""
    if len(features) < 2 * _FOLDS:
        return np.broadcast_to(np.median(target, axis=0), target.shape).copy()
    found = np.empty_like(target)
    for seen, rest in KFold(_FOLDS, shuffle=True, random_state=seed).split(features):
        fitted = Ridge(_PENALTY).fit(features[seen], target[seen])
        found[rest] = fitted.predict(features[rest]).reshape(len(rest), -1)
    return found


def _forest(features: Doubles, target: Doubles, seed: int) -> tuple[ExtraTreesRegressor | None, Doubles]:
    """A forest, and what its trees say of the rows that they were not grown on; none from few rows."""
    if len(features) < _FEWEST_FOR_TREES:
        return None, np.broadcast_to(np.median(target, axis=0), target.shape).copy()
    forest = ExtraTreesRegressor(
        200,
        min_samples_leaf=2,
        max_features=0.4,
        bootstrap=True,
        oob_score=True,
        max_samples=min(1.0, 4000 / len(features)),
        random_state=seed,
    ).fit(features, target if target.shape[1] > 1 else target[:, 0])
    return forest, np.asarray(forest.oob_prediction_, dtype=np.float64).reshape(target.shape)


def _mixed(ridge: Doubles, trees: Doubles, share_of_trees: float) -> Doubles:
    return (1 - share_of_trees) * ridge + share_of_trees * trees


def _best_mixture(ridge: Doubles, trees: Doubles, truth: Doubles, is_known: Truths) -> float:
    """The share of the trees with the smallest error on rows that neither has seen.

    A logarithm that is off by more than `_FAR` is wrong, however far it is off.
    """
    if len(truth) < _FEWEST_FOR_TREES or not is_known.any():
        return 0.0

    def error(share: float) -> float:
        return float(np.minimum(np.abs(truth - _mixed(ridge, trees, share))[is_known], _FAR).mean())

    return min(_MIXTURES, key=error)


def _uncensored(start: Doubles, guess: Doubles, is_censored: Truths) -> Doubles:
    """Censored cells moved to what is to be expected above them, by the residuals of their model."""
    moved = start.copy()
    for model in range(start.shape[1]):
        known, cut = ~np.isnan(start[:, model]), is_censored[:, model]
        if not cut.any():
            continue
        residuals = (start - guess)[:, model]
        beyond = Survival.of(residuals[known], cut[known]).mean_above(residuals[cut])
        moved[cut, model] = guess[cut, model] + beyond
    return moved


def _calibrated(
    residuals: Doubles, tokens: Doubles, predicted: Doubles, is_known: Truths, is_censored: Truths
) -> tuple[Doubles, Doubles, Doubles, Doubles]:
    """Per model what to add so that totals agree, half lie above, and the interval covers.

    The interval's ends are the conformal quantiles of residuals on rows that were not seen (Lei et al., J. Am. Stat.
    Assoc. 113, 2018, 1094); each end leaves out a tenth.
    """
    rows = []
    for model in range(residuals.shape[1]):
        known = is_known[:, model]
        if not known.any():
            rows.append((0.0, 0.0, 0.0, 0.0))
            continue
        rest, cut = residuals[known, model], is_censored[known, model]
        spread = Survival.of(rest, cut)
        outer = (1 + INTERVAL) / 2 * (1 + 1 / known.sum())
        median = spread.quantile(0.5)
        actual = np.exp(predicted[known, model] + np.where(cut, spread.mean_above(rest), rest))
        rows.append(
            (
                float(np.log(actual.sum() / np.exp(predicted[known, model]).sum())),
                median,
                min(spread.quantile(1 - outer), median),
                max(spread.quantile(outer), median),
            )
        )
    mean, middle, low, high = np.array(rows).T
    return mean, middle, low, high
