"""What the driver of several processes makes of their last words, without starting any."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed.run import get_args_parser

from omnichat import launch
from omnichat.launch import _Driver
from omnichat.training import liveness
from omnichat.training.liveness import last_word
from omnichat.training.processes import LaunchConfig, ProcessFailure
from omnichat.training.trainer import Stopped
from omnichat.utils.errors import UserError
from omnichat.utils.files import write_json_atomic

RUNNING: Any = SimpleNamespace(poll=lambda: None)  # torchrun, waiting for the workers' end


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> _Driver:
    monkeypatch.setattr(launch, "GRACE_SEC", 0.02)
    monkeypatch.setattr(launch, "POLL_SEC", 0.005)
    return _Driver(LaunchConfig(processes=2, timeout_sec=1.0), tmp_path, "")


def at_step(driver: _Driver, rank: int, start: str | None = None) -> None:
    """A record of a process that beats, and has not come further for long."""
    now = time.time()
    place = {"step": 3, "phase": "forward", "count": 7, "since": now - 99, "beat": now + 99}
    who = {"rank": rank, "pid": os.getpid(), "start": driver.start if start is None else start}
    write_json_atomic(driver.folder / f"rank-{rank}.json", who | place)


def ends(driver: _Driver, rank: int, code: int, message: str = "", after_sec: float = 0.0) -> None:
    outcome = {"rank": rank, "code": code, "message": message, "trace": "", "time": time.time() + after_sec}
    write_json_atomic(driver.folder / f"outcome-{rank}.json", outcome)


def failed(driver: _Driver, *exits: tuple[int, int, int]) -> None:
    """What torchrun writes: (rank, exit code, second) of each process that did not end well."""
    rows = [{"rank": rank, "pid": 1, "exit": code, "time": second} for rank, code, second in exits]
    write_json_atomic(driver._failures, rows)


def test_those_that_wait_for_a_failed_process_do_not_hang(driver: _Driver) -> None:
    at_step(driver, 0)
    at_step(driver, 1)
    ends(driver, 1, 2, "llm.lora.targets: no such layer")
    assert driver._watch(RUNNING) is None
    failed(driver, (1, 1, 100), (0, -signal.SIGKILL, 110))  # torchrun's patience with rank 0 was over
    with pytest.raises(UserError, match="no such layer"):
        driver._conclude()


def test_whom_the_driver_has_killed_is_not_to_blame(driver: _Driver) -> None:
    ends(driver, 3, 1, "RuntimeError: on another node")
    failed(driver, (0, -signal.SIGKILL, 100))
    driver.killed = {0}
    with pytest.raises(ProcessFailure, match="rank 3 failed: RuntimeError"):
        driver._conclude()


def test_a_death_comes_before_the_errors_that_follow_from_it(driver: _Driver) -> None:
    ends(driver, 0, 1, "connection closed by peer")
    failed(driver, (0, 1, 100), (1, -signal.SIGKILL, 100))
    with pytest.raises(ProcessFailure, match="rank 1 was killed by SIGKILL before it had begun"):
        driver._conclude()


def test_last_words_find_their_way_past_a_full_disk(driver: _Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, value: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(liveness, "write_json_atomic", refuse)
    outcome = {"rank": 0, "code": 2, "message": "checkpoints: no space", "trace": "", "time": time.time()}
    last_word(driver.folder / "outcome-0.json", outcome, driver.words.port)
    last_word(driver._failures, [{"rank": 1, "pid": 1, "exit": -signal.SIGTERM, "time": 100}], driver.words.port)
    assert not list(driver.folder.iterdir())
    with pytest.raises(UserError, match="checkpoints: no space"):
        driver._conclude()


def test_torchrun_takes_the_workers_words_for_theirs(driver: _Driver, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["omnichat train", "seed=1"])
    words = driver._command()
    given = get_args_parser().parse_args(words[words.index("omnichat.launch_agent") + 3 :])
    assert given.training_script == "omnichat.worker" and given.module
    assert given.training_script_args[-4:] == [driver.start, str(os.getpid()), str(driver.words.port), "seed=1"]


def test_an_error_is_not_hidden_by_a_stop(driver: _Driver) -> None:
    ends(driver, 0, 143, "stopped at step 3")
    ends(driver, 1, 2, "no space", after_sec=1)
    with pytest.raises(UserError, match="no space"):
        driver._conclude()
    ends(driver, 1, 143, "stopped at step 3", after_sec=1)
    with pytest.raises(Stopped, match="stopped at step 3"):
        driver._conclude()


def test_a_hang_without_an_error_is_told(driver: _Driver) -> None:
    at_step(driver, 0)
    at_step(driver, 1)
    assert "rank 0 does not go on" in str(driver._watch(RUNNING))


def test_another_nodes_process_of_the_same_number_is_not_ours(driver: _Driver) -> None:
    at_step(driver, 0, start="another driver, whose process id may be ours")
    at_step(driver, 1)
    driver._watch(RUNNING)
    assert [record["rank"] for record in driver._here()] == [1]


def test_a_record_that_is_gone_for_a_moment_is_remembered(driver: _Driver) -> None:
    at_step(driver, 1)
    driver._watch(RUNNING)
    (driver.folder / "rank-1.json").write_text("{")
    driver._watch(RUNNING)
    assert driver.records[1]["step"] == 3
