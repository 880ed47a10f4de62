"""The interface of every frozen expert.

An expert turns clips into frames in two steps: `frontend` (CPU, per clip, runs in data workers) and `encode`
(batched, on the model's device). Its weights never train, never enter a checkpoint, and stay in eval mode.

A forward pass has one of few fixed shapes: a clip is padded up to whole units of `bucket_sec`, and a pass always holds
the same number of rows for that length, filled up with silence. So a clip's features do not depend on what else was
encoded with it, to the bit, and the cache, whoever filled it in whatever order, equals encoding on the spot.
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from omnichat.schema import EncodedAudio
from omnichat.utils.errors import UserError, one_of

COMPUTE_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class StreamSpec:
    """What a fusion must know of an expert before it is built.

    Attributes:
        width: D of its frames.
        layers: number of layers in its output: 1, or L where a learned mix over layers is asked for.
        rate_hz: frames per second (BEATs: 50, eight bands every 160 ms, all eight at one time).
    """

    width: int
    layers: int
    rate_hz: float


@dataclass(slots=True)
class EncodedClip:
    """One expert's frames of one clip, without padding: what a feature cache stores.

    Attributes:
        x_TD: [T, D], or [L, T, D] where all layers are kept; T >= 1.
        time_sec: float32 [T], the centre time of each frame, never falling.
    """

    x_TD: Tensor
    time_sec: Tensor


def collate_clips(clips: Sequence[EncodedClip], dtype: torch.dtype | None = None) -> EncodedAudio:
    """Pad B >= 1 clips with zeros to one EncodedAudio; `dtype` casts the features (None: keep theirs)."""
    lengths = torch.tensor([len(clip.time_sec) for clip in clips])
    device = clips[0].x_TD.device
    longest = int(lengths.max())
    head = clips[0].x_TD.shape
    x = torch.zeros(len(clips), *head[:-2], longest, head[-1], dtype=dtype or clips[0].x_TD.dtype, device=device)
    time_sec = torch.zeros(len(clips), longest, device=device)
    for row, clip in enumerate(clips):
        x[row, ..., : len(clip.time_sec), :] = clip.x_TD
        time_sec[row, : len(clip.time_sec)] = clip.time_sec
    mask = torch.arange(longest)[None, :] < lengths[:, None]
    return EncodedAudio(x, mask.to(device), time_sec)


class AudioEncoder(nn.Module, ABC):
    """A frozen expert. Subclasses load or build their weights in __init__ and then call `freeze()`.

    `layers` is "last", "mix" (all hidden states are returned, [B, L, T, D], for a learned mix in the fusion) or an
    integer index into the hidden states (0 = input of the first block, -1 = last).
    """

    sample_rate: int  # Hz, of the waveform that `frontend` takes
    layers: str | int
    description: str  # one line for log and report: name, size, and "random weights" where that is so
    licence: str = "see where its weights come from"  # of the published weights, as their publisher states it
    compute_dtype: torch.dtype = torch.float32
    batch_sec: float | None = None  # padded audio in a forward pass (one clip at least); None: by device, see `rows`
    input_rate_hz: float  # steps a second of what `frontend` returns, along its time axis
    bucket_sec: float = 1.0  # clips are padded up to multiples of this
    max_sec: float = math.inf  # longest clip of one pass, where attention's memory grows with the square of it
    receptive_sec: float  # how much audio the front-end lets into one frame, before any attention

    @property
    @abstractmethod
    def spec(self) -> StreamSpec:
        """Width, layers and frame rate of the output."""

    @abstractmethod
    def frontend(self, wave_N: Tensor) -> Tensor:
        """Turn one clip, mono float32 [N] at `sample_rate`, into this expert's input (float32, CPU).

        The result keeps everything that `encode` needs to know of the clip's true length.
        """

    @abstractmethod
    def input_length(self, x: Tensor) -> int:
        """Length of a front-end output along its time axis."""

    @abstractmethod
    def hidden_states(self, inputs: Sequence[Tensor], length: int) -> tuple[list[Tensor], list[int]]:
        """Run one batch padded to `length` steps of input: all hidden states [B, T, D], first to last, and the number
        of valid frames of each clip."""

    @abstractmethod
    def frame_times(self, frames: int) -> Tensor:
        """Centre times in seconds, float32 [frames], of a clip's first `frames` frames."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Front-end constants and options that set the output's values, as JSON (weights, layers, dtype: not here)."""

    def encode(self, inputs: Sequence[Tensor]) -> EncodedAudio:
        """Encode front-end outputs of B clips. Batched == single, to the bit on one device."""
        return collate_clips(self.encode_clips(inputs))

    @torch.no_grad()
    def encode_clips(self, inputs: Sequence[Tensor]) -> list[EncodedClip]:
        """Encode B clips, in forward passes of clips of one padded length.

        Raises:
            UserError: a clip is longer than `max_sec`.
        """
        for x in inputs:
            self.check_length(x)
        found: dict[int, EncodedClip] = {}
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self.compute_dtype == torch.bfloat16)
        for length, numbers in self._passes(inputs):
            clips = [inputs[number].to(self.device) for number in numbers]
            clips += [torch.zeros_like(clips[0])] * (self.rows(length) - len(clips))
            with autocast:
                hidden, frames = self.hidden_states(clips, length)
            x = self._pick(hidden).to(self.compute_dtype)
            for row, number in enumerate(numbers):
                times = self.frame_times(frames[row]).to(self.device)
                found[number] = EncodedClip(x[row, ..., : frames[row], :].contiguous(), times)
        return [found[number] for number in range(len(inputs))]

    def check_length(self, x: Tensor) -> None:
        """Refuse a front-end output of more than `max_sec`. Raises UserError."""
        if (seconds := self.input_length(x) / self.input_rate_hz) > self.max_sec:
            raise UserError(
                f"{seconds:.0f} s are more than {type(self).__name__} takes at a time ({self.max_sec:g} s): cut the "
                "recording into turns, or raise the expert's max_sec if memory allows"
            )

    def padded_length(self, x: Tensor) -> int:
        """Length that a front-end output is padded to: whole units of `bucket_sec`."""
        unit = round(self.bucket_sec * self.input_rate_hz)
        return max(1, math.ceil(self.input_length(x) / unit)) * unit

    def rows(self, length: int) -> int:
        """Clips of padded length `length` that share a pass: `batch_sec` of audio, by default 32 s on a CPU (where more
        only leaves the cache) and 480 s on an accelerator."""
        batch_sec = self.batch_sec
        if batch_sec is None:
            batch_sec = 32.0 if self.device.type == "cpu" else 480.0
        return max(1, int(batch_sec * self.input_rate_hz / length))

    def _passes(self, inputs: Sequence[Tensor]) -> list[tuple[int, list[int]]]:
        """(padded length, places in `inputs`) of every pass, longest first."""
        same: dict[int, list[int]] = {}
        for number, x in enumerate(inputs):
            same.setdefault(self.padded_length(x), []).append(number)
        passes = []
        for length, numbers in sorted(same.items(), reverse=True):
            count = self.rows(length)
            passes += [(length, numbers[i : i + count]) for i in range(0, len(numbers), count)]
        return passes

    def _pick(self, hidden: list[Tensor]) -> Tensor:
        if self.layers == "mix":
            return torch.stack(hidden, dim=1)
        return hidden[-1 if self.layers == "last" else int(self.layers)]

    def describe(self) -> dict[str, Any]:
        """Everything that sets the output's values, as JSON; the fingerprint is its hash."""
        if not hasattr(self, "_weights_sha256"):
            self._weights_sha256 = weights_sha256(self.state_dict())
        return {
            "encoder": type(self).__name__,
            "weights": self._weights_sha256,
            "layers": self.layers,
            "compute_dtype": str(self.compute_dtype).removeprefix("torch."),
            "settings": self.settings(),
        }

    def fingerprint(self) -> str:
        """Hex SHA-256 of all that sets the output's values: weights, front-end constants, layers, compute dtype."""
        return hashlib.sha256(json.dumps(self.describe(), sort_keys=True).encode()).hexdigest()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def encode_waves(self, waves: Sequence[Tensor]) -> EncodedAudio:
        """`frontend` and `encode` in one call: clips as mono float32 [N] at `sample_rate`."""
        return self.encode([self.frontend(wave) for wave in waves])

    def settle(
        self, layers: str | int, states: int, dtype: str, batch_sec: float | None, max_sec: float = math.inf
    ) -> None:
        """Take the arguments that all experts share, then freeze; the weights are loaded or built by then.

        Args:
            states: how many hidden states `layers` may choose from.

        Raises:
            UserError: `layers` or `dtype` is not valid.
        """
        self.layers = check_layers(layers, states)
        self.compute_dtype = resolve_dtype(dtype)
        self.batch_sec, self.max_sec = batch_sec, max_sec
        self.freeze()

    def freeze(self) -> None:
        """Stop gradients and switch dropout off, for good."""
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> AudioEncoder:
        """Do nothing: a parent's `.train()` must not wake dropout in a frozen expert."""
        return self

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Weights, for fingerprints and for writing a checkpoint in the expert's own layout."""
        return super().state_dict(*args, **kwargs)


