"""A run that was stopped, killed or cut anywhere and continued is, to the bit, the run that never was."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from omnichat import cli
from omnichat.data.corpus import Corpus
from omnichat.training.checkpoint import MARKER, checkpoints
from omnichat.training.trainer import Stopped
from omnichat.utils.files import read_json
from tests.helpers_core import Training, make_trainer, rows, step_figures

ROOT = Path(__file__).resolve().parents[2]


def run_to(run: Path, corpora: list[Corpus], how: Training, stop: int | None) -> None:
    """Train from the newest checkpoint, if any; a real SIGTERM comes while step `stop` is reported."""
    trainer = make_trainer(run, corpora, how)
    if found := checkpoints(run / "checkpoints"):
        trainer.resume(found[-1])
    row = trainer.tracker.row

    def watch(event: str, **values: object) -> None:
        row(event, **values)
        if event == "step" and values["step"] == stop:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer.tracker.row = watch  # type: ignore[method-assign]
    with pytest.raises(Stopped) if stop is not None else contextlib.nullcontext():
        trainer.fit()
    trainer.tracker.finish()


def same_end(one: Path, other: Path) -> None:
    """Weights, moments, state and every figure of every step and dev loss are equal to the bit."""
    first, second = (checkpoints(run / "checkpoints")[-1] for run in (one, other))
    for name in ("trainables.safetensors", "optimizer.safetensors"):
        tensors, others = load_file(first / name), load_file(second / name)
        assert tensors.keys() == others.keys() and tensors
        assert all(torch.equal(tensors[key], others[key]) for key in tensors), name
    assert read_json(first / "state.json") == read_json(second / "state.json")
    assert step_figures(one) == step_figures(other)
    assert step_figures(one, "dev") == step_figures(other, "dev")


HOW = Training(steps=9, batch_tokens=300, pool=6, micro_batches=2, dev_every=2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, synthetic: Corpus, real: Corpus) -> Path:
    run = tmp_path_factory.mktemp("runs") / "whole"
    run_to(run, [synthetic, real], HOW, None)
    return run


@pytest.mark.parametrize(
    ("stops", "workers"), [((1,), 0), ((4,), 0), ((8,), 0), ((2, 3, 7), 0), ((5,), 1)], ids=str
)  # fmt: skip
def test_stopped_and_continued_is_never_stopped(
    tmp_path: Path, whole: Path, synthetic: Corpus, real: Corpus, stops: tuple[int, ...], workers: int
) -> None:
    """Dropout, two sources, accumulation, cuts inside and between pools, on and off the steps with a dev loss."""
    how = Training(**{**{f: getattr(HOW, f) for f in HOW.__slots__}, "workers": workers})
    for stop in (*stops, None):
        run_to(tmp_path, [synthetic, real], how, stop)
    same_end(tmp_path, whole)
    assert [row["step"] for row in rows(tmp_path, "resume")] == list(stops)


def test_half_a_checkpoint_is_passed_over(tmp_path: Path, whole: Path, synthetic: Corpus, real: Corpus) -> None:
    run_to(tmp_path, [synthetic, real], HOW, 3)
    run_to(tmp_path, [synthetic, real], HOW, 6)
    torn = checkpoints(tmp_path / "checkpoints")[-1]
    (torn / MARKER).unlink()
    (torn / "optimizer.safetensors").unlink()
    before = checkpoints(tmp_path / "checkpoints")[-1]
    assert before.name != torn.name
    run_to(tmp_path, [synthetic, real], HOW, None)
    assert rows(tmp_path, "resume")[-1]["checkpoint"] == before.name
    same_end(tmp_path, whole)


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path, synthetic: Corpus) -> None:
    how = Training(steps=2, alpha=0)
    run_to(tmp_path, [synthetic], how, None)
    before = checkpoints(tmp_path / "checkpoints")[-1].stat().st_mtime_ns
    run_to(tmp_path, [synthetic], how, None)
    assert checkpoints(tmp_path / "checkpoints")[-1].stat().st_mtime_ns == before
    assert len(rows(tmp_path, "step")) == 2 and len(rows(tmp_path, "dev")) == 1


def command(folder: Path, name: str, corpus: Corpus) -> list[str]:
    return [
        *(
            sys.executable,
            "-m",
            "omnichat.cli",
            "train",
            "experiment=none",
            f"name={name}",
            f"runs={folder}",
            "llm=tiny",
        ),
        *("experts=none", "+expert@experts.mert=mert_small", "fusion.width=16", f"cache.dir={folder}/cache-{name}"),
        *(f"+mixture.sources.made.path={corpus.root}", "loader.batch_tokens=250", "loader.pool=8", "loader.workers=1"),
        *("trainer.precision=fp32", "trainer.steps=30", "trainer.checkpoint_every=3", "trainer.dev_every=10"),
        *("tracking.wandb=disabled", "experts.mert.dtype=float32"),
    ]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


def start(arguments: list[str], log: Path) -> subprocess.Popen[bytes]:
    with open(log, "ab") as output:
        return subprocess.Popen(arguments, cwd=ROOT, env=environment(), stdout=output, stderr=subprocess.STDOUT)


def wait_for_step(process: subprocess.Popen[bytes], run: Path, step: int) -> None:
    while process.poll() is None:
        log = run / "log.jsonl"
        if log.is_file() and f'"step": {step},' in log.read_text():
            return
        time.sleep(0.005)
    pytest.fail(f"the run ended with {process.returncode} before step {step}")


@pytest.mark.slow
def test_a_real_run_survives_sigterm_and_kill(tmp_path: Path, synthetic: Corpus) -> None:
    """`omnichat train`, asked to stop, then killed in the middle, then started again: the figures of one never hurt."""
    log = tmp_path / "output"
    run = tmp_path / "hurt"
    process = start(command(tmp_path, "hurt", synthetic), log)
    wait_for_step(process, run, 5)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143, log.read_text()
    assert cli.run(command(tmp_path, "whole", synthetic)[3:]) == 0
    stopped = rows(run, "stopped")[-1]["step"]
    assert checkpoints(run / "checkpoints")[-1].name == f"step-{stopped:06d}"

    process = start(command(tmp_path, "hurt", synthetic), log)
    wait_for_step(process, run, stopped + 8)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not rows(run, "end")

    process = start(command(tmp_path, "hurt", synthetic), log)
    assert process.wait() == 0, log.read_text()
    assert len(rows(run, "resume")) == 2 and rows(run, "resume")[1]["step"] > stopped
    same_end(run, tmp_path / "whole")
    assert json.loads((run / "run.json").read_text())["state"] == "finished"
