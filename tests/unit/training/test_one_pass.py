"""Runs that end after one pass: every dialogue once, whatever the last step lacks, and resumable as any other."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from omnichat import train
from omnichat.assembly import check_mixture
from omnichat.config import TrainRun
from omnichat.data.batching import LoaderConfig, Place
from omnichat.data.collate import Batch
from omnichat.data.corpus import Corpus
from omnichat.data.mixture import MixtureConfig
from omnichat.training.checkpoint import checkpoints
from omnichat.training.data import TrainingData
from omnichat.training.optim import OptimConfig
from omnichat.training.preflight import largest, preflight
from omnichat.training.settings import TrainerConfig
from omnichat.utils.errors import UserError
from tests.helpers_core import HashFeatures, Training, make_kit, make_trainer, rows
from tests.integration.test_resume import run_to, same_end

ONE_PASS = Training(one_pass_of="synthetic", alpha=0.2, batch_tokens=180, pool=2, micro_batches=2, dev_every=0)


def one_pass(corpora: list[Corpus], alpha: float, micro_batches: int, of: str = "synthetic") -> TrainingData:
    kit = make_kit(corpora)
    loader = LoaderConfig(batch_tokens=260, pool=4, workers=0)
    mixture = MixtureConfig(alpha=alpha, one_pass_of=of)
    return TrainingData(kit.sources, mixture, kit.chat, loader, HashFeatures(), 0, micro_batches)


def supervised(batch: Batch) -> bool:
    return bool((batch.labels_BS >= 0).any())


@pytest.mark.parametrize("alpha", [0.0, 0.2])
@pytest.mark.parametrize("micro_batches", [1, 4])
def test_each_synthetic_dialogue_comes_once(synthetic: Corpus, real: Corpus, alpha: float, micro_batches: int) -> None:
    data = one_pass([synthetic, real], alpha, micro_batches)
    steps = data.steps()
    places = list(data.places(Place()))
    batches = list(data.batches(Place(), 0, 1))
    assert len(places) == len(batches) == steps * micro_batches
    drawn = Counter((draw.source, draw.index) for draws, _ in places for draw in draws)
    assert {drawn[synthetic.name, index] for index in range(synthetic.count("train"))} == {1}
    trained = Counter(name for batch in batches if supervised(batch) for name in batch.dialogues)
    assert {trained[dialogue.id] for dialogue in synthetic.iterate("train")} == {1}
    for (draws, _), batch in zip(places, batches, strict=True):
        assert supervised(batch) == bool(draws), "what fills up the last step teaches nothing"
        assert draws or (batch.styles_C3 < 0).all()


def test_two_processes_share_every_step(synthetic: Corpus, real: Corpus) -> None:
    data = one_pass([synthetic, real], 0.2, 4)
    alone = [batch.dialogues for batch in data.batches(Place(), 0, 1)]
    halves = [[batch.dialogues for batch in data.batches(Place(), rank, 2)] for rank in (0, 1)]
    assert len(halves[0]) == len(halves[1]) == 2 * data.steps()
    assert [names for pair in zip(*halves, strict=True) for names in pair] == alone


def test_a_resumed_pass_is_the_rest_of_it(synthetic: Corpus, real: Corpus) -> None:
    data = one_pass([synthetic, real], 0.2, 2)
    places = list(data.places(Place()))
    for step in range(1, data.steps()):
        after = places[2 * step - 1][1]
        assert list(data.places(after)) == places[2 * step :]


def test_a_run_of_one_pass_ends_and_resumes_as_any_other(tmp_path: Path, synthetic: Corpus, real: Corpus) -> None:
    """The last step is one that was filled up."""
    corpora = [synthetic, real]
    run_to(tmp_path / "whole", corpora, ONE_PASS, None)
    steps = [row["step"] for row in rows(tmp_path / "whole", "step")]
    assert not list(make_trainer(tmp_path / "again", corpora, ONE_PASS).data.places(Place()))[-1][0], "a filler"
    for stop in (2, steps[-2], None):
        run_to(tmp_path / "cut", corpora, ONE_PASS, stop)
    assert [row["step"] for row in rows(tmp_path / "cut", "resume")] == [2, steps[-2]]
    same_end(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.parametrize("batch_tokens", [260, 600])
def test_a_pass_that_goes_on_with_other_batches_ends_where_it_ends(
    tmp_path: Path, synthetic: Corpus, batch_tokens: int
) -> None:
    how = replace(ONE_PASS, alpha=0.0, pool=4, extra={"optim": OptimConfig(warmup_steps=0)})
    run_to(tmp_path, [synthetic], how, 1)
    trainer = make_trainer(tmp_path, [synthetic], replace(how, batch_tokens=batch_tokens))
    fresh = trainer.steps
    config = TrainRun(mixture=MixtureConfig(one_pass_of="synthetic"), trainer=TrainerConfig(steps=None))
    train.resume(trainer, checkpoints(tmp_path / "checkpoints")[-1], config)
    left = len(list(trainer.data.places(trainer.state.place)))
    assert trainer.steps == trainer.stepper.total_steps == 1 + left // 2
    assert trainer.steps != fresh or batch_tokens != 600, "here the pass from its beginning takes fewer steps"
    trainer.fit()
    trainer.tracker.finish()
    assert not list(trainer.data.places(trainer.state.place))
    assert trainer.stepper.factor_at(trainer.steps - 1) == pytest.approx(OptimConfig().final_ratio)


def test_a_pass_shorter_than_a_pool_is_tried_before_it_starts(tmp_path: Path, synthetic: Corpus) -> None:
    trainer = make_trainer(tmp_path, [synthetic], replace(ONE_PASS, alpha=0.0, pool=64))
    tried = largest(trainer.data)
    assert tried["largest"] and tried["longest"]
    assert trainer.data.plan.pool(1) == [] == trainer.data.plan.pool(99)
    preflight(trainer)
    trainer.tracker.finish()


def test_a_schedules_steps_are_not_taken_for_draws(synthetic: Corpus, real: Corpus) -> None:
    """Four steps may hold the whole pass; four draws do not."""
    sources = make_kit([synthetic, real]).sources
    steps = TrainerConfig(steps=None)
    moving = MixtureConfig(schedule=[[0, 0.0], [4, 1.0]], one_pass_of="synthetic")
    check_mixture(sources, TrainRun(mixture=moving, trainer=steps))
    with pytest.raises(UserError, match=r"mixture\.one_pass_of='real' is not valid"):
        still = MixtureConfig(schedule=[[0, 0.0]], one_pass_of="real")
        check_mixture(sources[:1], TrainRun(mixture=still, trainer=steps))
    with pytest.raises(UserError, match=r"mixture\.one_pass_of=real: source 'spoken' is never drawn to its end"):
        check_mixture(sources, TrainRun(mixture=MixtureConfig(one_pass_of="real"), trainer=steps))


def test_the_end_is_said_once() -> None:
    with pytest.raises(UserError, match=r"one_pass_of=synthetic and trainer\.steps=5: .* exactly one must be null"):
        TrainRun(mixture=MixtureConfig(one_pass_of="synthetic"), trainer=TrainerConfig(steps=5))
    with pytest.raises(UserError, match=r"one_pass_of=None and trainer\.steps=None"):
        TrainRun(trainer=TrainerConfig(steps=None))
    TrainRun(mixture=MixtureConfig(one_pass_of="real"), trainer=TrainerConfig(steps=None))


def test_a_curriculums_steps_become_draws(synthetic: Corpus, real: Corpus) -> None:
    kit = make_kit([synthetic, real])
    loader = LoaderConfig(batch_tokens=260, pool=4, workers=0)
    mixture = MixtureConfig(schedule=[[0, 0.0], [20, 1.0]])
    data = TrainingData(kit.sources, mixture, kit.chat, loader, HashFeatures(), 0, 3)
    assert data.dialogues_per_step is not None and data.dialogues_per_step > 3
    end = round(20 * data.dialogues_per_step)
    assert data.plan.mixture.alpha_at(end // 2) == pytest.approx(0.5, abs=0.01)
    assert data.plan.mixture.alpha_at(end) == 1.0
