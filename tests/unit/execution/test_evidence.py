"""Evidence read from answers."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cp_core.execution.evidence import Evidence, evidence_record, parse_evidence

COUNTS = {"tests_passed": 12, "tests_failed": 1, "bugs_introduced": 0, "revisions_needed": 2}
EVIDENCE = Evidence(tests_passed=12, tests_failed=1, bugs_introduced=0, revisions_needed=2)


def block(content: str) -> str:
    return f"```evidence\n{content}\n```"


@pytest.mark.parametrize(
    "answer",
    [
        f"The work.\n\n{block(json.dumps(COUNTS))}",
        f"The work.\r\n\r\n```evidence\r\n{json.dumps(COUNTS)}\r\n```\r\n",
        f"{block(json.dumps(COUNTS))}\nA word after it.",
        f"```evidence {json.dumps(COUNTS)}```",
        f"No closing fence.\n```evidence\n{json.dumps(COUNTS)}",
        "An example first:\n"
        + block('{"tests_passed": 0}')
        + "\nthen the real one\n"
        + block(json.dumps(COUNTS)),
        f"```python\nprint()\n```\n{block(json.dumps({**COUNTS, 'note': 'two flaky tests left alone'}))}",
    ],
)
def test_the_last_evidence_block_counts(answer: str) -> None:
    assert parse_evidence(answer) == EVIDENCE


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "All tests passed.",
        json.dumps(COUNTS),
        f"```json\n{json.dumps(COUNTS)}\n```",
        block("12 tests passed"),
        block('{"tests_passed": 12'),
        block(json.dumps({**COUNTS, "tests_failed": -1})),
        block(json.dumps({**COUNTS, "tests_failed": 0.5})),
        block(json.dumps({**COUNTS, "tests_failed": "0"})),
        block(json.dumps({**COUNTS, "tests_failed": True})),
        block(json.dumps({**COUNTS, "tests_failed": None})),
        block(json.dumps({**COUNTS, "tests_passed": 10**9})),
        block(json.dumps(dict.fromkeys(list(COUNTS)[:3], 0))),
        block(json.dumps([COUNTS])),
        block("[" * 9000),
        block('{"tests_passed": ' + "9" * 9000 + "}"),
        block(json.dumps({**COUNTS, "note": "x" * 20_000})),
    ],
)
def test_what_does_not_hold_the_four_counts_is_no_evidence(answer: str) -> None:
    assert parse_evidence(answer) is None


@given(st.text(st.sampled_from('`evidence{}":0123456789 \n'), max_size=200))
def test_no_answer_breaks_the_parser(answer: str) -> None:
    parsed = parse_evidence(answer)

    assert parsed is None or isinstance(parsed, Evidence)


def test_the_record_says_who_reported_and_whether_it_could_be_read() -> None:
    assert evidence_record(EVIDENCE) == {"source": "worker-reported", "schema_valid": True, **COUNTS}
    assert evidence_record(None) == {"source": "worker-reported", "schema_valid": False}
