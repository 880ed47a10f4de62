"""Perceiver: the windows' latents attend to all frames of the clip, and then to each other.

Perceiver (Jaegle et al. 2021, arXiv 2103.03206) with one cross-attention; Flamingo's resampler (Alayrac et al. 2022,
arXiv 2204.14198) gives an LLM such latents. Ours has a number of latents that grows with the clip.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from omnichat.encoders.base import StreamSpec
from omnichat.fusion.attention import Attention, sines, split_heads
from omnichat.fusion.base import ExpertInput, FusedAudio, Fusion, Knobs, OutputScale, check_settings, slot_mask
from omnichat.schema import EncodedAudio

_TIME_FREQUENCIES = 24
_LONGEST_SEC = 60.0  # period of the slowest sinusoid: clips are rarely longer than half of it


class _Block(nn.Module):
    """Pre-norm block: attention to a memory (None: to itself), then a feed-forward layer."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.feed_norm = nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BSD: Tensor, mask_BM: Tensor, memory_BMD: Tensor | None = None) -> Tensor:
        """[B, S, D] latents attend where `mask_BM` is True, in every clip at one place at least."""
        own = self.norm(x_BSD)
        x_BSD = x_BSD + self.dropout(self._attend(own, own if memory_BMD is None else memory_BMD, mask_BM))
        return x_BSD + self.dropout(self.feed(self.feed_norm(x_BSD)))

    def _attend(self, x_BSD: Tensor, memory_BMD: Tensor, mask_BM: Tensor) -> Tensor:
        """No weights are kept: memory grows with the frames, not with the frames times the latents."""
        attention = self.attention
        q, k, v = (
            split_heads(project(x), attention.heads)
            for project, x in ((attention.query, x_BSD), (attention.key, memory_BMD), (attention.value, memory_BMD))
        )
        heard = scaled_dot_product_attention(q, k, v, attn_mask=mask_BM[:, None, None, :])
        return attention.out(heard.transpose(1, 2).flatten(2))


