"""FSDP2 on a gloo mesh: two processes that hold half of every tensor take the steps of one that holds all of them."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from omnichat.data.corpus import Corpus
from omnichat.training.checkpoint import checkpoints
from tests.helpers_core import Training, make_trainer, rows

ROOT = Path(__file__).resolve().parents[2]
HOW = Training(steps=6, micro_batches=4, dropout=0.1, dev_every=3, checkpoint_every=3, batch_tokens=250, max_skips=9)
WORKER = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from omnichat.data.corpus import Corpus
from omnichat.training import parallel
from omnichat.training.checkpoint import checkpoints
from omnichat.training.processes import LaunchConfig
from tests.helpers_core import make_kit, make_trainer, wake_lora
from tests.integration.test_fsdp2 import HOW

run, corpora, start, steps = Path(sys.argv[1]), [Corpus.load(path) for path in sys.argv[2:4]], sys.argv[4], sys.argv[5]
launch = LaunchConfig(strategy="fsdp2", processes=2, cpu=True, offload_params=sys.argv[6] == "offload")
trainer = make_trainer(run, corpora, replace(HOW, steps=int(steps)), launch=launch)
assert trainer.accelerator.num_processes == 2 and parallel.forward_is_collective(trainer.model)
if start != "-":
    trainer.resume(Path(start))
trainer.fit()

# Replies: both processes have the whole model, and this one makes twice as many forward passes as the other.
kit = make_kit(corpora, dropout=HOW.dropout)
items = kit.items("dev")[: 1 + trainer.processes.index]
with parallel.gathered(trainer.model):
    said = [trainer.model.generate(kit.batch([item], pad_left=True), 0, 5) for item in items]
whole = parallel.trainable_state(trainer.model)
parallel.load_trainable_state(kit.model, whole)
assert said == [kit.model.generate(kit.batch([item], pad_left=True), 0, 5) for item in items]
trainer.stepper.take(0, [batch for _, batch in zip(range(2), trainer.data.batches(trainer.state.place, 0, 1))])
"""


def two(run: Path, corpora: list[Corpus], start: Path | None, steps: int, offload: bool = False) -> None:
    """Run two processes to the end."""
    script = run.with_suffix(".py")
    script.write_text(WORKER)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    arguments = [str(run), *(str(corpus.root) for corpus in corpora), str(start or "-"), str(steps)]
    command = [*torchrun, str(script), *arguments, "offload" if offload else "keep"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, synthetic: Corpus, real: Corpus) -> Path:
    """The run of one process."""
    run = tmp_path_factory.mktemp("one") / "run"
    trainer = make_trainer(run, [synthetic, real], HOW)
    trainer.fit()
    trainer.tracker.finish()
    return run


def assert_same(first: Path, second: Path) -> None:
    """Steps, dev losses and the last checkpoint of two runs agree within 1e-5."""
    for event in ("step", "dev"):
        mine, theirs = ({row["step"]: row for row in rows(run, event)} for run in (first, second))
        assert theirs and set(theirs) <= set(mine)
        for step, row in theirs.items():
            for key in {"loss", "loss_style", "loss_words", "grad_norm", "grad_norm_lora", "grad_norm_fusion"} & set(
                row
            ):
                assert row[key] == pytest.approx(mine[step][key], abs=1e-5, rel=1e-5), (event, step, key)
    for name in ("trainables", "optimizer"):
        mine, theirs = (
            load_file(checkpoints(run / "checkpoints")[-1] / f"{name}.safetensors") for run in (first, second)
        )
        assert set(mine) == set(theirs)
        for key, value in mine.items():
            torch.testing.assert_close(theirs[key], value, rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("offload", [False, True])
def test_two_shards_are_one_model(tmp_path: Path, one: Path, synthetic: Corpus, real: Corpus, offload: bool) -> None:
    two(tmp_path / "two", [synthetic, real], None, HOW.steps, offload)
    assert_same(one, tmp_path / "two")


@pytest.mark.slow
def test_a_run_goes_on_under_the_other_strategy(tmp_path: Path, one: Path, synthetic: Corpus, real: Corpus) -> None:
    corpora, half = [synthetic, real], checkpoints(one / "checkpoints")[0]
    assert half.name == "step-000003"
    two(tmp_path / "two", corpora, half, HOW.steps)
    assert_same(one, tmp_path / "two")

    alone = make_trainer(tmp_path / "alone", corpora, replace(HOW, steps=HOW.steps))
    alone.resume(checkpoints(tmp_path / "two" / "checkpoints")[-1])
    alone.save()
    alone.tracker.finish()
    for name in ("trainables", "optimizer"):
        kept, again = (
            load_file(checkpoints(tmp_path / run / "checkpoints")[-1] / f"{name}.safetensors")
            for run in ("two", "alone")
        )
        assert set(kept) == set(again) and all(torch.equal(kept[key], again[key]) for key in kept)