def resolve_dtype(name: str) -> torch.dtype:
    """Return the compute dtype: "float32", "bfloat16", or "auto" = bfloat16 where the hardware multiplies it fast.

    Raises:
        UserError: another name.
    """
    if name == "auto":
        fast = torch.cuda.is_available() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if fast else torch.float32
    if name not in COMPUTE_DTYPES:
        raise one_of("dtype", name, ("auto", *COMPUTE_DTYPES))
    return COMPUTE_DTYPES[name]


def check_layers(layers: str | int, available: int) -> str | int:
    """Return `layers` if it is "last", "mix" or an index into `available` hidden states; UserError otherwise."""
    if isinstance(layers, int) and not isinstance(layers, bool):
        if -available <= layers < available:
            return layers
    elif layers in ("last", "mix"):
        return layers
    raise UserError(f"layers={layers!r} is not valid; give last, mix or an index from {-available} to {available - 1}")


def check_wave(wave_N: Tensor) -> None:
    """Refuse what no front-end can take: anything but a float vector of at least one sample."""
    if wave_N.dim() != 1 or wave_N.numel() == 0 or not wave_N.is_floating_point():
        raise ValueError(f"a clip is a float tensor [N] with N >= 1, got {wave_N.dtype} {tuple(wave_N.shape)}")


def weights_sha256(state: Mapping[str, Tensor]) -> str:
    """Hex SHA-256 of a state dict: names, dtypes, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
