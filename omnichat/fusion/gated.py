"""Gated sum: for every stretch of time a soft choice between the experts (Gated Multimodal Units, arXiv 1702.01992)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from omnichat.encoders.base import StreamSpec
from omnichat.fusion.base import (
    ExpertInput,
    FusedAudio,
    Fusion,
    Knobs,
    OutputScale,
    check_settings,
    slot_mask,
)
from omnichat.schema import EncodedAudio


class Gated(Fusion):
    """Weighs the experts in each part of a window by gates that see all of them; their sum becomes the window's slots.

    Every expert is projected to one width and mean-pooled in `parts` equal parts of a window (a part without a frame
    takes the expert's nearest one). The gates of a part are a softmax over the experts that the clip has, of a linear
    map of all experts' parts side by side; the published unit has sigmoid gates and two modalities, the softmax makes
    the gates shares. The gated sums of a window's parts go, in order, through an MLP.

    The gates, averaged over the parts, are the attention mass.

    Args:
        specs: what each expert emits; the order of the experts.
        out_width: the LLM's embedding width.
        window_sec: length of a window in seconds.
        queries: slots a window.
        parts: time steps inside a window that stay apart, each with gates of its own.
        width: of each expert's projection; `hidden`: of the MLP.
        dropout: on the MLP's hidden layer.
        expert_dropout: in training, probability that an expert is silent for a clip.
        out_rms: root mean square of the output at the start; the LLM's own embeddings' is right.
    """

    knobs = Knobs(coarse="width", fine="hidden", ratio=8.0)

    def __init__(
        self,
        specs: Mapping[str, StreamSpec],
        out_width: int,
        window_sec: float = 0.34,
        queries: int = 1,
        parts: int = 4,
        width: int = 176,
        hidden: int = 1392,
        dropout: float = 0.1,
        expert_dropout: float = 0.0,
        out_rms: float = 0.1,
    ) -> None:
        super().__init__(specs, out_width, window_sec, queries, expert_dropout)
        check_settings(dropout, parts=parts, width=width, hidden=hidden)
        self.parts = parts
        self.inputs = nn.ModuleDict({name: ExpertInput(spec, width) for name, spec in self.specs.items()})
        self.gate = nn.Linear(width * len(self.specs), len(self.specs))
        nn.init.zeros_(self.gate.bias)
        self.feed = nn.Sequential(nn.Linear(parts * width, hidden), nn.GELU(), nn.Dropout(dropout))
        self.out = OutputScale(hidden, queries * out_width, out_rms)

    def fuse(self, streams: Mapping[str, EncodedAudio], seconds_B: Tensor, context_BD: Tensor | None) -> FusedAudio:
        windows_B = self.windows(seconds_B)
        pooled = [self.pooled(name, stream, windows_B, self.parts) for name, stream in streams.items()]
        x_BPED = torch.stack(pooled, dim=2)  # P: parts of all windows; zero for an expert that the clip lacks
        there_BE = torch.stack([stream.mask_BT.any(1) for stream in streams.values()], dim=1)
        scores_BPE = self.gate(x_BPED.flatten(2)).float()
        gates_BPE = scores_BPE.masked_fill(~there_BE[:, None], -math.inf).softmax(-1)
        x_BPD = (gates_BPE[..., None] * x_BPED).sum(2)
        batch, windows = len(windows_B), int(windows_B.max())
        x = self.out(self.feed(x_BPD.view(batch, windows, -1)))
        mask_BS = slot_mask(windows_B, self.queries, x.device)
        attention_BWE = gates_BPE.detach().unflatten(1, (windows, self.parts)).mean(2)
        x_BSD = x.view(batch, windows * self.queries, self.out_width) * mask_BS[..., None]
        return FusedAudio(x_BSD, mask_BS, attention_BWE)
