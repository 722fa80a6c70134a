"""The text of an answer: a short summary of the work, then the evidence block that was asked for."""

from __future__ import annotations

import json
from dataclasses import asdict

from cp_resources.simulator.truth import AttemptTruth, Draws

REFUSAL = "I can't help with this request."

_OPENINGS = (
    "I read the code around the change first, then made it in small steps.",
    "I reproduced the behaviour, found where it comes from and changed it there.",
    "The change is done on a branch of its own and is ready for review.",
    "I kept the public interface as it was and changed what lies behind it.",
    "I started from a failing check and worked until it passed.",
)
_WORK = {
    "infrastructure": (
        "The plan shows only the resources named in the task; limits and probes are set explicitly.",
        "The rollout goes through the canary first and can be rolled back with one command.",
        "Alert thresholds now follow the service's objective, and the dashboard shows both.",
    ),
    "backend": (
        "The handler validates its input, writes in one transaction and is safe to repeat.",
        "The query uses an index now, and the response keeps its shape for existing clients.",
        "Errors carry a code and a request id; retries no longer write twice.",
    ),
    "frontend": (
        "The component takes its state from the store, and works by keyboard and on narrow screens.",
        "Loading, empty and error states are drawn; the layout no longer jumps.",
        "The form keeps what was typed when the request fails and says what went wrong.",
    ),
    "ml": (
        "The features are computed by one function in training and in serving.",
        "The evaluation runs on a split by time, and its numbers are written beside the model.",
        "The job resumes from its last checkpoint and logs the hash of its inputs.",
    ),
    "testing": (
        "The cases wait for a condition instead of a time, and clean up after themselves.",
        "Fixtures are built per case, so that the order of the cases no longer matters.",
        "The new cases cover the boundary values and the failure that was reported.",
    ),
    "documentation": (
        "The page leads with what a reader wants to do; every snippet was run as written.",
        "Terms follow the glossary, and links were checked.",
        "The steps say what to expect after each, and what to do when it does not come.",
    ),
}
_CLOSINGS = (
    "What I left alone: neighbouring code with the same pattern, for a task of its own.",
    "One assumption is written in the description of the change.",
    "The follow-up worth having is a measurement in production.",
    "Nothing else was touched.",
)
_UNFINISHED = "Part of it does not work yet; the open points are in the description of the change."


def answer_text(truth: AttemptTruth, model: str, attempt: str) -> str:
    """Return the answer of `model`: two or three sentences, and the evidence in a fenced block."""
    draws = Draws(0, "words", model, truth.task.key, attempt)
    sentences = [
        _OPENINGS[draws.below(len(_OPENINGS))],
        _WORK[truth.task.domain][draws.below(3)],
        _CLOSINGS[draws.below(len(_CLOSINGS))] if truth.succeeded else _UNFINISHED,
    ]
    return " ".join(sentences) + _evidence_block(truth)


def _evidence_block(truth: AttemptTruth) -> str:
    numbers = asdict(truth.evidence)
    match truth.malformed:
        case "absent":
            return ""
        case "cut":
            return "\n\n```evidence\n" + json.dumps(numbers)[:-9]
        case "prose":
            return f"\n\n```evidence\n{numbers['tests_passed']} tests passed\n```"
        case _:
            return f"\n\n```evidence\n{json.dumps(numbers)}\n```"
