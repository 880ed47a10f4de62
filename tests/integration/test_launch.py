"""`omnichat train launch=cpu2`: the same run as with one process, and a named culprit when a process dies or hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from omnichat.training.checkpoint import checkpoints
from omnichat.utils.files import read_json, read_jsonl
from tests.integration.conftest import Corpora, Outcome

ROOT = Path(__file__).resolve().parents[2]
TWO = ["launch=cpu2", "llm.lora.dropout=0.1", "trainer.calibration_clips=8"]


def start(work: Path, corpora: Corpora, *overrides: str) -> subprocess.Popen[str]:
    """`omnichat train` as a process of its own, its output in work/output."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    words = [*corpora.overrides(Path("runs")), "name=two", *overrides]
    work.mkdir(exist_ok=True)
    with open(work / "output", "w") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "omnichat.cli", "train", *words],
            cwd=work, env=environment, stdout=output, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip


def steps(run: Path, event: str = "step") -> list[dict[str, Any]]:
    """Rows of the run's log, none while there is no log."""
    log = run / "log.jsonl"
    return [row for row in read_jsonl(log) if row["event"] == event] if log.is_file() else []


def wait_for_steps(process: subprocess.Popen[str], work: Path, count: int) -> dict[int, int]:
    """Wait until so many steps are taken; returns rank -> process id."""
    run = work / "runs" / "two"
    while len(steps(run)) < count:
        assert process.poll() is None, (work / "output").read_text()[-3000:]
        time.sleep(0.05)
    return {(record := read_json(path))["rank"]: record["pid"] for path in (run / "launch").glob("rank-*.json")}


@pytest.mark.slow
def test_two_processes_by_command_are_one(tmp_path: Path, corpora: Corpora, omnichat: Callable[..., Outcome]) -> None:
    work = tmp_path / "two"
    process = start(work, corpora, *TWO)
    one = omnichat("train", *corpora.overrides(Path("runs")), "name=one", *TWO[1:], "trainer.micro_batches=2")
    assert one.code == 0, one.err
    assert process.wait() == 0, (work / "output").read_text()[-3000:]
    first, second = Path("runs/one"), work / "runs" / "two"
    for event in ("step", "dev"):
        mine, theirs = steps(first, event), steps(second, event)
        assert mine and [row["step"] for row in mine] == [row["step"] for row in theirs]
        for key in {"loss", "loss_style", "grad_norm", "supervised_tokens", "alpha_realised"} & set(mine[0]):
            assert [row[key] for row in theirs] == pytest.approx([row[key] for row in mine], abs=2e-5, rel=1e-5), key
    mine, theirs = (
        load_file(checkpoints(run / "checkpoints")[-1] / "trainables.safetensors") for run in (first, second)
    )
    for name, value in mine.items():
        torch.testing.assert_close(theirs[name], value, rtol=0, atol=1e-5)
    assert read_json(second / "run.json")["state"] == "finished"
    assert read_json(second / "run.json")["command"].startswith("omnichat train experiment=smoke")
    assert (work / "output").read_text().count("trained: ") == 1

    again = omnichat("train", *corpora.overrides(work / "runs"), "name=two", *TWO[1:], "trainer.micro_batches=2")
    assert again.code == 0, "what two processes began, one may continue: launch is no part of a run's identity"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "words"),
    [
        pytest.param(signal.SIGKILL, "killed by SIGKILL", marks=pytest.mark.campaign),
        (signal.SIGSTOP, "does not go on"),
    ],
)
def test_a_lost_rank_is_named(tmp_path: Path, corpora: Corpora, number: signal.Signals, words: str) -> None:
    process = start(tmp_path, corpora, *TWO, "trainer.steps=100000", "launch.timeout_sec=10")
    pids = wait_for_steps(process, tmp_path, 2)
    os.kill(pids[1], number)
    code, output = process.wait(), (tmp_path / "output").read_text()
    last = output.strip().splitlines()[-1]
    assert code == 1, output[-3000:]
    assert last.startswith("omnichat train: rank 1 ") and words in last and "step " in last, output[-3000:]
    assert "Traceback" not in output
    for pid in pids.values():
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.slow
def test_a_signal_reaches_the_workers_once_and_the_run_goes_on(tmp_path: Path, corpora: Corpora) -> None:
    process = start(tmp_path, corpora, *TWO, "trainer.steps=100000")
    wait_for_steps(process, tmp_path, 2)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143, (tmp_path / "output").read_text()[-3000:]
    run = tmp_path / "runs" / "two"
    stopped = steps(run, "stopped")
    assert len(stopped) == 1 and checkpoints(run / "checkpoints")[-1].name == f"step-{stopped[0]['step']:06d}"
    assert (tmp_path / "output").read_text().count("finishing this step") == 1, "one rank speaks, once"
    assert read_json(run / "run.json")["state"] == "stopped"


@pytest.mark.slow
def test_a_users_mistake_in_a_worker_is_told_once(tmp_path: Path, corpora: Corpora) -> None:
    process = start(tmp_path, corpora, *TWO, "llm.lora.targets=[no_such_layer]")
    code, output = process.wait(), (tmp_path / "output").read_text()
    assert code == 2, output[-3000:]
    assert output.count("no_such_layer") == 1 and "Traceback" not in output, output[-3000:]


def test_a_launcher_outside_is_refused(
    corpora: Corpora, omnichat: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "0")
    outcome = omnichat("train", *corpora.overrides(Path("runs")))
    assert outcome.code == 2 and "RANK is set" in outcome.err and "launch=" in outcome.err
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["launch=cpu2", "trainer.micro_batches=3"], "multiple of 2"),
        (["launch=zero2", "trainer.preflight=true"], "launch.strategy=zero2"),
        (["launch=zero3", "trainer.preflight=true"], "launch.strategy=zero3"),
        (["launch=zero3", "trainer.speed.compile=true"], "trainer.speed.compile=false"),
        (["launch=zero3", "llm.quantize=nf4", "llm.random_size=null"], "llm.quantize=null"),
        (["launch.strategy=fsdp2"], "launch.processes is 1"),
        (["launch=cpu2", "launch.strategy=fsdp"], "fsdp2"),
        (["launch.nodes=2"], "launch.rendezvous=HOST:PORT"),
        (["launch=cpu2", "launch.offload_params=true"], "fsdp2"),
        (["launch=cpu2", "launch.timeout_sec=nan"], "launch.timeout_sec"),
    ],
)
def test_what_cannot_be_launched_is_refused_before_anything_starts(
    corpora: Corpora, omnichat: Callable[..., Outcome], overrides: list[str], words: str
) -> None:
    outcome = omnichat("train", *corpora.overrides(Path("runs")), *overrides)
    assert outcome.code == 2 and words in outcome.err, outcome.err
    assert not Path("runs").exists()
