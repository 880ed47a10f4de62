"""Stacking: the experts' frames side by side on the width axis, then an MLP: the baseline that Mix-Former must beat."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from omnichat.encoders.base import StreamSpec
from omnichat.fusion.base import FusedAudio, Fusion, LayerMix, OutputScale, gather_frames, slot_mask, window_frames
from omnichat.schema import EncodedAudio
from omnichat.utils.errors import UserError


class Stack(Fusion):
    """Mean-pools each expert in `parts` equal parts of a window and maps the concatenation to the window's slots.

    A part in which an expert has no frame takes that expert's nearest one. No attention, and no way to prefer one
    expert for one window: what is stacked is heard.

    Args:
        specs: what each expert emits; the order of the experts.
        out_width: the LLM's embedding width.
        window_sec: length of a window in seconds.
        queries: slots a window.
        parts: time steps inside a window that stay apart.
        width: of each expert's projection; `hidden`: of the MLP.
        dropout: on the MLP's hidden layer.
        out_rms: root mean square of the output at the start; the LLM's own embeddings' is right.
    """

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
        out_rms: float = 0.1,
    ) -> None:
        if not window_sec > 0 or min(queries, parts, width, hidden) < 1 or not 0 <= dropout < 1:
            raise UserError(
                f"fusion: window_sec > 0, queries, parts, width, hidden >= 1 and dropout in [0, 1) are needed, got "
                f"window_sec={window_sec} queries={queries} parts={parts} width={width} hidden={hidden} "
                f"dropout={dropout}"
            )
        super().__init__(specs, out_width, window_sec, queries)
        self.parts = parts
        self.mixes = nn.ModuleDict({n: LayerMix(s.layers) for n, s in self.specs.items() if s.layers > 1})
        self.norms = nn.ModuleDict({name: nn.LayerNorm(spec.width) for name, spec in self.specs.items()})
        self.projects = nn.ModuleDict({name: nn.Linear(spec.width, width) for name, spec in self.specs.items()})
        self.feed = nn.Sequential(nn.Linear(parts * width * len(self.specs), hidden), nn.GELU(), nn.Dropout(dropout))
        self.out = OutputScale(hidden, queries * out_width, out_rms)

    def forward(self, streams: Mapping[str, EncodedAudio], seconds_B: Tensor) -> FusedAudio:
        self.check_streams(streams)
        windows_B = self.windows(seconds_B)
        stacked = torch.cat([self._pool(name, streams[name], windows_B) for name in self.specs], dim=-1)
        batch, windows = len(windows_B), int(windows_B.max())
        x = self.out(self.feed(stacked.view(batch, windows, -1)))
        mask = slot_mask(windows_B, self.queries, x.device)
        return FusedAudio(x.view(batch, windows * self.queries, self.out_width) * mask[..., None], mask)

    def _pool(self, name: str, stream: EncodedAudio, windows_B: Tensor) -> Tensor:
        """Mean of an expert's frames in every part of every window: [B, W x parts, width]."""
        x = self.standard[name](stream.x_BTD)
        if name in self.mixes:
            x = self.mixes[name](x)
        elif x.dim() == 4:
            x = x[:, 0]
        x = self.projects[name](self.norms[name](x))
        places = window_frames(stream, windows_B * self.parts, self.window_sec / self.parts)
        valid = places.valid_BWM[..., None]
        pooled = (gather_frames(x, places.index_BWM) * valid).sum(2) / valid.sum(2).clamp(min=1)
        nearest = gather_frames(x, places.nearest_BW[..., None])[:, :, 0]
        return torch.where(valid.any(2), pooled, nearest)
