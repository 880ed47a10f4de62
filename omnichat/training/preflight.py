"""Out of memory at once or not at all: the largest batches go forward and backward before the first step.

Nothing of the run is touched: no step is taken, and gradients, random state and mode are put back.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from accelerate.utils.memory import should_reduce_batch_size

from omnichat.data.batching import Draw
from omnichat.data.collate import collate
from omnichat.text.chat import IGNORE
from omnichat.training.data import TrainingData
from omnichat.training.trainer import Trainer
from omnichat.training.watch import peak_memory
from omnichat.utils.errors import UserError
from omnichat.utils.log import get_logger

log = get_logger(__name__)
_POOLS = 4  # first pools of the plan that are searched


def preflight(trainer: Trainer) -> None:
    """Run the largest batches of a trainer's data, with every process taking part, and say what memory they took.

    Raises:
        UserError: out of memory; it names the size of the batch and what to lower.
    """
    for name, draws in largest(trainer.data).items():
        size = f"the {name} batch of the data ({len(draws)} dialogues)"
        try:
            with _untouched(trainer):
                figures = _run(trainer, draws)
        except (RuntimeError, MemoryError) as error:
            if not (isinstance(error, MemoryError) or should_reduce_batch_size(error)):
                raise
            raise UserError(
                f"out of memory on {trainer.accelerator.device} in {size}: lower "
                f"loader.batch_tokens={trainer.data.loader.batch_tokens}, or set trainer.speed.checkpointing=true"
            ) from None
        memory = peak_memory()
        trainer.tracker.row("preflight", step=trainer.state.step, batch=name, **figures, **memory)
        log.info(
            "preflight: %s went through, %d x %d positions with %d supervised; %s",
            size, figures["rows"], figures["positions"], figures["supervised"],
            ", ".join(f"{key} {value:.2f}" for key, value in memory.items()),
        )  # fmt: skip


def largest(data: TrainingData) -> dict[str, list[Draw]]:
    """What to try: the batch with the most positions in the first pools, and one around the longest dialogue of all.

    The latter is filled up to the budget with the longest dialogues of the first pools.
    """
    draws: dict[Draw, int] = {}
    most: tuple[int, list[Draw]] = (0, [])
    for number in range(_POOLS):
        for batch in data.plan.pool(number):
            draws |= {draw: data.plan.length(draw.source, draw.index) for draw in batch}
            most = max(most, (_positions(data, batch), batch), key=lambda pair: pair[0])
    tops = [Draw(0, name, int(items.totals["longest"])) for name, items in data.items.items() if len(items)]
    around = [max(tops, key=lambda draw: data.plan.length(draw.source, draw.index))]
    for draw in sorted(draws, key=lambda draw: (-draws[draw], draw.position)):
        if _positions(data, [*around, draw]) > data.loader.batch_tokens:
            break
        if (draw.source, draw.index) != (around[0].source, around[0].index):
            around.append(draw)
    return {"largest": most[1], "longest": around}


def _positions(data: TrainingData, batch: Sequence[Draw]) -> int:
    """Positions of a batch: padded to the longest, or packed without gaps."""
    lengths = [data.plan.length(draw.source, draw.index) for draw in batch]
    return sum(lengths) if data.loader.pack else len(lengths) * max(lengths)


def _run(trainer: Trainer, draws: Sequence[Draw]) -> dict[str, int]:
    """Forward and backward of one batch, while room is held for the moments that the first step will add."""
    data = trainer.data
    batch = collate([data.items[draw.source][draw.index] for draw in draws], data.features, pack=data.loader.pack)
    parameters = [p for group in trainer.optimizer.param_groups for p in group["params"]]
    moments = [torch.empty_like(p) for p in parameters if not trainer.optimizer.state.get(p) for _ in range(2)]
    trainer.stepper.backward(trainer.state.step, [batch.to(trainer.accelerator.device)])
    del moments
    rows, positions = batch.mask_BS.shape
    return {"rows": rows, "positions": positions, "supervised": int((batch.labels_BS != IGNORE).sum())}


@contextlib.contextmanager
def _untouched(trainer: Trainer) -> Iterator[None]:
    """Put random state, gradients and the model's mode back, whatever comes."""
    training, of_python, of_numpy = trainer.wrapped.training, random.getstate(), np.random.get_state()
    devices = [trainer.accelerator.device] if trainer.accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        try:
            trainer.wrapped.train()
            yield
        finally:
            trainer.optimizer.zero_grad(set_to_none=True)
            trainer.wrapped.train(training)
            random.setstate(of_python)
            np.random.set_state(of_numpy)
