"""Claiming a run folder: which checkpoint a run goes on from, what it may find, and the word for the scheduler."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import pytest
import torch

from omnichat.run_folder import REQUEUE, claim_run_folder, clear_requeue, first_error_counts, write_requeue
from omnichat.training.checkpoint import save_checkpoint
from omnichat.training.trainer import Stopped
from omnichat.utils.errors import UserError
from omnichat.utils.files import read_json


def run_with(folder: Path, *steps: int) -> Path:
    for step in steps:
        save_checkpoint(folder / "checkpoints", step, {"w": torch.ones(3)}, {}, {"step": step}, 9)
    return folder


def test_auto_takes_the_newest_whole_one(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert claim_run_folder(tmp_path / "new", "auto") == (tmp_path / "new", None)
    run = run_with(tmp_path / "run", 2, 4)
    assert claim_run_folder(run, "auto") == (run, run / "checkpoints" / "step-000004")
    (run / "checkpoints" / "step-000004" / "state.json").write_text("{}")
    assert claim_run_folder(run, "auto") == (run, run / "checkpoints" / "step-000002")
    assert "step-000004/state.json" in caplog.text
    (run / "checkpoints" / "step-000002" / "state.json").unlink()
    with pytest.raises(UserError, match=r"every checkpoint is damaged.*resume=never"):
        claim_run_folder(run, "auto")


def test_a_path_must_be_whole(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", 2, 4)
    other = tmp_path / "other"
    assert claim_run_folder(other, str(run / "checkpoints" / "step-000002"))[1] == run / "checkpoints" / "step-000002"
    assert claim_run_folder(other, str(run))[1] == run / "checkpoints" / "step-000004"
    (run / "checkpoints" / "step-000004" / "trainables.safetensors").write_bytes(b"")
    with pytest.raises(UserError, match=r"trainables.safetensors: 0 bytes instead of \d+"):
        claim_run_folder(other, str(run))
    with pytest.raises(UserError, match="neither a complete checkpoint nor a run folder"):
        claim_run_folder(other, f"{tmp_path}/nowhere")


def test_never_moves_the_older_run_aside(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", 2)
    assert claim_run_folder(run, "never") == (run, None)
    assert (tmp_path / "run.old1" / "checkpoints" / "step-000002").is_dir()


def test_a_checkpoint_that_was_being_replaced_is_put_back(tmp_path: Path) -> None:
    run = run_with(tmp_path / "run", 2)
    (run / "checkpoints" / "step-000002").rename(run / "checkpoints" / ".step-000002.0123abcd.old")
    assert claim_run_folder(run, "auto")[1] == run / "checkpoints" / "step-000002"


def test_sigterm_asks_for_a_requeue_until_the_next_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["omnichat train", "name=a b", "resume=never", "seed=1"])
    write_requeue(tmp_path, "train", Stopped("stopped", 7, signal.SIGINT))
    assert not (tmp_path / REQUEUE).exists(), "Ctrl-C is the user's wish, not a scheduler's"
    write_requeue(tmp_path, "train", Stopped("stopped", 7, signal.SIGTERM))
    command = "omnichat train 'name=a b' resume=auto seed=1"
    asked = {"verb": "train", "step": 7, "signal": "SIGTERM", "command": command, "resume": "never"}
    assert read_json(tmp_path / REQUEUE) == asked
    clear_requeue(tmp_path, "evaluate")
    assert (tmp_path / REQUEUE).exists(), "an evaluation does not answer for the training"
    claim_run_folder(tmp_path, "auto")
    assert not (tmp_path / REQUEUE).exists()


def test_a_second_error_does_not_hide_the_first(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError, match="the first"):
        try:
            raise UserError("the first")
        finally:
            with first_error_counts():
                raise OSError(28, "No space left on device", "run.json")
    assert "run.json: No space left" in caplog.text
    with pytest.raises(OSError, match="alone"), first_error_counts():
        raise OSError(28, "alone")
