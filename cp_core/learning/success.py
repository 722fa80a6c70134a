"""The success model: how likely each model's work on each task is good enough, from the task's kind and text.

The log-odds of a task with a model are a sum of effects, each shrunk toward none: the model; the task's domain and
complexity; the words and the style of its text; and how all of these differ from model to model. A task's own effect,
shared by all models that tried it, keeps what makes a task hard out of the comparison of models. What was fitted is
calibrated on rows that the fit did not see (Platt, 1999).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.special import expit, logit

from cp_core.learning.random_effects import Effects, fit_effects, precision_of
from cp_core.learning.task_texts import TaskTexts

Doubles = NDArray[np.float64]
Codes = NDArray[np.intp]

CATEGORIES = ("domain", "complexity")
"""Columns of tasks that are looked at when they are there; names are free."""

_AXES = 256
_FOLDS = 5
_PASSES = 3
_ROUNDS = 6  # at most, in which the precision of the models' own effects is found
_LEAST = 1e-2  # of a precision to begin with
_SPREAD = 0.5  # variance of the tasks' own effects to begin with
_CERTAIN = 1e-3  # no probability is nearer to 0 or 1 than this


@dataclass(frozen=True)
class SuccessModel:
    """Predicts success.

    Attributes:
        models: the m models that it knows.
        task_effect_sd: deviation of the tasks' own effects, in log-odds: how much a failure of one model says of all.
    """

    models: tuple[str, ...]
    task_effect_sd: float
    _features: _Features
    _parts: _Parts
    _calibration: _Calibration

    @classmethod
    def fit(cls, tasks: pd.DataFrame, outcomes: pd.DataFrame, *, seed: int) -> SuccessModel:
        """Learn from what models made of tasks.

        Args:
            tasks: indexed by task, with title and description, and any of `CATEGORIES`; missing is a value.
            outcomes: rows of task (of the index), model, success (0..1) and, if rows count differently, weight.
            seed: of the folds and of the axes of texts.

        Raises:
            ValueError: there is no outcome, or one of a task that is not given.
        """
        return cls.cross_fit(tasks, outcomes, seed=seed)[0]

    @classmethod
    def cross_fit(
        cls, tasks: pd.DataFrame, outcomes: pd.DataFrame, *, seed: int
    ) -> tuple[SuccessModel, pd.DataFrame]:
        """As `fit`, and what is predicted of each task by a fit that has not seen its outcomes, as by `predict`."""
        rows = _Rows.of_frames(tasks, outcomes)
        features = _Features.learn(tasks, seed=seed)
        blocks = features.blocks(tasks)
        parts = _Parts.fit(rows, blocks)
        folds = np.random.default_rng(seed).permutation(len(tasks)) % _FOLDS
        common, own = np.zeros((len(tasks), 1)), np.zeros((len(tasks), len(rows.models)))
        for fold in range(_FOLDS):
            held = folds == fold
            seen = rows.where(~held[rows.tasks])
            if len(seen.success):
                unseen = _Parts.fit(seen, blocks, like=parts).effects(blocks)
                common[held], own[held] = (part[held] for part in unseen)
        calibration = _Calibration.fit(rows, parts.intercepts, common, own)
        model = cls(rows.models, parts.task_effect_sd, features, parts, calibration)
        return model, model._frame(common, own, tasks)

    def predict(self, tasks: pd.DataFrame) -> pd.DataFrame:
        """Probability of success: a row a task, in the order and with the index of `tasks`, and a column a model."""
        return self._frame(*self._parts.effects(self._features.blocks(tasks)), tasks)

    def _frame(self, common: Doubles, own: Doubles, tasks: pd.DataFrame) -> pd.DataFrame:
        found = expit(self._parts.intercepts + self._calibration.applied(common, own))
        return pd.DataFrame(
            np.clip(found, _CERTAIN, 1 - _CERTAIN), index=tasks.index, columns=list(self.models)
        )


@dataclass(frozen=True)
class _Rows:
    """Outcomes as columns; `tasks` and `of` are places of the task and the model."""

    models: tuple[str, ...]
    tasks: Codes
    of: Codes
    success: Doubles
    weight: Doubles
    size: int

    @classmethod
    def of_frames(cls, tasks: pd.DataFrame, outcomes: pd.DataFrame) -> _Rows:
        if outcomes.empty:
            raise ValueError("there is nothing to learn from: no outcome was given")
        places = tasks.index.get_indexer(pd.Index(outcomes["task"]))
        if (places < 0).any():
            unknown = outcomes["task"].to_numpy()[places < 0][0]
            raise ValueError(f"an outcome names task {unknown!r}, which is not among the tasks")
        of, models = pd.factorize(outcomes["model"], sort=True)
        weight = outcomes["weight"] if "weight" in outcomes else np.ones(len(outcomes))
        return cls(
            models=tuple(str(model) for model in models),
            tasks=np.asarray(places, dtype=np.intp),
            of=np.asarray(of, dtype=np.intp),
            success=np.asarray(outcomes["success"], dtype=np.float64),
            weight=np.asarray(weight, dtype=np.float64),
            size=len(tasks),
        )

    def where(self, chosen: NDArray[np.bool_]) -> _Rows:
        return _Rows(
            self.models,
            self.tasks[chosen],
            self.of[chosen],
            self.success[chosen],
            self.weight[chosen],
            self.size,
        )


@dataclass(frozen=True)
class _Features:
    """What a task looks like: levels of its categories, and its text."""

    levels: Mapping[str, pd.Index[Any]]
    texts: TaskTexts | None

    @classmethod
    def learn(cls, tasks: pd.DataFrame, *, seed: int) -> _Features:
        texts = _texts(tasks)
        told = len(set(texts)) > 1
        return cls(
            levels={name: pd.Index(column.unique()) for name, column in _categories(tasks)},
            texts=TaskTexts.learn(texts, axes=_AXES, seed=seed) if told else None,
        )

    def blocks(self, tasks: pd.DataFrame) -> list[Doubles]:
        """Blocks of columns of the tasks; a level that was never met has none of its block."""
        columns = dict(_categories(tasks))
        nothing = pd.Series([""] * len(tasks), dtype="str")
        blocks = [
            np.asarray(
                levels.get_indexer(pd.Index(columns.get(name, nothing)))[:, None] == np.arange(len(levels)),
                np.float64,
            )
            for name, levels in self.levels.items()
            if len(levels) > 1
        ]
        if self.texts:
            texts = _texts(tasks)
            blocks += [self.texts.words(texts), self.texts.style(texts)]
        return blocks or [np.zeros((len(tasks), 1))]


def _categories(tasks: pd.DataFrame) -> Iterator[tuple[str, pd.Series[str]]]:
    """The categories that tasks have, and the pair of them, as text."""
    columns = {name: tasks[name].astype("str").fillna("") for name in CATEGORIES if name in tasks}
    yield from columns.items()
    if len(columns) > 1:
        yield (
            " x ".join(columns),
            pd.Series(list(map("\n".join, zip(*columns.values(), strict=True))), dtype="str"),
        )


def _texts(tasks: pd.DataFrame) -> list[str]:
    parts = [tasks[name].fillna("").astype("str") for name in ("title", "description") if name in tasks]
    return [" \n".join(part for part in texts if part) for texts in zip(*parts, strict=True)] or [""] * len(
        tasks
    )


@dataclass(frozen=True)
class _Parts:
    """The sum: an intercept a model, effects common to all models, and each model's own on top.

    Effects are taken from `middle`, the mean of the columns: so that a model's rate is in its intercept, and what is
    predicted of tasks by fits to different parts of them differs by what these say of tasks alone.
    """

    intercepts: Doubles
    common: Effects
    own: tuple[Effects, ...]
    middle: Doubles

    @classmethod
    def fit(cls, rows: _Rows, blocks: Sequence[Doubles], *, like: _Parts | None = None) -> _Parts:
        """Fit each part beside the others, in turn; variances are those of `like` where it is given."""
        columns = np.hstack(blocks)
        members = [np.flatnonzero(rows.of == model) for model in range(len(rows.models))]
        intercepts = _intercepts(rows, members)
        base = intercepts[rows.of]
        nothing = Effects(np.zeros(columns.shape[1]), (), np.zeros(0))
        common = like.common if like else None
        own = list(like.own) if like else [nothing] * len(members)
        own_shift = np.zeros(len(rows.success))
        for _ in range(_PASSES if len(members) > 1 else 1):
            common = fit_effects(
                blocks,
                rows.success,
                base + own_shift,
                weights=rows.weight,
                of=rows.tasks,
                spread=common.spread if common else _SPREAD,
                start=common,
                precision=like.common.precision if like else None,
            )
            if len(members) > 1:
                shift = base + (columns @ common.weights + common.of_rows)[rows.tasks]
                own = _own_effects(rows, blocks, shift, members, own, is_known=like is not None)
                weights = np.array([effects.weights for effects in own])
                own_shift = np.einsum("rp,rp->r", columns[rows.tasks], weights[rows.of])
        return cls(intercepts, common or nothing, tuple(own), columns.mean(axis=0))

    @property
    def task_effect_sd(self) -> float:
        return float(np.sqrt(self.common.spread))

    def effects(self, blocks: Sequence[Doubles]) -> tuple[Doubles, Doubles]:
        """What all models have in common, (n, 1), and what is each one's own, (n, m): beside the intercepts."""
        columns = np.hstack(blocks) - self.middle
        own = np.column_stack([effects.weights for effects in self.own])
        return (columns @ self.common.weights)[:, None], columns @ own


