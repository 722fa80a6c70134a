"""Gate: the 80 % intervals of tokens hold 80 % of what was used on later days."""

from __future__ import annotations

from math import sqrt

import numpy as np
import pandas as pd

from cp_core.learning.gates.evidence import Evidence, Finding

_SHARE = 0.8
_STANDARD_ERRORS = 1.96


def intervals_cover(evidence: Evidence) -> Finding:
    """Only where intervals were learned. A coverage that a small sample cannot tell from one within bounds passes."""
    if not evidence.moves("tokens."):
        return Finding(True, "token intervals stay as they are")
    found = {kind: _covered(evidence, kind) for kind in ("input", "output")}
    tolerance = evidence.policy.coverage_tolerance
    failed = [
        kind
        for kind, (held, of) in found.items()
        if of and abs(held / of - _SHARE) > tolerance + _STANDARD_ERRORS * sqrt(_SHARE * (1 - _SHARE) / of)
    ]
    told = "; ".join(
        f"{kind}: {held / of:.1%} of {of:,}" if of else f"{kind}: no attempt"
        for kind, (held, of) in found.items()
    )
    return Finding(
        not failed,
        f"80 % intervals held {told} ({_SHARE:.0%} within {tolerance:.0%}, and what chance adds, is asked)",
        {kind: {"held": held, "of": of} for kind, (held, of) in found.items()},
    )


def _covered(evidence: Evidence, kind: str) -> tuple[int, int]:
    """Attempts whose tokens lie within the candidate's interval, of those that used any and have one to lie in."""
    later = evidence.later.loc[~evidence.later["is_censored"].to_numpy(dtype=bool)]
    bounds = _intervals(evidence, later, kind)
    ratio = (later[f"{kind}_tokens"] / later[f"expected_{kind}_tokens"]).to_numpy(dtype=float)
    there = np.isfinite(bounds[0]) & np.isfinite(ratio) & (ratio > 0)
    held = there & (ratio >= bounds[0]) & (ratio <= bounds[1])
    return int(held.sum()), int(there.sum())


def _intervals(evidence: Evidence, rows: pd.DataFrame, kind: str) -> np.ndarray:
    tokens = evidence.calibration.tokens
    keys = list(zip(rows["model"].astype(str), rows["domain"].astype(str), strict=True))
    codes, names = pd.factorize(pd.Series(keys, dtype=object))
    ends = []
    for model, domain in names:
        factors = tokens.get(model, {}).get(domain)
        ends.append(
            (np.nan, np.nan) if factors is None else (getattr(factors, kind).low, getattr(factors, kind).high)
        )
    return np.array(ends, dtype=np.float64).reshape(-1, 2)[codes].T
