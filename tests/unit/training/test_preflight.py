"""The largest batch runs before the first step, leaves no trace, and says in one line where memory ends."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from omnichat.data.corpus import Corpus
from omnichat.training.preflight import largest, preflight
from omnichat.utils.errors import UserError
from tests.helpers_core import Training, make_trainer, rows, step_figures

BOTH = Training(steps=3, pool=6, batch_tokens=400, dev_every=0)
ALONE = replace(BOTH, alpha=0.0)


def test_losses_and_weights_are_those_of_a_run_without_it(tmp_path: Path, synthetic: Corpus, real: Corpus) -> None:
    plain = make_trainer(tmp_path / "plain", [synthetic, real], BOTH)
    plain.fit()
    tried = make_trainer(tmp_path / "tried", [synthetic, real], BOTH)
    preflight(tried)
    assert tried.state.step == 0 and tried.state.place == type(tried.state.place)() and not tried.optimizer.state
    tried.fit()
    assert step_figures(tmp_path / "tried") == step_figures(tmp_path / "plain")
    first, second = plain.model.trainable_state(), tried.model.trainable_state()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_it_leaves_no_trace(tmp_path: Path, synthetic: Corpus) -> None:
    trainer = make_trainer(tmp_path, [synthetic], ALONE)
    trainer.model.eval()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    before = [p.detach().clone() for p in trainer.model.parameters()]
    preflight(trainer)
    after = random.random(), np.random.rand(), float(torch.rand(()))
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    assert after == (random.random(), np.random.rand(), float(torch.rand(())))
    assert not trainer.model.training and all(p.grad is None for p in trainer.model.parameters())
    assert all(torch.equal(p, old) for p, old in zip(trainer.model.parameters(), before, strict=True))


def test_the_batches_tried_are_the_largest(tmp_path: Path, synthetic: Corpus, real: Corpus) -> None:
    trainer = make_trainer(tmp_path, [synthetic, real], BOTH)
    data, tried = trainer.data, largest(trainer.data)
    sizes = {}
    for name, draws in tried.items():
        lengths = [data.plan.length(draw.source, draw.index) for draw in draws]
        sizes[name] = len(lengths) * max(lengths)
        assert sizes[name] <= BOTH.batch_tokens
    for number in range(3):
        for batch in data.plan.pool(number):
            assert len(batch) * max(data.plan.length(d.source, d.index) for d in batch) <= sizes["largest"]
    longest = max(len(item.sequence) for name in data.items for item in data.items[name].items)
    assert data.plan.length(tried["longest"][0].source, tried["longest"][0].index) == longest
    preflight(trainer)
    assert [(row["batch"], row["rows"] * row["positions"]) for row in rows(tmp_path, "preflight")] == list(
        sizes.items()
    )


@pytest.mark.parametrize("how", ["on the CPU, for real", "as CUDA says it"])
def test_out_of_memory_is_one_line_with_the_size_and_the_remedy(tmp_path: Path, synthetic: Corpus, how: str) -> None:
    trainer = make_trainer(tmp_path, [synthetic], ALONE)

    def exhaust(*_: Any) -> None:
        if how == "as CUDA says it":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")
        torch.empty(2**50)

    trainer.model.fusion.register_forward_hook(exhaust)
    with pytest.raises(
        UserError, match=r"out of memory on cpu in the largest batch.*lower loader\.batch_tokens=400"
    ) as e:
        preflight(trainer)
    assert "\n" not in str(e.value)


def test_other_errors_are_not_called_out_of_memory(tmp_path: Path, synthetic: Corpus) -> None:
    trainer = make_trainer(tmp_path, [synthetic], ALONE)
    trainer.model.fusion.register_forward_hook(lambda *_: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        preflight(trainer)
