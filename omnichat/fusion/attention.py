"""Multi-head attention that the fusions share: the four projections, masks, and the weights as a picture."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

WINDOW_FREQUENCIES = 8


class Attention(nn.Module):
    """Multi-head attention with its four projections (Vaswani et al. 2017), softmax in float32."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def to_itself(self, x_NKD: Tensor) -> Tensor:
        """Self-attention, [N, K, D]."""
        return self.out(attend(self.query(x_NKD), self.key(x_NKD), self.value(x_NKD), None, self.heads)[0])

    def to_frames(self, x_NKD: Tensor, frames_FD: Tensor, index_NM: Tensor, mask_NM: Tensor) -> tuple[Tensor, Tensor]:
        """[N, K, D] attends to the frames at `index_NM`: the result [N, K, D] and the weights [N, K, M].

        Keys and values are projected once a frame and gathered afterwards: no work is spent on padding.
        """
        keys, values = (rows(f(frames_FD), index_NM) for f in (self.key, self.value))
        heard, weights = attend(self.query(x_NKD), keys, values, mask_NM, self.heads)
        return self.out(heard), weights


def attend(q_NKD: Tensor, k_NMD: Tensor, v_NMD: Tensor, mask_NM: Tensor | None, heads: int) -> tuple[Tensor, Tensor]:
    """Attention of K queries to M keys: the result [N, K, D], and its weights, mean over heads, no gradient, [N, K, M].

    A row of the mask that is all False gives NaN: callers leave one key to each.
    """

    q, k, v = (split_heads(x, heads) for x in (q_NKD, k_NMD, v_NMD))
    scores = (q @ k.transpose(-1, -2)).float() / math.sqrt(q.shape[-1])
    if mask_NM is not None:
        scores = scores.masked_fill(~mask_NM[:, None, None, :], -math.inf)
    weights = scores.softmax(-1)
    return (weights.to(v.dtype) @ v).transpose(1, 2).flatten(2), weights.detach().mean(1)


def split_heads(x_NKD: Tensor, heads: int) -> Tensor:
    """[N, K, D] -> [N, heads, K, D / heads]."""
    return x_NKD.unflatten(-1, (heads, -1)).transpose(1, 2)


def rows(x_FD: Tensor, index_NM: Tensor) -> Tensor:
    """Pick rows: [F, D] at [N, M] -> [N, M, D]."""
    return x_FD.index_select(0, index_NM.flatten()).view(*index_NM.shape, -1)


def sines(time: Tensor, periods_P: Tensor) -> Tensor:
    """Sine and cosine of a time in seconds at several periods in seconds: [...] -> float32 [..., 2 P].

    The phase is taken in float64: a minute of audio at a period of 40 ms is 1500 turns.
    """
    turns = (time.double()[..., None] / periods_P.double()).frac() * (2 * math.pi)
    return torch.cat([turns.sin(), turns.cos()], dim=-1).float()


def window_sines(time_F: Tensor, window_sec: float) -> Tensor:
    """A frame's place inside its window, [F] seconds to float32 [F, 2 x WINDOW_FREQUENCIES].

    The longest period is four windows, so that no two places in a window look alike.
    """
    within_F = (time_F.double() / window_sec).frac()
    return sines(within_F, 4.0 / torch.arange(1, WINDOW_FREQUENCIES + 1, device=time_F.device))
