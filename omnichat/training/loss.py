"""The objective: cross-entropy on style, words and end of turn, each token counted once over the whole step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from omnichat.data.collate import Batch
from omnichat.model.omnichat import TokenLosses
from omnichat.text.chat import IGNORE, Role
from omnichat.utils.errors import UserError


@dataclass(kw_only=True, slots=True)
class LossConfig:
    """Weights of the supervised tokens (only their ratio matters: the loss is divided by the summed weights)."""

    style_weight: float = 1.0  # of the tokens of "[pitch, speed, emotion]"
    words_weight: float = 1.0  # of the words and the end of turn
    heard_weight: float = 0.0  # of the heard style: mean windows shall point at the LLM's words for it; 0 = the paper's

    def __post_init__(self) -> None:
        for name in ("style_weight", "words_weight", "heard_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"trainer.loss.{name} must be finite and not negative, got {getattr(self, name)}")
        if self.style_weight + self.words_weight == 0:
            raise UserError(
                "trainer.loss.style_weight and trainer.loss.words_weight are both 0: nothing would be trained"
            )


def total_weight(batches: list[Batch], config: LossConfig) -> float:
    """Summed weight of the supervised tokens of micro-batches: what the step's loss is divided by."""
    total = 0.0
    for batch in batches:
        # Position 0 has no position before it that could predict it.
        roles = batch.roles_BS[:, 1:][batch.labels_BS[:, 1:] != IGNORE]
        style = int((roles == int(Role.STYLE)).sum())
        total += config.style_weight * style + config.words_weight * (roles.numel() - style)
    return total


def heard_count(batches: list[Batch]) -> float:
    """Labelled (recording, attribute) pairs of micro-batches: what the step's heard loss is divided by."""
    return float(sum(int((batch.styles_C3 != IGNORE).sum()) for batch in batches))


def weighted_sum(losses: TokenLosses, config: LossConfig) -> Tensor:
    """Weighted sum of the token losses (a scalar, not yet divided)."""
    is_style = losses.roles_N == int(Role.STYLE)
    weights = torch.where(is_style, config.style_weight, config.words_weight)
    return (losses.ce_N * weights).sum()


def split_sums(losses: TokenLosses) -> Tensor:
    """float64 [6]: summed loss and count of style tokens, of words and end of turn, of heard styles; for logging."""
    is_style = losses.roles_N == int(Role.STYLE)
    ce = losses.ce_N.detach().double()
    zero = torch.zeros_like(ce)
    style = torch.where(is_style, ce, zero)
    words = torch.where(is_style, zero, ce)
    heard = losses.heard_ce_M.detach().double()
    heard_n = torch.tensor(float(heard.numel()), dtype=torch.float64, device=ce.device)
    return torch.stack(
        [style.sum(), is_style.sum().double(), words.sum(), (~is_style).sum().double(), heard.sum(), heard_n]
    )
