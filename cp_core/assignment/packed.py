"""Explanations of a round as numbers: stored in bulk, and spelled out when somebody reads one.

What all decisions of a round share (names of plans and options, what is ruled out for which group of tasks) is its
`Legend`, stored once; what is a task's own is one row of `FIGURES`. A `Packed` explanation reads as the mapping that
`cp_core.assignment.verdicts` describes, so that whoever shows, prints or replays it need not know.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

SHOWN = 4
"""Plans that an explanation shows: the chosen and the three best others, or just the best three."""

FACTS = (
    "value_score",
    "aged_value",
    "waiting_hours",
    "required_success",
    "input_mean",
    "input_median",
    "output_mean",
    "output_median",
)
NAMES = ("risk", "domain", "complexity")
WEIGHED = ("success", "list_usd", "billed_usd", "seconds", "worth", "net")
DRAWN = 3
"""Plans that exploration may have drawn from."""

_PLAN_AT = len(FACTS) + len(NAMES) + 2
_DRAW_AT = _PLAN_AT + SHOWN * (1 + len(WEIGHED))

FIGURES = _DRAW_AT + DRAWN * 2
"""Numbers of an explanation, in this order: `FACTS`; positions of `NAMES` in the legend's names; position of what is
ruled out; position in `SETTLED_BY`, `NOT_GIVEN` or `TURNED_AWAY`; the chosen plan and the best others, each with its
figures `WEIGHED`; the plans that exploration drew from, each with its probability. A plan of -1 is none. Where
predictions looked at the text, its traits follow."""

SETTLED_BY = ("prices", "rounding", "exploration", "overdue")
NOT_GIVEN = -1
TURNED_AWAY = -2


@dataclass(frozen=True)
class Legend:
    """What the explanations of a round share.

    Attributes:
        plans: every plan in words.
        names: values of the columns `NAMES` that occur, by column.
        excluded: what may not be given to a group of tasks: options in words, by reason.
    """

    strategy: str
    plans: Sequence[str]
    names: Mapping[str, Sequence[str]]
    excluded: Sequence[Mapping[str, Sequence[str]]]

    def as_json(self) -> dict[str, Any]:
        """The legend as `assignment_batches.legend` stores it."""
        return asdict(self)


class Packed(Mapping[str, Any]):
    """One explanation.

    Args:
        figures: `FIGURES` numbers, and traits if there are any.
        legend: of its round.
        own: what cannot be said in numbers: the deadline that passed, the tasks it depends on.
    """

    def __init__(
        self, figures: Sequence[float], legend: Legend, own: Mapping[str, Any] | None = None
    ) -> None:
        self.figures = figures
        self.legend = legend
        self.own = own or {}

    def __getitem__(self, name: str) -> Any:
        return self._spelled[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._spelled)

    def __len__(self) -> int:
        return len(self._spelled)

    @cached_property
    def _spelled(self) -> dict[str, Any]:
        figures, legend = self.figures, self.legend
        codes = [int(code) for code in figures[len(FACTS) : _PLAN_AT]]
        *names, excluded, settled_by = codes
        spelled: dict[str, Any] = {"strategy": legend.strategy}
        spelled |= {name: float(value) for name, value in zip(FACTS, figures, strict=False)}
        spelled |= {name: legend.names[name][code] for name, code in zip(NAMES, names, strict=True)}
        if len(figures) > FIGURES:
            spelled["traits"] = [float(trait) for trait in figures[FIGURES:]]
        spelled["excluded"] = legend.excluded[excluded]
        spelled |= self.own
        if settled_by == TURNED_AWAY:
            return spelled
        chosen, *others = (
            self._weighed(figures[at : at + 1 + len(WEIGHED)])
            for at in range(_PLAN_AT, _DRAW_AT, 1 + len(WEIGHED))
        )
        spelled["alternatives"] = [other for other in others if other is not None]
        if settled_by == NOT_GIVEN:
            return spelled
        drawn = figures[_DRAW_AT:FIGURES]
        probabilities = {
            legend.plans[int(plan)]: float(probability)
            for plan, probability in zip(drawn[::2], drawn[1::2], strict=True)
            if plan >= 0
        }
        return (
            spelled
            | {"plan": chosen, "decided_by": SETTLED_BY[settled_by]}
            | ({"probabilities": probabilities} if probabilities else {})
        )

    def _weighed(self, figures: Sequence[float]) -> dict[str, Any] | None:
        plan, *weighed = figures
        if plan < 0:
            return None
        return {
            "plan": self.legend.plans[int(plan)],
            **{name: float(value) for name, value in zip(WEIGHED, weighed, strict=True)},
        }
