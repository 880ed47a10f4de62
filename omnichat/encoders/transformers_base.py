"""What every family of transformers' audio encoders must tell the one expert class that runs them all."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


class Backbone(nn.Module, ABC):
    """One family's graph with its front-end.

    Attributes:
        sample_rate: Hz, of the waveform that `frontend` takes.
        input_rate_hz: steps a second of what `frontend` returns.
        receptive_sec: audio that reaches one frame before any attention.
        rate_hz: frames a second.
        width: D of the frames.
        depth: blocks; there is one hidden state more.
        pass_steps: input steps of every pass, for graphs of one fixed length; None: any length.
    """

    sample_rate: int
    input_rate_hz: float
    receptive_sec: float
    rate_hz: float
    width: int
    depth: int
    pass_steps: int | None = None

    @abstractmethod
    def frontend(self, wave_N: Tensor) -> Tensor:
        """One clip, mono float32 [N], -> the graph's input, float32 with time first."""

    def split(self, x: Tensor) -> list[Tensor]:
        """Cut a clip's input into the chunks that a graph of fixed length reads one by one; nothing is lost."""
        return [x]

    @abstractmethod
    def hidden_states(self, inputs: Sequence[Tensor], length: int) -> tuple[list[Tensor], list[int]]:
        """As `AudioEncoder.hidden_states`, of chunks: `depth + 1` states [B, T, D] and the valid frames of each."""

    @abstractmethod
    def frame_times(self, frames: int) -> Tensor:
        """Centre times in seconds, float32 [frames], of a whole clip's frames."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """Front-end constants and the configuration of the graph, as JSON."""
