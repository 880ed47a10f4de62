"""Whisper's encoder as a content expert (Radford et al., 2022, arXiv 2212.04356)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from omnichat.audio.frontends import (
    WHISPER_CHUNK,
    WHISPER_CHUNK_FRAMES,
    WHISPER_FFT,
    WHISPER_HOP,
    WHISPER_RATE_HZ,
    whisper_log_mel,
)
from omnichat.encoders.base import AudioEncoder, EncodedClip, StreamSpec, check_layers, check_wave, resolve_dtype
from omnichat.encoders.whisper_files import load_whisper
from omnichat.utils.assets import resolve_path
from omnichat.utils.errors import UserError

_FULL_FRAMES = WHISPER_CHUNK_FRAMES + 3  # what the front-end returns for a full 30 s chunk


class WhisperEncoder(AudioEncoder):
    """50 frames a second at 16 kHz; frame j stands for samples 320j to 320j + 319.

    Whisper has no padding mask and was trained on 30 s: by default every clip is padded with silence to 30 s, encoded,
    and cropped to its own ceil(N / 320) frames. Clips over 30 s are encoded in chunks of 30 s, nothing is cut off.

    Args:
        path: weights (see `load_whisper`), or `asset:NAME` for packaged ones.
        layers: "last" (after the final norm), "mix", or an index into the blocks' inputs and the final output.
        pad_sec: None for the exact 30 s; a number pads only that much silence after a clip (then up to whole seconds),
            several times faster and slightly different: 0.10-0.12 relative L2 at 1 s, 0.05-0.09 at 10 s.
        dtype: "float32", "bfloat16" (about 0.01 relative L2), or "auto".
        batch_sec: padded seconds of audio in one forward pass; None: by device.
    """

    sample_rate = WHISPER_RATE_HZ
    input_rate_hz = WHISPER_RATE_HZ / WHISPER_HOP
    receptive_sec = (4 * WHISPER_HOP + WHISPER_FFT) / WHISPER_RATE_HZ  # conv1 sees 3 mel frames, conv2 three of those

    def __init__(
        self,
        path: str = "asset:whisper_tiny_en",
        layers: str | int = "last",
        pad_sec: float | None = None,
        dtype: str = "auto",
        batch_sec: float | None = None,
    ) -> None:
        super().__init__()
        if pad_sec is not None and not 0 <= pad_sec <= 30:
            raise UserError(f"pad_sec must be null or between 0 and 30, got {pad_sec}")
        model = load_whisper(resolve_path(path))
        self.encoder = model.encoder  # the decoder is dropped
        self.mels, self.width = model.dims.n_mels, model.dims.n_audio_state
        self.layers = check_layers(layers, model.dims.n_audio_layer + 1)
        self.pad_sec = pad_sec
        self.batch_sec = batch_sec
        self.freeze()
        self.describe()  # the weights are hashed as they came, before the cast
        self.compute_dtype = resolve_dtype(dtype)
        if self.compute_dtype == torch.bfloat16:
            for module in self.encoder.modules():
                if isinstance(module, (nn.Linear, nn.Conv1d)):  # norms stay in float32
                    module.to(torch.bfloat16)
        size = sum(p.numel() for p in self.parameters()) / 1e6
        self.description = f"Whisper encoder, {model.dims.n_audio_layer} x {self.width}, {size:.1f}M parameters"

    @property
    def spec(self) -> StreamSpec:
        layers = len(self.encoder.blocks) + 1 if self.layers == "mix" else 1
        return StreamSpec(self.width, layers, WHISPER_RATE_HZ / (2 * WHISPER_HOP))

    def settings(self) -> dict[str, Any]:
        front = {"n_fft": WHISPER_FFT, "hop": WHISPER_HOP, "mels": self.mels, "log_floor": 8.0, "per": "chunk"}
        return {"version": 1, "sample_rate": self.sample_rate, "pad_sec": self.pad_sec, "frontend": front}

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

    def hidden_states(self, inputs: Sequence[Tensor], length: int) -> tuple[list[Tensor], list[int]]:
        mel = torch.stack([_fill(x, length) for x in inputs])
        encoder = self.encoder
        x = nn.functional.gelu(encoder.conv1(mel.to(self.compute_dtype)))
        x = nn.functional.gelu(encoder.conv2(x)).transpose(1, 2)
        x = (x + encoder.positional_embedding[: x.shape[1]]).to(x.dtype)
        hidden = [x]
        for block in encoder.blocks:
            x = block(x)
            hidden.append(x)
        hidden[-1] = encoder.ln_post(x)
        return hidden, [(x.shape[1] - 3) // 2 for x in inputs]

    def padded_length(self, x: Tensor) -> int:
        if self.pad_sec is None:
            return WHISPER_CHUNK_FRAMES
        seconds = math.ceil((x.shape[1] - 3) * WHISPER_HOP / WHISPER_RATE_HZ + self.pad_sec)
        return min(WHISPER_CHUNK_FRAMES, seconds * WHISPER_RATE_HZ // WHISPER_HOP)


def _fill(mel: Tensor, frames: int) -> Tensor:
    """Continue a clip's silent last frame up to `frames`, or cut the surplus frames off."""
    missing = frames - mel.shape[1]
    return torch.cat([mel, mel[:, -1:].expand(-1, missing)], dim=1) if missing > 0 else mel[:, :frames]