class Perceiver(Fusion):
    """`queries` latents a window attend to all experts' frames of the whole clip, then `layers` times to each other.

    Frames and latents carry sinusoids of their time in the clip (a latent's is its place in its window), frames also
    an expert embedding. Nothing ties a latent to its window but that time: at the start the cross-attention's query and
    key projections are equal, so that a latent listens around its own time first and may learn to look elsewhere.

    The attention mass (of a model that is not in training) is that of the cross-attention, added up over each expert's
    frames, averaged over heads and the window's latents.

    Args:
        specs: what each expert emits; the order of the experts.
        out_width: the LLM's embedding width.
        window_sec: length of a window in seconds.
        queries: latents, and slots, a window.
        width, heads, dropout: of the attention blocks.
        layers: self-attention blocks after the cross-attention.
        hidden: width inside the feed-forward layers; None: 4 x width.
        expert_dropout: in training, probability that an expert is silent for a clip.
        out_rms: root mean square of the output at the start; the LLM's own embeddings' is right.
    """

    knobs = Knobs(coarse="width", fine="hidden", ratio=4.0, step="heads")
    local = False

    def __init__(
        self,
        specs: Mapping[str, StreamSpec],
        out_width: int,
        window_sec: float = 0.34,
        queries: int = 1,
        width: int = 212,
        layers: int = 2,
        heads: int = 4,
        dropout: float = 0.1,
        hidden: int | None = None,
        expert_dropout: float = 0.0,
        out_rms: float = 0.1,
    ) -> None:
        super().__init__(specs, out_width, window_sec, queries, expert_dropout)
        hidden = 4 * width if hidden is None else hidden
        check_settings(dropout, heads, width=width, layers=layers, hidden=hidden)
        self.inputs = nn.ModuleDict({name: ExpertInput(spec, width) for name, spec in self.specs.items()})
        self.expert = nn.ParameterDict({name: 0.02 * torch.randn(width) for name in self.specs})
        self.time = nn.Linear(2 * _TIME_FREQUENCIES, width, bias=False)
        self.memory_norm = nn.LayerNorm(width)
        self.latent = nn.Parameter(0.02 * torch.randn(queries, width))
        self.cross = _Block(width, heads, hidden, dropout)
        self.blocks = nn.ModuleList([_Block(width, heads, hidden, dropout) for _ in range(layers)])
        self.out = OutputScale(width, out_width, out_rms)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        nn.init.normal_(self.time.weight, std=_TIME_FREQUENCIES**-0.5)  # time is as loud as what was heard
        nn.init.normal_(self.cross.attention.query.weight, std=width**-0.5)
        with torch.no_grad():
            self.cross.attention.key.weight.copy_(self.cross.attention.query.weight)

    def fuse(self, streams: Mapping[str, EncodedAudio], seconds_B: Tensor, context_BD: Tensor | None) -> FusedAudio:
        windows_B = self.windows(seconds_B)
        memory_BMD = self.memory_norm(torch.cat([self._frames(name, streams[name]) for name in self.specs], dim=1))
        heard_BM = torch.cat([streams[name].mask_BT for name in self.specs], dim=1)
        mask_BS = slot_mask(windows_B, self.queries, heard_BM.device)
        place_S = (torch.arange(mask_BS.shape[1], device=heard_BM.device) + 0.5) * (self.window_sec / self.queries)
        latent_SD = self.latent.repeat(mask_BS.shape[1] // self.queries, 1) + self._time(place_S)

        x_BSD = latent_SD.expand(len(windows_B), -1, -1)
        mass_BWE = None
        if not self.training:  # the weights are computed for the picture alone: training does without
            mass_BWE = self._mass(x_BSD, memory_BMD, heard_BM, [streams[n].mask_BT.shape[1] for n in self.specs])
            mass_BWE = mass_BWE * mask_BS[:, :: self.queries, None]
        x_BSD = self.cross(x_BSD, heard_BM, memory_BMD)
        for block in self.blocks:
            x_BSD = block(x_BSD, mask_BS)
        return FusedAudio(self.out(x_BSD) * mask_BS[..., None], mask_BS, mass_BWE)

    def _frames(self, name: str, stream: EncodedAudio) -> Tensor:
        """An expert's frames, [B, T, width], with their expert and their time; zero where invalid."""
        x_BTD = self.inputs[name](self.standard[name](stream.x_BTD))
        x_BTD = x_BTD + self.expert[name] + self._time(stream.time_sec.masked_fill(~stream.mask_BT, 0.0))
        return x_BTD.masked_fill(~stream.mask_BT[..., None], 0.0)

    def _time(self, time_sec: Tensor) -> Tensor:
        """Seconds, [...], to [..., width]: periods from half a window to a minute, evenly spaced by ratio."""
        shortest = torch.tensor(0.5 * self.window_sec, dtype=torch.float64)
        steps_P = torch.linspace(0, 1, _TIME_FREQUENCIES, dtype=torch.float64)
        periods_P = shortest * (_LONGEST_SEC / shortest).clamp(min=2.0) ** steps_P
        return self.time(sines(time_sec, periods_P.to(time_sec.device)))

    @torch.no_grad()
    def _mass(self, x_BSD: Tensor, memory_BMD: Tensor, heard_BM: Tensor, frames_E: list[int]) -> Tensor:
        """The cross-attention's mass on each expert, float32 [B, W, E].

        Computed a second time, clip by clip, so that no more than one clip's weights exist at a time.
        """
        attention = self.cross.attention
        q = split_heads(attention.query(self.cross.norm(x_BSD)), attention.heads)
        k = split_heads(attention.key(memory_BMD), attention.heads)
        shares = []
        for q_HSD, k_HMD, heard_M in zip(q, k, heard_BM, strict=True):
            scores_HSM = (q_HSD @ k_HMD.transpose(-1, -2)).float() * q_HSD.shape[-1] ** -0.5
            weights_SM = scores_HSM.masked_fill(~heard_M, -torch.inf).softmax(-1).mean(0)
            shares.append(torch.stack([part.sum(1) for part in weights_SM.split(frames_E, dim=1)], dim=1))
        mass_BSE = torch.stack(shares)
        return cast(Tensor, mass_BSE.unflatten(1, (-1, self.queries)).mean(2))
