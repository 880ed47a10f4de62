"""Late cross-attention: one expert asks the others, each in its turn, and then weighs their answers.

Attention from one modality to another is MulT's (Tsai et al. 2019, arXiv 1906.00295); the second attention, over the
answers, is Libovicky and Helcl's hierarchical combination (2017, arXiv 1704.06567).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
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
    check_settings,
    slot_mask,
    to_windows,
    window_frames,
)
from omnichat.schema import EncodedAudio
from omnichat.utils.errors import one_of


@dataclass(slots=True)
class _Others:
    """What a block listens to: for each expert but the primary its frames [F, D], and where they lie, [N, M] twice."""

    frames: dict[str, Tensor]
    index: dict[str, Tensor]
    mask: dict[str, Tensor]


class _Block(nn.Module):
    """Pre-norm block: the primary's parts ask every other expert, weigh the answers and their own, and think."""

    def __init__(self, others: list[str], width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.cross = nn.ModuleDict({name: Attention(width, heads) for name in others})
        self.own = nn.Linear(width, width)
        self.ask = nn.Linear(width, width, bias=False)
        self.answer_norm = nn.LayerNorm(width)
        self.answer = nn.Linear(width, width, bias=False)
        self.feed_norm = nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_NPD: Tensor, others: _Others, there_NE: Tensor) -> tuple[Tensor, Tensor]:
        """The parts, changed, and the weights of the sources, primary first, [N, E], no gradient."""
        asking = self.norm(x_NPD)
        answers = [self.own(asking)]
        for name, cross in self.cross.items():
            heard, _ = cast(Attention, cross).to_frames(
                asking, others.frames[name], others.index[name], others.mask[name]
            )
            answers.append(heard)
        x_NPED = torch.stack(answers, dim=2)
        keys_NPED = self.answer(self.answer_norm(x_NPED))
        scores_NPE = (self.ask(asking)[:, :, None] * keys_NPED).float().sum(-1) / math.sqrt(keys_NPED.shape[-1])
        shares_NPE = scores_NPE.masked_fill(~there_NE[:, None], -math.inf).softmax(-1)
        x_NPD = x_NPD + self.dropout((shares_NPE[..., None] * x_NPED).sum(2))
        return x_NPD + self.dropout(self.feed(self.feed_norm(x_NPD))), shares_NPE.detach().mean(1)


