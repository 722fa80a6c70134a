"""Domain: labels before paths before the workspace before the default."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from score_rows import score_frame, scored, tasks

FACTORS = {
    "infrastructure": 1.2,
    "backend": 1.1,
    "ml": 1.1,
    "frontend": 1.0,
    "testing": 0.9,
    "documentation": 0.8,
}


def domain(**changes: Any) -> tuple[str, str]:
    result = scored(**changes)
    assert result["domain_factor"] == FACTORS[result["domain"]]
    return result["domain"], result["domain_source"]


def test_labels_come_before_paths_before_the_workspace_before_the_default() -> None:
    everything = {"labels": ["ml"], "description": "in web/components/x.tsx", "workspace": "acme/docs"}

    assert domain(**everything) == ("ml", "labels")
    assert domain(**everything | {"labels": ["bug"]}) == ("frontend", "paths")
    assert domain(**everything | {"labels": [], "description": "in src/x.py"}) == (
        "documentation",
        "workspace",
    )
    assert domain() == ("backend", "default")


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["infrastructure"], "infrastructure"),
        (["area/backend"], "backend"),
        (["Machine Learning"], "ml"),
        (["UI"], "frontend"),
        (["kind: testing"], "testing"),
        (["docs"], "documentation"),
        (["api", "documentation"], "documentation"),
        (["backend", "test"], "testing"),
        (["backend", "kubernetes"], "infrastructure"),
        (["api", "frontend"], "frontend"),
    ],
)
def test_a_label_names_the_domain_and_a_kind_of_work_comes_before_an_area(
    labels: list[str], expected: str
) -> None:
    assert domain(labels=labels) == (expected, "labels")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("terraform/main.tf", "infrastructure"),
        (".github/workflows/ci.yml", "infrastructure"),
        ("Dockerfile", "infrastructure"),
        ("services/billing/handler.go", "backend"),
        ("notebooks/train.ipynb", "ml"),
        ("src/Button.vue", "frontend"),
        ("tests/test_login.py", "testing"),
        ("docs/guide.md", "documentation"),
        ("docs/api/server.md", "documentation"),
        ("src/Button.tsx with tests/Button.spec.ts and docs/button.md", "frontend"),
        ("api/a.py, api/b.py and web/pages/c.html", "backend"),
    ],
)
def test_the_area_that_most_paths_name_is_the_domain(text: str, expected: str) -> None:
    assert domain(description=f"See {text}.") == (expected, "paths")


@pytest.mark.parametrize(
    ("workspace", "expected"),
    [
        ("acme/web-shop", ("frontend", "workspace")),
        ("scikit-learn/scikit-learn", ("ml", "workspace")),
        ("/home/me/infra/", ("infrastructure", "workspace")),
        ("sphinx-doc/sphinx", ("backend", "default")),
        ("docs/parser", ("backend", "default")),
    ],
)
def test_the_last_part_of_a_workspace_s_name_hints_at_the_domain(
    workspace: str, expected: tuple[str, str]
) -> None:
    assert domain(workspace=workspace) == expected


@settings(max_examples=60)
@given(tasks, st.sampled_from(sorted(FACTORS)))
def test_a_domain_s_own_label_alone_decides(row: dict[str, Any], name: str) -> None:
    [result] = score_frame([row | {"labels": [name]}]).to_dict("records")

    assert (result["domain"], result["domain_source"]) == (name, "labels")
    assert result["domain_factor"] == FACTORS[name]
