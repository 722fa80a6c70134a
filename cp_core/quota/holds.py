"""Reservations as columns: many keys that were never reserved before, all of them held or none.

What `journal.decide_reservations` decides one by one, for a batch whose reservations are known to fit together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from functools import cached_property
from hashlib import sha1
from itertools import compress

import numpy as np
from numpy.typing import NDArray

from cp_core.quota.journal import Balance, Counters, Moves, quota_account, spent

Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Holds:
    """n reservations that come to m pending transfers.

    Attributes:
        keys: n keys, the 16 bytes of each id.
        tasks: internal ids, (n,).
        accounts: names of the accounts.
        key, account: whose transfer it is and what it draws on: positions in `keys` and `accounts`, (m,).
        whole, nano: what it holds: units, and billionths of one beside them, (m,).
    """

    keys: Sequence[bytes]
    tasks: Integers
    accounts: Sequence[str]
    key: Integers
    account: Integers
    whole: Integers
    nano: Integers

    @cached_property
    def totals(self) -> dict[str, Decimal]:
        """What is held in all, by account; accounts that nothing draws on are left out."""
        totals = {}
        for position, account in enumerate(self.accounts):
            drawn = self.account == position
            if drawn.any():
                nano = Decimal(int(self.nano[drawn].sum())).scaleb(-9)
                totals[account] = int(self.whole[drawn].sum()) + nano
        return totals

    def transfer_ids(self) -> NDArray[np.uint8]:
        """Ids of the transfers as `journal.reservation_transfers` gives them, (m, 16): UUIDs of version 5."""
        of_account = [account.encode() for account in self.accounts]
        names = zip(self.key.tolist(), self.account.tolist(), strict=True)
        digests = b"".join(
            [
                sha1(self.keys[key] + of_account[account], usedforsecurity=False).digest()
                for key, account in names
            ]
        )
        ids = np.frombuffer(digests, dtype=np.uint8).reshape(-1, 20)[:, :16].copy()
        ids[:, 6] = ids[:, 6] & 0x0F | 0x50
        ids[:, 8] = ids[:, 8] & 0x3F | 0x80
        return ids

    def fit(self, balances: Mapping[str, Balance], now: datetime) -> bool:
        """Whether all of them together can be held at `now`, and so each in its turn.

        Raises:
            LedgerError: an account does not exist.
        """
        return all(
            quota_account(balances, account).available_at(now) >= total
            for account, total in self.totals.items()
        )

    def to_open(self, balances: Mapping[str, Balance], now: datetime) -> set[str]:
        """The accounts whose window has ended: what is held opens a new one."""
        ended = [quota_account(balances, account).has_ended(now) for account in self.totals]
        return set(compress(self.totals, ended))

    def moves(self, balances: Mapping[str, Balance]) -> Moves:
        """What they add to the counters, on both sides."""
        moves: Moves = {}
        for account, total in self.totals.items():
            moves[account] = Counters(debits_pending=total)
            other = spent(balances[account].unit)
            moves[other] = moves.get(other, Counters()).plus(Counters(credits_pending=total))
        return moves
