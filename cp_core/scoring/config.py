"""The typed form of `config/scoring.yaml`: every number, word and label that the rules of scoring use."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum
from itertools import pairwise
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from cp_core.scoring.words import label_key, phrase_key


class Complexity(StrEnum):
    """How much of the code a task touches, from least to most."""

    SIMPLE = "simple"
    MODERATE = "moderate"
    COMPLEX = "complex"
    HIGHLY_COMPLEX = "highly_complex"


class Domain(StrEnum):
    """The part of a system that a task is about."""

    INFRASTRUCTURE = "infrastructure"
    BACKEND = "backend"
    ML = "ml"
    FRONTEND = "frontend"
    TESTING = "testing"
    DOCUMENTATION = "documentation"


class Risk(StrEnum):
    """What a mistake in a task would touch, from most to least."""

    PRODUCTION = "production"
    STAGING = "staging"
    DEVELOPMENT = "development"
    EXPERIMENTAL = "experimental"
    SANDBOX = "sandbox"


PRIORITIES = ("P0", "P1", "P2", "P3", "P4")


def _phrase(value: str) -> str:
    if not value or phrase_key(value) != value:
        raise ValueError(
            f"{value!r} can never be found; write words in lower case, with one space between, "
            "without punctuation"
        )
    return value


Factor = Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)]
Points = Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)]
Phrase = Annotated[str, AfterValidator(_phrase)]
Label = Annotated[str, Field(min_length=1), AfterValidator(label_key)]
Name = Annotated[str, Field(pattern=r"^[^\sA-Z]+$")]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TextRules(_Section):
    """How titles and descriptions are read."""

    lead_characters: int = Field(ge=0, le=100_000, description="how far into a description a word counts")
    negations: tuple[Name, ...] = Field(
        description="a word up to three words after one of these does not count"
    )
    file_extensions: tuple[Name, ...] = Field(
        description="what makes a name in the text a file, without the dot"
    )
    file_names: tuple[Name, ...] = Field(description="files that have no extension")
    no_paths: tuple[Name, ...] = Field(description="products and media types that look like a path")
    foreign_folders: tuple[Name, ...] = Field(
        description="a path through one of these is other people's code"
    )


class SizeRules(_Section):
    """How many files and lines a task touches when its row does not say."""

    lines_per_file: int = Field(ge=1, description="lines a file gets where only the files are known")
    lines_filling_a_file: int = Field(ge=1, description="lines a file takes where only the lines are known")
    most_stated_files: int = Field(ge=1, description="a larger number in the text is no size of a change")
    most_stated_lines: int = Field(ge=1)
    default_files: int = Field(ge=1, description="files of a task whose text says nothing")
    feature_files: int = Field(
        ge=1, description="files of a task whose title starts with one of feature_words"
    )
    feature_words: tuple[Phrase, ...]
    large_files: int = Field(ge=1, description="files of a task that only the highly complex words describe")


class ComplexityLevel(_Section):
    """One step of complexity: its factor, and the largest task that still belongs to it (none: no limit)."""

    factor: Factor
    max_files: int | None = Field(default=None, ge=0)
    max_lines: int | None = Field(default=None, ge=0)


class ComplexityRules(_Section):
    """The steps of complexity, and the words that make a task highly complex whatever its size."""

    levels: dict[Complexity, ComplexityLevel]
    highly_complex_words: tuple[Phrase, ...]

    @model_validator(mode="after")
    def _steps_rise(self) -> Self:
        _require_all(Complexity, self.levels, "levels")
        steps = [self.levels[level] for level in Complexity]
        if steps[-1].max_files is not None or steps[-1].max_lines is not None:
            raise ValueError(
                f"levels.{Complexity.HIGHLY_COMPLEX} is the last step: it has no max_files or max_lines"
            )
        for level, step in zip(Complexity, steps[:-1], strict=False):
            if step.max_files is None or step.max_lines is None:
                raise ValueError(f"levels.{level} needs both max_files and max_lines")
        for name in ("factor", "max_files", "max_lines"):
            _require_rising(
                f"levels.*.{name}", [getattr(step, name) for step in steps if getattr(step, name)]
            )
        return self


class DeadlineStep(_Section):
    """Points for a deadline at most so many hours after the task was submitted."""

    within_hours: float = Field(gt=0, allow_inf_nan=False)
    points: Points


class BlockingProduction(_Section):
    """What says that production waits for a task: two labels together, or a phrase of the text."""

    points: Points
    blocking_labels: tuple[Label, ...]
    production_labels: tuple[Label, ...]
    phrases: tuple[Phrase, ...]


class TimeBonusRules(_Section):
    """Points for work that is due soon or holds up other work. The largest that applies counts."""

    deadlines: tuple[DeadlineStep, ...] = Field(min_length=1)
    labels: dict[Label, Points]
    blocking_production: BlockingProduction
    blocks_other_tasks: Points

    @model_validator(mode="after")
    def _nearer_is_more(self) -> Self:
        _require_rising("deadlines.within_hours", [step.within_hours for step in self.deadlines])
        _require_rising("deadlines.points, from last to first", [s.points for s in reversed(self.deadlines)])
        return self


class DomainRule(_Section):
    """What names a domain, and what it multiplies."""

    factor: Factor
    labels: tuple[Label, ...]
    path_words: tuple[Name, ...] = Field(
        description="words of a path named in the text, its extension included"
    )
    workspace_words: tuple[Name, ...] = Field(description="words of the last part of the workspace's name")


class DomainRules(_Section):
    """The six domains, and which one a task has that names none."""

    default: Domain
    rules: dict[Domain, DomainRule]

    @model_validator(mode="after")
    def _every_domain(self) -> Self:
        _require_all(Domain, self.rules, "rules")
        return self


class RiskRule(_Section):
    """What names a risk, and what it multiplies."""

    factor: Factor
    labels: tuple[Label, ...]
    folders: tuple[Name, ...] = Field(description="whole names of folders or branches in a path of the text")
    file_words: tuple[Name, ...] = Field(description="words of a file's name in a path of the text")
    phrases: tuple[Phrase, ...]


class RiskRules(_Section):
    """The five risks, and which one a task has that names none."""

    default: Risk
    rules: dict[Risk, RiskRule]
    meaningless_folders: tuple[Name, ...] = Field(description="parts of a path that say nothing about risk")

    @model_validator(mode="after")
    def _every_risk_and_in_order(self) -> Self:
        _require_all(Risk, self.rules, "rules")
        _require_rising(
            "rules.*.factor, from sandbox to production", [self.rules[r].factor for r in reversed(Risk)]
        )
        return self


class Tokens(_Section):
    """Input and output tokens."""

    input: float = Field(gt=0, allow_inf_nan=False)
    output: float = Field(gt=0, allow_inf_nan=False)


class LargeWorkspace(_Section):
    """What the input is multiplied by in a workspace of more files than this."""

    more_than_files: int = Field(ge=1)
    input_factor: float = Field(ge=1, le=100, allow_inf_nan=False)


class EstimateRules(_Section):
    """The token prior: mean tokens by complexity, factors on them, and how widely real runs spread."""

    mean_tokens: dict[Complexity, Tokens]
    domain_factors: dict[Domain, Tokens]
    large_workspaces: tuple[LargeWorkspace, ...]
    sigma: Tokens = Field(description="standard deviation of the logarithm of the tokens")

    @model_validator(mode="after")
    def _larger_is_more(self) -> Self:
        _require_all(Complexity, self.mean_tokens, "mean_tokens")
        _require_rising("mean_tokens.*.input", [self.mean_tokens[level].input for level in Complexity])
        _require_rising("mean_tokens.*.output", [self.mean_tokens[level].output for level in Complexity])
        _require_rising(
            "large_workspaces.more_than_files", [w.more_than_files for w in self.large_workspaces]
        )
        _require_rising("large_workspaces.input_factor", [w.input_factor for w in self.large_workspaces])
        return self


class ScoringConfig(_Section):
    """The whole of `config/scoring.yaml`. Built from a mapping; unknown keys are refused."""

    priority_points: dict[str, Factor]
    complexity: ComplexityRules
    size: SizeRules
    time_bonus: TimeBonusRules
    domains: DomainRules
    risks: RiskRules
    estimate: EstimateRules
    text: TextRules

    @model_validator(mode="after")
    def _rules_agree(self) -> Self:
        if tuple(sorted(self.priority_points)) != PRIORITIES:
            raise ValueError(f"priority_points needs exactly the keys {', '.join(PRIORITIES)}")
        _require_rising(
            "priority_points, from P4 to P0", [self.priority_points[p] for p in reversed(PRIORITIES)]
        )
        for level in list(Complexity)[:-1]:
            self._filled_in_size_stays_within(level)
        return self

    def _filled_in_size_stays_within(self, level: Complexity) -> None:
        """What is filled in for a missing size must not outweigh the size that is known."""
        files, lines = self.complexity.levels[level].max_files, self.complexity.levels[level].max_lines
        if files is None or lines is None:
            return
        if files * self.size.lines_per_file > lines:
            raise ValueError(
                f"size.lines_per_file {self.size.lines_per_file} gives the {files} files of a {level} task "
                f"more than its {lines} lines; use at most {lines // max(files, 1)}"
            )
        if -(-lines // self.size.lines_filling_a_file) > files:
            raise ValueError(
                f"size.lines_filling_a_file {self.size.lines_filling_a_file} spreads the {lines} lines of a "
                f"{level} task over more than its {files} files; use at least {-(-lines // max(files, 1))}"
            )


def _require_all(kind: type[StrEnum], given: Iterable[str], where: str) -> None:
    missing = [str(member) for member in kind if member not in set(given)]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}: each of {', '.join(kind)} is needed")


def _require_rising(where: str, numbers: list[float]) -> None:
    for smaller, larger in pairwise(numbers):
        if smaller >= larger:
            raise ValueError(f"{where} must rise: {larger:g} follows {smaller:g}")
