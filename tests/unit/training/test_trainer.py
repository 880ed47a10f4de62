"""The loop: what it logs, skips, refuses and keeps; data that do not depend on what they should not depend on."""

from __future__ import annotations

import json
import math
import os
import signal
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch

from omnichat.data.batching import LoaderConfig, Place
from omnichat.data.corpus import Corpus
from omnichat.data.mixture import MixtureConfig
from omnichat.training.checkpoint import checkpoints, load_checkpoint
from omnichat.training.data import TrainingData, fixed_batches
from omnichat.training.settings import TrainerConfig
from omnichat.training.trainer import RunState, Stopped, Trainer
from omnichat.utils.errors import UserError
from tests.helpers_core import HashFeatures, Training, make_kit, make_trainer, rows, step_figures


def fit(trainer: Trainer) -> RunState:
    try:
        return trainer.fit()
    finally:
        trainer.tracker.finish()


def signal_after(trainer: Trainer, step: int) -> None:
    """Send this very process SIGTERM while the given step is being reported."""
    row = trainer.tracker.row

    def watch(event: str, **values: object) -> None:
        row(event, **values)
        if event == "step" and values["step"] == step:
            os.kill(os.getpid(), signal.SIGTERM)

    trainer.tracker.row = watch  # type: ignore[method-assign]


def test_the_log_holds_the_figures_of_every_step(tmp_path: Path, synthetic: Corpus, real: Corpus) -> None:
    how = Training(steps=6, dev_every=3)
    trainer = make_trainer(tmp_path, [synthetic, real], how)
    fit(trainer)
    steps = rows(tmp_path, "step")
    assert [row["step"] for row in steps] == list(range(1, 7))
    for row in steps:
        assert {"loss_style", "loss_words", "lr_fusion", "lr_lora", "grad_norm", "tokens", "tokens_per_sec"} <= set(row)
        assert row["alpha_ci95"][0] <= row["alpha_realised"] <= row["alpha_ci95"][1]
        assert 0 <= row["padding"] < 1 and row["supervised_tokens"] < row["tokens"] <= 500
        low, high = sorted((row["loss_style"], row["loss_words"]))
        assert low <= row["loss"] <= high
    assert [row["step"] for row in rows(tmp_path, "dev")] == [3, 6]
    assert rows(tmp_path, "end")[0]["best_dev"] == min(row["loss"] for row in rows(tmp_path, "dev"))
    drawn = sum(len(draws) for draws, _ in islice(trainer.data.places(Place()), 6))
    assert sum(trainer.counter.drawn.values()) == drawn


def test_the_same_seed_gives_the_same_run_and_another_another(tmp_path: Path, synthetic: Corpus, real: Corpus) -> None:
    figures = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        fit(make_trainer(tmp_path / name, [synthetic, real], Training(steps=3, seed=seed)))
        figures.append(step_figures(tmp_path / name))
    assert figures[0] == figures[1]
    assert figures[0][1] != figures[2][1]


def test_workers_and_looking_at_the_dev_split_change_nothing(tmp_path: Path, synthetic: Corpus, real: Corpus) -> None:
    ways = {"plain": Training(), "worker": Training(workers=1), "dev": Training(dev_every=1)}
    for name, how in ways.items():
        fit(make_trainer(tmp_path / name, [synthetic, real], how))
    plain, worker, dev = (step_figures(tmp_path / name) for name in ways)
    assert plain == worker == dev
    assert len(rows(tmp_path / "dev", "dev")) == 6


def test_accumulation_takes_the_batches_of_a_step_together(tmp_path: Path, synthetic: Corpus, real: Corpus) -> None:
    """Two micro-batches a step cost the token-weighted mean of what they cost alone, and count as one step."""
    one = make_trainer(
        tmp_path / "one", [synthetic, real], Training(steps=1, dropout=0.0, micro_batches=2, dev_every=0)
    )
    stream = list(islice(one.data.batches(Place(), 0, 1), 2))
    with torch.no_grad():
        losses = [one.model(batch).ce_N for batch in stream]
    fit(one)
    [row] = rows(tmp_path / "one", "step")
    assert len(losses[0]) != len(losses[1])
    assert row["loss"] == pytest.approx(float(torch.cat(losses).mean()), abs=1e-5)
    assert row["supervised_tokens"] == sum(map(len, losses))


