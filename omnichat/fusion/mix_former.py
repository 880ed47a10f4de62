"""Mix-Former: a window-level Q-Former over all experts (OmniChat, arXiv 2501.01384; SALMONN, arXiv 2310.13289).

What differs from the published one, on purpose: windows are spans of time and not of frames, so experts of any rate
and clips of any length line up; padding is never seen; and a frame's place inside its window is known to the model.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn

from omnichat.encoders.base import StreamSpec
from omnichat.fusion.base import (
    FusedAudio,
    Fusion,
    LayerMix,
    OutputScale,
    WindowFrames,
    gather_frames,
    slot_mask,
    window_frames,
)
from omnichat.schema import EncodedAudio
from omnichat.utils.errors import UserError

_TIME_FREQUENCIES = 8


class _ExpertInput(nn.Module):
    """One expert's frames at the common width: learned mix of layers, norm, projection, expert embedding."""

    def __init__(self, spec: StreamSpec, width: int) -> None:
        super().__init__()
        self.mix = LayerMix(spec.layers) if spec.layers > 1 else nn.Identity()
        self.norm = nn.LayerNorm(spec.width)
        self.project = nn.Linear(spec.width, width)
        self.expert = nn.Parameter(0.02 * torch.randn(width))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() == 4 and x.shape[1] == 1:
            x = x[:, 0]
        return self.project(self.norm(self.mix(x.float()))) + self.expert


class _Attention(nn.Module):
    """Multi-head attention that also returns its weights; float32 softmax, fully masked keys weigh nothing."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)

    def forward(self, x_NKD: Tensor, keys_NMD: Tensor, mask_NM: Tensor | None) -> tuple[Tensor, Tensor]:
        """[N, K, D] attends to [N, M, D]: the result [N, K, D] and the weights, mean over heads, [N, K, M]."""

        def split(x: Tensor) -> Tensor:
            return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

        q, k, v = split(self.query(x_NKD)), split(self.key(keys_NMD)), split(self.value(keys_NMD))
        scores = (q @ k.transpose(-1, -2)).float() / math.sqrt(q.shape[-1])
        if mask_NM is not None:
            scores = scores.masked_fill(~mask_NM[:, None, None, :], -math.inf)
        weights = scores.softmax(-1)
        return self.out((weights.to(v.dtype) @ v).transpose(1, 2).flatten(2)), weights.detach().mean(1)


class _Block(nn.Module):
    """Pre-norm block: the window's queries talk to each other (if several), listen to the frames, think."""

    def __init__(self, width: int, heads: int, queries: int, dropout: float) -> None:
        super().__init__()
        self.self_norm = nn.LayerNorm(width) if queries > 1 else None
        self.self_attention = _Attention(width, heads) if queries > 1 else None
        self.cross_norm = nn.LayerNorm(width)
        self.cross_attention = _Attention(width, heads)
        self.feed_norm = nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, keys: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        if self.self_attention is not None and self.self_norm is not None:
            normed = self.self_norm(x)
            x = x + self.dropout(self.self_attention(normed, normed, None)[0])
        heard, weights = self.cross_attention(self.cross_norm(x), keys, mask)
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
        out_rms: root mean square of the output at the start; the LLM's own embeddings' is right.
    """

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
        out_rms: float = 0.1,
    ) -> None:
        if not window_sec > 0 or min(queries, width, layers, heads) < 1 or width % heads or not 0 <= dropout < 1:
            raise UserError(
                f"fusion: window_sec > 0, queries, layers, heads >= 1, width a multiple of heads and dropout in [0, 1) "
                f"are needed, got window_sec={window_sec} queries={queries} width={width} layers={layers} "
                f"heads={heads} dropout={dropout}"
            )
        super().__init__(specs, out_width, window_sec, queries)
        self.inputs = nn.ModuleDict({name: _ExpertInput(spec, width) for name, spec in self.specs.items()})
        self.time = nn.Linear(2 * _TIME_FREQUENCIES, width)
        self.key_norm = nn.LayerNorm(width)
        self.query = nn.Parameter(0.02 * torch.randn(queries, width))
        self.blocks = nn.ModuleList([_Block(width, heads, queries, dropout) for _ in range(layers)])
        self.out = OutputScale(width, out_width, out_rms)

    def forward(self, streams: Mapping[str, EncodedAudio], seconds_B: Tensor) -> FusedAudio:
        self.check_streams(streams)
        windows_B = self.windows(seconds_B)
        places = {name: window_frames(streams[name], windows_B, self.window_sec) for name in self.specs}
        _lend_nearest(places)
        keys_BWMD = torch.cat([self._keys(name, streams[name], places[name]) for name in self.specs], dim=2)
        mask_BWM = torch.cat([places[name].valid_BWM for name in self.specs], dim=2)
        batch, windows = mask_BWM.shape[:2]

        # Zeros, and not whatever padding holds: a weight of 0 times NaN would be NaN.
        keys = self.key_norm(keys_BWMD.masked_fill(~mask_BWM[..., None], 0.0)).flatten(0, 1)
        mask = mask_BWM.flatten(0, 1)
        x = self.query.expand(batch * windows, -1, -1)
        weights = torch.zeros(mask.shape, device=mask.device)
        for block in self.blocks:
            x, seen_NKM = cast(tuple[Tensor, Tensor], block(x, keys, mask))
            weights = weights + seen_NKM.mean(1) / len(self.blocks)
        slots_BS = slot_mask(windows_B, self.queries, mask.device)
        x_BSD = self.out(x.unflatten(0, (batch, windows)).flatten(1, 2)) * slots_BS[..., None]
        widths = [places[name].valid_BWM.shape[2] for name in self.specs]
        attention = torch.stack([part.sum(-1) for part in weights.split(widths, dim=1)], dim=-1)
        return FusedAudio(x_BSD, slots_BS, attention.unflatten(0, (batch, windows)))

    def _keys(self, name: str, stream: EncodedAudio, places: WindowFrames) -> Tensor:
        """An expert's frames in their windows, [B, W, M, width], with their time within the window."""
        frames = gather_frames(self.inputs[name](stream.x_BTD), places.index_BWM)
        time = gather_frames(stream.time_sec[..., None], places.index_BWM)[..., 0].double()
        start_W = torch.arange(time.shape[1], device=time.device, dtype=torch.float64)[:, None] * self.window_sec
        # A lent or clamped frame lies outside its window: half a window outside is as far as the encoding tells.
        within = ((time - start_W) / self.window_sec).clamp(-0.5, 1.5).float()
        steps = torch.arange(1, _TIME_FREQUENCIES + 1, device=time.device) * (math.pi / 2)
        angles = within[..., None] * steps
        return frames + self.time(torch.cat([angles.sin(), angles.cos()], dim=-1))


def _lend_nearest(places: dict[str, WindowFrames]) -> None:
    """Give every window without a frame the one frame, over all experts, that lies nearest to its centre.

    This covers padding windows too: no row of the attention is fully masked, so none can become NaN.
    """
    empty_BW = ~torch.stack([p.valid_BWM.any(2) for p in places.values()]).any(0)
    closest_BW = torch.stack([p.distance_BW for p in places.values()]).argmin(0)
    for number, place in enumerate(places.values()):
        lends_BW = empty_BW & (closest_BW == number)
        place.index_BWM[..., 0] = torch.where(lends_BW, place.nearest_BW, place.index_BWM[..., 0])
        place.valid_BWM[..., 0] |= lends_BW
