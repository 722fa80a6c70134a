"""Risk: labels before paths before words, and the highest that one of them names."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from score_rows import labels, score_frame, scored, tasks

FACTORS = {"production": 1.3, "staging": 1.1, "development": 1.0, "experimental": 0.9, "sandbox": 0.7}


def risk(**changes: Any) -> str:
    result = scored(**changes)
    assert result["risk_factor"] == FACTORS[result["risk"]]
    return str(result["risk"])


@pytest.mark.parametrize("label", ["production", "hotfix", "security", "env:prod", "Migration"])
def test_labels_of_production(label: str) -> None:
    assert risk(labels=[label]) == "production"


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("staging", "staging"),
        ("experimental", "experimental"),
        ("sandbox", "sandbox"),
        ("bug", "development"),
    ],
)
def test_labels_of_lower_risks(label: str, expected: str) -> None:
    assert risk(labels=[label]) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("deploy/prod/values.yaml", "production"),
        ("values.prod.yaml", "production"),
        ("origin/main", "production"),
        ("release/master", "production"),
        ("deploy/staging/values.yaml", "staging"),
        ("sandbox/try.py", "sandbox"),
        ("sandbox/try.py and deploy/prod/x.yaml", "production"),
        ("src/main.py", "development"),
        ("src/main/java/App.java", "development"),
        ("src/main/prod/App.java", "production"),
        ("src/product/list.py", "development"),
        ("https://github.com/acme/web/blob/main/x.py", "development"),
    ],
)
def test_folders_branches_and_file_names_of_paths(text: str, expected: str) -> None:
    assert risk(description=f"See {text}.") == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Cluster migration", "production"),
        ("This is a breaking change", "production"),
        ("The deployment hangs", "production"),
        ("On staging only", "staging"),
        ("A proof of concept", "experimental"),
        ("In the sandbox", "sandbox"),
        ("Try it in the sandbox before the deployment", "production"),
        ("No breaking changes, no deployment", "development"),
        ("A breaking story", "development"),
    ],
)
def test_words_of_the_text(text: str, expected: str) -> None:
    assert risk(description=text) == expected


def test_labels_come_before_paths_before_words() -> None:
    deployment = {"title": "Fix the deployment", "description": "in sandbox/run.py"}

    assert risk(**deployment, labels=["staging"]) == "staging"
    assert risk(**deployment) == "sandbox"
    assert risk(title=deployment["title"]) == "production"


@settings(max_examples=60)
@given(tasks, labels, st.sampled_from(["production", "hotfix", "security"]))
def test_a_label_of_production_is_never_outweighed(
    row: dict[str, Any], others: list[str], label: str
) -> None:
    [result] = score_frame([row | {"labels": [*others, label]}]).to_dict("records")

    assert (result["risk"], result["risk_factor"]) == ("production", 1.3)
