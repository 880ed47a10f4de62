"""Whisper's encoder as a content expert (Radford et al., 2022, arXiv 2212.04356)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from whisper.model import ResidualAttentionBlock

from omnichat.audio.frontends import (
    WHISPER_CHUNK,
    WHISPER_CHUNK_FRAMES,
    WHISPER_FFT,
    WHISPER_HOP,
    WHISPER_RATE_HZ,
    whisper_log_mel,
)
from omnichat.encoders.base import AudioEncoder, EncodedClip, StreamSpec, check_layers, check_wave, resolve_dtype
from omnichat.encoders.whisper_files import find_whisper, load_whisper_encoder
from omnichat.utils.errors import UserError

_FULL_FRAMES = WHISPER_CHUNK_FRAMES + 3  # what the front-end returns for a full 30 s chunk
_STEM_REACH = 8  # mel frames of silence after a clip that show the stem all it will ever see: see `_stem`


class WhisperEncoder(AudioEncoder):
    """50 frames a second at 16 kHz; frame j stands for samples 320j to 320j + 319.

    Whisper has no padding mask and was trained on 30 s: by default every clip is padded with silence to 30 s, encoded,
    and cropped to its own ceil(N / 320) frames. Clips over 30 s are encoded in chunks of 30 s, nothing is cut off.

    What is cropped is not computed where nothing else reads it: the last block works out keys and values for all frames
    and the rest for the clip's own, rounded up to whole seconds; the convolutions see the silence once. The arithmetic
    of the frames that are kept is the published one.

    Args:
        path: weights in any layout (see `load_whisper`), `asset:NAME` for packaged ones, or a hub id `owner/name`.
        layers: "last" (after the final norm), "mix", or an index into the blocks' inputs and the final output. Blocks
            above the chosen one are not run.
        pad_sec: None for the exact 30 s; a number pads a clip to whole seconds and then by that much silence, several
            times faster and slightly different (docs/EXPERTS.md has the measured errors).
        keep_padding: keep the frames of the padding too, 1500 for every chunk, as SALMONN reads them; their times lie
            beyond the clip.
        dtype: "float32", "bfloat16" (about 0.01 relative L2), or "auto".
        batch_sec: padded seconds of audio in one forward pass; None: by device.
    """

    licence = "MIT"
    sample_rate = WHISPER_RATE_HZ
    input_rate_hz = WHISPER_RATE_HZ / WHISPER_HOP
    receptive_sec = (4 * WHISPER_HOP + WHISPER_FFT) / WHISPER_RATE_HZ  # conv1 sees 3 mel frames, conv2 three of those

    def __init__(
        self,
        path: str = "asset:whisper_tiny_en",
        layers: str | int = "last",
        pad_sec: float | None = None,
        keep_padding: bool = False,
        dtype: str = "auto",
        batch_sec: float | None = None,
    ) -> None:
        super().__init__()
        if pad_sec is not None and not 0 <= pad_sec <= 30:
            raise UserError(f"pad_sec must be null or between 0 and 30, got {pad_sec}")
        self.compute_dtype = resolve_dtype(dtype)
        self.encoder, dims = load_whisper_encoder(find_whisper(path))
        self.mels, self.width, self.depth = dims.n_mels, dims.n_audio_state, dims.n_audio_layer
        self.heads = dims.n_audio_head  # no tensor's shape tells it
        self.layers = check_layers(layers, self.depth + 1)
        self.pad_sec, self.keep_padding = pad_sec, keep_padding
        self.batch_sec = batch_sec
        self.freeze()
        self.describe()  # the weights are hashed as they came, before the cast
        if self.compute_dtype == torch.bfloat16:
            for module in self.encoder.modules():
                if isinstance(module, (nn.Linear, nn.Conv1d)):  # norms stay in float32
                    module.to(torch.bfloat16)
        size = sum(p.numel() for p in self.parameters()) / 1e6
        self.description = f"Whisper encoder, {self.depth} x {self.width}, {size:.1f}M parameters"

    @property
    def spec(self) -> StreamSpec:
        layers = self.depth + 1 if self.layers == "mix" else 1
        return StreamSpec(self.width, layers, WHISPER_RATE_HZ / (2 * WHISPER_HOP))

    def settings(self) -> dict[str, Any]:
        front = {"n_fft": WHISPER_FFT, "hop": WHISPER_HOP, "mels": self.mels, "log_floor": 8.0, "per": "chunk"}
        padding = {"pad_sec": self.pad_sec, "keep_padding": self.keep_padding}
        graph = {"heads": self.heads, **padding}
        return {"version": 2, "sample_rate": self.sample_rate, **graph, "frontend": front}

    def frontend(self, wave_N: Tensor) -> Tensor:
        """Log-mel, float32 [mels, frames]: 3003 frames for every full 30 s, 2 * ceil(N / 320) + 3 for the rest."""
        check_wave(wave_N)
        return torch.cat([whisper_log_mel(chunk, self.mels) for chunk in wave_N.split(WHISPER_CHUNK)], dim=1)

    def input_length(self, x: Tensor) -> int:
        return x.shape[1]

    def frame_times(self, frames: int) -> Tensor:
        return (torch.arange(frames, dtype=torch.float64) * 0.02 + 0.01).float()

    def encode_clips(self, inputs: Sequence[Tensor]) -> list[EncodedClip]:
        chunks = [chunk for x in inputs for chunk in x.split(_FULL_FRAMES, dim=1)]
        encoded = iter(super().encode_clips(chunks))
        clips = []
        for x in inputs:
            parts = [next(encoded) for _ in range(math.ceil(x.shape[1] / _FULL_FRAMES))]
            frames = torch.cat([part.x_TD for part in parts], dim=-2)
            clips.append(EncodedClip(frames, self.frame_times(frames.shape[-2]).to(frames.device)))
        return clips

    def padded_length(self, x: Tensor) -> int:
        """Mel frames of the clip itself, rounded up to whole seconds: clips that agree in it share passes. How far they
        are padded, `reach`, follows from it."""
        unit = round(self.bucket_sec * self.input_rate_hz)
        return min(WHISPER_CHUNK_FRAMES, max(1, math.ceil((x.shape[1] - 3) / unit)) * unit)

    def reach(self, length: int) -> int:
        """Mel frames that clips of a `padded_length` are padded to: 30 s, or `pad_sec` more than the clip."""
        if self.pad_sec is None:
            return WHISPER_CHUNK_FRAMES
        return min(WHISPER_CHUNK_FRAMES, length + 2 * math.ceil(self.pad_sec * self.input_rate_hz / 2))

    def rows(self, length: int) -> int:
        return super().rows(self.reach(length))

    def hidden_states(self, inputs: Sequence[Tensor], length: int) -> tuple[list[Tensor], list[int]]:
        """All hidden states up to the one that `layers` asks for, of the frames that are kept (the longest clip's whole
        seconds): [B, T, D]."""
        reach = self.reach(length)
        kept = (reach if self.keep_padding else length) // 2
        last = self.depth if self.layers in ("last", "mix") else int(self.layers) % (self.depth + 1)
        # The weights have their dtype already; autocast would cast every norm's output to float32 and back.
        with torch.autocast(self.device.type, enabled=False):
            x = self._stem(torch.stack([_fill(x, min(reach, length + _STEM_REACH)) for x in inputs]), reach)
            hidden = [x[:, :kept]]
            for number, block in enumerate(self.encoder.blocks[:last], start=1):
                x = _block(block, x, kept if number == last else reach // 2)
                hidden.append(x[:, :kept])
            if last == self.depth:
                hidden[-1] = _norm(self.encoder.ln_post, hidden[-1])
        return hidden, [kept if self.keep_padding else (x.shape[1] - 3) // 2 for x in inputs]

    def _pick(self, hidden: list[Tensor]) -> Tensor:
        return torch.stack(hidden, dim=1) if self.layers == "mix" else hidden[-1]

    def _stem(self, mel_BMF: Tensor, reach: int) -> Tensor:
        """Convolutions and positions, [B, reach // 2, D], of clips whose mel goes on as its last frame does.

        An output frame j sees mel frames 2j - 2 to 2j + 2. Past the clip they are all alike, and so are the outputs, up
        to the last one, which sees the convolutions' own zeros: four outputs after the clip hold all there is to know.
        """
        x = F.gelu(self.encoder.conv1(mel_BMF.to(self.compute_dtype)))
        x = F.gelu(self.encoder.conv2(x)).transpose(1, 2)
        if (same := reach // 2 - x.shape[1]) > 0:
            silent = x[:, -2:-1]
            x = torch.cat([x[:, :-1], silent.expand(-1, same, -1), x[:, -1:]], dim=1)
        return (x + self.encoder.positional_embedding[: reach // 2]).to(x.dtype).contiguous()


def _block(block: ResidualAttentionBlock, x_BTD: Tensor, kept: int) -> Tensor:
    """openai-whisper's encoder block, for the first `kept` frames of its output only: [B, kept, D]."""
    attention = block.attn
    normed = _norm(block.attn_ln, x_BTD)
    query, key, value = (
        x.unflatten(-1, (attention.n_head, -1)).transpose(1, 2)
        for x in (attention.query(normed[:, :kept]), attention.key(normed), attention.value(normed))
    )
    heard = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
    x_BTD = x_BTD[:, :kept] + attention.out(heard)
    return x_BTD + block.mlp(_norm(block.mlp_ln, x_BTD))


def _norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Layer norm in float32, in and out in x's dtype; on a CPU without the copies that the casts would make."""
    if x.device.type == "cpu":
        return F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
    return norm(x)


def _fill(mel: Tensor, frames: int) -> Tensor:
    """Continue a clip's silent last frame up to `frames`, or cut the surplus frames off."""
    missing = frames - mel.shape[1]
    return torch.cat([mel, mel[:, -1:].expand(-1, missing)], dim=1) if missing > 0 else mel[:, :frames]
