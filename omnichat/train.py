"""`omnichat train`: corpora and config -> a run folder."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from accelerate.state import AcceleratorState
from omegaconf import OmegaConf

from omnichat.assembly import Assembly, assemble, calibrate, check_mixture, checked_sources, training_data
from omnichat.config import TrainRun, to_plain
from omnichat.data.collate import Batch, collate
from omnichat.launch import check_launch, drive, refuse_launcher
from omnichat.run_folder import (
    answers_requeue,
    claim_run_folder,
    first_error_counts,
    run_name,
    write_data_json,
    write_requeue,
    write_run_json,
)
from omnichat.sweep import in_sweep, is_finished
from omnichat.training.checkpoint import checkpoints
from omnichat.training.data import Source, TrainingData, fixed_batches, split_items
from omnichat.training.identity import result_settings
from omnichat.training.preflight import preflight
from omnichat.training.processes import Setup
from omnichat.training.samples import build_sampler
from omnichat.training.tracking import Tracker, check_tracking
from omnichat.training.trainer import Stopped, Trainer
from omnichat.utils.files import check_writable, sha256_bytes, write_text_atomic
from omnichat.utils.log import get_logger

log = get_logger(__name__)


def run(config: TrainRun) -> None:
    """Train; on a second call with the same config, continue or report that all is done."""
    refuse_launcher()
    config.name = run_name(config)
    if in_sweep() and is_finished(config):
        log.info("run %s: finished before, skipped", config.name)
        return
    if config.resume != "auto" and answers_requeue(config):
        log.info("resume=%s: it asked for a requeue and goes on; remove its REQUEUE to begin as typed", config.resume)
        config.resume = "auto"
    check_launch(config)
    if config.launch.count > 1:
        check(config)
        drive(config)
    else:
        train(config, Setup())


def check(config: TrainRun) -> list[Source]:
    """Make every check that needs nothing large, and return the corpora. Raises UserError."""
    sources = checked_sources(config)
    check_mixture(sources, config)
    check_tracking(config.tracking)
    check_writable(Path(config.runs), "runs")
    if config.chat.hears and config.cache.mode != "online":
        check_writable(Path(config.cache.dir), "cache.dir")
    return sources


def train(config: TrainRun, setup: Setup) -> None:
    """Train in this process, one of `config.launch.count`. `config.name` is resolved."""
    try:
        _train(config, setup)
    finally:  # also where a checkpoint was refused, nothing of accelerate's stays in this process
        AcceleratorState._reset_state()


def _train(config: TrainRun, setup: Setup) -> None:
    sources = check(config)
    folder = Path(config.runs) / config.name
    found = setup.main_says(lambda: str(claim_run_folder(folder, config.resume)[1] or ""))
    parts = assemble(config, sources)
    data = training_data(config, parts)
    started = time.time()
    tracker = Tracker(folder, config.tracking, to_plain(config))
    trainer = build_trainer(config, setup, parts, data, tracker)
    if found:
        resume(trainer, Path(found), config)
    else:
        calibrate(config, parts, data)
    if setup.is_main:  # now: the config was accepted
        write_text_atomic(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(config)))
        write_run_json(folder, config, parts, trainer, "running", started)
    _describe(config, parts, data, trainer)
    state = "failed"
    try:
        trainer.fit(preflight if config.trainer.preflight else lambda _: None)
        state = "finished"
    except Stopped as stopped:
        state = "stopped"
        write_requeue(folder, "train", stopped)
        raise
    finally:
        with first_error_counts():
            tracker.finish()
            if setup.is_main:
                write_data_json(folder, config, parts, trainer)
                write_run_json(folder, config, parts, trainer, state, started)
    if setup.is_main:
        print(f"trained: {checkpoints(folder / 'checkpoints')[-1]}\nnext: omnichat evaluate run={folder}")


def resume(trainer: Trainer, path: Path, config: TrainRun) -> None:
    """Go on from a checkpoint, to the end of the pass if the run has one: changed settings may cut the rest of it into
    more or fewer steps."""
    trainer.resume(path, config.resume_despite)
    if config.trainer.steps is None:
        steps = trainer.data.steps(trainer.state.place, trainer.state.step)
        trainer.stepper.total_steps = steps


def build_trainer(config: TrainRun, setup: Setup, parts: Assembly, data: TrainingData, tracker: Tracker) -> Trainer:
    """The trainer of a run, with its dev split and what samples replies to it."""
    dev = [item for items in split_items(parts.sources, parts.chat, "dev").values() for item in items]

    def dev_batches() -> Iterator[Batch]:
        for items in fixed_batches(dev, config.loader.batch_tokens):
            yield collate(items, parts.features)

    folder = Path(config.runs) / config.name
    settings = replace(config.trainer, steps=data.steps() if config.trainer.steps is None else config.trainer.steps)
    trainer = Trainer(
        parts.model, data, dev_batches, settings, folder, config.seed, identity(config, parts), tracker,
        config.launch, setup.progress,
    )  # fmt: skip
    trainer.sampler = build_sampler(
        parts.sources, dev, parts.chat, parts.features, config.trainer.watch, folder, trainer.precision,
        config.loader.batch_tokens,
    )  # fmt: skip
    return trainer


def identity(config: TrainRun, parts: Assembly) -> dict[str, object]:
    """What a checkpoint must agree on to be continued: all settings that set the result, and all fingerprints."""
    plain = result_settings(to_plain(config))
    for source in plain["mixture"]["sources"].values():
        source.pop("path")  # a corpus may move; its fingerprint says whether it changed
    for part in (plain["llm"], *plain["experts"].values()):
        part.pop("path", None)  # so may weights
    tokenizer = parts.chat.tokenizer
    return {
        "config": plain,
        "data": {source.name: source.corpus.fingerprint() for source in parts.sources},
        "experts": parts.expert_fingerprints,
        "experts_order": list(parts.expert_fingerprints),  # in which the fusion takes them; a dict is compared without
        "llm": parts.llm_fingerprint,
        "tokenizer": sha256_bytes(f"{tokenizer.backend_tokenizer.to_str()}{tokenizer.chat_template}".encode()),
    }


def _mixed(config: TrainRun, data: TrainingData) -> str:
    """The mixture in words."""
    mixture = config.mixture
    asked = f"alpha={mixture.alpha:g}"
    if data.dialogues_per_step is not None:
        knots = ", ".join(f"{alpha:g} at {step:g}" for step, alpha in mixture.schedule)
        asked = f"alpha {knots} (a step taken as {data.dialogues_per_step:.1f} dialogues)"
    length = data.plan.mixture.length
    once = f", one pass of {mixture.one_pass_of} = {length} dialogues" if length is not None else ""
    return f"{asked} (real share of every {mixture.unit}){once}"


def _describe(config: TrainRun, parts: Assembly, data: TrainingData, trainer: Trainer) -> None:
    for expert, text in parts.expert_descriptions.items():
        log.info("expert %s: %s", expert, text)
    for source in parts.sources:
        stand_in = " (STAND-IN, not the real corpus)" if source.corpus.stand_in else ""
        log.info(
            "source %s: %s, %d training sequences%s", source.name, source.kind, len(data.items[source.name]), stand_in
        )
    trainable = sum(p.numel() for p in parts.model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in parts.model.parameters())
    log.info(
        "run %s: input=%s, %s, %d steps, %s on %s, %d threads",
        config.name, config.chat.input, _mixed(config, data), trainer.steps, trainer.precision,
        trainer.accelerator.device, torch.get_num_threads(),
    )  # fmt: skip
    log.info("trainable %.2fM of %.1fM parameters; %s", trainable / 1e6, total / 1e6, " ".join(sys.argv))
