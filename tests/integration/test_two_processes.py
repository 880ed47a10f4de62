"""Two processes with a micro-batch each take the steps of one process with two; and end together when one is asked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from omnichat.data.corpus import Corpus, finish_corpus
from omnichat.training.checkpoint import checkpoints
from omnichat.training.loss import LossConfig
from tests.helpers_core import Training, make_trainer, rows

ROOT = Path(__file__).resolve().parents[2]
HOW = Training(steps=5, micro_batches=2, dropout=0.0, dev_every=5, batch_tokens=250, max_skips=9)
HOW.extra = {"loss": LossConfig(style_weight=2.0, label_smoothing=0.1, z_weight=1e-3, distill_weight=0.5)}
WORKER = """
import sys
from dataclasses import replace
from pathlib import Path
from omnichat.data.corpus import Corpus
from omnichat.training.trainer import Stopped
from tests.helpers_core import make_trainer
from tests.integration.test_two_processes import HOW
how = replace(HOW, steps=int(sys.argv[4]))
trainer = make_trainer(Path(sys.argv[1]), [Corpus.load(sys.argv[2]), Corpus.load(sys.argv[3])], how)
assert trainer.accelerator.num_processes == 2
try:
    trainer.fit()
except Stopped:
    sys.exit(143)
"""


def two(run: Path, corpora: list[Corpus], steps: int) -> subprocess.Popen[bytes]:
    script = run.with_suffix(".py")
    script.write_text(WORKER)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(ROOT)}
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    arguments = [*torchrun, str(script), str(run), *(str(c.root) for c in corpora), str(steps)]
    with open(run.with_suffix(".output"), "wb") as output:
        return subprocess.Popen(arguments, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)


@pytest.fixture(scope="module")
def half_silent(tmp_path_factory: pytest.TempPathFactory, synthetic: Corpus) -> Corpus:
    """The synthetic corpus without recordings: a rank whose rows are words alone must still join every reduction."""
    silent = [
        replace(d, id=f"{d.id}-read", turns=tuple(replace(t, audio=None, sha256=None) for t in d.turns))
        for d in synthetic.dialogues
    ]
    folder = tmp_path_factory.mktemp("corpora") / "read"
    folder.mkdir()
    finish_corpus(folder, silent, name="read", kind="synthetic", seed=0, checks={}, licences=[], notes=[], versions={})
    return Corpus.load(folder)


@pytest.mark.slow
def test_two_processes_are_one_with_twice_the_micro_batches(tmp_path: Path, half_silent: Corpus, real: Corpus) -> None:
    corpora = [half_silent, real]
    process = two(tmp_path / "two", corpora, HOW.steps)
    one = make_trainer(tmp_path / "one", corpora, HOW)
    one.fit()
    one.tracker.finish()
    assert process.wait() == 0, (tmp_path / "two.output").read_text()[-3000:]
    for event in ("step", "dev"):
        mine, theirs = rows(tmp_path / "one", event), rows(tmp_path / "two", event)
        assert [row["step"] for row in mine] == [row["step"] for row in theirs]
        for key in {
            "loss",
            "loss_style",
            "loss_words",
            "loss_z",
            "loss_distill",
            "grad_norm",
            "supervised_tokens",
            "alpha_realised",
        } & set(mine[0]):
            assert [row[key] for row in theirs] == pytest.approx([row[key] for row in mine], abs=1e-5, rel=1e-5), key
    first, second = (checkpoints(tmp_path / name / "checkpoints")[-1] for name in ("one", "two"))
    weights, others = (load_file(path / "trainables.safetensors") for path in (first, second))
    for name, value in weights.items():
        torch.testing.assert_close(others[name], value, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_both_processes_stop_when_one_is_asked(tmp_path: Path, synthetic: Corpus, real: Corpus) -> None:
    run = tmp_path / "two"
    process = two(run, [synthetic, real], 10_000)
    while not (run / "log.jsonl").is_file() or len(rows(run, "step")) < 2:
        assert process.poll() is None, (tmp_path / "two.output").read_text()[-3000:]
        time.sleep(0.05)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    assert len(children) == 2
    os.kill(int(children[1]), signal.SIGTERM)
    assert process.wait() != 0, "torchrun reports that its workers ended with 143"
    stopped = rows(run, "stopped")
    assert len(stopped) == 1 and checkpoints(run / "checkpoints")[-1].name == f"step-{stopped[0]['step']:06d}"
