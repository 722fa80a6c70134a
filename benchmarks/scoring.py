"""Claim: tasks with descriptions of 300 characters are scored and estimated at 100,000 a second, on one core.

Two kinds of text: made up (varied words, paths, labels, counts and code; see `made_up_tasks`), and real
issues cut to the same length, where `../shared/data` is there.
"""

from __future__ import annotations

import gzip
import json
import random
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from benchmarks.report import note, report
from cp_core.scoring.config import ScoringConfig
from cp_core.scoring.score import score_tasks

ROWS = 100_000
CHARACTERS = 300
REPEATS = 5
GOAL = ">= 100000"
ROOT = Path(__file__).parent.parent
REAL_ISSUES = ROOT / "../shared/data/swebench_tasks_half.jsonl.gz"

_VERBS = """
Fix | Add | Remove | Investigate | Improve | Support | Update | Handle | Refactor | Migrate | Document |
Test | Implement | Cache | Validate | Rename | Build | Expose | Upgrade | Replace | Log | Paginate |
Translate | Simplify | Profile | Deprecate | Restore | Split
"""
_THINGS = """
login form | invoice export | retry logic | webhook handler | search index | session store | rate limiter |
audit log | billing report | user import | password reset | image upload | cron schedule | feature flags |
settings page | API pagination | connection pool | email template | payment gateway | access policy |
training pipeline | embedding cache | deployment script | staging cluster | onboarding tour | error page |
currency rounding | timezone picker | CSV parser | health check | dark mode | shipping estimate |
tax calculation | order history | notification badge | file browser | query planner | token refresh
"""
_LABELS = """
bug | backend | frontend | area/infra | documentation | good first issue | hotfix | security | urgent |
kind: test | performance | needs-triage | api | ml | regression | staging | customer | tech-debt | ui |
accessibility | wontfix | P-high | team:payments
"""
_WORKSPACES = """
acme/shop-backend | acme/web | acme/platform | acme/docs | acme/recommender | acme/mobile-app | acme/tools |
acme/billing
"""
_FOLDERS = """
src | api | web/components | services/billing | docs | tests | infra/terraform | lib | deploy/prod
"""
_FILES = """
login.py | router.ts | Form.tsx | values.yaml | main.tf | guide.md | test_export.py | queue.go
"""
_SENTENCES = """
Customers report that the {thing} shows a stale value after the second request.
The {thing} should behave the same when the network is slow or the answer is empty.
It fails with a timeout when more than {number} rows are loaded at once.
See {path} for where the wrong branch is taken.
The change touches {path} and {path}, and probably a few callers.
We expect about {number} lines in {small} files.
Keep the public interface as it is; no breaking changes for existing clients.
This worked until last week’s release, so a bisect may help.
Please add a test that covers the case of two users saving at the same time.
The café locale (fr-FR) prints “naïve” dates, which confuses the {thing}.
Follow the conventions of the {thing}; the team will review the result on Friday.
Running `make check` locally prints a warning about the {thing}, but CI is green.
Logs say:~```~ERROR worker.py:{number} connection reset by peer~```~
The architecture document describes the intended flow; ask in the channel if it is unclear.
Measure before and after: the p95 should drop below {number} ms.
Steps: open the {thing}, press Save twice, wait for the spinner, reload.
Expected: one entry. Actual: two entries, and the second cannot be deleted.
Support has had {small} tickets about this since Monday, one of them from a large customer.
The old behaviour of the {thing} was never documented, so be careful with assumptions.
I think the lock is taken too late, because the counter is read before the transaction starts.
A workaround exists: clear the cache of the {thing} and sign in again.
Related discussion: https://example.com/acme/shop/issues/{number}
The {thing} and the {thing} share this code, so both need a look.
Once this is done, the deployment to the second region can start.
Nice to have: the same for the {thing}, but that may become a task of its own.
The function is called from {path} with an argument that may be None.
Acceptance: all existing tests pass and the {thing} answers within a second.
Data from before the migration has no owner; treat it as owned by the administrator.
It happens only on Safari and only with a slow connection, which makes it hard to reproduce.
Do not change the schema. If a column is missing, say so and stop.
The error message should tell the user what to do instead of showing a code.
There is a half-finished branch for this, but it is two years old and does not apply.
See the section on retries in docs/operations.md and keep it up to date.
Numbers above {number} are cut off in the {thing}, numbers below zero are shown in red.
The design is agreed, the texts are in the shared folder, the icons come later.
A colleague saw the same with the {thing} when two tabs are open.
Use the existing helper for dates; there are already three of them.
Make sure that keyboard users can reach the {thing} and that the focus is visible.
"""


