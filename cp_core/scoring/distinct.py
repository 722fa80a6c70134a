"""A column with few distinct values, so that a rule in plain Python is asked once a value, not once a row."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

Value = TypeVar("Value", bound=Hashable)
Other = TypeVar("Other", bound=Hashable)


@dataclass(frozen=True)
class Distinct(Generic[Value]):
    """`values[codes[row]]` is the value of a row; every value is there once."""

    values: list[Value]
    codes: NDArray[np.intp]

    @classmethod
    def of(cls, column: Sequence[Value]) -> Distinct[Value]:
        """Gather the distinct values of `column`, in order of first appearance."""
        code = {value: at for at, value in enumerate(dict.fromkeys(column))}
        return cls(list(code), np.fromiter(map(code.__getitem__, column), dtype=np.intp, count=len(column)))

    def map(self, rule: Callable[[Value], object], dtype: DTypeLike) -> NDArray[Any]:
        """What `rule` says of each row's value, as an array of one entry a row."""
        return np.array([rule(value) for value in self.values], dtype=dtype)[self.codes]

    def regroup(self, form: Callable[[Value], Other]) -> Distinct[Other]:
        """The column with `form` of each value in its place."""
        forms = Distinct.of([form(value) for value in self.values])
        return Distinct(forms.values, forms.codes[self.codes])
