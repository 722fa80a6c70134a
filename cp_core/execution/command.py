"""The command line of an agent: how the operator's template is filled in, and the usage its output reports.

The template is the operator's. What a task says never becomes an argument of its own, and no shell reads it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from cp_core.execution.cost import MalformedUsageError, Usage, parse_usage
from cp_core.models.registry import COMMAND_PLACEHOLDERS, Wire
from cp_core.tasks.reasons import Reason

PROMPT_FILE = "{prompt_file}"
USAGE_BLOCK = re.compile(r"```usage\s*\n(.*?)```", re.DOTALL)
USAGE_LIMIT = 10_000
"""Most characters of a usage report."""
_FILLED = re.compile("|".join(re.escape(f"{{{name}}}") for name in COMMAND_PLACEHOLDERS))


EXITS: dict[int, Reason] = {
    64: Reason.INVALID_REQUEST,  # EX_USAGE
    69: Reason.CONNECTION,  # EX_UNAVAILABLE
    75: Reason.OVERLOADED,  # EX_TEMPFAIL
    77: Reason.AUTH_FAILED,  # EX_NOPERM
    124: Reason.TIMEOUT,  # of timeout(1)
    126: Reason.INVALID_REQUEST,  # of a shell: not executable
    127: Reason.INVALID_REQUEST,  # of a shell: not found
}
"""What a command says by how it exits: a few codes of sysexits.h, timeout(1) and shells."""


class UnsafeArgumentError(ValueError):
    """A value would turn an argument into an option."""


def command_line(template: Sequence[str], values: Mapping[str, str]) -> list[str]:
    """The words of the command.

    Args:
        template: program and arguments.
        values: by placeholder, without braces. A value is put in once and not searched for placeholders.

    Raises:
        UnsafeArgumentError: an argument would begin with "-" only because a value does.
    """
    return [_filled(word, values) for word in template]


def takes_prompt_file(template: Sequence[str]) -> bool:
    """Whether the command is told the prompt's file; otherwise the prompt is its standard input."""
    return any(PROMPT_FILE in word for word in template)


def exit_reason(code: int) -> Reason | None:
    """The reason of an exit code, negative for a signal; None for 0. One that says nothing is transient."""
    return None if code == 0 else EXITS.get(code, Reason.SERVER_ERROR)


def reported_usage(output: str) -> Usage | None:
    """The usage that a command reports, or None when it reports none that can be read.

    It is a JSON object `{"usage": {"input_tokens": .., "output_tokens": ..}}` on the last line that is not
    empty, or in the last fenced block tagged `usage`. `cached_input_tokens` may be added.
    """
    blocks = USAGE_BLOCK.findall(output)
    lines = output.rstrip().rsplit("\n", 1)
    for text in (*blocks[-1:], lines[-1]):
        usage = _usage(text)
        if usage:
            return usage
    return None


def _filled(word: str, values: Mapping[str, str]) -> str:
    filled = _FILLED.sub(lambda found: values[found[0][1:-1]], word)
    if filled.startswith("-") and not word.startswith("-"):
        raise UnsafeArgumentError(f"the argument {word!r} would become the option {filled[:80]!r}")
    return filled


def _usage(text: str) -> Usage | None:
    if len(text) > USAGE_LIMIT:
        return None
    try:
        report: Any = json.loads(text)
        usage = report["usage"]
        return parse_usage(Wire.COMMAND, usage) if isinstance(usage, Mapping) else None
    except (ValueError, RecursionError, KeyError, TypeError, MalformedUsageError):
        return None
