"""The simulator's journal of what it billed."""

from __future__ import annotations

from pathlib import Path

from cp_resources.simulator.journal import Entry, Journal, lines, summary


def _entry(task: str, model: str = "m", ending: str = "complete", tokens: int = 10) -> Entry:
    return Entry(
        at="2026-01-01T00:00:00+00:00",
        provider="p",
        wire="openai-chat",
        model=model,
        task=task,
        attempt="1",
        request_id="r",
        status=200,
        ending=ending,
        streamed=False,
        input_tokens=tokens,
        cached_tokens=4,
        cache_write_tokens=0,
        output_tokens=2 * tokens,
    )


def test_several_writers_append_to_one_file(tmp_path: Path) -> None:
    one, other = Journal(tmp_path / "j"), Journal(tmp_path / "j")
    for i in range(50):
        one.write(_entry(f"a{i}"))
        other.write(_entry(f"b{i}"))
    assert [line["task"] for line in lines(tmp_path / "j")] == [f"{w}{i}" for i in range(50) for w in "ab"]


def test_the_summary_adds_up_by_model_and_by_ending(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j")
    journal.write(_entry("1", "m", "complete", 10))
    journal.write(_entry("2", "n", "complete", 5))
    journal.write(_entry("3", "n", "refused", 1))
    found = summary(tmp_path / "j")
    assert found["total"] == {
        "calls": 3,
        "input_tokens": 16,
        "cached_tokens": 12,
        "cache_write_tokens": 0,
        "output_tokens": 32,
    }
    assert found["by_model"]["n"]["input_tokens"] == 6
    assert found["by_ending"] == {"complete": 2, "refused": 1}


def test_a_journal_goes_on_where_an_earlier_run_ended(tmp_path: Path) -> None:
    for _ in range(2):
        journal = Journal(tmp_path / "j")
        journal.write(_entry("1"))
        journal.close()
    assert summary(tmp_path / "j")["total"]["calls"] == 2


def test_a_line_still_being_written_is_left_out(tmp_path: Path) -> None:
    Journal(tmp_path / "j").write(_entry("1"))
    with (tmp_path / "j").open("a") as file:
        file.write('{"task": "2"')
    assert [line["task"] for line in lines(tmp_path / "j")] == ["1"]
    assert list(lines(tmp_path / "j", task="2")) == []
