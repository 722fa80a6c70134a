"""What a learning asset found is kept by day, and a repeat replaces it."""

from __future__ import annotations

from datetime import date

from pydantic import BaseModel

from cp_resources.database import Database
from cp_resources.learning_results import LearningResults

FIRST, SECOND = date(2026, 3, 1), date(2026, 3, 2)


class Found(BaseModel):
    share: float


def test_a_repeat_replaces_what_was_found_and_other_days_and_assets_stay(database: Database):
    results = LearningResults(database)
    for day, share in [(FIRST, 0.1), (SECOND, 0.2), (FIRST, 0.3)]:
        results.write(day, "token_calibration", Found(share=share), config_hash="c", run_id="r")
    results.write(FIRST, "value_calibration", Found(share=0.9), config_hash="c")
    assert results.read(FIRST, "token_calibration") == {"share": 0.3}
    assert results.history("token_calibration", FIRST, SECOND) == {
        FIRST: {"share": 0.3},
        SECOND: {"share": 0.2},
    }
    assert results.read(SECOND, "value_calibration") is None