def _own_effects(
    rows: _Rows,
    blocks: Sequence[Doubles],
    offset: Doubles,
    members: Sequence[Codes],
    start: Sequence[Effects],
    *,
    is_known: bool,
) -> list[Effects]:
    """Effects of each model beside an offset; blocks have one precision for all, which few rows could not tell.

    Args:
        offset: (r,) log-odds of each row.
        members: rows of each model.
        start: what was found before; its precision is kept where it `is_known`.
    """
    precision = start[0].precision or tuple(
        max(4.0 * float((block**2).sum(axis=1).mean()), _LEAST) for block in blocks
    )
    found = list(start)
    for _ in range(1 if is_known else _ROUNDS):
        for model, places in enumerate(members):
            found[model] = fit_effects(
                [block[rows.tasks[places]] for block in blocks],
                rows.success[places],
                offset[places],
                weights=rows.weight[places],
                start=found[model],
                precision=precision,
            )
        if is_known:
            break
        updated = precision_of(found, [block.shape[1] for block in blocks])
        settled = np.allclose(np.log(updated), np.log(precision), atol=0.1)
        precision = updated
        if settled:
            break
    return [replace(one, precision=precision) for one in found]


def _intercepts(rows: _Rows, members: Sequence[Codes]) -> Doubles:
    """Log-odds of each model's rate, as if it had two more rows at the rate of all."""
    whole = (rows.weight @ rows.success + 0.5) / (rows.weight.sum() + 1)
    return np.array(
        [
            logit((rows.weight[places] @ rows.success[places] + 2 * whole) / (rows.weight[places].sum() + 2))
            for places in members
        ]
    )


@dataclass(frozen=True)
class _Calibration:
    """How much of each part held on tasks that the fit had not seen: slopes of the parts, and a shift a model."""

    slopes: Doubles
    shifts: Doubles

    @classmethod
    def fit(cls, rows: _Rows, intercepts: Doubles, common: Doubles, own: Doubles) -> _Calibration:
        """Slopes are thought to lie about 1, and shifts about 0.

        Args:
            common, own: of each task, as `_Parts.effects` gives them.
        """
        of = (rows.of[:, None] == np.arange(len(rows.models))).astype(np.float64)
        parts = np.column_stack([common[rows.tasks, 0], own[rows.tasks, rows.of]])
        moved = fit_effects(
            [parts, of],
            rows.success,
            intercepts[rows.of] + parts.sum(axis=1),
            weights=rows.weight,
            precision=(4.0, 4.0),
        ).weights
        return cls(np.maximum(1 + moved[:2], 0.0), moved[2:])

    def applied(self, common: Doubles, own: Doubles) -> Doubles:
        """Log-odds beside the intercepts, (n, m)."""
        return np.asarray(common * self.slopes[0] + own * self.slopes[1] + self.shifts, dtype=np.float64)
