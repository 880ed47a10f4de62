"""Folders in transformers' layout: configuration, front-end and weights of one audio encoder, read strictly.

Nothing of a folder is ever run: `auto_map` and code files are ignored, a pickled object is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import (
    ASTConfig,
    ASTModel,
    ClapAudioConfig,
    ClapAudioModel,
    Data2VecAudioConfig,
    Data2VecAudioModel,
    HubertConfig,
    HubertModel,
    PreTrainedConfig,
    Wav2Vec2Config,
    Wav2Vec2Model,
    WavLMConfig,
    WavLMModel,
)
from transformers.initialization import no_init_weights

from omnichat.encoders.checkpoints import load_strict, read_weights
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.files import read_json

Front = TypeVar("Front")
_WAVE_KEYS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps"),
    *("feat_extract_activation", "conv_dim", "conv_kernel", "conv_stride", "conv_bias"),
    *("num_conv_pos_embeddings", "num_conv_pos_embedding_groups"),
)
_NORM_KEYS = ("feat_extract_norm", "do_stable_layer_norm")
_AST_KEYS = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps"),
    *("patch_size", "qkv_bias", "frequency_stride", "time_stride", "max_length", "num_mel_bins"),
)
_CLAP_KEYS = (
    *("window_size", "num_mel_bins", "spec_size", "hidden_act", "patch_size", "patch_stride", "hidden_size", "depths"),
    *("num_attention_heads", "enable_fusion", "fusion_type", "patch_embed_input_channels", "flatten_patch_embeds"),
    *("patch_embeds_hidden_size", "enable_patch_layer_norm", "qkv_bias", "mlp_ratio", "aff_block_r", "layer_norm_eps"),
)
# Heads that fine-tuning and pre-training leave in a file, beside the encoder: for characters, classes and speakers ...
_TASK_HEADS = ("lm_head", "classifier", "projector", "layer_weights", "tdnn", "objective")
_SPEAKER_HEAD = ("feature_extractor.weight", "feature_extractor.bias")  # called as the encoder's convolutions are
_CONTRAST_HEADS = ("quantizer", "project_q", "project_hid")  # ... and for contrastive pre-training
# Parts of the encoder's own module that no frame passes: the mark of masked frames, and a down-sampler after the end.
_UNUSED = ("masked_spec_embed", "adapter")


@dataclass(frozen=True, slots=True)
class Family:
    """How one family of checkpoints is laid out.

    Attributes:
        model_types: `model_type` of its config.json files.
        keys: configuration that shapes the graph; all else has no effect and is not read.
        prefixes: what the encoder's tensors may be called below; the first one that a file has counts.
        heads: names, or first parts of names, beside the encoder that are left out.
        unused: the same, within the encoder.
        part: attribute of the model that is the encoder; None: the model itself.
        rename: from older names of the tensors to those of the model.
    """

    name: str
    model_types: tuple[str, ...]
    config: type[PreTrainedConfig]
    model: type[nn.Module]
    keys: tuple[str, ...]
    prefixes: tuple[str, ...]
    heads: tuple[str, ...]
    unused: tuple[str, ...] = _UNUSED
    part: str | None = None
    rename: tuple[tuple[str, str], ...] = field(default=())


_FAMILIES = (
    Family(
        "wav2vec2",
        ("wav2vec2",),
        Wav2Vec2Config,
        Wav2Vec2Model,
        (*_WAVE_KEYS, *_NORM_KEYS, "adapter_attn_dim"),
        ("wav2vec2.",),
        (*_TASK_HEADS, *_SPEAKER_HEAD, *_CONTRAST_HEADS),
    ),
    Family(
        "hubert",
        ("hubert",),
        HubertConfig,
        HubertModel,
        (*_WAVE_KEYS, *_NORM_KEYS, "feat_proj_layer_norm", "conv_pos_batch_norm"),
        ("hubert.",),
        _TASK_HEADS,
    ),
    Family(
        "wavlm",
        ("wavlm",),
        WavLMConfig,
        WavLMModel,
        (*_WAVE_KEYS, *_NORM_KEYS, "num_buckets", "max_bucket_distance"),
        ("wavlm.",),
        (*_TASK_HEADS, *_SPEAKER_HEAD, *_CONTRAST_HEADS),
    ),
    Family(
        "data2vec-audio",
        ("data2vec-audio",),
        Data2VecAudioConfig,
        Data2VecAudioModel,
        (*_WAVE_KEYS, "conv_pos_kernel_size"),
        ("data2vec_audio.",),
        (*_TASK_HEADS, *_SPEAKER_HEAD),
    ),
    Family(
        "ast",
        ("audio-spectrogram-transformer",),
        ASTConfig,
        ASTModel,
        _AST_KEYS,
        ("audio_spectrogram_transformer.",),
        ("classifier",),
        unused=(),
        # Files are written under the older names to this day.
        rename=(
            (r"^encoder\.layer\.", "layers."),
            (r"\.attention\.attention\.query\.", ".attention.q_proj."),
            (r"\.attention\.attention\.key\.", ".attention.k_proj."),
            (r"\.attention\.attention\.value\.", ".attention.v_proj."),
            (r"\.attention\.output\.dense\.", ".attention.o_proj."),
            (r"\.intermediate\.dense\.", ".mlp.fc1."),
            (r"\.output\.dense\.", ".mlp.fc2."),
        ),
    ),
    Family(
        "clap",
        ("clap", "clap_audio_model"),
        ClapAudioConfig,
        ClapAudioModel,
        _CLAP_KEYS,
        ("audio_model.audio_encoder.", "audio_encoder."),
        ("text_model", "text_projection", "audio_projection", "logit_scale_a", "logit_scale_t"),
        unused=(),
        part="audio_encoder",
    ),
)
FAMILIES = {family.name: family for family in _FAMILIES}


def build_graph(family: Family, raw: Mapping[str, Any], where: str) -> tuple[nn.Module, dict[str, Any]]:
    """Build a family's encoder, with the weights that the global generator sets, from a configuration.

    Returns:
        The encoder, and the part of the configuration that shaped it.

    Raises:
        UserError: a value is of the wrong type or does not fit the others.
    """
    graph = {key: raw[key] for key in family.keys if key in raw}
    fixed: dict[str, Any] = {"attn_implementation": "eager" if family.name in ("wavlm", "clap") else "sdpa"}
    if "masked_spec_embed" in family.unused:
        fixed |= {"mask_time_prob": 0.0, "mask_feature_prob": 0.0}
    try:
        config = family.config(**graph, **fixed)
        model: Any = cast(Callable[..., nn.Module], family.model)(config)
    except (
        StrictDataclassError,
        ValueError,
        TypeError,
        KeyError,
        IndexError,
        ZeroDivisionError,
        RuntimeError,
    ) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{where}: no {family.name} can be built of it: {reason}") from None
    return (model if family.part is None else getattr(model, family.part)), graph


def read_config(folder: Path, name: str | None) -> tuple[Family, dict[str, Any]]:
    """Read a folder's config.json: which family it is, and the configuration of its audio encoder.

    Args:
        folder: with config.json.
        name: a family of FAMILIES for a config.json whose `model_type` is none of ours; None: what the file says.

    Raises:
        UserError: no such file, an unknown family, or another one than `name`.
    """
    where = folder / "config.json"
    raw = read_json(where)
    if not isinstance(raw, dict):
        raise UserError(f"{where}: not a configuration")
    if name is not None and name not in FAMILIES:
        raise one_of("family", name, FAMILIES)
    kind = raw.get("model_type")
    family = next((family for family in FAMILIES.values() if kind in family.model_types), None)
    if family is None and name is None:
        raise one_of(f"{where}: model_type", kind, [x for family in FAMILIES.values() for x in family.model_types])
    if family is not None and name not in (None, family.name):
        raise UserError(f"{where}: holds a {family.name}, not a {name}")
    family = family or FAMILIES[str(name)]
    if kind == "clap":
        raw = raw.get("audio_config")
        if not isinstance(raw, dict):
            raise UserError(f"{where}: lacks 'audio_config'")
    return family, raw


def read_front(folder: Path, kind: type[Front]) -> Front:
    """Read the front-end's settings from preprocessor_config.json (or processor_config.json's `feature_extractor`).

    Args:
        folder: with one of the two files.
        kind: a dataclass of defaults, for what the file does not say.

    Raises:
        UserError: neither file is there, or a value has another type than the default or is below 1 where it counts.
    """
    where = folder / "preprocessor_config.json"
    if where.is_file():
        raw = read_json(where)
    elif (folder / "processor_config.json").is_file():
        where = folder / "processor_config.json"
        content = read_json(where)
        raw = content.get("feature_extractor") if isinstance(content, dict) else None
    else:
        raise UserError(f"{where}: no such file; it says how the audio is prepared (sampling rate, normalisation, mel)")
    if not isinstance(raw, dict):
        raise UserError(f"{where}: holds no settings of a feature extractor")
    found: dict[str, Any] = {}
    for entry in fields(cast(Any, kind)):
        default = entry.default
        value = raw.get(entry.name)
        value = default if value is None else value
        if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not type(default):
            raise UserError(f"{where}: {entry.name} must be a {type(default).__name__}, got {value!r}")
        if type(value) is int and value < 1:
            raise UserError(f"{where}: {entry.name} must be at least 1, got {value}")
        found[entry.name] = value
    return kind(**found)


def encoder_tensors(state: Mapping[str, Tensor], family: Family) -> dict[str, Tensor]:
    """The encoder's tensors of a file under the names of the model: prefix and known heads gone, all else kept.

    A tensor beside the encoder that is no known head keeps a name that no model has, so that loading reports it.
    """
    prefix = next((p for p in family.prefixes if any(name.startswith(p) for name in state)), "")
    kept = {}
    for name, tensor in state.items():
        inside = name.startswith(prefix)
        if _is_one_of(name, family.heads) and not (inside and prefix):
            continue
        if not inside:
            kept[f"{name} (beside {prefix}*)"] = tensor
            continue
        name = name.removeprefix(prefix)
        if _is_one_of(name, family.unused):
            continue
        for old, new in family.rename:
            name = re.sub(old, new, name)
        kept[name] = tensor
    return kept


def _is_one_of(name: str, heads: tuple[str, ...]) -> bool:
    return any(name == head or name.startswith(f"{head}.") for head in heads)


def load_encoder(folder: Path, name: str | None) -> tuple[Family, nn.Module, dict[str, Any]]:
    """Build and load a folder's audio encoder, strictly.

    Returns:
        Its family, the encoder in float32, and the configuration that shaped it.

    Raises:
        UserError: a file is missing or unreadable, or tensors are missing, unknown or misshapen (all named).
    """
    family, raw = read_config(folder, name)
    with torch.random.fork_rng(devices=[]), no_init_weights():  # drawing numbers for them costs a large one 15 s
        model, graph = build_graph(family, raw, str(folder / "config.json"))
    state, weights = read_weights(folder, family.name)
    tensors = encoder_tensors(state, family)
    for key, tensor in model.state_dict().items():
        if key.endswith("relative_position_index"):  # follows from the window's size; some files hold it, some do not
            tensors[key] = tensor
    load_strict(model, tensors, weights, f"a {family.name}")
    return family, model, graph
