"""Capacity checks before any search: whether what is left suffices for a task at all, with the figures that prove it.

An option fits if each of its accounts holds what it needs. Where nothing that a task may be given fits, whatever the
tier, capacity is lacking altogether; where something fits, but in no tier that its band allows, it is lacking there.
Every plan starts with one option in full, so where no option fits, no plan does.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cp_core.tasks.reasons import Reason

Doubles = NDArray[np.float64]
Mask = NDArray[np.bool_]

REASONS: tuple[Reason | None, ...] = (
    None,
    Reason.INSUFFICIENT_GLOBAL_CAPACITY,
    Reason.INSUFFICIENT_TIER_CAPACITY,
)
"""Findings by their code, 0 where capacity may suffice."""

_GLOBAL = REASONS.index(Reason.INSUFFICIENT_GLOBAL_CAPACITY)
_TIER = REASONS.index(Reason.INSUFFICIENT_TIER_CAPACITY)


@dataclass(frozen=True, slots=True)
class Lack:
    """One account that cannot pay: the least that any option stuck at it needs, and what the account has."""

    account: str
    needed_at_least: float
    available: float


@dataclass(frozen=True)
class Precheck:
    """What n tasks need of m options, against A accounts. Amounts are in any one unit an account, tokens or dollars.

    Attributes:
        need: what each option would draw for each task on each of its accounts, (n, m).
        possible: options that a task could be given whatever its tier, (n, m).
        in_tier: those of them in a tier that its band allows, (n, m).
        draws: which accounts each option draws on, (m, A).
        available: what each account holds, (A,).
        accounts: ids of the A accounts.
    """

    need: Doubles
    possible: Mask
    in_tier: Mask
    draws: Mask
    available: Doubles
    accounts: tuple[str, ...]

    def codes(self) -> NDArray[np.int8]:
        """What each task lacks, positions in `REASONS`, (n,). A task without any possible option lacks nothing here."""
        room, codes = self._room(), np.zeros(len(self.need), dtype=np.int8)
        if (self.need.max(axis=0, initial=0.0) <= room).all():
            return codes
        fits = self.possible & (self.need <= room)
        codes[(self.possible & self.in_tier).any(axis=1) & ~(fits & self.in_tier).any(axis=1)] = _TIER
        codes[self.possible.any(axis=1) & ~fits.any(axis=1)] = _GLOBAL
        return codes

    def proof(self, row: int, code: int) -> list[Lack]:
        """The accounts that prove finding `code` of a task: every option in question is stuck at one of them."""
        asked = self.possible[row] if code == _GLOBAL else self.possible[row] & self.in_tier[row]
        tightest = np.where(self.draws, self.available, np.inf).argmin(axis=1)
        return [
            Lack(
                self.accounts[account],
                float(self.need[row, asked & (tightest == account)].min()),
                float(self.available[account]),
            )
            for account in np.unique(tightest[asked]).tolist()
        ]

    def figures(self, row: int, code: int) -> list[dict[str, Any]]:
        """`proof` as explanations hold it, without accounts whose quota suffices and is kept for others."""
        return [asdict(lack) for lack in self.proof(row, code) if lack.needed_at_least > lack.available]

    def _room(self) -> Doubles:
        """The most that each option could draw, (m,): what its emptiest account holds."""
        return np.asarray(np.where(self.draws, self.available, np.inf).min(axis=1, initial=np.inf))
