"""MERT against transformers' HuBERT, and its published folder layout."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import HubertConfig, HubertModel

from omnichat.encoders.mert import MertEncoder
from omnichat.utils.errors import UserError

torch.set_num_threads(1)

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


def noise(samples: int) -> Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(samples))


def publish(folder: Path, changes: dict[str, Any], safe: bool = True) -> HubertModel:
    """Write a folder as MERT's authors do (with old-style weight-norm names); return the model that it holds."""
    config = {**SMALL, **changes}
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    known = {key: value for key, value in config.items() if key not in ("model_type", "auto_map", "architectures")}
    model = HubertModel(HubertConfig(**known, attn_implementation="eager")).eval()
    state = {}
    for name, tensor in model.state_dict().items():
        name = name.replace("parametrizations.weight.original0", "weight_g")
        state[name.replace("parametrizations.weight.original1", "weight_v")] = tensor.clone()
    assert any(name.endswith("weight_g") for name in state)
    state["masked_spec_embed"] = torch.randn(32)
    if safe:
        save_file(state, str(folder / "model.safetensors"))
    else:
        torch.save(state, folder / "pytorch_model.bin")
    return model


@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize(
    "changes",
    [{}, {"do_stable_layer_norm": True}, {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}],
    ids=["post-norm", "pre-norm", "layer-norm-convs"],
)
def test_equals_transformers_hubert(tmp_path: Path, changes: dict[str, Any], safe: bool) -> None:
    reference = publish(tmp_path, changes, safe)
    wave = noise(24_123)
    with torch.no_grad():
        expected = reference(wave[None], output_hidden_states=True)
    ours = MertEncoder(str(tmp_path), layers="mix", dtype="float32").encode_waves([wave]).x_BTD[0]
    for number in range(3):
        torch.testing.assert_close(ours[number], expected.hidden_states[number][0], rtol=1e-5, atol=1e-5)
    # Our last state is after the final norm, whatever the library's tuple holds there.
    torch.testing.assert_close(ours[3], expected.last_hidden_state[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}])
def test_padding_changes_nothing_where_plain_hubert_changes(tmp_path: Path, changes: dict[str, Any]) -> None:
    reference = publish(tmp_path, changes)
    encoder = MertEncoder(str(tmp_path), dtype="float32")
    short, long = noise(9_000), noise(40_000)
    alone = encoder.encode_waves([short]).x_BTD[0]
    padded = encoder.encode_waves([long, short])
    torch.testing.assert_close(padded.x_BTD[1][padded.mask_BT[1]], alone, rtol=1e-5, atol=1e-5)
    if not changes:  # the trap that this guards against is real
        stacked = torch.nn.utils.rnn.pad_sequence([long, short], batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones(40_000), torch.ones(9_000)], batch_first=True).long()
        with torch.no_grad():
            plain = reference(stacked, attention_mask=mask).last_hidden_state[1, : len(alone)]
        assert (plain - alone).norm() > 0.05 * alone.norm()


def test_licence_is_said_for_real_weights_only(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    publish(tmp_path, {})
    with caplog.at_level(logging.WARNING, logger="omnichat"):
        small = MertEncoder()
        assert "CC-BY-NC" not in caplog.text and "CC-BY-NC" not in small.description
        real = MertEncoder(str(tmp_path))
    assert "CC-BY-NC-4.0" in caplog.text and "CC-BY-NC-4.0" in real.description
    assert "random" not in real.description


def test_wrong_folders_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config\.json"):
        MertEncoder(str(tmp_path))
    publish(tmp_path, {})
    (tmp_path / "config.json").write_text(json.dumps({**SMALL, "num_hidden_layers": 4}))
    with pytest.raises(UserError, match=r"encoder\.layers\.3") as caught:
        MertEncoder(str(tmp_path))
    assert "\n" not in str(caught.value)
    (tmp_path / "config.json").write_text(json.dumps({**SMALL, "conv_stride": [5, 2, 2, 2, 2, 2, 1]}))
    with pytest.raises(UserError, match="convolutions"):
        MertEncoder(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(SMALL))
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(UserError, match="neither"):
        MertEncoder(str(tmp_path))
