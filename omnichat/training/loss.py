"""The objective: cross-entropy on style, words and end of turn, each token counted once over the whole step.

docs/OBJECTIVE.md has the formulas, also of the terms that a config may add.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from omnichat.data.collate import Batch
from omnichat.model.token_losses import EXTRAS, Terms, TokenLosses
from omnichat.text.chat import IGNORE, Role
from omnichat.utils.errors import UserError, one_of

DISTILL_ON = ("words", "all")
PARTS = ("style", "words")  # of the supervised tokens; the end of turn counts as words
# What `split_sums` adds up.
SUMS = ("style", "style_n", "words", "words_n", "heard", "heard_n", *(f"{e}_{part}" for e in EXTRAS for part in PARTS))


@dataclass(kw_only=True, slots=True)
class LossConfig:
    """Weights of the supervised tokens (only their ratio matters: the loss is divided by the summed weights)."""

    style_weight: float = 1.0  # of the tokens of "[pitch, speed, emotion]"
    words_weight: float = 1.0  # of the words and the end of turn
    heard_weight: float = 0.0  # of the heard style: mean windows shall point at the LLM's words for it; 0 = the paper's
    label_smoothing: float = 0.0  # share of the target that is spread over the whole vocabulary
    z_weight: float = 0.0  # of (log Z)^2, which keeps the softmax's normaliser near 1; PaLM: 1e-4
    distill_weight: float = (
        0.0  # of the divergence from the same LLM without LoRA, which reads the words; 0 = no teacher
    )
    distill_temperature: float = 1.0  # of teacher and student in that divergence
    distill_on: str = "words"  # words (and end of turn) | all (style too, a format that the teacher has never seen)

    def __post_init__(self) -> None:
        for name in ("style_weight", "words_weight", "heard_weight", "z_weight", "distill_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise UserError(f"trainer.loss.{name} must be finite and not negative, got {getattr(self, name)}")
        if self.style_weight + self.words_weight == 0:
            raise UserError(
                "trainer.loss.style_weight and trainer.loss.words_weight are both 0: nothing would be trained"
            )
        if not 0 <= self.label_smoothing < 1:
            raise UserError(f"trainer.loss.label_smoothing must lie in [0, 1), got {self.label_smoothing}")
        if not 0 < self.distill_temperature < float("inf"):
            raise UserError(
                f"trainer.loss.distill_temperature must be finite and above 0, got {self.distill_temperature}"
            )
        if self.distill_on not in DISTILL_ON:
            raise one_of("trainer.loss.distill_on", self.distill_on, DISTILL_ON)

    @property
    def terms(self) -> Terms:
        """What a training step's forward passes compute besides cross-entropy."""
        return Terms(
            smooth=self.label_smoothing > 0,
            z=self.z_weight > 0,
            distill=self.distill_weight > 0,
            distill_style=self.distill_on == "all",
            temperature=self.distill_temperature,
        )

    @property
    def factors(self) -> dict[str, float]:
        """Factor of every extra term in a token's loss, beside 1 - label_smoothing of its cross-entropy."""
        return {"smooth": self.label_smoothing, "z": self.z_weight, "distill": self.distill_weight}


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
    """Weighted sum of the token losses with all their terms (a scalar, not yet divided)."""
    is_style = losses.roles_N == int(Role.STYLE)
    weights = torch.where(is_style, config.style_weight, config.words_weight)
    token_N = losses.ce_N
    if config.label_smoothing > 0:
        token_N = (1 - config.label_smoothing) * token_N
    for name, factor in config.factors.items():
        if factor > 0:
            token_N = token_N + factor * losses.extra[name]
    return (token_N * weights).sum()


def split_sums(losses: TokenLosses) -> Tensor:
    """float64 [len(SUMS)]: summed loss and count of style tokens, of words and end of turn, of heard styles.

    After them the sums of the extra terms over style tokens and over words; 0 for terms that were not computed.
    """
    is_style = losses.roles_N == int(Role.STYLE)
    zero = torch.zeros_like(losses.ce_N, dtype=torch.float64)

    def by_part(values_N: Tensor) -> tuple[Tensor, Tensor]:
        values_N = values_N.detach().double()
        return torch.where(is_style, values_N, zero).sum(), torch.where(is_style, zero, values_N).sum()

    style, words = by_part(losses.ce_N)
    heard = losses.heard_ce_M.detach().double()
    heard_n = torch.tensor(float(heard.numel()), dtype=torch.float64, device=heard.device)
    sums = [style, is_style.sum().double(), words, (~is_style).sum().double(), heard.sum(), heard_n]
    for name in EXTRAS:
        sums += by_part(losses.extra[name]) if name in losses.extra else (zero.sum(), zero.sum())
    return torch.stack(sums)


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
    """The means of a whole training step, with the value of the objective as `loss`.

    `loss_style` and `loss_words` stay plain cross-entropy. `loss_z` and `loss_distill` are means per token that they
    are computed for, before their weights, and only there when they are on.
    """
    total = dict(zip(SUMS, sums.tolist(), strict=True))
    style, words = (
        (1 - config.label_smoothing) * total[part]
        + sum(factor * total[f"{name}_{part}"] for name, factor in config.factors.items())
        for part in PARTS
    )
    tokens = (config.style_weight * style + config.words_weight * words) / weight
    found = means(sums) | {"loss": tokens + config.heard_weight * total["heard"] / heard}
    supervised = total["style_n"] + total["words_n"]
    if config.z_weight > 0:
        found["loss_z"] = (total["z_style"] + total["z_words"]) / max(1.0, supervised)
    if config.distill_weight > 0:
        taught = supervised if config.distill_on == "all" else total["words_n"]
        found["loss_distill"] = (total["distill_style"] + total["distill_words"]) / max(1.0, taught)
    return found
