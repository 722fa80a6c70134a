"""A candidate: what is in force, moved toward what a day's documents found, by no more than one night may move it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from cp_core.assignment.calibration import Calibration, ModelTokens, TokenFactors
from cp_core.assignment.predict import PredictionPolicy, shift_log_odds
from cp_core.learning.expectations import KINDS, Cells, Expectations, kinds_of
from cp_core.learning.learned import Learned, LearnedError, number_of
from cp_core.learning.limits import cap, room_beside
from cp_core.learning.text_effects import largest_step
from cp_core.learning.texts import TextsFound
from cp_core.learning.token_calibration import as_estimated
from cp_core.learning.traits_seen import Seen, weights_of_models
from cp_core.models.registry import ModelRegistry
from cp_core.scoring.config import Complexity, Domain, ScoringConfig

Doubles = NDArray[np.float64]

_DIGITS = 6  # of a learned number: equal evidence gives equal text, and so the same hash, on every machine
_STILL = 1e-4  # share below which a number has not moved
_STILL_LOG_ODDS = 0.005  # largest change of any task's log-odds below which texts say what they said


TEXTS = "success.of_texts."
"""How keys of changes begin that are about what texts say of a model."""


class Found(BaseModel):
    """What the documents of a day ask for.

    Attributes:
        success: probability by model, domain and complexity.
        tokens: factors by model and domain.
        scoring: numbers of scoring.yaml by dotted key.
        texts: what texts say of success; None where it was not looked into, so that it stays as it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    success: Cells = {}
    tokens: Mapping[str, Mapping[Domain, ModelTokens]] = {}
    scoring: Mapping[str, float] = {}
    texts: TextsFound | None = None


@dataclass(frozen=True)
class Examples:
    """Tasks on which it is seen how far predictions from texts would move.

    Attributes:
        tasks: task, domain and complexity; each task once.
        seen: what trait models saw in them.
    """

    tasks: pd.DataFrame
    seen: Seen


class Change(BaseModel):
    """One number that a candidate moves: from what to what, and what was found before the cap."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    before: float
    found: float
    after: float

    @property
    def share(self) -> float:
        """By which share of itself the number moves."""
        return abs(self.after - self.before) / abs(self.before)


@dataclass(frozen=True)
class Ground:
    """What a candidate is made on: the files, and what is in force over them.

    Attributes:
        scoring: scoring.yaml as it is written.
        learned: what lies over the files.
    """

    registry: ModelRegistry
    prediction: PredictionPolicy
    scoring: ScoringConfig
    learned: Learned

    def expectations(self, learned: Learned | None = None) -> Expectations:
        """What is expected now, or would be with `learned` in place of what is in force."""
        return Expectations.of(
            self.registry,
            self.prediction,
            self.learned if learned is None else learned,
            scoring=self.scoring,
            in_force=self.learned.apply_to(self.scoring),
        )

    def tokens_of(self, model: str, domain: Domain, learned: Learned | None = None) -> ModelTokens:
        """Factors in force, or those of `learned`; where there are none, those that the estimate itself stands for."""
        calibration = (self.learned if learned is None else learned).calibration
        cell = calibration.tokens.get(model, {}).get(domain)
        if cell is not None:
            return cell
        return ModelTokens(
            input=as_estimated("input", self.scoring), output=as_estimated("output", self.scoring)
        )


@dataclass(frozen=True)
class Candidate:
    """What would be in force, and every number that it moves."""

    learned: Learned
    changes: tuple[Change, ...]


def make_candidate(found: Found, ground: Ground, limit: float, examples: Examples | None = None) -> Candidate:
    """Move what is in force toward what was found.

    What was found of models that are not configured, or of domains that a model cannot serve, is left aside.

    Args:
        limit: largest share by which a number may move; of texts, by which they may move the success of any example.
        examples: without them, what texts say stays as it is.
    """
    moved = _Moved(limit)
    calibration = ground.learned.calibration
    success = _success(found, ground, moved)
    if found.texts is not None and examples is not None:
        calibration = _with_texts(found.texts, ground, examples, moved)
    scoring, written = _scoring(found, ground, moved)
    tokens = _tokens(found, ground, moved)
    learned = Learned(
        calibration=calibration.model_copy(update={"success": success, "tokens": tokens}),
        scoring=scoring,
        written=written,
    )
    try:
        learned.apply_to(ground.scoring)
    except LearnedError:  # the numbers do not go together, such as P1 above P0: they stay as they are
        kept = ground.learned
        learned = Learned(calibration=learned.calibration, scoring=kept.scoring, written=kept.written)
        moved.drop("scoring.")
    return Candidate(learned, tuple(moved.changes))


class _Moved:
    """Moves numbers, and keeps account of it."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.changes: list[Change] = []

    def number(self, key: str, before: float, found: float, beside: Iterable[float] = ()) -> float:
        """Where a number goes that is `before` and was found to be `found`.

        Args:
            beside: what numbers that it is multiplied with have been multiplied by: the products are capped, too.
        """
        least, most = room_beside(beside, self.limit)
        after = round(min(max(cap(before, found, self.limit), least * before), most * before), _DIGITS)
        if abs(after - before) <= _STILL * before:
            return before
        self.changes.append(Change(key=key, before=before, found=found, after=after))
        return after

    def note(self, key: str, before: float, found: float, after: float) -> None:
        """Keep account of a move that was made otherwise."""
        self.changes.append(
            Change(
                key=key,
                before=round(before, _DIGITS),
                found=round(found, _DIGITS),
                after=round(after, _DIGITS),
            )
        )

    def ratios(self, beginning: str, end: str) -> list[float]:
        """What the numbers were multiplied by that moved, of keys that begin and end so."""
        return [
            change.after / change.before
            for change in self.changes
            if change.key.startswith(beginning) and change.key.endswith(end)
        ]

    def drop(self, beginning: str) -> None:
        """Forget the changes of keys that begin so."""
        self.changes = [change for change in self.changes if not change.key.startswith(beginning)]


