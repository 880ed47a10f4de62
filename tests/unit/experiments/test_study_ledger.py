"""The study's ledger: what was appended is read, kills included, and changes are told."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnichat.experiments.study.ledger import EVENTS, Facts, Ledger, changes
from omnichat.utils.errors import UserError

FACTS = Facts(("seed=0", "trainer.steps=4"), "abc", {"made": "f1"}, {"version": "1", "commit": "c1"})
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)


@given(st.lists(st.tuples(TEXT, st.sampled_from(EVENTS), TEXT), min_size=1, max_size=6), st.data())
def test_whole_events_survive_a_kill_and_the_next_append(rows: list[tuple[str, str, str]], data: st.DataObject) -> None:
    """Cut the file anywhere: what was whole is read, in order, and what is appended then is read, too."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "study" / "ledger.jsonl"
        ledger = Ledger(path)
        for run, event, error in rows:
            ledger.append(run, event, FACTS, error=error)
        written = ledger.events
        assert Ledger(path).events == written
        content = path.read_bytes()
        cut = data.draw(st.integers(0, len(content)))
        path.write_bytes(content[:cut])
        kept = content[:cut].count(b"\n")
        kept += len(content[:cut].rpartition(b"\n")[2]) == len(content.splitlines()[kept]) if cut < len(content) else 0
        after = Ledger(path)
        assert after.events == written[:kept]
        after.append("new", "started", FACTS)
        assert Ledger(path).events == [*written[:kept], after.events[-1]]


def test_two_writers_do_not_lose_each_others_events(tmp_path: Path) -> None:
    one, other = Ledger(tmp_path / "l.jsonl"), Ledger(tmp_path / "l.jsonl")
    one.append("a", "started", FACTS)
    other.append("b", "started", FACTS)
    one.append("a", "finished", FACTS)
    assert [(e["run"], e["event"]) for e in Ledger(tmp_path / "l.jsonl").events] == [
        ("a", "started"), ("b", "started"), ("a", "finished"),
    ]  # fmt: skip


def test_an_event_has_the_fields_that_the_report_reads(tmp_path: Path) -> None:
    Ledger(tmp_path / "l.jsonl").append("a", "finished", FACTS, hours=0.5)
    row = json.loads((tmp_path / "l.jsonl").read_text())
    assert list(row) == [
        "time", "run", "event", "settings", "config_hash", "data", "code", "metrics", "hours", "error",
    ]  # fmt: skip
    assert row["code"] == {"version": "1", "commit": "c1"} and row["data"] == {"made": "f1"}


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "l.jsonl"
    path.write_text('{"run": "a", "event": "started"}\n{"run": "a", "event": "eaten"}\n')
    with pytest.raises(UserError, match=r"l\.jsonl:2: an event"):
        Ledger(path)


def test_a_run_begun_anew_is_not_finished_and_its_evaluations_do_not_count(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.jsonl")

    def begun() -> str:
        event = ledger.last("a", "started", "finished")
        assert event is not None
        return str(event["event"])

    assert ledger.last("a", "started", "finished") is None
    ledger.append("a", "started", FACTS)
    assert begun() == "started"
    ledger.append("a", "finished", FACTS)
    ledger.append("a", "evaluated", FACTS, split="test", set="", evaluation=["limit=3"])
    ledger.append("b", "started", FACTS)
    assert begun() == "finished" and ledger.evaluated("a", "test", "", ["limit=3"])
    assert not ledger.evaluated("a", "dev", "", ["limit=3"]) and not ledger.evaluated("a", "test", "", [])
    assert not ledger.evaluated("a", "test", "second", ["limit=3"])
    ledger.append("a", "failed", FACTS, error="an evaluation")
    assert begun() == "finished" and ledger.evaluated("a", "test", "", ["limit=3"])
    ledger.append("a", "started", FACTS)
    assert begun() == "started" and not ledger.evaluated("a", "test", "", ["limit=3"])


@pytest.mark.parametrize(
    ("now", "words"),
    [
        (FACTS, set()),
        (Facts(("seed=0",), "abc", {"made": "f1"}, {"version": "1", "commit": "c1"}), set()),
        (Facts((), "abd", {"made": "f1"}, {"version": "1", "commit": "c1"}), {"settings"}),
        (Facts((), "abc", {"made": "f2"}, {"version": "1", "commit": "c1"}), {"data"}),
        (Facts((), "abc", {}, {"version": "1", "commit": "c1"}), {"data"}),
        (Facts((), "abc", {"made": "f1"}, {"version": "2", "commit": "c1"}), {"code"}),
        (Facts((), "abd", {"made": "f1", "x": "f"}, {"version": "1", "commit": "c1+"}), {"settings", "data", "code"}),
    ],
)
def test_changes_are_told_by_their_kind(tmp_path: Path, now: Facts, words: set[str]) -> None:
    event = Ledger(tmp_path / "l.jsonl").append("a", "finished", FACTS)
    assert set(changes(event, now)) == words
