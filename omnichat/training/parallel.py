"""How a model is spread over processes, and its whole state gathered from them.

All functions here are collective: every process calls them.
"""

from __future__ import annotations

from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from omnichat.model.omnichat import OmniChat
from omnichat.training import checkpoint as ckpt
from omnichat.training.optim import OptimConfig, build_optimizer


def spread(
    model: OmniChat, optim: OptimConfig, accelerator: Accelerator, strategy: str
) -> tuple[Any, torch.optim.Optimizer]:
    """Put the model onto its devices. Returns (what to call instead of the model, AdamW itself)."""
    optimizer = build_optimizer(model, optim)
    # The scheduler is ours (a prepared one steps once a process), so only model and optimiser are prepared.
    wrapped, prepared = accelerator.prepare(model, optimizer)
    return wrapped, getattr(prepared, "optimizer", prepared)


def trainable_state(model: OmniChat) -> dict[str, Tensor]:
    """Every trainable, whole, on the CPU, by the names that checkpoints use; complete on the first process."""
    return {name: value.detach().cpu() for name, value in model.trainable_state().items()}


def load_trainable_state(model: OmniChat, state: dict[str, Tensor]) -> None:
    """Put back what `trainable_state` gave. Raises UserError naming the first tensor that does not fit."""
    model.load_trainable_state(state)


def optimizer_state(optimizer: torch.optim.Optimizer, model: OmniChat) -> dict[str, Tensor]:
    """AdamW's state, whole, on the CPU; complete on the first process."""
    return {name: value.detach().cpu() for name, value in ckpt.optimizer_tensors(optimizer, model).items()}


def load_optimizer_state(optimizer: torch.optim.Optimizer, model: OmniChat, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_state` gave. Raises UserError where it does not fit."""
    ckpt.load_optimizer_tensors(optimizer, model, tensors)
