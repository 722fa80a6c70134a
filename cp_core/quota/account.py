"""A quota account as the rules see it: one window of a subscription, or one money budget."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum

from cp_core.quota.windows import Window


class Unit(StrEnum):
    """What an account counts."""

    TOKENS = "tokens"
    USD = "usd"


class AccountKind(StrEnum):
    """What an account is for. A `window` belongs to a subscription; a `budget` is money."""

    WINDOW = "window"
    BUDGET = "budget"


class AccountState(StrEnum):
    """What remains of an account: FULL above 80 %, MEDIUM above 50 %, LOW above 20 %, CRITICAL above 0."""

    FULL = "FULL"
    MEDIUM = "MEDIUM"
    LOW = "LOW"
    CRITICAL = "CRITICAL"
    EXHAUSTED = "EXHAUSTED"


FULL_ABOVE = Decimal("0.8")
MEDIUM_ABOVE = Decimal("0.5")
LOW_ABOVE = Decimal("0.2")


@dataclass(frozen=True, slots=True)
class AccountTerms:
    """What the registry promises about an account.

    Attributes:
        account: its id, such as `claude-max/5-hour` or `budget/api`.
        limit: what a full window grants, in `unit`.
    """

    account: str
    kind: AccountKind
    unit: Unit
    window: Window
    limit: Decimal


@dataclass(frozen=True, slots=True)
class Account:
    """Where an account stands, as a reservation made at this moment would find it.

    Attributes:
        limit: what a full window grants.
        used: what was used in this window; above `limit` when more was used than was reserved.
        pending: what is reserved and not yet settled, also from earlier windows.
        available: what can still be reserved.
        window_started_at: None while the window is closed: it opens with the next reservation.
        window_ends_at: when the account is granted anew; None while the window is closed.
    """

    account: str
    kind: AccountKind
    unit: Unit
    window: Window
    limit: Decimal
    used: Decimal
    pending: Decimal
    available: Decimal
    window_started_at: datetime | None = None
    window_ends_at: datetime | None = None

    @property
    def remaining_share(self) -> Decimal:
        """Available over limit; 0 for an account whose limit is 0."""
        return self.available / self.limit if self.limit else Decimal(0)

    @property
    def state(self) -> AccountState:
        """The state by what remains."""
        return state_of(self.available, self.limit)


def state_of(available: Decimal | int, limit: Decimal | int) -> AccountState:
    """The state of an account that has `available` left of `limit`; exact, also for whole smallest units."""
    if available > FULL_ABOVE * limit:
        return AccountState.FULL
    if available > MEDIUM_ABOVE * limit:
        return AccountState.MEDIUM
    if available > LOW_ABOVE * limit:
        return AccountState.LOW
    if available > 0:
        return AccountState.CRITICAL
    return AccountState.EXHAUSTED
