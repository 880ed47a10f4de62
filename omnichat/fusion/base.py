"""The interface of every fusion: streams of several experts -> windows that the LLM reads as embeddings."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from omnichat.encoders.base import StreamSpec
from omnichat.schema import EncodedAudio


def window_count(seconds: float, window_sec: float) -> int:
    """ceil(seconds / window_sec), at least 1; a surplus below a microsecond, rounding of a header, opens no window."""
    return max(1, math.ceil(seconds / window_sec - 1e-6))


@dataclass(slots=True)
class FusedAudio:
    """What the LLM reads of a batch of clips.

    Attributes:
        x_BSD: [B, S, D] embeddings at the LLM's width, S = windows x queries, in time order.
        mask_BS: bool, True = valid; clip i has exactly `slots(seconds_i)` valid ones, at the front.
        attention_BWE: optional float [B, W, E], the attention mass per window and expert (sums to 1 over the experts,
            in the order of the specs), averaged over layers, heads and queries. No gradient.
    """

    x_BSD: Tensor
    mask_BS: Tensor
    attention_BWE: Tensor | None = None


class Fusion(nn.Module, ABC):
    """Base of all fusions. `specs` maps expert name to StreamSpec; its order is the order of the experts."""

    window_sec: float
    queries: int

    def __init__(self, specs: Mapping[str, StreamSpec], out_width: int, window_sec: float, queries: int) -> None:
        super().__init__()
        self.specs = dict(specs)
        self.out_width = out_width
        self.window_sec = window_sec
        self.queries = queries

    def slots(self, seconds: float) -> int:
        """Embeddings that a clip of `seconds` costs in the LLM's sequence."""
        return window_count(seconds, self.window_sec) * self.queries

    @abstractmethod
    def forward(self, streams: Mapping[str, EncodedAudio], seconds_B: Tensor) -> FusedAudio:
        """Fuse the streams of B clips whose lengths are `seconds_B` (float64, CPU or device)."""


class LayerMix(nn.Module):
    """Learned softmax weights over an expert's layers (as in SUPERB): [B, L, T, D] -> [B, T, D].

    Every layer is normalised first (no affine), so that a layer of large activations does not rule by scale alone.
    """

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(layers))

    def forward(self, x: Tensor) -> Tensor:
        """Mix; a [B, T, D] input (one layer) is passed through."""
        if x.dim() == 3:
            return x
        normed = nn.functional.layer_norm(x.float(), x.shape[-1:])
        return torch.einsum("l,bltd->btd", self.logits.softmax(0), normed)
