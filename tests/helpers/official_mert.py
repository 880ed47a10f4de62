"""Folders in the layout that MERT's authors publish, with random weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import HubertConfig, HubertModel

# The shape of MERT-v1's config.json, small; the keys at the end must have no effect.
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "feat_extract_norm": "group",
    "feat_extract_activation": "gelu",
    "feat_proj_layer_norm": True,
    "conv_dim": [16] * 7,
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "conv_bias": False,
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
    "do_stable_layer_norm": False,
    "model_type": "mert_model",
    "architectures": ["MERTModel"],
    "auto_map": {"AutoModel": "modeling_MERT.MERTModel"},
    "feature_extractor_cqt": True,
    "deepnorm": False,
    "attention_relax": 32.0,
    "sample_rate": 24000,
}
# What MERT-v1-95M and MERT-v1-330M change of it.
REAL: dict[str, Any] = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "conv_dim": [512] * 7,
}
LARGE: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "conv_dim": [512] * 7,
    "do_stable_layer_norm": True,
}
FORMS = ("safetensors", "bin", "shards", "bin shards")


def publish(folder: Path, changes: dict[str, Any], form: str = "safetensors") -> HubertModel:
    """Write a folder as MERT's authors do (with old-style weight-norm names); return the model that it holds."""
    config = {**SMALL, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    known = {key: value for key, value in config.items() if key not in ("model_type", "auto_map", "architectures")}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = HubertModel(HubertConfig(**known, attn_implementation="eager")).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 1:  # norms and biases away from 1 and 0, so that a skipped one is seen
                    parameter.add_(0.1 * torch.randn_like(parameter))
    write_weights(folder, published(model), form)
    return model


def published(model: HubertModel) -> dict[str, Tensor]:
    """The model's tensors under the names of the published files."""
    state = {}
    for name, tensor in model.state_dict().items():
        name = name.replace("parametrizations.weight.original0", "weight_g")
        state[name.replace("parametrizations.weight.original1", "weight_v")] = tensor.clone()
    assert any(name.endswith("weight_g") for name in state)
    state["masked_spec_embed"] = torch.randn(model.config.hidden_size)
    return state


def write_weights(folder: Path, state: dict[str, Tensor], form: str) -> None:
    """Write weights in one of `FORMS`; shards come with their index."""
    if form == "safetensors":
        save_file(state, str(folder / "model.safetensors"))
    elif form == "bin":
        torch.save(state, folder / "pytorch_model.bin")
    else:
        names = sorted(state)
        stem, suffix = ("pytorch_model", "bin") if form.startswith("bin") else ("model", "safetensors")
        places = {name: f"{stem}-{1 + number % 2:05}-of-00002.{suffix}" for number, name in enumerate(names)}
        for file in sorted(set(places.values())):
            part = {name: state[name] for name in names if places[name] == file}
            save_file(part, str(folder / file)) if suffix == "safetensors" else torch.save(part, folder / file)
        (folder / f"{stem}.{suffix}.index.json").write_text(json.dumps({"weight_map": places}))
