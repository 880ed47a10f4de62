"""Small Whisper models, and writers of the files in which Whisper is published."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import WhisperConfig, WhisperForConditionalGeneration
from whisper.model import ModelDimensions, Whisper

# Text to replace, in this order, in openai-whisper's names to get transformers'.
_REPLACED = (
    ("blocks.", "layers."),
    ("cross_attn_ln", "encoder_attn_layer_norm"),
    ("attn_ln", "self_attn_layer_norm"),
    ("mlp_ln", "final_layer_norm"),
    ("mlp.0", "fc1"),
    ("mlp.2", "fc2"),
    ("cross_attn.", "encoder_att."),
    (".attn.", ".self_attn."),
    ("encoder_att.", "encoder_attn."),
    ("attn.query", "attn.q_proj"),
    ("attn.key", "attn.k_proj"),
    ("attn.value", "attn.v_proj"),
    ("attn.out", "attn.out_proj"),
    ("ln_post", "layer_norm"),
    ("decoder.ln.", "decoder.layer_norm."),
    ("token_embedding", "embed_tokens"),
    ("positional_embedding", "embed_positions.weight"),
)


def small_whisper(mels: int = 80, depth: int = 2, width: int = 32) -> Whisper:
    """A random model whose norms and biases are away from 1 and 0, so that a skipped or swapped one is seen."""
    generator = torch.Generator().manual_seed(mels)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mels)
        model = Whisper(ModelDimensions(mels, 1500, width, 2, depth, 120, 8, width, 2, 1)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        model.decoder.token_embedding.weight.normal_(generator=generator)
        model.decoder.positional_embedding.normal_(generator=generator)
    return model


def write_openai(path: Path, model: Whisper) -> Path:
    """The `.pt` that openai-whisper downloads: sizes and tensors."""
    torch.save({"dims": asdict(model.dims), "model_state_dict": model.state_dict()}, path)
    return path


def as_transformers(model: Whisper) -> WhisperForConditionalGeneration:
    """The same model as transformers builds it, every tensor given."""
    dims = model.dims
    config = WhisperConfig(
        vocab_size=dims.n_vocab,
        num_mel_bins=dims.n_mels,
        d_model=dims.n_audio_state,
        encoder_layers=dims.n_audio_layer,
        decoder_layers=dims.n_text_layer,
        encoder_attention_heads=dims.n_audio_head,
        decoder_attention_heads=dims.n_text_head,
        encoder_ffn_dim=4 * dims.n_audio_state,
        decoder_ffn_dim=4 * dims.n_text_state,
        max_source_positions=dims.n_audio_ctx,
        max_target_positions=dims.n_text_ctx,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        decoder_start_token_id=0,
        begin_suppress_tokens=None,
    )
    other = WhisperForConditionalGeneration(config).eval()
    other.load_state_dict(transformers_state(model), strict=True)
    return other


def transformers_state(model: Whisper) -> dict[str, Tensor]:
    """The tensors by transformers' names, the tied output layer among them, as the old .bin files hold them."""
    state = {f"model.{_renamed(name)}": x.contiguous() for name, x in model.state_dict().items()}
    return state | {"proj_out.weight": model.decoder.token_embedding.weight.detach()}


def _renamed(name: str) -> str:
    for theirs, ours in _REPLACED:
        name = name.replace(theirs, ours)
    return name


def write_transformers(folder: Path, model: Whisper, form: str) -> Path:
    """Write a folder as published: `whole` (safetensors), `sharded` (several and an index), `bin` (torch pickles),
    `base` (WhisperModel, without the output layer), or `encoder` (the encoder saved alone)."""
    other = as_transformers(model)
    if form == "bin":
        other.config.save_pretrained(folder)
        torch.save(transformers_state(model), folder / "pytorch_model.bin")
    elif form == "sharded":
        other.save_pretrained(folder, max_shard_size="40KB")
    elif form == "base":
        other.model.save_pretrained(folder)
    elif form == "encoder":
        other.config.save_pretrained(folder)
        state = {name: x.contiguous() for name, x in other.model.encoder.state_dict().items()}
        save_file(state, str(folder / "model.safetensors"), metadata={"format": "pt"})
    else:
        other.save_pretrained(folder)
    return folder
