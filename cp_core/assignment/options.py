"""What a task may be given: a model together with what pays for it. Columns of matrices over tasks x options.

Amounts are whole numbers of an account's smallest unit (one token, or one nanodollar), so that the sums of a
batch are exact and equal to what the ledger keeps.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from cp_core.assignment.predict import Columns
from cp_core.models.registry import Funding, Model, ModelRegistry
from cp_core.quota.account import Unit

_DECIMAL_PLACES = {Unit.TOKENS: 0, Unit.USD: 9}
_NANODOLLARS_PER_TOKEN = 1000  # at a price of one US dollar per million tokens


@dataclass(frozen=True, slots=True)
class Option:
    """A model and one of the fundings that may pay for it."""

    model: Model
    funding: Funding

    @property
    def prepaid(self) -> bool:
        """Whether a subscription pays, so that using it costs no further money."""
        return self.funding.unit is Unit.TOKENS


class Options:
    """Every option of a registry, by name of the model, a subscription before a budget.

    Attributes, arrays over the m options:
        tier: int, rank of the model's tier.
        prepaid, enabled: bool.
        context_window, max_output: int, tokens.
    """

    def __init__(self, registry: ModelRegistry) -> None:
        self._options = tuple(
            Option(registry.model(name), funding)
            for name in sorted(registry.models)
            for funding in registry.fundings(name)
        )
        models = [option.model for option in self._options]
        self.tier = np.array([model.tier.rank for model in models], dtype=np.int64)
        self.prepaid = np.array([option.prepaid for option in self._options], dtype=bool)
        self.enabled = np.array([model.enabled for model in models], dtype=bool)
        self.context_window = np.array([model.context_window for model in models], dtype=np.int64)
        self.max_output = np.array([model.max_output_tokens for model in models], dtype=np.int64)
        self._input_price = _nanodollars_per_token([model.input_usd_per_million for model in models])
        self._output_price = _nanodollars_per_token([model.output_usd_per_million for model in models])

    def __len__(self) -> int:
        return len(self._options)

    def __iter__(self) -> Iterator[Option]:
        return iter(self._options)

    def __getitem__(self, index: int) -> Option:
        return self._options[index]

    def capability(self, domains: pd.Series | NDArray[np.object_]) -> NDArray[np.float64]:
        """How able each option's model is in each task's domain: (n, m), 0 to 1, 0 where not known."""
        if len(domains) == 1:
            return np.array(
                [[option.model.capability.get(next(iter(domains)), 0.0) for option in self._options]]
            )
        codes, names = pd.factorize(domains)
        table = np.array(
            [[option.model.capability.get(name, 0.0) for option in self._options] for name in names]
        )
        return table.reshape(len(names), len(self))[codes]

    def list_price(self, tasks: Columns) -> NDArray[np.int64]:
        """Price of each task's expected tokens, whoever pays: (n, m), nanodollars, rounded up."""
        price = np.outer(tasks["input_mean"], self._input_price)
        price += np.outer(tasks["output_mean"], self._output_price)
        return np.ceil(price).astype(np.int64)

    def need(self, tasks: Columns, list_price: NDArray[np.int64]) -> NDArray[np.int64]:
        """What each option reserves in each of its accounts: (n, m), tokens if prepaid, else nanodollars."""
        tokens = np.ceil(np.asarray(tasks["input_mean"] + tasks["output_mean"])).astype(np.int64)
        return np.where(self.prepaid, tokens[:, None], list_price)


def smallest_units(amount: Decimal, unit: Unit) -> int:
    """An amount of tokens or US dollars in whole smallest units, rounded down."""
    return int(amount.scaleb(_DECIMAL_PLACES[unit]))


def from_smallest_units(amount: int, unit: Unit) -> Decimal:
    """Tokens or US dollars from whole smallest units."""
    return Decimal(amount).scaleb(-_DECIMAL_PLACES[unit])


def figure(amount: int, unit: Unit) -> int | float:
    """Whole smallest units as a number for people: tokens, or US dollars."""
    return amount if unit is Unit.TOKENS else amount / 10 ** _DECIMAL_PLACES[unit]


def _nanodollars_per_token(prices: list[Decimal]) -> NDArray[np.float64]:
    return np.array([float(price * _NANODOLLARS_PER_TOKEN) for price in prices], dtype=np.float64)