def test_sigterm_ends_after_the_step_with_a_checkpoint(tmp_path: Path, synthetic: Corpus) -> None:
    trainer = make_trainer(tmp_path, [synthetic], Training(steps=6, alpha=0))
    signal_after(trainer, 3)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped, match="stopped at step 3, saved"):
        fit(trainer)
    assert signal.getsignal(signal.SIGTERM) is before
    assert checkpoints(tmp_path / "checkpoints")[-1].name == "step-000003"
    assert rows(tmp_path, "stopped") == [{"event": "stopped", "step": 3}]


def test_a_stop_before_the_first_step_takes_none(tmp_path: Path, synthetic: Corpus) -> None:
    trainer = make_trainer(tmp_path, [synthetic], Training(steps=6, alpha=0))
    seen: list[Trainer] = []

    def preflight(given: Trainer) -> None:
        seen.append(given)
        os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Stopped, match="stopped before its first step") as stopped:
        trainer.fit(preflight)
    trainer.tracker.finish()
    assert seen == [trainer] and (stopped.value.step, stopped.value.by) == (0, signal.SIGTERM)
    assert rows(tmp_path, "stopped") == [{"event": "stopped", "step": 0}] and not rows(tmp_path, "step")
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize(("where", "despite", "kept"), [("a", [], True), ("b", [], False), ("a", ["data"], False)])
def test_the_best_dev_loss_is_kept_only_where_its_checkpoint_and_its_dev_split_are(
    tmp_path: Path, synthetic: Corpus, where: str, despite: list[str], kept: bool
) -> None:
    how = Training(steps=2, alpha=0)
    fit(make_trainer(tmp_path / "a", [synthetic], how))
    [path] = checkpoints(tmp_path / "a" / "checkpoints")
    other = {"data": {"a": "f2"}} if despite else {}
    trainer = make_trainer(tmp_path / where, [synthetic], replace(how, identity=how.identity | other))
    trainer.resume(path, despite)
    trainer.tracker.finish()
    found = trainer.state.best_dev, trainer.state.best_step
    assert found == (load_checkpoint(path)[2]["state"]["best_dev"], 2) if kept else found == (None, None)


def test_a_stop_before_the_last_dev_loss_is_made_up_for(tmp_path: Path, synthetic: Corpus) -> None:
    """A scheduler's patience ends before a long dev split does: the weights are saved, the dev loss comes later."""
    how = Training(steps=3, alpha=0)
    trainer = make_trainer(tmp_path, [synthetic], how)
    signal_after(trainer, 3)
    with pytest.raises(Stopped):
        fit(trainer)
    assert [row["step"] for row in rows(tmp_path, "dev")] == [2] and not rows(tmp_path, "end")
    trainer = make_trainer(tmp_path, [synthetic], how)
    trainer.resume(checkpoints(tmp_path / "checkpoints")[-1])
    fit(trainer)
    assert [row["step"] for row in rows(tmp_path, "dev")] == [2, 3] and rows(tmp_path, "end")
    assert len(rows(tmp_path, "step")) == 3
    state = load_checkpoint(checkpoints(tmp_path / "checkpoints")[-1])[2]["state"]
    assert state["dev_step"] == 3


def poisoned_step(tmp_path: Path, corpus: Corpus) -> tuple[str, set[str]]:
    """A recording that not every step hears, and the dialogues that hold it."""
    kit = make_kit([corpus])
    first = kit.items()[0].keys[-1].sha256
    return first, {item.dialogue for item in kit.items() if first in [key.sha256 for key in item.keys]}


def test_a_step_that_is_not_finite_is_skipped_and_named(tmp_path: Path, synthetic: Corpus) -> None:
    poison, guilty = poisoned_step(tmp_path, synthetic)
    how = Training(steps=10, alpha=0, batch_tokens=160, dev_every=0, max_skips=10)
    trainer = make_trainer(tmp_path, [synthetic], how, poison)
    fit(trainer)
    skipped, done = rows(tmp_path, "skip"), rows(tmp_path, "step")
    assert skipped and done, "some steps must be poisoned and some not"
    assert all(guilty & set(row["dialogues"]) for row in skipped)
    assert sorted(row["step"] for row in skipped + done) == list(range(1, 11))
    assert all(math.isfinite(row["loss"]) and math.isfinite(row["grad_norm"]) for row in done)
    assert all(value.isfinite().all() for value in trainer.model.trainable_state().values())


