"""The learning-rate range test: its factors, its reading of a curve, and a real sweep of the tiny model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from omnichat.data.collate import Batch
from omnichat.data.corpus import Corpus
from omnichat.training.loss import LossConfig
from omnichat.training.lr_finder import Finding, LrFindConfig, Point, conclude, factor_at, sweep
from omnichat.training.optim import OptimConfig
from omnichat.utils.errors import UserError
from tests.helpers_core import Training, make_trainer


def curve(losses: list[float]) -> list[Point]:
    """A sweep of a decade every ten steps that had these smoothed losses."""
    return [Point(i, 10 ** (i / 10 - 2), loss, loss) for i, loss in enumerate(losses)]


def test_factors_grow_exponentially() -> None:
    config = LrFindConfig(lowest=0.01, highest=100, steps=41)
    assert factor_at(0, config) == pytest.approx(0.01) and factor_at(40, config) == pytest.approx(100)
    assert factor_at(20, config) == pytest.approx(1.0)


def test_the_suggestion_is_the_steepest_descent_unless_that_is_close_to_divergence() -> None:
    losses = [3 - 1 / (1 + math.exp(-(i - 15))) for i in range(31)]  # falls fastest at step 15
    found = conclude(curve(losses), diverged=None)
    assert found.steepest == pytest.approx(10 ** (-0.5)) and found.suggested == found.steepest
    near = conclude(curve(losses), diverged=1.0)
    assert near.suggested == pytest.approx(0.1)  # a decade below, which is less than the steepest descent
    far = conclude(curve(losses), diverged=100.0)
    assert far.suggested == far.steepest


def test_a_curve_that_never_falls_suggests_only_what_divergence_says() -> None:
    rising = curve([2 + 0.1 * i for i in range(20)])
    assert conclude(rising, None).suggested is None
    assert conclude(rising, 0.5).suggested == pytest.approx(0.05)
    assert conclude([], 0.01).suggested == pytest.approx(0.001)


def test_rates_are_those_of_the_swept_parts() -> None:
    found = Finding((), 2.0, None, 2.0)
    optim = OptimConfig(lr_fusion=5e-4, lr_lora=3e-4)
    assert found.rates(optim, "both") == {"trainer.optim.lr_fusion": 1e-3, "trainer.optim.lr_lora": 6e-4}
    assert found.rates(optim, "lora") == {"trainer.optim.lr_lora": 6e-4}
    assert Finding((), None, None, None).rates(optim, "both") == {}


@pytest.mark.parametrize("sign", ["not finite", "much higher"])
def test_a_sweep_ends_where_it_diverges_and_saves_nothing(tmp_path: Path, synthetic: Corpus, sign: str) -> None:
    trainer = make_trainer(tmp_path, [synthetic], Training(steps=10, alpha=0.0))
    take = trainer.stepper.take

    def diverge(step: int, micro: Sequence[Batch]) -> dict[str, float] | None:
        row = take(step, micro)
        if step < 7 or row is None:
            return row
        return None if sign == "not finite" else row | {"loss": 10 * row["loss"]}

    trainer.stepper.take = diverge  # type: ignore[method-assign]
    config, seen = LrFindConfig(lowest=0.1, highest=100.0, steps=10, smoothing=0.5), list[Point]()
    found = sweep(trainer, config, seen.append)
    trainer.tracker.finish()
    assert found.diverged == pytest.approx(factor_at(7, config))
    assert tuple(seen) == found.points and len(seen) == (7 if sign == "not finite" else 8)
    assert found.suggested is not None and found.suggested <= found.diverged / 10
    assert not (tmp_path / "checkpoints").exists()


def test_only_the_chosen_part_moves(tmp_path: Path, synthetic: Corpus) -> None:
    """Also under distillation, where peft switches the gradients of all of LoRA on again."""
    how = Training(steps=10, alpha=0.0, extra={"loss": LossConfig(distill_weight=0.5)})
    trainer = make_trainer(tmp_path, [synthetic], how)
    before = {name: value.clone() for name, value in trainer.model.trainable_state().items()}
    sweep(trainer, LrFindConfig(which="fusion", lowest=0.5, highest=2.0, steps=10))
    trainer.tracker.finish()
    moved = {n.partition(".")[0] for n, old in before.items() if not torch.equal(old, trainer.model.state_dict()[n])}
    assert moved == {"fusion"}


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"which": "all"}, "both, fusion, lora"), ({"lowest": 0.0}, "lowest"), ({"steps": 2}, "at least 10")],
)
def test_bad_settings_are_named(wrong: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=words):
        LrFindConfig(**wrong)  # type: ignore[arg-type]
