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


def test_many_outcomes_of_few_rows_are_not_taken_for_much_evidence() -> None:
    rng = np.random.default_rng(5)
    idle = rng.standard_normal((150, 10))
    of = np.repeat(np.arange(150), 20)
    hard = rng.normal(0, 1.5, 150)
    outcomes = (rng.random(3000) < 1 / (1 + np.exp(-hard[of]))).astype(float)
    found = fit_effects([idle], outcomes, np.zeros(3000), of=of, spread=0.5)
    plain = fit_effects([idle], outcomes, np.zeros(3000), of=of)
    assert np.sqrt(found.spread) == pytest.approx(1.5, abs=0.3)
    assert np.corrcoef(found.of_rows, hard)[0, 1] > 0.9
    assert (idle @ found.weights).std() < 0.6 * (idle @ plain.weights).std()
    assert not plain.of_rows.any()