def test_a_skip_names_the_dialogues_of_every_process(
    tmp_path: Path, synthetic: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = make_trainer(tmp_path, [synthetic], Training(alpha=0, max_skips=0))
    kit = make_kit([synthetic])
    mine = [kit.batch([item]) for item in kit.items()[:2]]
    monkeypatch.setattr(trainer.processes, "count", 2)
    monkeypatch.setattr("omnichat.training.trainer.gather_object", lambda share: [*share, [["other-0"], ["other-1"]]])
    with pytest.raises(UserError) as error:
        trainer._skipped(mine, 1)
    trainer.tracker.finish()
    names = [mine[0].dialogues[0], "other-0", mine[1].dialogues[0], "other-1"]
    assert rows(tmp_path, "skip")[0]["dialogues"] == names, "in the order of the stream"
    assert str(error.value).endswith("last: " + ", ".join(names))


def test_too_many_skips_in_a_row_stop_the_run_and_leave_the_weights(tmp_path: Path, synthetic: Corpus) -> None:
    trainer = make_trainer(tmp_path, [synthetic], Training(alpha=0, steps=9, max_skips=2, checkpoint_every=1), "*")
    before = {name: value.clone() for name, value in trainer.model.trainable_state().items()}
    with pytest.raises(UserError, match=r"not finite in 3 steps in a row; last: made-\d"):
        fit(trainer)
    assert [row["step"] for row in rows(tmp_path, "skip")] == [1, 2, 3]
    assert all(torch.equal(value, before[name]) for name, value in trainer.model.trainable_state().items())
    assert not trainer.optimizer.state
    assert trainer.state.best_dev is None and [row["step"] for row in rows(tmp_path, "dev_not_finite")] == [2]


def test_the_best_checkpoint_is_kept_whatever_the_rhythm(tmp_path: Path, synthetic: Corpus) -> None:
    """A learning rate that wrecks the model: the best dev loss is an early one, between two regular checkpoints."""
    how = Training(steps=9, alpha=0, dev_every=1, checkpoint_every=4, keep_last=1, dropout=0.0)
    trainer = make_trainer(tmp_path, [synthetic], how)
    trainer.config.optim.lr_fusion = trainer.config.optim.lr_lora = 3.0
    trainer.config.optim.warmup_steps = 0
    trainer.config.optim.final_ratio = 0.9
    state = fit(trainer)
    dev = {row["step"]: row["loss"] for row in rows(tmp_path, "dev")}
    assert state.best_step == min(dev, key=dev.__getitem__) and state.best_step not in (4, 8, 9), dev
    kept = [path.name for path in checkpoints(tmp_path / "checkpoints")]
    assert kept == [f"step-{state.best_step:06d}", "step-000009"]
    assert load_checkpoint(checkpoints(tmp_path / "checkpoints")[-1])[2]["best_step"] == state.best_step


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"lr": 2e-3}, "lr=0.001, this run has 0.002"),
        ({"data": {"a": "f2"}}, "data.a='f1', this run has 'f2'"),
        ({"experts": {"one": "other"}}, "experts.one='e', this run has 'other'"),
    ],
)
def test_a_run_with_other_settings_is_not_continued(
    tmp_path: Path, synthetic: Corpus, change: dict[str, object], key: str
) -> None:
    fit(make_trainer(tmp_path, [synthetic], Training(steps=1, alpha=0, dev_every=0)))
    how = Training(steps=1, alpha=0)
    how.identity |= change
    trainer = make_trainer(tmp_path, [synthetic], how)
    fresh = {name: value.clone() for name, value in trainer.model.trainable_state().items()}
    with pytest.raises(UserError) as error:
        trainer.resume(checkpoints(tmp_path / "checkpoints")[-1])
    assert key in str(error.value)
    assert all(torch.equal(value, fresh[name]) for name, value in trainer.model.trainable_state().items())


