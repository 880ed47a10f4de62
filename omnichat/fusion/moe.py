"""Mixture of experts: for every window a router picks the audio experts that are worth hearing.

The idea of sparse routing with noise is Shazeer et al.'s (arXiv 1701.06538); routing between audio encoders by what
they hear is MoWE-Audio's (arXiv 2409.06635).
"""

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
from omnichat.utils.errors import UserError


class MixtureOfExperts(Fusion):
    """A router picks `top_k` of the clip's experts for every window; each has a feed-forward adapter of its own.

    An expert's frames are projected, mean-pooled in `parts` equal parts of a window (a part without a frame takes the
    nearest one) and mapped by its adapter to the window's slots. The router sees all experts' means of the window; the
    probabilities of the experts that it picks are scaled to sum to 1 and weigh the adapters' outputs. They are the
    attention mass: an expert that was not picked has none.

    There are only a handful of experts, so all adapters run for all windows: no parameter ever leaves the graph (a
    distributed run needs that), and the router's gradient can be straight-through, that of the full softmax: it also
    learns what an expert that it did not pick would have been worth, and `top_k=1` trains too.

    Args:
        specs: what each expert emits; the order of the experts.
        out_width: the LLM's embedding width.
        window_sec: length of a window in seconds.
        queries: slots a window.
        parts: time steps inside a window that stay apart.
        top_k: experts that a window hears, at most; fewer where the clip has fewer.
        width: of each expert's projection and adapter's output; `hidden`: inside the adapters.
        dropout: on the adapters' hidden layers.
        router_noise: standard deviation of the noise on the router's scores in training; 0: none.
        expert_dropout: in training, probability that an expert is silent for a clip.
        out_rms: root mean square of the output at the start; the LLM's own embeddings' is right.
    """

    knobs = Knobs(coarse="width", fine="hidden", ratio=2.0)

    def __init__(
        self,
        specs: Mapping[str, StreamSpec],
        out_width: int,
        window_sec: float = 0.34,
        queries: int = 1,
        parts: int = 4,
        top_k: int = 2,
        width: int = 224,
        hidden: int = 480,
        dropout: float = 0.1,
        router_noise: float = 0.0,
        expert_dropout: float = 0.0,
        out_rms: float = 0.1,
    ) -> None:
        super().__init__(specs, out_width, window_sec, queries, expert_dropout)
        check_settings(dropout, parts=parts, top_k=top_k, width=width, hidden=hidden)
        if not 0 <= router_noise < math.inf:
            raise UserError(f"fusion.router_noise must be at least 0, got {router_noise}")
        self.parts = parts
        self.top_k = top_k
        self.router_noise = router_noise
        self.inputs = nn.ModuleDict({name: ExpertInput(spec, width) for name, spec in self.specs.items()})
        self.router = nn.Linear(width * len(self.specs), len(self.specs))
        nn.init.zeros_(self.router.bias)
        self.adapters = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.Linear(parts * width, hidden),
                    nn.GELU(),
                    nn.Dropout(dropout),
                    nn.Linear(hidden, queries * width),
                )
                for name in self.specs
            }
        )
        self.out = OutputScale(width, out_width, out_rms)

    def fuse(self, streams: Mapping[str, EncodedAudio], seconds_B: Tensor, context_BD: Tensor | None) -> FusedAudio:
        windows_B = self.windows(seconds_B)
        batch, windows = len(windows_B), int(windows_B.max())
        adapted, means = [], []
        for name, stream in streams.items():
            x_BPD = self.pooled(name, stream, windows_B, self.parts)
            x_BWPD = x_BPD.view(batch, windows, self.parts, -1)
            means.append(x_BWPD.mean(2))
            adapted.append(self.adapters[name](x_BWPD.flatten(2)))
        there_BE = torch.stack([stream.mask_BT.any(1) for stream in streams.values()], dim=1)
        scores_BWE = self.router(torch.cat(means, dim=-1)).float()
        if self.training and self.router_noise > 0:
            scores_BWE = scores_BWE + self.router_noise * torch.randn_like(scores_BWE)
        picked_BWE, weights_BWE = route(scores_BWE, there_BE, self.top_k)
        x_BWD = (torch.stack(adapted, dim=-1) * weights_BWE[:, :, None]).sum(-1)
        mask_BS = slot_mask(windows_B, self.queries, x_BWD.device)
        x_BSD = self.out(x_BWD.view(batch, windows * self.queries, -1)) * mask_BS[..., None]
        return FusedAudio(x_BSD, mask_BS, picked_BWE)


def route(scores_BWE: Tensor, there_BE: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Weights of the `top_k` best experts among those of the clip, summing to 1, zero for the others.

    Args:
        scores_BWE: float32 [B, W, E], the router's.
        there_BE: bool [B, E], whether the clip has the expert at all; one at least.
        top_k: how many to keep.

    Returns:
        The weights without gradient, and equal ones whose gradient is that of the softmax over all experts of the clip.
    """
    soft_BWE = scores_BWE.masked_fill(~there_BE[:, None], -math.inf).softmax(-1)
    best_BWK = soft_BWE.topk(min(top_k, soft_BWE.shape[-1]), dim=-1).indices
    kept_BWE = torch.zeros_like(soft_BWE).scatter(-1, best_BWK, 1.0) * soft_BWE
    picked_BWE = (kept_BWE / kept_BWE.sum(-1, keepdim=True)).detach()
    return picked_BWE, picked_BWE + (soft_BWE - soft_BWE.detach())
