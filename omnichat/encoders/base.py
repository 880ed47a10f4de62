"""The interface of every frozen expert.

An expert turns clips into frames in two steps: `frontend` (CPU, per clip, runs in data workers) and `encode`
(batched, on the model's device). Its weights never train, never enter a checkpoint, and stay in eval mode.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from omnichat.schema import EncodedAudio


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


class AudioEncoder(nn.Module, ABC):
    """A frozen expert. Subclasses load or build their weights in __init__ and then call `freeze()`.

    `layers` is "last", "mix" (all hidden states are returned, [B, L, T, D], for a learned mix in the fusion) or an
    integer index into the hidden states (0 = input of the first block, -1 = last).
    """

    sample_rate: int  # Hz, of the waveform that `frontend` takes
    layers: str | int
    description: str  # one line for log and report: name, size, and "random weights" where that is so

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
    def encode(self, inputs: Sequence[Tensor]) -> EncodedAudio:
        """Encode front-end outputs of B clips. Padded batch == single clip within 1e-5 in float32."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Hex SHA-256 of all that sets the output's values: weights, front-end constants, layers, compute dtype."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def encode_waves(self, waves: Sequence[Tensor]) -> EncodedAudio:
        """`frontend` and `encode` in one call: clips as mono float32 [N] at `sample_rate`."""
        return self.encode([self.frontend(wave) for wave in waves])

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
