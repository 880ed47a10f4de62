"""Whisper in transformers' layout: config.json beside safetensors or .bin weights, one file or shards.

The names are mapped to openai-whisper's, so that a model gives the same tensors, and the same fingerprint, in either
layout. The encoder's tensors stand under `model.encoder.` (WhisperForConditionalGeneration), under `encoder.`
(WhisperModel, WhisperForAudioClassification), or bare (the encoder saved alone).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omnichat.encoders.checkpoints import listed, read_weights
from omnichat.utils.errors import UserError
from omnichat.utils.files import read_json

CONFIG = "config.json"
_SIZES = {  # openai-whisper's name of a size -> transformers'
    "n_mels": "num_mel_bins",
    "n_audio_ctx": "max_source_positions",
    "n_audio_state": "d_model",
    "n_audio_head": "encoder_attention_heads",
    "n_audio_layer": "encoder_layers",
    "n_vocab": "vocab_size",
    "n_text_ctx": "max_target_positions",
    "n_text_state": "d_model",
    "n_text_head": "decoder_attention_heads",
    "n_text_layer": "decoder_layers",
}
_FIXED = {"activation_function": "gelu", "scale_embedding": False}  # what every published file says
_DECODER = ("model.decoder.", "decoder.", "proj_out.")
_HEADS = ("projector.", "classifier.", "layer_weights")  # of WhisperForAudioClassification
_ATTENTION = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "out"}
_PARTS = {
    "self_attn_layer_norm": "attn_ln",
    "encoder_attn_layer_norm": "cross_attn_ln",
    "final_layer_norm": "mlp_ln",
    "fc1": "mlp.0",
    "fc2": "mlp.2",
    **{f"self_attn.{theirs}": f"attn.{ours}" for theirs, ours in _ATTENTION.items()},
    **{f"encoder_attn.{theirs}": f"cross_attn.{ours}" for theirs, ours in _ATTENTION.items()},
}
_TOP = {
    "encoder": {"layer_norm": "ln_post", "embed_positions.weight": "positional_embedding"},
    "decoder": {
        "layer_norm": "ln",
        "embed_positions.weight": "positional_embedding",
        "embed_tokens.weight": "token_embedding.weight",
    },
}
_LAYER = re.compile(r"layers\.(\d+)\.(.+)\.(weight|bias)")


def read_transformers(folder: Path, decoder: bool) -> tuple[dict[str, Any], dict[str, Tensor], Path]:
    """Read a transformers Whisper folder.

    Args:
        folder: holds config.json and the weights.
        decoder: whether the decoder is wanted; without it, its tensors are not read.

    Returns:
        The sizes by openai-whisper's names, the tensors by openai-whisper's names, and the file they came from.

    Raises:
        UserError: another kind of model, settings that no Whisper has, damaged files, or no encoder inside.
    """
    sizes = _sizes(folder / CONFIG)
    state, where = read_weights(folder, "Whisper", skip=() if decoder else _DECODER)
    return sizes, openai_names(state, where, decoder), where


def _sizes(path: Path) -> dict[str, Any]:
    config = read_json(path)
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "whisper":
        raise UserError(f"{path}: model_type is {kind!r}, expected 'whisper'")
    if missing := sorted({key for key in _SIZES.values() if key not in config}):
        raise UserError(f"{path}: lacks {listed(missing)}")
    for key, value in _FIXED.items():
        if config.get(key, value) != value:
            raise UserError(f"{path}: {key}={config[key]!r} is not supported, every Whisper has {value!r}")
    for side in ("encoder", "decoder"):
        width = config.get(f"{side}_ffn_dim", 0)
        if width != 4 * config["d_model"]:
            raise UserError(f"{path}: {side}_ffn_dim={width!r} is not supported, every Whisper has 4 * d_model")
    return {ours: config[theirs] for ours, theirs in _SIZES.items()}


def openai_names(state: Mapping[str, Tensor], where: Path, decoder: bool) -> dict[str, Tensor]:
    """Rename transformers' Whisper tensors to openai-whisper's.

    Raises:
        UserError: no encoder inside, an unknown tensor, or an output layer that is not tied to the embedding.
    """
    prefix = next((p for p in ("model.encoder.", "encoder.", "") if f"{p}conv1.weight" in state), None)
    if prefix is None:
        raise UserError(f"{where}: holds no Whisper encoder: no tensor is called ...encoder.conv1.weight")
    sides = {"encoder": prefix, "decoder": prefix.replace("encoder", "decoder") or "decoder."}
    renamed, unknown = {}, []
    for name, tensor in state.items():
        side = next((s for s in ("decoder", "encoder") if name.startswith(sides[s])), None)
        ours = side and _rename(side, name.removeprefix(sides[side]))
        if name.startswith(_HEADS) or (not decoder and name.startswith(_DECODER)):
            continue
        if ours:
            renamed[f"{side}.{ours}"] = tensor
        elif name != "proj_out.weight":
            unknown.append(name)
    if unknown:
        raise UserError(f"{where}: not a Whisper model: it holds unknown {listed(sorted(unknown))}")
    embedding = renamed.get("decoder.token_embedding.weight")
    if decoder and embedding is not None and not torch.equal(state.get("proj_out.weight", embedding), embedding):
        raise UserError(f"{where}: proj_out.weight differs from the token embedding, to which every Whisper ties it")
    return renamed


def _rename(side: str, name: str) -> str | None:
    """openai-whisper's name of one tensor of one side, None if there is no such tensor."""
    if match := _LAYER.fullmatch(name):
        number, part, kind = match.groups()
        return f"blocks.{number}.{_PARTS[part]}.{kind}" if part in _PARTS else None
    if side == "encoder" and re.fullmatch(r"conv[12]\.(weight|bias)", name):
        return name
    for theirs, ours in _TOP[side].items():
        if name == theirs:
            return ours
        if name in (f"{theirs}.weight", f"{theirs}.bias"):
            return name.replace(theirs, ours)
    return None
