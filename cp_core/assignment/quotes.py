"""What accounts cost between the rounds: the prices at which a task is decided that comes alone.

A round's own prices say what an account was worth to the tasks of that round. A late round of a few tasks finds nearly
nothing scarce, yet what the day's large rounds left is as dear as before. So within one window of an account its quote
is the mean of the prices that the rounds found, each task counting once; and where the last round found more, that: a
higher price says that less is left. A window that opens anew is quoted by its own rounds alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime

from cp_core.quota.account import Account
from cp_core.quota.windows import bounds


@dataclass(frozen=True, slots=True)
class Quote:
    """What one more token or dollar of an account costs, in value points.

    Attributes:
        tasks: of all the rounds that it rests on.
        until: end of the account's window, to which it is bound.
    """

    price: float
    tasks: int
    until: datetime


def quotes_after(
    found: Mapping[str, float],
    tasks: int,
    accounts: Iterable[Account],
    before: Mapping[str, Quote],
    now: datetime,
) -> dict[str, Quote]:
    """The quotes that hold after a round.

    Args:
        found: the prices of the round, by account.
        tasks: how many it decided.
        accounts: as the round found them.
        before: the quotes that held until then.
        now: the time of the round.
    """
    made = {}
    for account in accounts:
        name = account.account
        if name not in found:
            continue
        price, rests_on = found[name], tasks
        earlier = before.get(name)
        if earlier is not None and now < earlier.until:
            rests_on = earlier.tasks + tasks
            price = max(price, (earlier.price * earlier.tasks + price * tasks) / max(rests_on, 1))
        made[name] = Quote(price, rests_on, account.window_ends_at or bounds(account.window, now).end)
    return made
