"""The training loop: one pass over every dialogue's replies, resumable to the bit at optimiser steps.

The randomness of step s is a function of (seed, s, rank), the data of (seed, place); so a checkpoint holds no generator
state, and a resumed run repeats the very numbers of one that was never stopped.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from omnichat.data.batching import Place
from omnichat.data.collate import Batch
from omnichat.data.mixture import MixtureCounter
from omnichat.model.omnichat import OmniChat
from omnichat.training import checkpoint as ckpt
from omnichat.training.data import TrainingData
from omnichat.training.loss import LossConfig, heard_count, split_sums, total_weight, weighted_sum
from omnichat.training.optim import OptimConfig, build_optimizer, schedule, set_learning_rates
from omnichat.training.tracking import Tracker
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.log import get_logger
from omnichat.utils.progress import progress
from omnichat.utils.seeding import seed_everything

log = get_logger(__name__)
PRECISIONS = ("auto", "bf16", "fp32")


@dataclass(kw_only=True, slots=True)
class TrainerConfig:
    """Length, precision and rhythm of a run."""

    steps: int = 200  # optimiser steps
    accumulate: int = 1  # micro-batches a step on each process
    precision: str = "auto"  # auto (bf16 where the hardware multiplies it natively) | bf16 | fp32
    log_every: int = 1  # steps between rows of log.jsonl
    dev_every: int = 50  # steps between dev losses; 0 = at the end only
    checkpoint_every: int = 50  # steps between checkpoints; the last step always has one
    keep_last: int = 2  # checkpoints kept, besides the one with the best dev loss
    calibration_clips: int = 128  # recordings whose features set the fusion's standardisation; 0 = leave it out
    max_skips: int = 5  # steps in a row that may be skipped for a loss or gradient that is not finite
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        for name, least in (
            ("steps", 1),
            ("accumulate", 1),
            ("log_every", 1),
            ("dev_every", 0),
            ("checkpoint_every", 1),
            ("keep_last", 1),
            ("calibration_clips", 0),
            ("max_skips", 0),
        ):
            if getattr(self, name) < least:
                raise UserError(f"trainer.{name} must be at least {least}, got {getattr(self, name)}")
        if self.precision not in PRECISIONS:
            raise one_of("trainer.precision", self.precision, PRECISIONS)


def resolve_precision(precision: str) -> str:
    """Turn "auto" into bf16 or fp32: bf16 where this machine's matrix units take it."""
    if precision != "auto":
        return precision
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported() else "fp32"
    return "bf16" if torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported() else "fp32"


@dataclass(slots=True)
class RunState:
    """All that a checkpoint holds besides tensors."""

    step: int = 0
    place: Place = field(default_factory=Place)
    drawn: dict[str, int] = field(default_factory=dict)
    best_dev: float | None = None
    best_step: int | None = None
    dev_step: int = 0  # the last step after which the dev loss was taken


class Stopped(Exception):
    """The run was asked to stop (SIGTERM, Ctrl-C) and has saved itself."""