class CrossAttention(Fusion):
    """The primary expert's parts of a window ask each other expert's frames of that window, layer by layer.

    The primary is mean-pooled in `parts` equal parts of a window (a part without a frame takes its nearest one). Every
    layer has one attention per other expert, to its frames of the window (a window without one: its nearest one). The
    answers and the primary's own part, as projected values, are then weighed by a second attention, a softmax over the
    experts that the clip has: these shares, averaged over parts and layers, are the attention mass. They are shares of
    what each layer adds; the primary's pooled frames enter by the residual stream as well, whatever its share is.

    Learned queries, one a part, are added to the primary's parts; where a clip lacks the primary they ask alone.

    Args:
        specs: what each expert emits; the order of the experts.
        out_width: the LLM's embedding width.
        window_sec: length of a window in seconds.
        queries: slots a window.
        primary: name of the expert that asks; None: the first.
        parts: time steps inside a window that stay apart.
        width, layers, heads, dropout: of the attention blocks.
        hidden: width inside their feed-forward layers; None: 4 x width.
        expert_dropout: in training, probability that an expert is silent for a clip.
        out_rms: root mean square of the output at the start; the LLM's own embeddings' is right.

    Raises:
        UserError: `primary` is no expert.
    """

    knobs = Knobs(coarse="width", fine="hidden", ratio=4.0, step="heads")

    def __init__(
        self,
        specs: Mapping[str, StreamSpec],
        out_width: int,
        window_sec: float = 0.34,
        queries: int = 1,
        primary: str | None = None,
        parts: int = 4,
        width: int = 196,
        layers: int = 2,
        heads: int = 4,
        dropout: float = 0.1,
        hidden: int | None = None,
        expert_dropout: float = 0.0,
        out_rms: float = 0.1,
    ) -> None:
        super().__init__(specs, out_width, window_sec, queries, expert_dropout)
        hidden = 4 * width if hidden is None else hidden
        check_settings(dropout, heads, parts=parts, width=width, layers=layers, hidden=hidden)
        if primary is not None and primary not in self.specs:
            raise one_of("fusion.primary", primary, list(self.specs))
        self.primary = next(iter(self.specs)) if primary is None else primary
        self.others = [name for name in self.specs if name != self.primary]
        self.parts = parts
        self.inputs = nn.ModuleDict({name: ExpertInput(spec, width) for name, spec in self.specs.items()})
        self.key_norm = nn.ModuleDict({name: nn.LayerNorm(width) for name in self.others})
        self.time = nn.ModuleDict({name: nn.Linear(2 * WINDOW_FREQUENCIES, width) for name in self.others})
        self.query = nn.Parameter(0.02 * torch.randn(parts, width))
        self.blocks = nn.ModuleList([_Block(self.others, width, heads, hidden, dropout) for _ in range(layers)])
        self.merge = nn.Sequential(nn.LayerNorm(parts * width), nn.Linear(parts * width, queries * width))
        self.out = OutputScale(width, out_width, out_rms)
        for module in self.modules():
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def fuse(self, streams: Mapping[str, EncodedAudio], seconds_B: Tensor, context_BD: Tensor | None) -> FusedAudio:
        windows_B = self.windows(seconds_B)
        order = [self.primary, *self.others]
        there_BE = torch.stack([streams[name].mask_BT.any(1) for name in order], dim=1)
        valid_BW = slot_mask(windows_B, 1, there_BE.device)
        clip_N = valid_BW.nonzero()[:, 0]
        others = self._listen(streams, windows_B, valid_BW)

        x_BPD = self.pooled(self.primary, streams[self.primary], windows_B, self.parts)
        x_NPD = x_BPD.unflatten(1, (-1, self.parts))[valid_BW] + self.query
        share_NE = torch.zeros(len(clip_N), len(order), device=x_NPD.device)
        for block in self.blocks:
            x_NPD, seen_NE = cast(tuple[Tensor, Tensor], block(x_NPD, others, there_BE[clip_N]))
            share_NE = share_NE + seen_NE / len(self.blocks)
        x_NKD = self.out(self.merge(x_NPD.flatten(1)).unflatten(-1, (self.queries, -1)))

        attention_BWE = to_windows(share_NE[:, [order.index(name) for name in self.specs]], valid_BW)
        return FusedAudio(
            to_windows(x_NKD, valid_BW).flatten(1, 2), valid_BW.repeat_interleave(self.queries, dim=1), attention_BWE
        )

    def _listen(self, streams: Mapping[str, EncodedAudio], windows_B: Tensor, valid_BW: Tensor) -> _Others:
        """The other experts' frames and where each real window finds its own.

        A window without a frame gets the clip's nearest one, a clip without any the row of zeros behind the last frame,
        so that every window has something to attend to; the shares then leave an absent expert out.
        """
        others = _Others({}, {}, {})
        for name in self.others:
            stream = streams[name]
            frames_FD = self._frames(name, stream)
            others.frames[name] = torch.cat([frames_FD, frames_FD.new_zeros(1, frames_FD.shape[1])])
            places = window_frames(stream, windows_B, self.window_sec)
            count_B = stream.mask_BT.sum(1)
            first_B11 = (count_B.cumsum(0) - count_B)[:, None, None]
            empty_BW1 = ~places.valid_BWM.any(2, keepdim=True)
            lent_BWM = empty_BW1 & (torch.arange(places.valid_BWM.shape[2], device=count_B.device) == 0)
            index_BWM = torch.where(lent_BWM, places.nearest_BW[..., None], places.index_BWM) + first_B11
            index_BWM = torch.where((count_B == 0)[:, None, None], len(frames_FD), index_BWM)
            mask_BWM = places.valid_BWM | lent_BWM
            others.index[name] = index_BWM.masked_fill(~mask_BWM, len(frames_FD))[valid_BW]
            others.mask[name] = mask_BWM[valid_BW]
        return others

    def _frames(self, name: str, stream: EncodedAudio) -> Tensor:
        """An expert's valid frames of all clips, clip after clip, [F, width], with their time in their window."""
        time_FP = self.time[name](window_sines(stream.time_sec[stream.mask_BT], self.window_sec))
        return self.key_norm[name](self.valid_frames(name, stream) + time_FP)
