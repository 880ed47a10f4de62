"""Stacking: the experts' frames side by side on the width axis, then an MLP: the baseline that Mix-Former must beat."""

from __future__ import annotations

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


class Stack(Fusion):
    """Mean-pools each expert in `parts` equal parts of a window and maps the concatenation to the window's slots.

    A part in which an expert has no frame takes that expert's nearest one; an absent expert is zero. No attention, and
    no way to prefer one expert for one window: what is stacked is heard.

    Args:
        specs: what each expert emits; the order of the experts.
        out_width: the LLM's embedding width.
        window_sec: length of a window in seconds.
        queries: slots a window.
        parts: time steps inside a window that stay apart.
        width: of each expert's projection; `hidden`: of the MLP.
        dropout: on the MLP's hidden layer.
        expert_dropout: in training, probability that an expert is silent for a clip.
        out_rms: root mean square of the output at the start; the LLM's own embeddings' is right.
    """

    knobs = Knobs(coarse="width", fine="hidden", ratio=10.7)

    def __init__(
        self,
        specs: Mapping[str, StreamSpec],
        out_width: int,
        window_sec: float = 0.34,
        queries: int = 1,
        parts: int = 4,
        width: int = 96,
        hidden: int = 1024,
        dropout: float = 0.1,
        expert_dropout: float = 0.0,
        out_rms: float = 0.1,
    ) -> None:
        super().__init__(specs, out_width, window_sec, queries, expert_dropout)
        check_settings(dropout, parts=parts, width=width, hidden=hidden)
        self.parts = parts
        self.inputs = nn.ModuleDict({name: ExpertInput(spec, width) for name, spec in self.specs.items()})
        self.feed = nn.Sequential(nn.Linear(parts * width * len(self.specs), hidden), nn.GELU(), nn.Dropout(dropout))
        self.out = OutputScale(hidden, queries * out_width, out_rms)

    def fuse(self, streams: Mapping[str, EncodedAudio], seconds_B: Tensor, context_BD: Tensor | None) -> FusedAudio:
        windows_B = self.windows(seconds_B)
        pooled = [self.pooled(name, stream, windows_B, self.parts) for name, stream in streams.items()]
        batch, windows = len(windows_B), int(windows_B.max())
        x = self.out(self.feed(torch.cat(pooled, dim=-1).view(batch, windows, -1)))
        mask = slot_mask(windows_B, self.queries, x.device)
        return FusedAudio(x.view(batch, windows * self.queries, self.out_width) * mask[..., None], mask)