def main() -> None:
    """Measure the made-up and the real texts."""
    config = ScoringConfig.model_validate(yaml.safe_load((ROOT / "config/scoring.yaml").read_text("utf-8")))
    _measure("made-up tasks", made_up_tasks(random.Random(20240607)), config)
    if REAL_ISSUES.exists():
        _measure("real issues cut to 300 characters", real_tasks(random.Random(20240607)), config)
    else:
        note(f"{REAL_ISSUES} is missing: real issues are not measured")


def made_up_tasks(rng: random.Random) -> pd.DataFrame:
    """Tasks that resemble tickets: a verb and a thing as title, some sentences cut at 300 characters."""
    words = {
        "verb": _choices(_VERBS, "|"),
        "thing": _choices(_THINGS, "|"),
        "folder": _choices(_FOLDERS, "|"),
        "file": _choices(_FILES, "|"),
        "sentence": _choices(_SENTENCES, "\n"),
    }

    def title() -> str:
        return f"{rng.choice(words['verb'])} the {rng.choice(words['thing'])}"

    def description() -> str:
        text = ""
        while len(text) < CHARACTERS:
            sentence = rng.choice(words["sentence"]).replace("~", "\n")
            while "{" in sentence:
                sentence = sentence.replace("{thing}", rng.choice(words["thing"]), 1)
                path = f"{rng.choice(words['folder'])}/{rng.choice(words['file'])}"
                sentence = sentence.replace("{path}", path, 1)
                sentence = sentence.replace("{number}", str(rng.randrange(2, 5000)), 1)
                sentence = sentence.replace("{small}", str(rng.randrange(1, 12)), 1)
            text += sentence + " "
        return text[:CHARACTERS]

    return pd.DataFrame([_row(rng, title(), description()) for _ in range(ROWS)])


def real_tasks(rng: random.Random) -> pd.DataFrame:
    """Windows of 300 characters at random places of the 246 real issues; the first line is the title."""
    with gzip.open(REAL_ISSUES, "rt", encoding="utf-8") as lines:
        texts = [json.loads(line)["problem_statement"] for line in lines]
    texts = [text for text in texts if len(text) > CHARACTERS]
    rows = []
    for _ in range(ROWS):
        text = rng.choice(texts)
        start = rng.randrange(len(text) - CHARACTERS)
        rows.append(_row(rng, text.partition("\n")[0][:200], text[start : start + CHARACTERS]))
    return pd.DataFrame(rows)


def _measure(case: str, tasks: pd.DataFrame, config: ScoringConfig) -> None:
    best = min(_seconds(tasks, config) for _ in range(REPEATS))
    report(
        "scoring", f"{case}, {len(tasks):,} rows, one core", "throughput", len(tasks) / best, "tasks/s", GOAL
    )


def _seconds(tasks: pd.DataFrame, config: ScoringConfig) -> float:
    started = time.perf_counter()
    scored = score_tasks(tasks, config)
    seconds = time.perf_counter() - started
    if len(scored) != len(tasks):
        raise AssertionError(f"{len(scored)} of {len(tasks)} tasks came back")
    return seconds


def _row(rng: random.Random, title: str, description: str) -> dict[str, Any]:
    submitted = datetime(2024, 6, 7, tzinfo=UTC) + timedelta(seconds=rng.randrange(86_400))
    return {
        "title": title,
        "description": description,
        "priority": rng.choice([0, 1, 2, 2, 2, 3, 3, 4]),
        "labels": rng.sample(_choices(_LABELS, "|"), rng.choice([0, 1, 2, 2, 3])),
        "workspace": rng.choice(_choices(_WORKSPACES, "|")),
        "estimated_files": rng.choice([None, None, rng.randrange(1, 20)]),
        "estimated_lines": rng.choice([None, None, rng.randrange(1, 3000)]),
        "workspace_files": rng.choice([None, rng.randrange(1, 400)]),
        "deadline": rng.choice([None, submitted + timedelta(hours=rng.randrange(1, 1000))]),
        "submitted_at": submitted,
        "blocks_others": rng.random() < 0.1,
    }


def _choices(text: str, separator: str) -> list[str]:
    return [choice.strip() for choice in text.split(separator) if choice.strip()]


if __name__ == "__main__":
    main()
