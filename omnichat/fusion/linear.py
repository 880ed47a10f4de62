"""Linear down-sampling: neighbouring frames side by side, then two linear layers (SLAM-LLM, arXiv 2402.08846)."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from omnichat.encoders.base import StreamSpec
from omnichat.fusion.base import (
    FusedAudio,
    Fusion,
    Knobs,
    LayerMix,
    check_settings,
    mean_at_time,
    slot_mask,
    window_frames,
)
from omnichat.schema import EncodedAudio


class LinearDownsample(Fusion):
    """SLAM-LLM's projector (Ma et al., 2024): k frames on the width axis, Linear, ReLU, Linear.

    SLAM-LLM has one encoder and drops a tail of less than k frames. Here a window is divided into `frames` equal steps,
    each expert gives every step its frame that is nearest in time (the mean, where several have that one time: bands),
    and the experts stand side by side. For one expert of frames / window_sec Hz this is SLAM-LLM's projector; a tail is
    filled with the last frame. An absent expert is zero.

    Args:
        specs: what each expert emits; the order of the experts.
        out_width: the LLM's embedding width.
        window_sec: length of a window in seconds; SLAM-LLM's 5 frames of 50 Hz are 0.1.
        frames: k, steps inside a window.
        queries: slots a window; SLAM-LLM has one.
        hidden: width between the two linear layers; SLAM-LLM's is 2048.
        expert_dropout: in training, probability that an expert is silent for a clip.
        out_rms: root mean square of the output at the start, for standardised frames. Without a norm, as in SLAM-LLM,
            it follows the scale of the frames.
    """

    knobs = Knobs(coarse="hidden", fine="hidden", ratio=1.0)  # the one size that it has

    def __init__(
        self,
        specs: Mapping[str, StreamSpec],
        out_width: int,
        window_sec: float = 0.1,
        frames: int = 5,
        queries: int = 1,
        hidden: int = 2048,
        expert_dropout: float = 0.0,
        out_rms: float = 0.1,
    ) -> None:
        super().__init__(specs, out_width, window_sec, queries, expert_dropout)
        check_settings(0.0, frames=frames, hidden=hidden)
        self.frames = frames
        self.mixes = nn.ModuleDict({name: LayerMix(spec.layers) for name, spec in specs.items() if spec.layers > 1})
        inputs = frames * sum(spec.width for spec in self.specs.values())
        self.first = nn.Linear(inputs, hidden)
        self.second = nn.Linear(hidden, queries * out_width)
        # Unit variance in gives unit root mean square behind the ReLU, and out_rms behind the second layer.
        nn.init.normal_(self.first.weight, std=math.sqrt(2 / inputs))
        nn.init.normal_(self.second.weight, std=out_rms / math.sqrt(hidden))
        nn.init.zeros_(self.first.bias)
        nn.init.zeros_(self.second.bias)

    def fuse(self, streams: Mapping[str, EncodedAudio], seconds_B: Tensor, context_BD: Tensor | None) -> FusedAudio:
        windows_B = self.windows(seconds_B)
        steps = torch.cat([self._at_steps(name, streams[name], windows_B) for name in self.specs], dim=-1)
        x = self.second(torch.relu(self.first(steps.flatten(2))))
        mask_BS = slot_mask(windows_B, self.queries, x.device)
        x_BSD = x.view(len(windows_B), -1, self.out_width)
        return FusedAudio(x_BSD * mask_BS[..., None], mask_BS)

    def _at_steps(self, name: str, stream: EncodedAudio, windows_B: Tensor) -> Tensor:
        """The stream's frames that are nearest in time to the steps of each window: [B, W, frames, D]."""
        absent_BT1 = ~stream.mask_BT[..., None]
        x = self.standard[name](stream.x_BTD)
        x_BTD = x.masked_fill(absent_BT1 if x.dim() == 3 else absent_BT1[:, None], 0.0)
        if x.dim() == 4:
            x_BTD = self.mixes[name](x_BTD) if name in self.mixes else x_BTD[:, 0]
        nearest_BS = window_frames(stream, windows_B * self.frames, self.window_sec / self.frames).nearest_BW
        return mean_at_time(x_BTD, stream, nearest_BS).unflatten(1, (-1, self.frames))
