"""Arithmetic over the valid frames of a padded batch, shared by the experts."""

from __future__ import annotations

import torch
from torch import Tensor


def norm_over_time(x_BCT: Tensor, valid_B: Tensor, weight_C: Tensor, bias_C: Tensor, eps: float) -> Tensor:
    """Normalise each channel over the first `valid_B` frames of its clip, as a GroupNorm of one channel a group does.

    A GroupNorm over a padded clip takes the padding into its statistics and so changes every frame. The statistics are
    float32; the result has the dtype of `x_BCT`, and frames after the valid ones become whatever they become.
    """
    x = x_BCT.float()
    mask = (torch.arange(x.shape[2], device=x.device)[None, :] < valid_B[:, None])[:, None]
    count = valid_B[:, None, None]
    mean = (x * mask).sum(2, keepdim=True) / count
    variance = ((x - mean).square() * mask).sum(2, keepdim=True) / count
    normed = (x - mean) * torch.rsqrt(variance + eps)
    return (normed * weight_C[:, None] + bias_C[:, None]).to(x_BCT.dtype)
