"""One optimiser step: the micro-batches of this process, the summed loss over all of them, the update or its skip."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate import Accelerator

from omnichat.data.collate import Batch
from omnichat.training import parallel
from omnichat.training.loss import SUMS, figures, heard_count, objective, split_sums, total_weight
from omnichat.training.optim import schedule, set_learning_rates
from omnichat.training.processes import Processes, Progress
from omnichat.training.settings import TrainerConfig
from omnichat.training.speed import forward_context
from omnichat.training.watch import gradient_norms
from omnichat.utils.seeding import seed_everything


class Stepper:
    """Takes optimiser steps.

    The randomness of a micro-batch is a function of (seed, step, its number in the step over all processes), so that
    neither a resume nor the number of processes changes what drop-out drops.

    Args:
        wrapped: the model as its strategy wraps it (DDP, FSDP2, or bare).
        optimizer: AdamW itself.
        accelerator: autocast, backward, gradient clipping.
        processes: sums over processes.
        config: loss, optimiser, switches.
        total_steps: of the run and its schedule; a resumed single pass may change it.
        seed: of dropout.
        progress: where this process is.
    """

    def __init__(
        self,
        wrapped: Any,
        optimizer: torch.optim.Optimizer,
        accelerator: Accelerator,
        processes: Processes,
        config: TrainerConfig,
        total_steps: int,
        seed: int,
        progress: Progress,
    ) -> None:
        self.wrapped = wrapped
        self.optimizer = optimizer
        self.accelerator = accelerator
        self.processes = processes
        self.total_steps = total_steps
        self.loss, self.optim, self.speed, self.watch = config.loss, config.optim, config.speed, config.watch
        self.seed = seed
        self.progress = progress
        # On the peak learning rates; the learning-rate finder puts its sweep here.
        self.factor_at: Callable[[int], float] = lambda step: schedule(step, self.total_steps, config.optim)

    def take(self, step: int, micro: Sequence[Batch]) -> dict[str, float] | None:
        """Take step number `step` (from 0) with this process's micro-batches, in the order of the stream.

        Returns:
            The step's figures over all processes; None if loss or gradient was not finite and nothing was updated.
        """
        self.wrapped.train()
        factor = self.factor_at(step)
        set_learning_rates(self.optimizer, factor, self.optim)
        sums, weight, heard = self.backward(step, micro)
        norms = gradient_norms(self.optimizer) if self.watch.gradient_norms else {}
        finite = bool(torch.isfinite(sums).all())  # equal on all ranks: reduced
        norm = parallel.update(self.optimizer, self.accelerator, self.optim.clip_norm, allowed=finite)
        if norm is None:
            return None
        return {
            **figures(sums, weight, heard, self.loss),
            "lr_fusion": factor * self.optim.lr_fusion,
            "lr_lora": factor * self.optim.lr_lora,
            "grad_norm": norm,
            **norms,
        }

    def backward(self, step: int, micro: Sequence[Batch]) -> tuple[torch.Tensor, float, float]:
        """Leave the gradient of the step's loss in the parameters.

        Returns:
            (sums, weight, heard): the summed figures of `loss.split_sums` and what the loss was divided by, all over
            every process.
        """
        counts = torch.tensor([total_weight(micro, self.loss), heard_count(micro)], dtype=torch.float64)
        weight, heard = self.processes.sum(counts).clamp(min=1e-12).tolist()
        sums = torch.zeros(len(SUMS), dtype=torch.float64, device=self.accelerator.device)
        for number, batch in enumerate(micro):
            seed_everything(self.seed, "step", step, number * self.processes.count + self.processes.index)
            last = number == len(micro) - 1
            with contextlib.nullcontext() if last else parallel.no_sync(self.wrapped, self.accelerator):
                self.progress.at(step, "forward")
                with self.accelerator.autocast(), forward_context(self.speed):
                    losses = self.wrapped(batch, self.loss.terms)
                # DDP averages gradients over processes; we want their sum, divided by all that is supervised.
                scaled = objective(losses, self.loss, weight, heard) * self.processes.count
                self.progress.at(step, "backward")
                parallel.backward(self.wrapped, self.accelerator, scaled)
                sums += split_sums(losses)
        return self.processes.sum(sums), weight, heard
