"""Effects of rows that several outcomes share are those of the rows written out."""

from __future__ import annotations

import numpy as np
import pytest

from cp_core.learning.random_effects import fit_effects


def test_rows_that_outcomes_share_give_the_effects_of_repeated_rows() -> None:
    rng = np.random.default_rng(3)
    blocks = [rng.standard_normal((40, 2)), rng.standard_normal((40, 3))]
    of = rng.integers(40, size=200)
    outcomes = (rng.random(200) < 0.6).astype(float)
    offset, weights = rng.normal(0, 0.5, 200), rng.uniform(0.5, 2, 200)
    shared = fit_effects(blocks, outcomes, offset, weights=weights, of=of, precision=(1.0, 4.0))
    written = fit_effects(
        [block[of] for block in blocks], outcomes, offset, weights=weights, precision=(1.0, 4.0)
    )
    assert shared.weights == pytest.approx(written.weights, abs=1e-8)


def test_block_that_explains_nothing_shrinks_and_one_that_does_stays() -> None:
    rng = np.random.default_rng(4)
    telling, idle = rng.standard_normal((2, 2000, 4))
    outcomes = (rng.random(2000) < 1 / (1 + np.exp(-telling.sum(axis=1)))).astype(float)
    found = fit_effects([telling, idle], outcomes, np.zeros(2000))
    assert found.weights[:4] == pytest.approx(np.ones(4), abs=0.25)
    assert np.abs(found.weights[4:]).max() < 0.1
    assert found.precision[1] > 10 * found.precision[0]
