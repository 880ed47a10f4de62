"""The training loop: one pass over every dialogue's replies, resumable to the bit at optimiser steps.

The randomness of a micro-batch is a function of (seed, step, its number in the step), the data of (seed, place); so a
checkpoint holds no generator state, and a resumed run repeats the very numbers of one that was never stopped.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs, gather_object

from omnichat.data.batching import Draw, Place
from omnichat.data.collate import Batch
from omnichat.data.units import MixtureCounter
from omnichat.model.omnichat import OmniChat
from omnichat.training import checkpoint as ckpt
from omnichat.training import parallel
from omnichat.training.data import TrainingData
from omnichat.training.identity import refuse_changes
from omnichat.training.loss import SUMS, means, split_sums
from omnichat.training.processes import LaunchConfig, Processes, Progress
from omnichat.training.samples import Sampler
from omnichat.training.settings import TrainerConfig, resolve_precision
from omnichat.training.speed import apply_speed
from omnichat.training.step import Stepper
from omnichat.training.tracking import Tracker
from omnichat.training.watch import Watch, progress_line
from omnichat.utils.errors import UserError
from omnichat.utils.log import get_logger
from omnichat.utils.progress import progress
from omnichat.utils.signals import answered

log = get_logger(__name__)


@dataclass(slots=True)
class RunState:
    """All that a checkpoint holds besides tensors."""

    step: int = 0
    place: Place = field(default_factory=Place)
    drawn: dict[str, int] = field(default_factory=dict)
    amounts: dict[str, list[float]] = field(default_factory=dict)  # of the mixture's unit, see MixtureCounter
    best_dev: float | None = None
    best_step: int | None = None
    dev_step: int = 0  # the last step after which the dev loss was taken
    accepted: list[dict[str, Any]] = field(default_factory=list)  # changes that resume_despite let pass, see `resume`


class Stopped(Exception):
    """The job was asked to stop (SIGTERM, Ctrl-C) and has saved itself.

    Args:
        message: for the user.
        step: that a training run has saved; None for an evaluation.
        by: the signal; one of several processes' SIGTERM counts for all.
    """

    def __init__(self, message: str, step: int | None, by: signal.Signals) -> None:
        super().__init__(message)
        self.step, self.by = step, by


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
        launch: how the model is spread over the processes; they are there already.
        progress: where this process is.
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
        launch: LaunchConfig | None = None,
        progress: Progress | None = None,
    ) -> None:
        assert config.steps is not None, "who makes a trainer turns one pass into steps first"
        self.config = config
        self.data = data
        self.dev_batches = dev_batches
        self.run = run
        self.identity = identity
        self.tracker = tracker
        self.precision = resolve_precision(config.precision)
        launch = launch or LaunchConfig()
        self.progress = progress or Progress()
        # accelerate keeps the precision of a process's first run, and refuses another; each trainer has its own.
        AcceleratorState._reset_state()
        self.accelerator = Accelerator(
            mixed_precision="bf16" if self.precision == "bf16" else "no",
            cpu=launch.cpu or not torch.cuda.is_available(),
            kwargs_handlers=[
                DistributedDataParallelKwargs(broadcast_buffers=False),
                InitProcessGroupKwargs(timeout=launch.collective_timeout),
            ],
        )
        self.processes = Processes(self.accelerator)
        if config.micro_batches % self.processes.count:
            raise UserError(
                f"trainer.micro_batches={config.micro_batches} cannot be shared by {self.processes.count} processes; "
                f"make it a multiple of {self.processes.count}"
            )
        self.model = model
        apply_speed(model, config.speed)
        self.wrapped, self.optimizer = parallel.spread(model, config.optim, self.accelerator, launch)
        self.stepper = Stepper(
            self.wrapped, self.optimizer, self.accelerator, self.processes, config, config.steps, seed, self.progress
        )
        self.watch = Watch(config.watch, model, self.processes, run, self.precision)
        self.sampler: Sampler | None = None  # set by whoever has dev dialogues to sample replies to
        self.sample_everywhere = launch.strategy != "ddp"  # a sharded model's forward is collective
        self.state = RunState()
        self.counter = MixtureCounter(data.kinds)
        self._stop = False
        self._terminated = False  # asked by SIGTERM, not by Ctrl-C

    @property
    def steps(self) -> int:
        """Optimiser steps of the whole run."""
        return self.stepper.total_steps

    def resume(self, path: Path, despite: Sequence[str] = ()) -> None:
        """Continue from a checkpoint.

        Args:
            path: the checkpoint.
            despite: families of changes that are meant, see `identity.FAMILIES`; what they let pass is logged and kept.

        Raises:
            UserError: it is damaged, of another run's making, or does not fit this model.
        """
        trainables, moments, saved = ckpt.load_checkpoint(path)
        changed = refuse_changes(saved["identity"], self._identity(), path, despite)
        accepted = [
            {"step": saved["state"]["step"], "key": change.key, "saved": change.saved, "now": change.now}
            for change in changed
        ]
        parallel.load_trainable_state(self.model, trainables)
        parallel.load_optimizer_state(self.optimizer, self.model, moments)
        self.state = RunState(**{**saved["state"], "place": Place(**saved["state"]["place"])})
        self.state.accepted += accepted
        other_data = any(change.family == "data" for change in changed)
        if other_data or not self._has_best(path.parent):  # a loss that this run's dev losses cannot be held against
            self.state.best_dev = self.state.best_step = None
        self.counter.load(self.state.drawn, self.state.amounts)
        self.tracker.row("resume", step=self.state.step, checkpoint=path.name)
        if accepted:
            self.tracker.row("resume_despite", step=self.state.step, changes=accepted)
            log.warning("resuming despite %d changes: %s", len(accepted), ", ".join(c["key"] for c in accepted))
        log.info("resuming at step %d from %s", self.state.step, path)

    def _has_best(self, folder: Path) -> bool:
        """Whether `folder` is this run's own, and its best checkpoint still there."""
        own, best = self.run / "checkpoints", f"step-{self.state.best_step or 0:06d}"
        return folder.resolve() == own.resolve() and (own / best / ckpt.MARKER).is_file()

    def fit(self, before: Callable[[Trainer], None] = lambda _: None) -> RunState:
        """Train to the last step, after `before`, in which a stop may be asked for as in a step.

        Raises Stopped when asked to stop, UserError when the loss stays non-finite.
        """
        batches = self.data.batches(self.state.place, self.processes.index, self.processes.count)
        places = self.data.places(self.state.place)
        bar = progress(self.steps, "train", unit="step", initial=self.state.step)
        skips_in_a_row = 0
        with self._signals(), contextlib.closing(bar):
            before(self)
            if self.processes.any(self._stop):
                raise self._stopped("before its first step, nothing to save; the same command starts it")
            if self.state.step and self._dev_due():
                self._after_step()  # a stop came between this step and its dev loss
            while self.state.step < self.steps:
                start = time.perf_counter()
                self.progress.at(self.state.step, "data")
                micro = self._next_micro_batches(batches, places)
                waited_sec = time.perf_counter() - start
                row = self.stepper.take(self.state.step, micro)
                self.state.step += 1
                if row is None:
                    skips_in_a_row += 1
                    self._skipped(micro, skips_in_a_row)
                else:
                    skips_in_a_row = 0
                    self._report(row, micro, time.perf_counter() - start, waited_sec, bar)
                bar.update(1)
                self._after_step()
        self.progress.at(self.state.step, "end")
        self.tracker.row("end", step=self.state.step, best_dev=self.state.best_dev)
        return self.state

    def _next_micro_batches(self, batches: Iterator[Batch], places: Iterator[tuple[list[Draw], Place]]) -> list[Batch]:
        """This process's share of the step's batches; the place in the stream moves past everyone's."""
        share = self.config.micro_batches // self.processes.count
        micro = [next(batches).to(self.accelerator.device) for _ in range(share)]
        for _ in range(self.config.micro_batches):
            draws, self.state.place = next(places)
            for draw in draws:
                self.counter.add(draw.source, self.data.amount(draw))
        self.state.drawn, self.state.amounts = dict(self.counter.drawn), dict(self.counter.amounts)
        return micro

    def _skipped(self, micro: list[Batch], in_a_row: int) -> None:
        """Log a step that was not finite, with its dialogues over all processes.

        Raises:
            UserError: there were too many in a row; the same on every process.
        """
        shares = [[list(batch.dialogues) for batch in micro]]
        shares = gather_object(shares) if self.processes.count > 1 else shares
        names = [d for together in zip(*shares, strict=True) for dialogues in together for d in dialogues]
        self.tracker.row("skip", step=self.state.step, dialogues=names)
        log.warning("step %d skipped: loss or gradient not finite; dialogues: %s", self.state.step, names)
        if in_a_row > self.config.max_skips:
            raise UserError(f"loss or gradient not finite in {in_a_row} steps in a row; last: {', '.join(names)}")

    def _report(self, row: dict[str, float], micro: list[Batch], seconds: float, waited_sec: float, bar: Any) -> None:
        figures = self.watch.figures(micro, seconds, waited_sec)
        mixed = self.data.mixture_figures(self.counter)
        bar.set_postfix_str(progress_line(row, figures, mixed["alpha_realised"]))
        if self.state.step % self.config.log_every == 0:
            self.tracker.row("step", step=self.state.step, **row, **mixed, **figures)

    def _after_step(self) -> None:
        step, last = self.state.step, self.state.step == self.steps
        stop = self.processes.any(self._stop)
        if not stop:
            self._sample()
        if self._dev_due() and (last or not stop):
            self._dev()
            stop = self.processes.any(self._stop)
        is_best = self.state.best_step == step  # `checkpoint=best` must find it, whatever the rhythm of checkpoints
        if last or stop or is_best or step % self.config.checkpoint_every == 0:
            self.save()
        if stop and not (last and not self._dev_due()):
            raise self._stopped(f"at step {step}, saved; the same command continues it")

    def _stopped(self, how: str) -> Stopped:
        """Log the end of a run that was asked to stop; what to raise."""
        self.tracker.row("stopped", step=self.state.step)
        by = signal.SIGTERM if self.processes.any(self._terminated) else signal.SIGINT
        return Stopped(f"stopped {how}", self.state.step, by)

    def _sample(self) -> None:
        """Sample replies, where it is time for them; a model that is spread in pieces needs every process."""
        if self.sampler is None or not self.sampler.due(self.state.step):
            return
        if self.processes.is_main or self.sample_everywhere:
            with parallel.gathered(self.model):
                rows = self.sampler.take(self.model, self.state.step, write=self.processes.is_main)
            self.tracker.samples(self.state.step, rows)

    def _dev_due(self) -> bool:
        """Whether the dev loss of this very step is still to be taken."""
        step, every = self.state.step, self.config.dev_every
        rhythm = step > 0 and (step == self.steps or (every > 0 and step % every == 0))
        return rhythm and self.state.dev_step != step

    @torch.no_grad()
    def _dev(self) -> None:
        """Loss on the dev split; leaves the model in training mode and the random state of the next step alone.

        When a stop is asked for meanwhile it is given up, to be taken when the run goes on.
        """
        self.model.eval()
        sums = torch.zeros(len(SUMS), dtype=torch.float64, device=self.accelerator.device)
        given_up, batches = False, iter(self.dev_batches())
        while round_ := list(itertools.islice(batches, self.processes.count)):  # a batch for each process, or fewer
            if given_up := self.processes.any(self._stop):
                break
            mine = self.processes.index if self.processes.index < len(round_) else None
            if mine is None and not parallel.forward_is_collective(self.model):
                continue
            self.progress.at(self.state.step, "dev loss")
            with self.accelerator.autocast():
                losses = self.model(round_[mine or 0].to(self.accelerator.device))
            if mine is not None:  # else the others needed this forward pass, and its batch is another's to count
                sums += split_sums(losses)
        self.model.train()
        if given_up:
            return
        self.state.dev_step = self.state.step
        row = means(self.processes.sum(sums))
        if row["supervised_tokens"] == 0:
            return
        loss = row["loss"]
        if not math.isfinite(loss):  # it must not become the best, which nothing would beat
            self.tracker.row("dev_not_finite", step=self.state.step)
            log.warning("step %d: the dev loss is not finite", self.state.step)
            return
        if self.state.best_dev is None or loss < self.state.best_dev:
            self.state.best_dev, self.state.best_step = loss, self.state.step
        self.tracker.row("dev", step=self.state.step, **row)

    def save(self) -> None:
        """Write a checkpoint: every process gathers, the first one writes.

        Raises:
            UserError: it could not be written; on every process, so that none waits for another.
        """
        self.progress.at(self.state.step, "checkpoint")
        trainables = parallel.trainable_state(self.model)
        moments = parallel.optimizer_state(self.optimizer, self.model)
        folder, problem = self.run / "checkpoints", None
        if self.processes.is_main:
            state = {
                "state": asdict(self.state),
                "identity": self._identity(),
                "best_step": self.state.best_step,
            }
            try:
                ckpt.save_checkpoint(folder, self.state.step, trainables, moments, state, self.config.keep_last)
            except UserError as error:
                problem = error
        if self.processes.any(problem is not None):
            raise problem or UserError(f"{folder}: the first process could not write the checkpoint")

    def _identity(self) -> dict[str, Any]:
        return {**self.identity, "precision": self.precision, "micro_batches_a_step": self.config.micro_batches}

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Turn SIGTERM and the first Ctrl-C into a flag that is read after the step."""

        def ask(which: signal.Signals) -> None:
            if self.processes.is_main:  # one speaks for all
                log.warning("%s: finishing this step, then saving", which.name)
            self._stop = True
            self._terminated |= which == signal.SIGTERM

        with answered(ask):
            yield
