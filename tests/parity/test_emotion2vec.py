"""emotion2vec against funasr's class, at the sizes of base and plus_large."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from omnichat.encoders.emotion2vec import Emotion2vecEncoder
from tests.helpers.official_emotion2vec import BASE, LARGE, Sizes, base_file, plus_file

pytestmark = pytest.mark.parity

LENGTHS = (400, 16_000, 48_123, 160_001)
# The published settings that shape the graph, beside its sizes.
DECODER = {
    "decoder_dim": 384,
    "decoder_groups": 16,
    "decoder_kernel": 7,
    "decoder_layers": 4,
    "input_dropout": 0.1,
    "add_positions_masked": False,
    "add_positions_all": False,
    "decoder_residual": True,
    "projection_layers": 1,
    "projection_ratio": 2.0,
}
AUDIO = {
    "prenet_layerdrop": 0.05,
    "prenet_dropout": 0.1,
    "start_drop_path_rate": 0.0,
    "end_drop_path_rate": 0.0,
    "num_extra_tokens": 10,
    "init_extra_token_zero": True,
    "local_grad_mult": 1.0,
    "use_alibi_encoder": True,
    "alibi_scale": 1.0,
    "learned_alibi": False,
    "alibi_max_pos": None,
    "learned_alibi_scale": True,
    "learned_alibi_scale_per_head": True,
    "learned_alibi_scale_per_layer": False,
    "extractor_mode": "layer_norm",
    "feature_encoder_spec": "[(512, 10, 5)] + [(512, 3, 2)] * 4 + [(512,2,2)] + [(512,2,2)]",
    "conv_pos_width": 95,
    "conv_pos_groups": 16,
    "conv_pos_depth": 5,
    "conv_pos_pre_ln": False,
}
MODEL = {
    "start_drop_path_rate": 0.0,
    "end_drop_path_rate": 0.0,
    "norm_eps": 1e-5,
    "norm_affine": True,
    "encoder_dropout": 0.1,
    "post_mlp_drop": 0.1,
    "attention_dropout": 0.1,
    "activation_dropout": 0.0,
    "dropout_input": 0.0,
    "layerdrop": 0.05,
    "mlp_ratio": 4.0,
    "layer_norm_first": False,
    "average_top_k_layers": 8,
    "end_of_block_targets": False,
    "clone_batch": 8,
    "normalize": True,
}


def official(kind: Any, sizes: Sizes, content: dict[str, Any]) -> Any:
    """funasr's model with the weights of a file, every one of them used."""
    audio = {**AUDIO, "prenet_depth": sizes.prenet, "model_depth": sizes.blocks, "num_alibi_heads": sizes.heads}
    plus = "d2v_model.blocks.0.norm1.weight" in content["model"]
    audio["decoder"] = None if plus else DECODER
    sized = {"depth": sizes.blocks, "num_heads": sizes.heads, "embed_dim": sizes.width, "modalities": {"audio": audio}}
    model = kind(model_conf={**MODEL, **sized}, vocab_size=sizes.classes if plus else -1).eval()
    model.load_state_dict(
        {name.removeprefix("d2v_model."): x for name, x in content["model"].items() if name != "_ema"}
    )
    return model


def hidden_states(model: Any, wave: Tensor) -> list[Tensor]:
    """The input of the first block and the output of each, [T, D], without the ten tokens."""
    audio = model.modality_encoders["AUDIO"]
    found: list[Tensor] = []
    modules = [audio.context_encoder.norm, *audio.context_encoder.blocks, *model.blocks]
    hooks = [
        module.register_forward_hook(lambda _, __, out: found.append(out[0] if isinstance(out, tuple) else out))
        for module in modules
    ]
    last = model.extract_features(torch.nn.functional.layer_norm(wave, wave.shape)[None])["x"][0]
    for hook in hooks:
        hook.remove()
    hidden = [x[0, 10:] for x in found]
    assert torch.equal(hidden[-1], last)
    return hidden


@pytest.mark.parametrize("name", ["base", "plus_large"])
@torch.no_grad()
def test_every_layer_equals_funasr(tmp_path: Path, reference: Any, compare: Any, noise: Any, name: str) -> None:
    kind = reference("funasr.models.emotion2vec.model", "Emotion2vec")
    sizes = BASE if name == "base" else LARGE
    content = base_file(sizes) if name == "base" else plus_file(sizes)
    torch.save(content, tmp_path / "model.pt")
    model = official(kind, sizes, content)
    ours = Emotion2vecEncoder(str(tmp_path), layers="mix", dtype="float32")
    waves = [noise(samples) for samples in LENGTHS]
    encoded = ours.encode_waves(waves)
    for row, wave in enumerate(waves):
        hidden = hidden_states(model, wave)
        frames = len(hidden[0])
        assert len(hidden) == 13 and encoded.mask_BT[row].sum() == frames
        for layer in range(13):
            which = "last layer" if layer == 12 else "other layers"
            compare(f"emotion2vec {name}, {which}", encoded.x_BTD[row, layer, :frames], hidden[layer])
