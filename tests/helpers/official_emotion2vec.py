"""Checkpoints in the layouts that emotion2vec's authors publish, with random weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

AUDIO = "modality_encoders.AUDIO."


@dataclass(frozen=True)
class Sizes:
    """Sizes of a checkpoint; the defaults are small."""

    width: int = 48
    heads: int = 3
    prenet: int = 2
    blocks: int = 2
    conv_width: int = 16
    classes: int = 9


BASE = Sizes(768, 12, 4, 8, 512)
LARGE = Sizes(1024, 16, 4, 8, 512)


def shapes(sizes: Sizes, decoder: bool = True) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights, spelled out here and not taken from the code under test."""
    width, channels = sizes.width, sizes.conv_width
    names: dict[str, tuple[int, ...]] = {
        f"{AUDIO}extra_tokens": (1, 10, width),
        f"{AUDIO}alibi_scale": (1, 1, sizes.heads, 1, 1),
        f"{AUDIO}project_features.1.weight": (channels,),
        f"{AUDIO}project_features.1.bias": (channels,),
        f"{AUDIO}project_features.2.weight": (width, channels),
        f"{AUDIO}project_features.2.bias": (width,),
        f"{AUDIO}context_encoder.norm.weight": (width,),
        f"{AUDIO}context_encoder.norm.bias": (width,),
    }
    for number, kernel in enumerate((10, 3, 3, 3, 3, 2, 2)):
        layer = f"{AUDIO}local_encoder.conv_layers.{number}"
        names[f"{layer}.0.weight"] = (channels, channels if number else 1, kernel)
        names |= {f"{layer}.2.1.weight": (channels,), f"{layer}.2.1.bias": (channels,)}
    for number in range(1, 6):
        layer = f"{AUDIO}relative_positional_encoder.{number}.0"
        names |= {f"{layer}.weight": (width, width // 16, 19), f"{layer}.bias": (width,)}
    blocks = [f"{AUDIO}context_encoder.blocks.{number}" for number in range(sizes.prenet)]
    for block in (*blocks, *(f"blocks.{number}" for number in range(sizes.blocks))):
        for name, out, into in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", 4 * width, width),
            ("mlp.fc2", width, 4 * width),
        ):
            names |= {f"{block}.{name}.weight": (out, into), f"{block}.{name}.bias": (out,)}
        for name in ("norm1", "norm2"):
            names |= {f"{block}.{name}.weight": (width,), f"{block}.{name}.bias": (width,)}
    if decoder:
        for number in range(4):
            layer = f"{AUDIO}decoder.blocks.{number}.0"
            names |= {f"{layer}.weight": (384, (384 if number else width) // 16, 7), f"{layer}.bias": (384,)}
        names |= {f"{AUDIO}decoder.proj.weight": (width, 384), f"{AUDIO}decoder.proj.bias": (width,)}
    return names


def weights(sizes: Sizes = Sizes(), decoder: bool = True) -> dict[str, Tensor]:
    """Random weights of the size that training gives them, under the names of the base model's file."""
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in shapes(sizes, decoder).items():
        noise = torch.randn(shape, generator=generator)
        if name.endswith("alibi_scale"):
            state[name] = 0.2 + noise  # some below 0: these heads have no bias
        elif name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "2.1.weight", "features.1.weight")):
            state[name] = 1 + 0.1 * noise
        elif name.endswith("extra_tokens"):
            state[name] = noise
        else:
            state[name] = noise * (1.4 * noise[0].numel() ** -0.5 if noise.dim() > 1 else 0.1)
    return state


def base_file(sizes: Sizes = Sizes()) -> dict[str, Any]:
    """As fairseq writes emotion2vec_base.pt: plain names under `model`, and what its trainer keeps beside them."""
    state: dict[str, Any] = {**weights(sizes), "_ema": {"blocks.0.norm1.weight": torch.ones(sizes.width)}}
    rest = {"cfg": {"model": {"depth": sizes.blocks}}, "optimizer_history": [{"num_updates": 100000}]}
    return {"args": None, **rest, "model": state, "last_optimizer_state": {"state": {0: torch.zeros(3)}}}


def plus_file(sizes: Sizes = Sizes()) -> dict[str, Any]:
    """As model.pt of emotion2vec+: under `d2v_model.`, without the decoder, and with the classifier beside it."""
    state = {f"d2v_model.{name}": x for name, x in weights(sizes, decoder=False).items()}
    head = {"proj.weight": torch.zeros(sizes.classes, sizes.width), "proj.bias": torch.zeros(sizes.classes)}
    return {"model": state | head, "optimizer": {"state": {0: {"exp_avg": torch.zeros(3)}}}, "epoch": 3}
