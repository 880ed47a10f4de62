"""What makes a step faster or smaller without changing what it computes."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from omnichat.model.llm import LLMConfig
from omnichat.model.omnichat import OmniChat
from omnichat.utils.errors import one_of

OFFLOADS = ("none", "activations")


@dataclass(kw_only=True, slots=True)
class SpeedConfig:
    """Switches; what needs CUDA or a package is checked for before anything loads."""

    compile: bool = False  # torch.compile of the LLM's layers
    checkpointing: bool = False  # gradient checkpointing: activations of the LLM are computed twice and not kept
    offload: str = "none"  # none | activations (kept in the host's memory between forward and backward)
    liger: bool = False  # Liger's fused kernels (CUDA)

    def __post_init__(self) -> None:
        if self.offload not in OFFLOADS:
            raise one_of("trainer.speed.offload", self.offload, OFFLOADS)


def check_speed(config: SpeedConfig, llm: LLMConfig) -> None:
    """Raise UserError for a switch that this machine or installation cannot serve."""


def apply_speed(model: OmniChat, config: SpeedConfig) -> None:
    """Turn the switches on, on a model that has not been spread over processes yet."""


def forward_context(config: SpeedConfig) -> contextlib.AbstractContextManager[object]:
    """What every training forward pass runs in."""
    return contextlib.nullcontext()