class Trainer:
    """Trains an OmniChat on a mixture.

    Args:
        model: on any device; moved to the accelerator's.
        data: the training stream.
        dev_batches: makes the dev batches anew at each call.
        config: steps, precision, rhythm.
        run: the run's folder.
        seed: of dropout.
        identity: what a checkpoint must agree on to be resumed (config, fingerprints), as nested dicts of plain values.
        tracker: receives rows.
    """

    def __init__(
        self,
        model: OmniChat,
        data: TrainingData,
        dev_batches: Callable[[], Iterator[Batch]],
        config: TrainerConfig,
        run: Path,
        seed: int,
        identity: dict[str, Any],
        tracker: Tracker,
    ) -> None:
        self.config = config
        self.data = data
        self.dev_batches = dev_batches
        self.run = run
        self.seed = seed
        self.identity = identity
        self.tracker = tracker
        self.precision = resolve_precision(config.precision)
        self.accelerator = Accelerator(
            mixed_precision="bf16" if self.precision == "bf16" else "no",
            cpu=not torch.cuda.is_available(),
            kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
        )
        if (started := int(os.environ.get("WORLD_SIZE", "1"))) != self.accelerator.num_processes:
            raise UserError(
                f"{started} processes were started, but accelerate runs {self.accelerator.num_processes}: on CPU start "
                "them with ACCELERATE_USE_CPU=true torchrun --nproc_per_node=..."
            )
        self.model = model
        # The scheduler is ours (a prepared one steps once a process), so only model and optimiser are prepared.
        optimizer = build_optimizer(model, config.optim)
        self.wrapped, self.optimizer = self.accelerator.prepare(model, optimizer)
        self.state = RunState()
        self.counter = MixtureCounter(data.kinds)
        self._stop = False

    @property
    def raw_optimizer(self) -> torch.optim.Optimizer:
        """AdamW itself, without accelerate's wrapper."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def resume(self, path: Path) -> None:
        """Continue from a checkpoint. Raises UserError if it is damaged or of another run's making."""
        trainables, moments, saved = ckpt.load_checkpoint(path)
        ckpt.refuse_changes(saved["identity"], self._identity(), path)
        self.model.load_trainable_state(trainables)
        ckpt.load_optimizer_tensors(self.raw_optimizer, self.model, moments)
        self.state = RunState(**{**saved["state"], "place": Place(**saved["state"]["place"])})
        self.counter.drawn = dict(self.state.drawn)
        self.tracker.row("resume", step=self.state.step, checkpoint=path.name)
        log.info("resuming at step %d from %s", self.state.step, path)

    def fit(self) -> RunState:
        """Train to the last step. Raises Stopped when asked to stop, UserError when the loss stays non-finite."""
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        batches = self.data.batches(self.state.place, rank, world)
        places = self.data.places(self.state.place)
        bar = progress(self.config.steps, "train", unit="step", initial=self.state.step)
        skips_in_a_row = 0
        with self._signals(), contextlib.closing(bar):
            if self._dev_due() and self.state.dev_step != self.state.step:
                self._dev()  # a stop came between this step and its dev loss
            while self.state.step < self.config.steps:
                start = time.perf_counter()
                micro = [next(batches).to(self.accelerator.device) for _ in range(self.config.accumulate)]
                for _ in range(self.config.accumulate * world):
                    draws, self.state.place = next(places)
                    for draw in draws:
                        self.counter.add(draw.source)
                self.state.drawn = dict(self.counter.drawn)
                row = self._step(micro)
                self.state.step += 1
                skipped = row is None
                skips_in_a_row = skips_in_a_row + 1 if skipped else 0
                if skips_in_a_row > self.config.max_skips:
                    names = ", ".join(d for batch in micro for d in batch.dialogues)
                    raise UserError(f"loss or gradient not finite in {skips_in_a_row} steps in a row; last: {names}")
                if row is not None:
                    self._report(row, micro, time.perf_counter() - start, bar)
                bar.update(1)
                self._after_step()
        self.tracker.row("end", step=self.state.step, best_dev=self.state.best_dev)
        return self.state

    def _step(self, micro: list[Batch]) -> dict[str, float] | None:
        """One optimiser step; None if it was skipped."""
        self.wrapped.train()
        seed_everything(self.seed, "step", self.state.step, self.accelerator.process_index)
        factor = schedule(self.state.step, self.config.steps, self.config.optim)
        set_learning_rates(self.raw_optimizer, factor, self.config.optim)
        counts = torch.tensor([total_weight(micro, self.config.loss), heard_count(micro)], dtype=torch.float64)
        weight, heard = self._sum_over_ranks(counts.to(self.accelerator.device)).clamp(min=1e-12).tolist()
        sums = torch.zeros(6, dtype=torch.float64, device=self.accelerator.device)
        for number, batch in enumerate(micro):
            last = number == len(micro) - 1
            with contextlib.nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                with self.accelerator.autocast():
                    losses = self.wrapped(batch)
                loss = weighted_sum(losses, self.config.loss) / weight
                loss = loss + self.config.loss.heard_weight * losses.heard_ce_M.sum() / heard
                # DDP averages gradients over ranks; we want the sum over ranks, divided by all that is supervised.
                self.accelerator.backward(loss * self.accelerator.num_processes)
                sums += split_sums(losses)
        sums = self._sum_over_ranks(sums)
        parameters = [p for group in self.raw_optimizer.param_groups for p in group["params"]]
        norm = float(self.accelerator.clip_grad_norm_(parameters, self.config.optim.clip_norm))
        if not (math.isfinite(norm) and bool(torch.isfinite(sums).all())):  # equal on all ranks: both are reduced
            self.raw_optimizer.zero_grad(set_to_none=True)
            names = [d for batch in micro for d in batch.dialogues]
            self.tracker.row("skip", step=self.state.step + 1, grad_norm=repr(norm), dialogues=names)
            log.warning("step %d skipped: loss or gradient not finite; dialogues: %s", self.state.step + 1, names)
            return None
        self.raw_optimizer.step()
        self.raw_optimizer.zero_grad(set_to_none=True)
        style_sum, style_n, words_sum, words_n, heard_sum, heard_n = sums.tolist()
        cfg = self.config.loss
        total = (cfg.style_weight * style_sum + cfg.words_weight * words_sum) / weight
        return {
            "loss": total + cfg.heard_weight * heard_sum / heard,
            "loss_style": style_sum / max(1.0, style_n),
            "loss_words": words_sum / max(1.0, words_n),
            "loss_heard": heard_sum / max(1.0, heard_n),
            "lr_fusion": factor * self.config.optim.lr_fusion,
            "lr_lora": factor * self.config.optim.lr_lora,
            "grad_norm": norm,
            "supervised_tokens": style_n + words_n,
        }

    def _report(self, row: dict[str, float], micro: list[Batch], seconds: float, bar: Any) -> None:
        positions = sum(batch.mask_BS.numel() for batch in micro)
        tokens = sum(int(batch.mask_BS.sum()) for batch in micro)
        share, (low, high) = self.counter.realised()
        rate = tokens * self.accelerator.num_processes / seconds
        bar.set_postfix_str(f"loss {row['loss']:.3f} style {row['loss_style']:.3f} alpha {share:.2f} {rate:.0f} tok/s")
        if self.state.step % self.config.log_every == 0:
            self.tracker.row(
                "step",
                step=self.state.step,
                **row,
                tokens=tokens,
                padding=1 - tokens / positions,
                alpha_realised=share,
                alpha_ci95=[low, high],
                tokens_per_sec=rate,
                seconds=seconds,
            )

    def _after_step(self) -> None:
        step, last = self.state.step, self.state.step == self.config.steps
        stop = self._stop_agreed()
        if last or (self._dev_due() and not stop):
            self._dev()
        is_best = self.state.best_step == step  # `checkpoint=best` must find it, whatever the rhythm of checkpoints
        if last or stop or is_best or step % self.config.checkpoint_every == 0:
            self.save()
        if stop and not last:
            self.tracker.row("stopped", step=step)
            raise Stopped(f"stopped at step {step}, saved; the same command continues it")

    def _dev_due(self) -> bool:
        step, every = self.state.step, self.config.dev_every
        return every > 0 and step > 0 and step % every == 0

    @torch.no_grad()
    def _dev(self) -> None:
        """Loss on the dev split; leaves the model in training mode and the random state of the next step alone."""
        self.model.eval()
        self.state.dev_step = self.state.step
        sums = torch.zeros(6, dtype=torch.float64, device=self.accelerator.device)
        for number, batch in enumerate(self.dev_batches()):
            if number % self.accelerator.num_processes == self.accelerator.process_index:
                with self.accelerator.autocast():
                    sums += split_sums(self.model(batch.to(self.accelerator.device)))
        self.model.train()
        style_sum, style_n, words_sum, words_n, heard_sum, heard_n = self._sum_over_ranks(sums).tolist()
        if style_n + words_n == 0:
            return
        loss = (style_sum + words_sum) / (style_n + words_n)
        if not math.isfinite(loss):  # it must not become the best, which nothing would beat
            self.tracker.row("dev_not_finite", step=self.state.step)
            log.warning("step %d: the dev loss is not finite", self.state.step)
            return
        if self.state.best_dev is None or loss < self.state.best_dev:
            self.state.best_dev, self.state.best_step = loss, self.state.step
        self.tracker.row(
            "dev",
            step=self.state.step,
            loss=loss,
            loss_style=style_sum / max(1.0, style_n),
            loss_words=words_sum / max(1.0, words_n),
            loss_heard=heard_sum / max(1.0, heard_n),
        )

    def save(self) -> None:
        """Write a checkpoint (rank 0)."""
        if self.accelerator.is_main_process:
            ckpt.save_checkpoint(
                self.run / "checkpoints",
                self.state.step,
                self.model.trainable_state(),
                ckpt.optimizer_tensors(self.raw_optimizer, self.model),
                {
                    "state": asdict(self.state),
                    "identity": self._identity(),
                    "best_step": self.state.best_step,
                },
                self.config.keep_last,
            )
        self.accelerator.wait_for_everyone()

    def _identity(self) -> dict[str, Any]:
        micro_batches = self.config.accumulate * self.accelerator.num_processes
        return {**self.identity, "precision": self.precision, "micro_batches_a_step": micro_batches}

    def _sum_over_ranks(self, value: torch.Tensor) -> torch.Tensor:
        if self.accelerator.num_processes == 1:
            return value
        return self.accelerator.reduce(value, reduction="sum")

    def _stop_agreed(self) -> bool:
        """Whether any rank was asked to stop; all ranks get the same answer."""
        flag = torch.tensor(float(self._stop), device=self.accelerator.device)
        return bool(self._sum_over_ranks(flag) > 0)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Turn SIGTERM and the first Ctrl-C into a flag that is read after the step."""

        def ask(number: int, _: Any) -> None:
            log.warning("%s: finishing this step, then saving", signal.Signals(number).name)
            self._stop = True
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C means now

        try:
            old = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
        except ValueError:  # not the main thread: signals are somebody else's
            yield
            return
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)
