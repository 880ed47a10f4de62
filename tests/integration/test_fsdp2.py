"""Shards on a gloo mesh (FSDP2, DeepSpeed): two processes with half of every tensor take the steps of one with all."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from omnichat.data.corpus import Corpus
from omnichat.encoders.base import StreamSpec
from omnichat.training.checkpoint import checkpoints
from tests.helpers_core import SPECS, Training, make_trainer, rows

ROOT = Path(__file__).resolve().parents[2]
ODD = {"two": StreamSpec(7, 2, 10.0)}  # a width that two processes cannot share evenly
HOW = Training(steps=6, micro_batches=4, dropout=0.1, dev_every=3, checkpoint_every=3, batch_tokens=250, max_skips=9)
WORKER = """
import sys
from pathlib import Path
import pytest
import torch
from omnichat.data.corpus import Corpus
from omnichat.training import parallel, zero
from omnichat.training.checkpoint import checkpoints
from omnichat.training.processes import LaunchConfig
from omnichat.utils.errors import UserError
from tests.helpers_core import SPECS, make_kit, make_trainer
from tests.integration.test_fsdp2 import HOW, ODD

SPECS.update(ODD)
run, corpora = Path(sys.argv[1]), [Corpus.load(path) for path in sys.argv[2:4]]
start, strategy, *offload = sys.argv[4:]
if strategy.startswith("zero"):
    import deepspeed
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # else it compiles C++ before the first step
if start == "-":
    zero.PERSIST_BELOW = 0  # else ZeRO-3 cuts only the embeddings of so small a model
launch = LaunchConfig(strategy=strategy, processes=2, cpu=True, offload_params=bool(offload))
trainer = make_trainer(run, corpora, HOW, launch=launch)
assert trainer.accelerator.num_processes == 2
assert parallel.forward_is_collective(trainer.model) == (strategy != "zero2")
if start != "-":
    trainer.resume(Path(start))
trainer.fit()
if (strategy, start) == ("zero3", "-"):  # nothing is whole between two passes
    sizes = [(p.numel(), p.ds_tensor.numel(), p.ds_numel) for p in trainer.model.parameters()]
    assert sizes and all(whole == 0 and piece == -(-size // 2) for whole, piece, size in sizes)
batches = [batch for _, batch in zip(range(2), trainer.data.batches(trainer.state.place, 0, 1))]
if strategy.startswith("zero"):  # a step that is refused leaves no trace
    weights = {key: value.clone() for key, value in parallel.trainable_state(trainer.model).items()}
    before = weights, parallel.optimizer_state(trainer.optimizer, trainer.model)
    with pytest.raises(UserError, match="lacks"):
        parallel.load_trainable_state(trainer.model, {})
    trainer.stepper.backward(0, batches)
    assert trainer.optimizer.update(allowed=False) is None
    for features in batches[1].streams.values():
        features.x_BTD.fill_(torch.inf)
    assert trainer.stepper.take(0, batches[trainer.processes.index :][:1]) is None  # of one process
    after = parallel.trainable_state(trainer.model), parallel.optimizer_state(trainer.optimizer, trainer.model)
    for old, new in zip(before, after):
        assert old and set(old) == set(new) and all(torch.equal(old[key], new[key]) for key in old)
    assert trainer.stepper.take(0, batches[:1]) is not None
if strategy == "zero2":
    sys.exit()

# Replies: both processes have the whole model, and this one makes twice as many forward passes as the other.
kit = make_kit(corpora, dropout=HOW.dropout)
items = kit.items("dev")[: 1 + trainer.processes.index]
with parallel.gathered(trainer.model):
    said = [trainer.model.generate(kit.batch([item], pad_left=True), 0, 5) for item in items]
whole = parallel.trainable_state(trainer.model)
parallel.load_trainable_state(kit.model, whole)
assert said == [kit.model.generate(kit.batch([item], pad_left=True), 0, 5) for item in items]
assert trainer.stepper.take(0, batches[:1]) is not None
"""


def two(run: Path, corpora: list[Corpus], start: Path | None, how: str) -> None:
    """Run two processes to the end; `how` is a strategy, and maybe "offload"."""
    script = run.with_suffix(".py")
    script.write_text(WORKER)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command = [*torchrun, str(script), str(run), *(str(corpus.root) for corpus in corpora), str(start or "-")]
    done = subprocess.run([*command, *how.split()], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-5000:]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory, synthetic: Corpus, real: Corpus) -> Path:
    """The run of one process."""
    run = tmp_path_factory.mktemp("one") / "run"
    trainer = make_trainer(run, [synthetic, real], HOW)
    trainer.fit()
    trainer.tracker.finish()
    return run


@pytest.fixture(scope="module", autouse=True)
def odd() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SPECS, "two", ODD["two"])
        yield


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
        kept, others = (
            load_file(checkpoints(run / "checkpoints")[-1] / f"{name}.safetensors") for run in (first, second)
        )
        assert set(kept) == set(others)
        for key, value in kept.items():
            torch.testing.assert_close(others[key], value, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_two_shards_are_one_model(tmp_path: Path, one: Path, synthetic: Corpus, real: Corpus) -> None:
    two(tmp_path / "two", [synthetic, real], None, "fsdp2")
    assert_same(one, tmp_path / "two")


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="needs deepspeed")
@pytest.mark.parametrize("strategy", ["zero2", "zero3"])
@pytest.mark.parametrize("resumed", [False, True])
def test_deepspeed_takes_the_same_steps(
    tmp_path: Path, one: Path, synthetic: Corpus, real: Corpus, resumed: bool, strategy: str
) -> None:
    half = checkpoints(one / "checkpoints")[0] if resumed else None
    two(tmp_path / "two", [synthetic, real], half, strategy)
    assert_same(one, tmp_path / "two")


@pytest.mark.slow
def test_a_run_goes_on_under_the_other_strategy(tmp_path: Path, one: Path, synthetic: Corpus, real: Corpus) -> None:
    corpora, half = [synthetic, real], checkpoints(one / "checkpoints")[0]
    assert half.name == "step-000003"
    two(tmp_path / "two", corpora, half, "fsdp2 offload")
    assert_same(one, tmp_path / "two")

    alone = make_trainer(tmp_path / "alone", corpora, HOW)
    alone.resume(checkpoints(tmp_path / "two" / "checkpoints")[-1])
    alone.save()
    alone.tracker.finish()
    for name in ("trainables", "optimizer"):
        kept, again = (
            load_file(checkpoints(tmp_path / run / "checkpoints")[-1] / f"{name}.safetensors")
            for run in ("two", "alone")
        )
        assert set(kept) == set(again) and all(torch.equal(kept[key], again[key]) for key in kept)
