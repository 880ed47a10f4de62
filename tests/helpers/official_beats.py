"""Checkpoints in the layout that BEATs' authors publish, with weights that are a fixed function of their place."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# cfg of a published fine-tuned file, at a small size.
CFG: dict[str, Any] = {
    "input_patch_size": 16,
    "embed_dim": 24,
    "conv_bias": False,
    "encoder_layers": 2,
    "encoder_embed_dim": 32,
    "encoder_ffn_embed_dim": 48,
    "encoder_attention_heads": 2,
    "activation_fn": "gelu",
    "layer_wise_gradient_decay_ratio": 0.6,
    "layer_norm_first": False,
    "deep_norm": True,
    "dropout": 0.0,
    "attention_dropout": 0.0,
    "activation_dropout": 0.0,
    "encoder_layerdrop": 0.05,
    "dropout_input": 0.0,
    "conv_pos": 128,
    "conv_pos_groups": 16,
    "relative_position_embedding": True,
    "num_buckets": 320,
    "max_distance": 800,
    "gru_rel_pos": True,
    "finetuned_model": True,
    "predictor_dropout": 0.0,
    "predictor_class": 5,
}
# Sizes of every published file.
REAL: dict[str, Any] = {
    "embed_dim": 512,
    "encoder_layers": 12,
    "encoder_embed_dim": 768,
    "encoder_ffn_embed_dim": 3072,
    "encoder_attention_heads": 12,
    "predictor_class": 527,
}
PRETRAINED: dict[str, Any] = {"finetuned_model": False, "layer_wise_gradient_decay_ratio": 1.0}


def shapes(cfg: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of `model` in a published file, spelled out here and not taken from the code under test."""
    width, ffn, heads = cfg["encoder_embed_dim"], cfg["encoder_ffn_embed_dim"], cfg["encoder_attention_heads"]
    patch, conv = cfg["embed_dim"], cfg["conv_pos"]
    names: dict[str, tuple[int, ...]] = {
        "patch_embedding.weight": (patch, 1, 16, 16),
        "layer_norm.weight": (patch,),
        "layer_norm.bias": (patch,),
        "encoder.pos_conv.0.bias": (width,),
        "encoder.pos_conv.0.weight_g": (1, 1, conv),
        "encoder.pos_conv.0.weight_v": (width, width // cfg["conv_pos_groups"], conv),
        "encoder.layer_norm.weight": (width,),
        "encoder.layer_norm.bias": (width,),
    }
    if cfg["conv_bias"]:
        names["patch_embedding.bias"] = (patch,)
    if patch != width:
        names |= {"post_extract_proj.weight": (width, patch), "post_extract_proj.bias": (width,)}
    for number in range(cfg["encoder_layers"]):
        layer = f"encoder.layers.{number}"
        names[f"{layer}.self_attn.grep_a"] = (1, heads, 1, 1)
        names[f"{layer}.self_attn.relative_attention_bias.weight"] = (cfg["num_buckets"], heads)
        for name, out, into in (
            *((f"self_attn.{part}_proj", width, width) for part in "qkv"),
            ("self_attn.out_proj", width, width),
            ("self_attn.grep_linear", 8, width // heads),
            ("fc1", ffn, width),
            ("fc2", width, ffn),
        ):
            names |= {f"{layer}.{name}.weight": (out, into), f"{layer}.{name}.bias": (out,)}
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            names |= {f"{layer}.{name}.weight": (width,), f"{layer}.{name}.bias": (width,)}
    if cfg["finetuned_model"]:
        names |= {"predictor.weight": (cfg["predictor_class"], width), "predictor.bias": (cfg["predictor_class"],)}
    return names


def checkpoint(**changes: Any) -> dict[str, Any]:
    """The content of a published file: `cfg` (with `changes`), `model`, and `label_dict` if it is fine-tuned."""
    cfg = {**CFG, **changes}
    state: dict[str, Tensor] = {}
    for number, (name, shape) in enumerate(sorted(shapes(cfg).items())):
        if "relative_attention_bias" in name:
            number = 1000  # one table, stored once a layer
        ramp = torch.arange(torch.Size(shape).numel(), dtype=torch.float64)
        values = torch.sin(ramp * 1.7 + (ramp % 7) * (0.3 + number) + number).reshape(shape)
        scale, offset = (0.1, 1.0) if name.endswith(("norm.weight", "grep_a", "weight_g")) else (0.5, 0.0)
        state[name] = (offset + scale * values).float()
    content: dict[str, Any] = {"cfg": cfg, "model": state}
    return content | {"label_dict": {0: "/m/09x0r"}} if cfg["finetuned_model"] else content


def random_checkpoint(**changes: Any) -> dict[str, Any]:
    """As `checkpoint`, with random weights of the size that training gives them: for graphs of real size."""
    content = checkpoint(**changes)
    generator = torch.Generator().manual_seed(0)
    state = content["model"]
    for name, tensor in state.items():
        if name.endswith("relative_attention_bias.weight"):
            tensor.copy_(torch.sin(torch.arange(tensor.numel()) * 1.7).view_as(tensor))
        elif name.endswith(("norm.weight", "grep_a", "weight_g")):
            tensor.copy_(1 + 0.1 * torch.randn(tensor.shape, generator=generator))
        else:
            size = tensor[0].numel() ** -0.5 if tensor.dim() > 1 else 0.1
            tensor.copy_(size * torch.randn(tensor.shape, generator=generator))
    return content
