"""SALMONN's window-level Q-Former (Tang et al., 2023, arXiv 2310.13289), a baseline: it counts frames, not seconds."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from omnichat.encoders.base import StreamSpec
from omnichat.fusion.base import FusedAudio, Fusion, Knobs, LayerMix, check_settings, slot_mask, to_windows
from omnichat.schema import EncodedAudio

FRAME_RATE_HZ = 50.0  # of Whisper, whose frames SALMONN's windows count
INIT_STD = 0.02  # of the queries


class WindowQFormer(Fusion):
    """What SALMONN does, kept as it is so that it can be compared with.

    Each expert's frames are layer-normed; frame number t of one stands beside frame number t of the others, whatever
    their times are (so the eight bands of a BEATs patch are taken for eight steps of time); the shorter is filled with
    zeros; every clip is filled to `pad_frames`; `frames` in a row are a window, without overlap; a tail that fills no
    window is dropped. One learned query, the same in every window, goes through BERT layers that each have
    cross-attention, and a linear layer to the LLM's width. Zeros are never masked, and nothing tells the place of a
    frame inside its window. So every clip of up to 30 s is 88 windows.

    Where the experts crop their frames to the clip (as Whisper does by default), zeros stand where SALMONN hears
    Whisper's own frames of the silence after the clip; an expert that keeps its padding (`keep_padding`, where it has
    one) gives SALMONN's input exactly. Frames are standardised as for every fusion; `trainer.calibration_clips=0` is
    SALMONN's own. Frames beyond the last window (an expert of more than 50 Hz and clips over 20 s) are not heard.

    Args:
        specs: what each expert emits; the order of the experts.
        out_width: the LLM's embedding width.
        frames: kernel and stride of the windows, in frames.
        pad_frames: length to which shorter clips are filled: 1500, Whisper's 30 s.
        queries: learned queries, and LLM slots, a window.
        width, layers, heads, hidden, dropout: of BERT.
        expert_dropout: in training, probability that an expert is silent for a clip.
        out_rms: root mean square of the output at the start; the LLM's own embeddings' is right.
    """

    knobs = Knobs(coarse="width", fine="hidden", ratio=4.0, step="heads")
    local = False

    def __init__(
        self,
        specs: Mapping[str, StreamSpec],
        out_width: int,
        frames: int = 17,
        pad_frames: int = 1500,
        queries: int = 1,
        width: int = 768,
        layers: int = 2,
        heads: int = 12,
        hidden: int = 3072,
        dropout: float = 0.1,
        expert_dropout: float = 0.0,
        out_rms: float = 0.1,
    ) -> None:
        check_settings(dropout, heads, width=width, layers=layers, hidden=hidden, frames=frames, pad_frames=pad_frames)
        super().__init__(specs, out_width, frames / FRAME_RATE_HZ, queries, expert_dropout)
        self.frames = frames
        self.pad_frames = max(pad_frames, frames)  # a clip has one window at least
        self.mixes = nn.ModuleDict({name: LayerMix(spec.layers) for name, spec in specs.items() if spec.layers > 1})
        self.norms = nn.ModuleDict({name: nn.LayerNorm(spec.width) for name, spec in self.specs.items()})
        self.query = nn.Parameter(INIT_STD * torch.randn(queries, width))
        self.former = Blip2QFormerModel(
            Blip2QFormerConfig(
                hidden_size=width,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                intermediate_size=hidden,
                hidden_dropout_prob=dropout,
                attention_probs_dropout_prob=dropout,
                cross_attention_frequency=1,
                encoder_hidden_size=sum(spec.width for spec in self.specs.values()),
                use_qformer_text_input=False,
            )
        )
        self.out = nn.Linear(width, out_width)  # BERT ends in a layer norm: its output has unit root mean square
        nn.init.normal_(self.out.weight, std=out_rms / math.sqrt(width))
        nn.init.zeros_(self.out.bias)

    def slots(self, seconds: float) -> int:
        """88 windows for every clip of up to 30 s; beyond, its frames of 50 Hz over `frames`, rounded down."""
        return int(self.windows(torch.tensor([seconds], dtype=torch.float64))[0]) * self.queries

    def windows(self, seconds_B: Tensor) -> Tensor:
        """Windows of each clip, int64 [B], on the CPU."""
        seconds = seconds_B.detach().to("cpu", torch.float64)
        frames = (seconds * FRAME_RATE_HZ - 1e-6).ceil().clamp(min=self.pad_frames)
        return (frames / self.frames).floor().long()

    def fuse(self, streams: Mapping[str, EncodedAudio], seconds_B: Tensor, context_BD: Tensor | None) -> FusedAudio:
        windows_B = self.windows(seconds_B)
        most = int(windows_B.max())
        x_BTE = torch.cat([self._filled(name, streams[name], most * self.frames) for name in self.specs], dim=-1)
        real_BW = slot_mask(windows_B, 1, x_BTE.device)
        frames_NFE = x_BTE.unflatten(1, (most, self.frames))[real_BW]
        query_NKD = self.query.expand(len(frames_NFE), -1, -1)
        heard_NKD = self.former(query_embeds=query_NKD, encoder_hidden_states=frames_NFE).last_hidden_state
        slots_NKD = self.out(heard_NKD)
        return FusedAudio(to_windows(slots_NKD, real_BW).flatten(1, 2), real_BW.repeat_interleave(self.queries, dim=1))

    def _filled(self, name: str, stream: EncodedAudio, length: int) -> Tensor:
        """One expert's normed frames, cut or filled with zeros to `length`: [B, length, D]."""
        absent_BT1 = ~stream.mask_BT[..., None]
        x = self.standard[name](stream.x_BTD)  # invalid frames may hold anything: out before the norms, whose gradients
        x = x.masked_fill(absent_BT1 if x.dim() == 3 else absent_BT1[:, None], 0.0)  # would take it up
        if x.dim() == 4:
            x = self.mixes[name](x) if name in self.mixes else x[:, 0]
        x_BTD = self.norms[name](x).masked_fill(absent_BT1, 0.0)
        return nn.functional.pad(x_BTD, (0, 0, 0, length - x_BTD.shape[1]))
