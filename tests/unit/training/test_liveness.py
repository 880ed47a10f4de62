"""Which process holds up the others, told from their records."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from omnichat.training.liveness import Progress, alive, describe_hang, read_records

NOW = 1000.0


def record(rank: int, count: int, *, beat: float = NOW, since: float = NOW, phase: str = "forward") -> dict[str, Any]:
    return {"rank": rank, "count": count, "step": count // 2, "phase": phase, "beat": beat, "since": since}


def hang(*records: dict[str, Any]) -> str | None:
    return describe_hang({entry["rank"]: entry for entry in records}, 60.0, NOW)


def test_a_run_that_goes_on_has_no_culprit() -> None:
    assert hang() is None
    assert hang(record(0, 9, since=NOW - 59), record(1, 8, since=NOW - 70)) is None, "rank 0 came further just now"


def test_a_process_that_does_not_beat_is_named() -> None:
    said = hang(record(0, 25, since=NOW - 61), record(1, 22, beat=NOW - 61, since=NOW - 62))
    assert said is not None and said.startswith("rank 1 does not go on: last seen at step 12 (forward, begun 62 s ago)")
    assert "rank 0 at step 13" in said
    assert hang(record(0, 0, phase="setup"), record(1, 0, phase="setup", beat=NOW - 61)) is not None


def test_of_processes_that_beat_the_one_behind_is_named() -> None:
    said = hang(record(0, 24, since=NOW - 61), record(1, 23, since=NOW - 90), record(2, 24, since=NOW - 61))
    assert said is not None and said.startswith("rank 1 does") and "rank 2 does" not in said


def test_all_are_named_when_none_is_behind() -> None:
    said = hang(record(0, 24, since=NOW - 61), record(1, 24, since=NOW - 61))
    assert said is not None and "rank 0 does" in said and "rank 1 does" in said


def test_setup_may_take_long() -> None:
    assert hang(record(0, 0, phase="setup", since=NOW - 9999), record(1, 0, phase="setup", since=NOW - 9999)) is None


def test_a_record_says_where_its_process_is(tmp_path: Path) -> None:
    progress = Progress(tmp_path, rank=3, every_sec=0.01, driver=os.getpid())
    progress.at(7, "backward")
    while (read := read_records(tmp_path, 0.0))[3]["phase"] != "backward":
        time.sleep(0.01)
    progress.close()
    assert (read[3]["step"], read[3]["count"], read[3]["pid"]) == (7, 1, os.getpid())
    assert read_records(tmp_path, time.time() + 60) == {}, "a record of an earlier start"


def test_alive_knows_the_living() -> None:
    assert alive(os.getpid()) and not alive(2**22 + 1)


def test_a_heartbeat_survives_a_disk_that_refuses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    progress = Progress(tmp_path, every_sec=0.005)
    real, refused = os.replace, []

    def replace(source: Path, target: Path) -> None:
        if len(refused) < 2:
            refused.append(source)
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    progress.at(5, "forward")
    while read_records(tmp_path, 0.0)[0]["step"] != 5:
        time.sleep(0.005)
    progress.close()
    assert len(refused) == 2 and caplog.text.count("No space left") == 1


def test_a_record_that_cannot_be_read_this_time_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "rank-0.json").write_text(json.dumps({"rank": 0, "beat": NOW}))
    (tmp_path / "rank-1.json").write_text('{"rank": 1, "be')
    (tmp_path / "rank-2.json").symlink_to(tmp_path / "gone")
    (tmp_path / "rank-3.json").mkdir()
    assert set(read_records(tmp_path, 0.0)) == {0}
