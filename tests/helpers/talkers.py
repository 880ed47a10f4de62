"""Small whole models to talk to: random weights, real parts, the packaged tokenizer."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from omnichat.chat.base import Talker
from omnichat.encoders.base import AudioEncoder
from omnichat.model.llm import LLMConfig, LoraConfig, weights_fingerprint
from omnichat.model.omnichat import OmniChat
from omnichat.model.pretrained import OmniChatConfig, OmniChatForConditionalGeneration, OmniChatProcessor
from omnichat.model.pretrained.conversation import Sound, sound_of
from omnichat.model.pretrained.parts import build_parts
from omnichat.text.chat import ChatConfig
from omnichat.utils.parts import build_part
from tests.helpers_core import TINY

_EVERYWHERE = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def node(group: str, name: str, **changed: Any) -> dict[str, Any]:
    """A part of configs/, with other settings where they are given."""
    found = yaml.safe_load((CONFIGS / group / f"{name}.yaml").read_text(encoding="utf-8"))
    return {**found, **changed}


def small_config(chat_input: str = "speech", fusion: str = "mix_former", **chat: Any) -> OmniChatConfig:
    """Of a model with a two-layer LLM, random BEATs and MERT, and a narrow fusion."""
    experts = {
        "beats": node("expert", "beats_small", dtype="float32"),
        "mert": node("expert", "mert_small", dtype="float32"),
    }
    sizes: dict[str, Any] = {"width": 16} if fusion in ("mix_former", "cross_attention") else {}
    fused = node("fusion", fusion, **sizes)
    fused.pop("budget")
    hears = ChatConfig(input=chat_input, **chat).hears
    specs = {}
    for name, expert in experts.items():
        built = build_part(expert, name, AudioEncoder)
        specs[name] = asdict(built.spec) | {"sample_rate": built.sample_rate}
    return OmniChatConfig(
        llm=asdict(LLMConfig(random_size=TINY, lora=LoraConfig(rank=4, targets=_EVERYWHERE))),
        experts=experts if hears else {},
        fusion=fused if hears else None,
        specs=specs if hears else {},
        out_width=TINY["hidden_size"],
        chat=asdict(ChatConfig(input=chat_input, **chat)),
        feature_dtype="float32",
    )


def wake(model: OmniChat) -> None:
    """Give LoRA a loud say: a random LLM by itself repeats the last token for ever."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.llm.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0.0, 1.0, generator=generator)


def small_talker(chat_input: str = "speech", fusion: str = "mix_former", **chat: Any) -> Talker:
    """A model that answers something else to every other question; what it says means nothing."""
    config = small_config(chat_input, fusion, **chat)
    parts = build_parts(config, "fp32")
    wake(parts.model)
    processor = OmniChatProcessor(config, parts.tokenizer)
    config.end_token_id = processor.end_id
    config.fingerprints = {
        "llm": weights_fingerprint(parts.model.llm),
        "experts": {name: expert.fingerprint() for name, expert in parts.experts.items()},
    }
    model = OmniChatForConditionalGeneration(config, parts)
    return Talker(model, processor, "small")


def tone(seconds: float = 1.0, hz: float = 220.0, rate: int = 16_000) -> Sound:
    """A recording of a tone."""
    times = np.arange(int(seconds * rate)) / rate
    return sound_of((0.3 * np.sin(2 * np.pi * hz * times)).astype(np.float32), rate)


def same_ids(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Whether two rows of new tokens are one but for padding behind the shorter."""
    width = min(left.shape[-1], right.shape[-1])
    return bool((left[..., :width] == right[..., :width]).all())