def _success(found: Found, ground: Ground, moved: _Moved) -> Cells:
    expected = ground.expectations()
    row = {model: position for position, model in enumerate(expected.models)}
    cells: dict[str, dict[Domain, dict[Complexity, float]]] = {
        model: {domain: dict(inner) for domain, inner in by_domain.items()}
        for model, by_domain in ground.learned.calibration.success.items()
    }
    for model in sorted(found.success.keys() & row.keys()):
        for column, (domain, complexity) in enumerate(KINDS):
            wanted = found.success[model].get(domain, {}).get(complexity)
            before = float(expected.success[row[model], column])
            if wanted is None or before <= 0:
                continue
            after = moved.number(f"success.{model}.{domain}.{complexity}", before, wanted)
            if after != before:
                cells.setdefault(model, {}).setdefault(domain, {})[complexity] = min(after, 1.0)
    return cells


def _with_texts(texts: TextsFound, ground: Ground, examples: Examples, moved: _Moved) -> Calibration:
    """Calibration whose weights of traits are moved toward those found.

    Weights of one trait model mean nothing to another: while one is in force, weights found for another one, or none,
    let its own fade, and when nothing of them is left the next may come.
    """
    calibration = ground.learned.calibration
    eye = calibration.trait_model or texts.trait_model
    if eye is None or eye not in examples.seen:
        return calibration
    traits = examples.seen[eye].traits
    places = examples.seen[eye].places(examples.tasks["task"])
    looked_at, kinds = traits[places[places >= 0]], kinds_of(examples.tasks)[places >= 0]
    wanted = texts.success if texts.trait_model == eye else {}
    expected = ground.expectations()
    names = sorted((wanted.keys() | calibration.traits.success.keys()) & set(expected.models))
    before = weights_of_models(names, calibration, traits.shape[1])
    target = np.array([wanted.get(name, (0.0,) * traits.shape[1]) for name in names])
    after = dict(calibration.traits.success)
    for name, old, new in zip(names, before, target, strict=True):
        chance = expected.success[expected.models.index(name), kinds]
        if texts.trait_model == eye and name not in wanted:
            continue  # no outcomes of it say otherwise
        now, then = looked_at @ old, looked_at @ new
        if not len(chance) or np.abs(then - now).max() <= _STILL_LOG_ODDS:
            continue
        share = largest_step(chance, now, then, moved.limit)
        weights = tuple(round(float(one), _DIGITS) for one in old + share * (new - old))
        before_after = (_typical(chance, shift) for shift in (now, then, looked_at @ np.array(weights)))
        moved.note(f"{TEXTS}{name}", *before_after)
        after[name] = weights
    after = {name: weights for name, weights in after.items() if any(weights)}
    return calibration.model_copy(
        update={
            "trait_model": eye if after else None,
            "traits": calibration.traits.model_copy(update={"success": after}),
        }
    )


def _typical(chance: Doubles, shifts: Doubles) -> float:
    """Success of a task of the usual kind whose text speaks for the model as far as texts typically do."""
    return float(shift_log_odds(np.array(chance.mean()), float(np.sqrt(np.mean(shifts**2)))))


def _tokens(found: Found, ground: Ground, moved: _Moved) -> Mapping[str, Mapping[Domain, ModelTokens]]:
    kept = ground.learned.calibration
    factors: dict[str, dict[Domain, ModelTokens]] = {
        model: dict(by_domain) for model, by_domain in kept.tokens.items()
    }
    for model in sorted(found.tokens.keys() & ground.registry.models.keys()):
        for domain in Domain:
            wanted = found.tokens[model].get(domain)
            if wanted is not None:
                before = ground.tokens_of(model, domain)
                factors.setdefault(model, {})[domain] = ModelTokens(
                    input=_factors(f"tokens.{model}.{domain}.input", before.input, wanted.input, moved),
                    output=_factors(f"tokens.{model}.{domain}.output", before.output, wanted.output, moved),
                )
    return factors


def _factors(key: str, before: TokenFactors, wanted: TokenFactors, moved: _Moved) -> TokenFactors:
    """Mean and median move by steps. The ends of the interval decide nothing, and are shifted along with the median."""
    bases = moved.ratios("scoring.estimate.mean_tokens.", f".{key.rpartition('.')[2]}")
    mean = moved.number(f"{key}.mean", before.mean, wanted.mean, bases)
    median = moved.number(f"{key}.median", before.median, wanted.median, bases)
    low, high = (round(end, _DIGITS) for end in (wanted.low, wanted.high))
    return TokenFactors(mean=mean, median=median, low=min(low, median), high=max(high, median))


def _scoring(found: Found, ground: Ground, moved: _Moved) -> tuple[Mapping[str, float], Mapping[str, float]]:
    scoring, written = dict(ground.learned.scoring), dict(ground.learned.written)
    for key, wanted in sorted(found.scoring.items()):
        try:
            file = number_of(ground.scoring, key)
        except LearnedError:
            continue
        before = scoring.get(key, file)
        after = moved.number(f"scoring.{key}", before, wanted)
        if after != before:
            scoring[key], written[key] = after, file
    return scoring, written
