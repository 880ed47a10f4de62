"""Mix-Former: a window-level Q-Former over all experts (OmniChat, arXiv 2501.01384; SALMONN, arXiv 2310.13289).

What differs from the published one, on purpose: windows are spans of time and not of frames, so experts of any rate
and clips of any length line up; padding is never seen; and a frame's place inside its window is known to the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from omnichat.encoders.base import StreamSpec
from omnichat.fusion.attention import WINDOW_FREQUENCIES, Attention, window_sines
from omnichat.fusion.base import (
    ExpertInput,
    FusedAudio,
    Fusion,
    Knobs,
    OutputScale,
    WindowFrames,
    check_settings,
    slot_mask,
    to_windows,
    window_frames,
)
from omnichat.schema import EncodedAudio


class _Block(nn.Module):
    """Pre-norm block: the window's queries talk to each other (if several), listen to the frames, think."""

    def __init__(self, width: int, heads: int, queries: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(width) if queries > 1 else None
        self.self_attention = Attention(width, heads) if queries > 1 else None
        self.cross_norm = nn.LayerNorm(width)
        self.cross_attention = Attention(width, heads)
        self.feed_norm = nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, frames: Tensor, index: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if self.self_attention is not None and self.self_norm is not None:
            x = x + self.dropout(self.self_attention.to_itself(self.self_norm(x)))
        heard, weights = self.cross_attention.to_frames(self.cross_norm(x), frames, index, mask)
        x = x + self.dropout(heard)
        return x + self.dropout(self.feed(self.feed_norm(x))), weights


class MixFormer(Fusion):
    """K queries a window attend, with a mask, to the union of all experts' frames in that window.

    Args:
        specs: what each expert emits; the order of the experts.
        out_width: the LLM's embedding width.
        window_sec: length of a window in seconds; the paper's 17 frames of 50 Hz are 0.34.
        queries: K, learned queries (and so LLM slots) a window.
        width, layers, heads, dropout: of the Q-Former.
        hidden: width inside its feed-forward layers; None: 4 x width.
        expert_dropout: in training, probability that an expert is silent for a clip.
        conditioned: the queries also depend on the words of the dialogue before the clip (ours; not in the paper).
        out_rms: root mean square of the output at the start; the LLM's own embeddings' is right.
    """

    knobs = Knobs(coarse="width", fine="hidden", ratio=4.0, step="heads")

    def __init__(
        self,
        specs: Mapping[str, StreamSpec],
        out_width: int,
        window_sec: float = 0.34,
        queries: int = 1,
        width: int = 256,
        layers: int = 2,
        heads: int = 4,
        dropout: float = 0.1,
        hidden: int | None = None,
        expert_dropout: float = 0.0,
        conditioned: bool = False,
        out_rms: float = 0.1,
    ) -> None:
        super().__init__(specs, out_width, window_sec, queries, expert_dropout)
        hidden = 4 * width if hidden is None else hidden
        check_settings(dropout, heads, width=width, layers=layers, hidden=hidden)
        self.inputs = nn.ModuleDict({name: ExpertInput(spec, width) for name, spec in self.specs.items()})
        self.expert = nn.ParameterDict({name: 0.02 * torch.randn(width) for name in self.specs})
        self.time = nn.Linear(2 * WINDOW_FREQUENCIES, width)
        self.key_norm = nn.LayerNorm(width)
        self.query = nn.Parameter(0.02 * torch.randn(queries, width))
        self.blocks = nn.ModuleList([_Block(width, heads, queries, hidden, dropout) for _ in range(layers)])
        self.uses_context = conditioned
        self.condition = nn.Sequential(nn.LayerNorm(out_width), nn.Linear(out_width, width)) if conditioned else None
        self.out = OutputScale(width, out_width, out_rms)
        # What every window has in common (biases, time, expert) starts small beside what it heard, for the norms that
        # follow give room to whatever is largest.
        nn.init.normal_(self.time.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.zeros_(module.bias)
        if self.condition is not None:  # starts as the unconditioned model
            nn.init.zeros_(cast(nn.Linear, self.condition[1]).weight)

    def fuse(self, streams: Mapping[str, EncodedAudio], seconds_B: Tensor, context_BD: Tensor | None) -> FusedAudio:
        windows_B = self.windows(seconds_B)
        places = {name: window_frames(streams[name], windows_B, self.window_sec) for name in self.specs}
        _lend_nearest(places)
        frames_FD = self.key_norm(torch.cat([self._frames(name, streams[name]) for name in self.specs]))
        valid_BW = slot_mask(windows_B, 1, frames_FD.device)
        index_NM, mask_NM = self._packed(streams, places, valid_BW)

        x_NKD = self.query.expand(len(index_NM), -1, -1)
        if self.condition is not None:
            if context_BD is None:
                context_BD = torch.zeros(len(windows_B), self.out_width, device=x_NKD.device)
            shift_BD = self.condition(context_BD.float())
            x_NKD = x_NKD + shift_BD[valid_BW.nonzero()[:, 0], None]
        weights_NM = torch.zeros(mask_NM.shape, device=mask_NM.device)
        for block in self.blocks:
            x_NKD, seen_NKM = cast(tuple[Tensor, Tensor], block(x_NKD, frames_FD, index_NM, mask_NM))
            weights_NM = weights_NM + seen_NKM.mean(1) / len(self.blocks)
        x_NKD = self.out(x_NKD)
        counts = [places[name].valid_BWM.shape[2] for name in self.specs]
        shares_NE = torch.stack([part.sum(1) for part in weights_NM.split(counts, dim=1)], dim=1)
        slots_BS = valid_BW.repeat_interleave(self.queries, dim=1)
        return FusedAudio(to_windows(x_NKD, valid_BW).flatten(1, 2), slots_BS, to_windows(shares_NE, valid_BW))

    def _frames(self, name: str, stream: EncodedAudio) -> Tensor:
        """An expert's valid frames of all clips, clip after clip, [F, width], with their time in their window."""
        time_FP = window_sines(stream.time_sec[stream.mask_BT], self.window_sec)
        return self.valid_frames(name, stream) + self.expert[name] + self.time(time_FP)

    def _packed(
        self, streams: Mapping[str, EncodedAudio], places: Mapping[str, WindowFrames], valid_BW: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Rows of `_frames` (all experts, one after the other) that each real window sees: index and mask [N, M]."""
        indices, masks = [], []
        before = 0
        for name in self.specs:
            frames_B = streams[name].mask_BT.sum(1)
            first_B = before + frames_B.cumsum(0) - frames_B
            valid = places[name].valid_BWM
            indices.append((places[name].index_BWM + first_B[:, None, None]).masked_fill(~valid, 0))
            masks.append(valid)
            before += int(frames_B.sum())
        return torch.cat(indices, dim=2)[valid_BW], torch.cat(masks, dim=2)[valid_BW]


def _lend_nearest(places: dict[str, WindowFrames]) -> None:
    """Give every window without a frame the one frame, over all experts, that lies nearest to its centre.

    So no row of the attention is fully masked, and none can become NaN. A lent frame keeps the time of its own window.
    """
    empty_BW = ~torch.stack([p.valid_BWM.any(2) for p in places.values()]).any(0)
    closest_BW = torch.stack([p.distance_BW for p in places.values()]).argmin(0)
    for number, place in enumerate(places.values()):
        lends_BW = empty_BW & (closest_BW == number)
        place.index_BWM[..., 0] = torch.where(lends_BW, place.nearest_BW, place.index_BWM[..., 0])
        place.valid_BWM[..., 0] |= lends_BW
