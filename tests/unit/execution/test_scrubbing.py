"""Secrets struck out of text."""

from __future__ import annotations

import json
import time
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cp_core.execution import scrubbing
from cp_core.execution.scrubbing import strike_from_record, strike_secrets, strike_values


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("Incorrect API key provided: sk-proj-Ab12Cd34_x-9.", "Incorrect API key provided: [key]"),
        ("sk-ant-api03-aBcD_efgh-1234 is wrong", "[key] is wrong"),
        ("AIzaSyD-abcdef1234567", "[key]"),
        ("Authorization: Bearer abc.def.ghi", "Authorization: Bearer [key]"),
        ("authorization=Basic dXNlcjpwYXNz", "authorization=Basic [key]"),
        ("{'x-api-key': 'plainkey1234', 'a': 1}", "{'x-api-key': '[key]', 'a': 1}"),
        ('{"Authorization": "Bearer plainkey1234"}', '{"Authorization": "Bearer [key]"}'),
        (json.dumps('{"x-api-key": "plainkey1234"}'), json.dumps('{"x-api-key": "[key]"}')),
        ("api_key=plainkey1234&x=1", "api_key=[key]&x=1"),
        ("use bearer abc123", "use bearer [key]"),
        ("postgresql://owner:p%40ssword@db:5432/x", "postgresql://owner:[key]@db:5432/x"),
        ("redis://:s3cret@cache/0", "redis://:[key]@cache/0"),
        ("host=db password=hunter2hunter2 user=x", "host=db password=[key] user=x"),
        ("ghp_abcdefgh12345678 AKIAABCDEFGHIJKLMNOP hf_abcdefgh1234", "[key] [key] [key]"),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----", "[key]"),
    ],
)
def test_what_looks_like_a_secret_is_struck_out(said: str, kept: str) -> None:
    assert strike_secrets(said) == kept


@pytest.mark.parametrize(
    "said",
    [
        "The task asks for risk-based ordering of skeleton screens.",
        "http://127.0.0.1:8080/v1/messages answered 500 at 12:30:45",
        "see https://example.org/a?b=c and mail a@b.example",
        "authorization is missing",
        '{"tests_passed": 12, "tests_failed": 0}',
    ],
)
def test_other_text_stays_as_it_is(said: str) -> None:
    assert strike_secrets(said) == said


@given(
    st.text(max_size=200),
    st.text("abcdefXYZ0123456789/+ %", min_size=8, max_size=40).filter(lambda key: key.strip() == key),
    st.text(max_size=200),
)
def test_a_known_secret_is_gone_however_it_is_written(before: str, key: str, after: str) -> None:
    struck = strike_values(f"{before}{key}{after}{quote(key, safe='')}", [key])

    assert key not in struck
    assert quote(key, safe="") not in struck


@given(
    st.sampled_from(scrubbing._SHAPES).flatmap(
        lambda shape: st.from_regex(shape, alphabet=st.characters(codec="ascii"))
    )
)
def test_whatever_a_shape_fits_is_looked_at(said: str) -> None:
    assert any(mark in said.lower() for mark in scrubbing._MARKS)


def test_of_two_secrets_that_begin_alike_nothing_is_left() -> None:
    assert strike_values("12345678abcd 12345678", ["12345678", "12345678abcd"]) == "[key] [key]"


def test_a_record_is_struck_through_and_through() -> None:
    record = {"a": ["Bearer abc123", {"b": "hunter2hunter2"}], "hunter2hunter2": 3, "c": None, "d": 1.5}

    assert strike_from_record(record, ["hunter2hunter2"]) == {
        "a": ["Bearer [key]", {"b": "[key]"}],
        "[key]": 3,
        "c": None,
        "d": 1.5,
    }


@pytest.mark.parametrize(
    "unit",
    ["a://", "authorization:", "-----BEGIN A PRIVATE KEY-----", "api_key", "bearer ", "sk-", "a://b:c"],
)
def test_long_text_made_to_confuse_takes_no_time(unit: str) -> None:
    text = unit * (200_000 // len(unit))
    started = time.process_time()

    strike_secrets(text)

    assert time.process_time() - started < 2
