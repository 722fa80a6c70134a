"""What every account still holds while a batch is decided, and why an account cannot pay."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from cp_core.assignment.options import figure, smallest_units
from cp_core.models.registry import Funding
from cp_core.quota.account import Account, AccountState, state_of
from cp_core.tasks.reasons import Reason


@dataclass(frozen=True, slots=True)
class Shortage:
    """Why a funding cannot pay for a task, with the account that says so. Amounts are in smallest units."""

    reason: Reason
    account: str
    needed: int
    remaining: int


class Capacity:
    """Running balances of a batch. Amounts are whole smallest units of each account."""

    def __init__(self, accounts: Sequence[Account]) -> None:
        self._unit = {account.account: account.unit for account in accounts}
        self._limit = {account.account: smallest_units(account.limit, account.unit) for account in accounts}
        self._remaining = {
            account.account: smallest_units(account.available, account.unit) for account in accounts
        }

    def limit(self, funding: Funding) -> int:
        """The most that one task can ever draw on a funding: the least limit of its accounts.

        Raises:
            LookupError: the ledger has no such account.
        """
        missing = [account for account in funding.accounts if account not in self._limit]
        if missing:
            raise LookupError(
                f"the ledger has no account {', '.join(missing)} for {funding.name}: "
                "open the registry's accounts before assigning"
            )
        return min(self._limit[account] for account in funding.accounts)

    def state(self, account: str) -> AccountState:
        """The account's state by what remains of it now."""
        return state_of(self._remaining[account], self._limit[account])

    def shortage(self, funding: Funding, need: int, closed: Collection[AccountState]) -> Shortage | None:
        """Why `funding` cannot pay `need` in each of its accounts; None when it can.

        Args:
            closed: states in which an account does not pay for this task, whatever it holds.
        """
        for account in funding.accounts:
            if self._remaining[account] < need:
                return Shortage(Reason.QUOTA_EXHAUSTED, account, need, self._remaining[account])
        if closed:
            for account in funding.accounts:
                if self.state(account) in closed:
                    return Shortage(Reason.QUOTA_KEPT_FOR_CRITICAL, account, need, self._remaining[account])
        return None

    def take(self, funding: Funding, need: int) -> None:
        """Draw `need` from each account of `funding`."""
        for account in funding.accounts:
            self._remaining[account] -= need

    def standing(self, accounts: Iterable[str]) -> dict[str, dict[str, Any]]:
        """What remains in some accounts, and their states, JSON-ready."""
        return {
            account: {
                "remaining": figure(self._remaining[account], self._unit[account]),
                "state": self.state(account),
            }
            for account in accounts
        }
