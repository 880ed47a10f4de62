"""The objective: cross-entropy on style, words and end of turn, each token counted once over the whole step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from omnichat.data.collate import Batch
from omnichat.model.omnichat import TokenLosses
from omnichat.text.chat import IGNORE, Role
from omnichat.utils.errors import UserError

SUMS = ("style", "style_n", "words", "words_n", "heard", "heard_n")  # what `split_sums` adds up


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


def total_weight(batches: Sequence[Batch], config: LossConfig) -> float:
    """Summed weight of the supervised tokens of micro-batches: what the step's loss is divided by."""
    total = 0.0
    for batch in batches:
        # Position 0 has no position before it that could predict it.
        roles = batch.roles_BS[:, 1:][batch.labels_BS[:, 1:] != IGNORE]
        style = int((roles == int(Role.STYLE)).sum())
        total += config.style_weight * style + config.words_weight * (roles.numel() - style)
    return total


def heard_count(batches: Sequence[Batch]) -> float:
    """Labelled (recording, attribute) pairs of micro-batches: what the step's heard loss is divided by."""
    return float(sum(int((batch.styles_C3 != IGNORE).sum()) for batch in batches))


def objective(losses: TokenLosses, config: LossConfig, weight: float, heard: float) -> Tensor:
    """A micro-batch's share of the step's loss, a scalar: divided by `weight` and `heard` of the whole step."""
    heard_mean = losses.heard_ce_M.sum() / heard
    return weighted_sum(losses, config) / weight + config.heard_weight * heard_mean


def weighted_sum(losses: TokenLosses, config: LossConfig) -> Tensor:
    """Weighted sum of the token losses (a scalar, not yet divided)."""
    is_style = losses.roles_N == int(Role.STYLE)
    weights = torch.where(is_style, config.style_weight, config.words_weight)
    return (losses.ce_N * weights).sum()


def split_sums(losses: TokenLosses) -> Tensor:
    """float64 [len(SUMS)]: summed loss and count of style tokens, of words and end of turn, of heard styles."""
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


def means(sums: Tensor) -> dict[str, float]:
    """What a log row says of `split_sums`: each part's mean per token, and the mean of style and words together."""
    total = dict(zip(SUMS, sums.tolist(), strict=True))
    supervised = total["style_n"] + total["words_n"]
    return {
        "loss": (total["style"] + total["words"]) / max(1.0, supervised),
        "loss_style": total["style"] / max(1.0, total["style_n"]),
        "loss_words": total["words"] / max(1.0, total["words_n"]),
        "loss_heard": total["heard"] / max(1.0, total["heard_n"]),
        "supervised_tokens": supervised,
    }


def figures(sums: Tensor, weight: float, heard: float, config: LossConfig) -> dict[str, float]:
    """The means of a whole training step, with the value of the objective as `loss`."""
    total = dict(zip(SUMS, sums.tolist(), strict=True))
    tokens = (config.style_weight * total["style"] + config.words_weight * total["words"]) / weight
    return means(sums) | {"loss": tokens + config.heard_weight * total["heard"] / heard}
