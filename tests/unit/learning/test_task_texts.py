"""The axes of texts are those of a singular value decomposition, whichever way they are found."""

from __future__ import annotations

import numpy as np
import pytest

from cp_core.learning import task_texts
from cp_core.learning.task_texts import TaskTexts

TEXTS = [f"{kind} {place} {number % 7}" for number in range(40) for kind, place in [("fix parser", "here")]]
TEXTS += [f"write manual page {number % 5}" for number in range(40)]


def test_axes_are_orthonormal_and_keep_how_alike_texts_are() -> None:
    learned = TaskTexts.learn(TEXTS, axes=40, seed=0)
    assert learned.axes.T @ learned.axes == pytest.approx(np.eye(learned.axes.shape[1]), abs=1e-9)
    places = learned.words(TEXTS)
    assert (places**2).sum(axis=1) == pytest.approx(
        np.ones(len(TEXTS)), abs=1e-6
    )  # nothing of a text is lost
    alike = places @ places.T
    assert alike[0, 7] == pytest.approx(1.0, abs=1e-6)  # the same text
    assert alike[0, 40] < 0.1 < alike[0, 1]


def test_many_texts_give_the_places_that_few_give(monkeypatch: pytest.MonkeyPatch) -> None:
    exact = TaskTexts.learn(TEXTS, axes=6, seed=0).words(TEXTS)
    monkeypatch.setattr(task_texts, "_FEW", 0)
    drawn = TaskTexts.learn(TEXTS, axes=6, seed=0).words(TEXTS)
    assert drawn @ drawn.T == pytest.approx(exact @ exact.T, abs=0.02)
