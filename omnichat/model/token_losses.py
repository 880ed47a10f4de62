"""What is computed at the supervised positions: cross-entropy, and on demand what the objective may add to it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

EXTRAS = ("smooth", "z", "distill")  # names of `TokenLosses.extra`


@dataclass(frozen=True, slots=True)
class Terms:
    """Which terms besides cross-entropy a forward pass computes."""

    smooth: bool = False  # mean negative log-probability over the vocabulary
    z: bool = False  # squared log of the softmax's normaliser
    distill: bool = False  # divergence from the same LLM without LoRA, which reads the words
    distill_style: bool = False  # that divergence on the style's tokens too
    temperature: float = 1.0  # of both distributions of the divergence


PLAIN = Terms()


class TokenLosses(NamedTuple):
    """Cross-entropy at each of the N supervised positions: float32 [N], and their roles, uint8 [N].

    A tuple, in which FSDP2's and DeepSpeed's hooks find the tensors.

    `heard_ce_M`: float32 [M], cross-entropy of the heard style, one for each labelled (recording, attribute) pair.
    `extra`: term of EXTRAS -> float32 [N]; only those that were asked for.
    """

    ce_N: Tensor
    roles_N: Tensor
    heard_ce_M: Tensor
    extra: dict[str, Tensor]


def smooth_and_z(logits_NV: Tensor, terms: Terms) -> dict[str, Tensor]:
    """The terms of the student's float32 logits alone, [N] each.

    smooth: -mean_v log p(v), the cross-entropy to the uniform distribution (Szegedy et al. 2016). z: (log Z)^2 (PaLM,
    Chowdhery et al. 2022).
    """
    if not (terms.smooth or terms.z):
        return {}
    log_z_N = torch.logsumexp(logits_NV, dim=-1)
    found = {}
    if terms.smooth:
        found["smooth"] = log_z_N - logits_NV.mean(dim=-1)
    if terms.z:
        found["z"] = log_z_N.square()
    return found


def divergence(student_NV: Tensor, teacher_NV: Tensor, temperature: float) -> Tensor:
    """KL(teacher || student) * temperature^2 of float32 logits, [N] (Hinton et al. 2015; Ultravox).

    The factor keeps the gradient's size when the temperature changes.
    """
    log_q_NV = F.log_softmax(student_NV / temperature, dim=-1)
    log_p_NV = F.log_softmax(teacher_NV / temperature, dim=-1)
    return F.kl_div(log_q_NV, log_p_NV, reduction="none", log_target=True).sum(dim=-1) * temperature**2