def test_the_dev_split_does_not_depend_on_alpha(synthetic: Corpus, real: Corpus) -> None:
    kit = make_kit([synthetic, real])
    expected = {d.id for corpus in (synthetic, real) for d in corpus.dialogues if d.split == "dev"}
    assert {item.dialogue for item in kit.items("dev")} == expected and len(expected) == 5
    batches = fixed_batches(kit.items("dev"), 300)
    assert batches == fixed_batches(list(reversed(kit.items("dev"))), 300)
    assert sorted(item.dialogue for batch in batches for item in batch) == sorted(expected)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(len(item.sequence) for item in batch) <= 300


def data_of(corpora: list[Corpus], alpha: float, **loader: int) -> TrainingData:
    kit = make_kit(corpora)
    config = LoaderConfig(**{"workers": 0, "pool": 8, "batch_tokens": 500, **loader})
    return TrainingData(kit.sources, MixtureConfig(alpha=alpha), kit.chat, config, HashFeatures(), 0)


def test_ranks_share_the_stream_out(synthetic: Corpus, real: Corpus) -> None:
    """Rank r of n gets every n-th micro-batch: together they see what one process would."""
    data = data_of([synthetic, real], 0.5)
    whole = [batch.dialogues for batch in islice(data.batches(Place(), 0, 1), 12)]
    for world in (2, 3):
        ranks = [data.batches(Place(), rank, world) for rank in range(world)]
        assert [next(ranks[n % world]).dialogues for n in range(12)] == whole
    ids = [[data.items[d.source][d.index].dialogue for d in draws] for draws, _ in islice(data.places(Place()), 12)]
    assert ids == whole


def test_only_training_dialogues_are_trained_on(synthetic: Corpus, real: Corpus) -> None:
    data = data_of([synthetic, real], 0.5)
    seen = {name for batch in islice(data.batches(Place(), 0, 1), 40) for name in batch.dialogues}
    assert seen == {d.id for corpus in (synthetic, real) for d in corpus.dialogues if d.split == "train"}


def test_a_dialogue_over_the_budget_is_named_before_the_first_step(synthetic: Corpus) -> None:
    with pytest.raises(UserError, match=r"batch_tokens=40 is less than the \d+ positions of dialogue 'made-\d-v\d' of"):
        data_of([synthetic], 0.0, batch_tokens=40)


@pytest.mark.parametrize(
    ("field", "value"), [("steps", 0), ("micro_batches", 0), ("keep_last", 0), ("max_skips", -1), ("dev_every", -1)]
)
def test_a_bad_setting_is_named(field: str, value: int) -> None:
    with pytest.raises(UserError, match=rf"trainer\.{field} must be at least"):
        TrainerConfig(**{field: value})


def test_each_trainer_of_a_process_has_its_own_precision(tmp_path: Path, synthetic: Corpus, real: Corpus) -> None:
    for precision, mixed in (("bf16", "bf16"), ("fp32", "no"), ("bf16", "bf16")):
        trainer = make_trainer(tmp_path, [synthetic, real], Training(precision=precision))
        trainer.tracker.finish()
        assert trainer.accelerator.mixed_precision == mixed


def test_a_bad_precision_is_named() -> None:
    with pytest.raises(UserError, match=r"trainer\.precision='fp16' is not valid.*bf16"):
        TrainerConfig(precision="fp16")


def test_processes_that_accelerate_does_not_see_are_refused(
    tmp_path: Path, synthetic: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_trainer(tmp_path, [synthetic], Training(alpha=0))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes were started, but accelerate runs 1"):
        Trainer(made.model, made.data, made.dev_batches, made.config, tmp_path, 0, {}, made.tracker)


def test_the_log_of_a_killed_run_is_mended(tmp_path: Path, synthetic: Corpus) -> None:
    (tmp_path / "log.jsonl").write_text('{"event": "step", "step": 1}\n{"event": "st')
    fit(make_trainer(tmp_path, [synthetic], Training(steps=1, alpha=0, dev_every=0)))
    events = [json.loads(line)["event"] for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert events[:2] == ["step", "step"] and events[-1] == "end"
