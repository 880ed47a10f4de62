"""Which dialogues a step holds depends on seed and step alone: not on resumes, nor on the number of processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from omnichat.data.corpus import Corpus
from omnichat.training.checkpoint import checkpoints
from omnichat.training.trainer import Stopped
from omnichat.utils.files import read_jsonl
from tests.helpers_core import Training, make_corpus, make_trainer, rows

ROOT = Path(__file__).resolve().parents[2]
STEPS = 6
WORKER = """
import sys
from pathlib import Path
from omnichat.data.corpus import Corpus
from tests.integration.test_data_order import how, run_to
run, stop, *corpora = sys.argv[1:]
run_to(Path(run), [Corpus.load(corpus) for corpus in corpora], how(), int(stop) or None)
"""


def how(**more: Any) -> Training:
    return Training(
        **{"steps": STEPS, "micro_batches": 2, "dropout": 0.2, "dev_every": 3, "batch_tokens": 250, "pool": 6, **more}
    )


def run_to(run: Path, corpora: list[Corpus], training: Training, stop: int | None) -> None:
    """Train from the newest checkpoint; SIGTERM comes to the first process while step `stop` is reported.

    Every process writes which dialogues its micro-batches hold.
    """
    trainer = make_trainer(run, corpora, training)
    if found := checkpoints(run / "checkpoints"):
        trainer.resume(found[-1])
    row, take = trainer.tracker.row, trainer.stepper.take

    def watch(event: str, **values: Any) -> None:
        row(event, **values)
        if event == "step" and values["step"] == stop and trainer.processes.is_main:
            os.kill(os.getpid(), signal.SIGTERM)

    def taken(step: int, micro: Any) -> Any:
        with open(run / f"dialogues-{trainer.processes.index}.jsonl", "a", encoding="utf-8") as file:
            for number, batch in enumerate(micro):
                place = number * trainer.processes.count + trainer.processes.index
                file.write(json.dumps({"step": step, "place": place, "dialogues": list(batch.dialogues)}) + "\n")
        return take(step, micro)

    trainer.tracker.row, trainer.stepper.take = watch, taken  # type: ignore[method-assign]
    try:
        trainer.fit()
        assert stop is None
    except Stopped:
        assert stop is not None
    trainer.tracker.finish()


def dialogues(run: Path) -> dict[tuple[int, int], list[str]]:
    """(step, number of the micro-batch in the step) -> its dialogues."""
    found: dict[tuple[int, int], list[str]] = {}
    for path in sorted(run.glob("dialogues-*.jsonl")):
        for row in read_jsonl(path):
            key = (row["step"], row["place"])
            assert found.setdefault(key, row["dialogues"]) == row["dialogues"]
    return found


def test_three_resumes_inside_one_pass_deal_every_dialogue_once(tmp_path: Path) -> None:
    corpus = make_corpus(tmp_path / "made", count=80, dev=2, seed=3)
    training = how(alpha=0.0, pool=16, steps=8, dev_every=0)
    run_to(tmp_path / "whole", [corpus], training, None)
    for stop in (2, 3, 6, None):
        run_to(tmp_path / "cut", [corpus], training, stop)
    assert [row["step"] for row in rows(tmp_path / "cut", "resume")] == [2, 3, 6]
    assert dialogues(tmp_path / "cut") == dialogues(tmp_path / "whole")
    drawn = [name for names in dialogues(tmp_path / "cut").values() for name in names]
    assert len(drawn) == len(set(drawn)) < 80, "the cuts lie inside the first pass"


def in_two_processes(run: Path, corpora: list[Corpus], stop: int) -> None:
    script = run.with_suffix(".py")
    script.write_text(WORKER)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    done = subprocess.run(
        [*torchrun, str(script), str(run), str(stop), *(str(corpus.root) for corpus in corpora)],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_a_run_may_go_on_with_more_or_fewer_processes(tmp_path: Path, synthetic: Corpus, real: Corpus) -> None:
    """2 -> 1 and 1 -> 2, with drop-out: the same global batches, and losses and weights within 1e-5."""
    corpora = [synthetic, real]
    whole = tmp_path / "whole"
    run_to(whole, corpora, how(), None)
    in_two_processes(tmp_path / "fewer", corpora, 3)
    run_to(tmp_path / "fewer", corpora, how(), None)
    run_to(tmp_path / "more", corpora, how(), 3)
    in_two_processes(tmp_path / "more", corpora, 0)
    weights = load_file(checkpoints(whole / "checkpoints")[-1] / "trainables.safetensors")
    for name in ("fewer", "more"):
        run = tmp_path / name
        assert [row["step"] for row in rows(run, "resume")] == [3]
        assert dialogues(run) == dialogues(whole) and len(dialogues(run)) == 2 * STEPS
        for event in ("step", "dev"):
            mine, theirs = rows(run, event), rows(whole, event)
            assert [row["step"] for row in mine] == [row["step"] for row in theirs]
            for key in ("loss", "loss_style", "loss_words", "supervised_tokens", "grad_norm"):
                if key in theirs[0]:
                    expected = [row[key] for row in theirs]
                    assert [row[key] for row in mine] == pytest.approx(expected, abs=1e-5, rel=1e-5), (name, key)
        others = load_file(checkpoints(run / "checkpoints")[-1] / "trainables.safetensors")
        for key, value in weights.items():
            torch.testing.assert_close(others[key], value, rtol=0, atol=1e-5)
