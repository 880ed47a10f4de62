"""The parts of a saved OmniChat, built from its configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from omnichat.encoders.base import AudioEncoder, StreamSpec
from omnichat.fusion.base import Fusion
from omnichat.model.llm import load_llm
from omnichat.model.omnichat import OmniChat
from omnichat.model.pretrained.configuration import OmniChatConfig
from omnichat.utils.parts import build_part
from omnichat.utils.seeding import seed_everything


@dataclass(slots=True)
class Parts:
    """What a model is made of; `tokenizer` belongs to the LLM."""

    model: OmniChat
    experts: dict[str, AudioEncoder]
    tokenizer: Any


def build_parts(config: OmniChatConfig, precision: str) -> Parts:
    """Load the frozen parts from where the configuration says and build the fusion; trainables are fresh.

    Raises:
        UserError: a part that cannot be loaded, by its key in the configuration.
    """
    config.check()
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    llm: Any
    llm, tokenizer = load_llm(config.llm_config(), dtype, config.seed)
    experts: dict[str, AudioEncoder] = {}
    fusion: Fusion | None = None
    if config.chat_config().hears:
        for name, node in (config.experts or {}).items():
            experts[name] = build_part(node, f"experts.{name}", AudioEncoder)
        embeddings = llm.get_input_embeddings().weight
        fusion = build_fusion(config, embeddings.shape[1], float(embeddings.float().square().mean().sqrt()))
    return Parts(OmniChat(llm, fusion), experts, tokenizer)


def build_fusion(config: OmniChatConfig, out_width: int, out_rms: float) -> Fusion:
    """The fusion of a configuration, fresh."""
    specs = {name: StreamSpec(s["width"], s["layers"], s["rate_hz"]) for name, s in (config.specs or {}).items()}
    seed_everything(config.seed, "fusion")
    fusion: Fusion = build_part(
        config.fusion or {}, "fusion", Fusion, specs=specs, out_width=out_width, out_rms=out_rms
    )
    return fusion


def shape_of_fusion(config: OmniChatConfig) -> Fusion | None:
    """The fusion without weights, which can still say how many slots a clip takes; None without one."""
    if not config.chat_config().hears:
        return None
    with torch.device("meta"):
        return build_fusion(config, config.out_width or 1, 1.0)
