"""MERT against transformers' HuBERT, and its published folder layout."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Wav2Vec2FeatureExtractor

from omnichat.encoders import checkpoints
from omnichat.encoders.mert import MertEncoder, build_mert
from omnichat.utils.errors import UserError
from tests.helpers.bad_files import Canary, damaged
from tests.helpers.official_mert import FORMS, LARGE, REAL, SMALL, publish, published, write_weights

torch.set_num_threads(1)


def noise(samples: int) -> Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(samples))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "changes",
    [{}, {"do_stable_layer_norm": True}, {"do_stable_layer_norm": True, "feat_extract_norm": "layer"}],
    ids=["post-norm", "pre-norm", "layer-norm-convs"],
)
def test_equals_transformers_hubert(tmp_path: Path, changes: dict[str, Any], form: str) -> None:
    reference = publish(tmp_path, changes, form)
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


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_size": "wide"}, "hidden_size.*expected int"),
        ({"num_attention_heads": 5}, "no graph can be built"),
        ({"hidden_act": "nothing_like_it"}, "nothing_like_it"),
        ({"conv_dim": [16]}, "no graph can be built"),
        ({"deepnorm": True}, "deepnorm=True is not supported"),
    ],
)
def test_a_config_of_another_graph_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    publish(tmp_path, {})
    (tmp_path / "config.json").write_text(json.dumps({**SMALL, **changes}))
    with pytest.raises(UserError, match=rf"config\.json: .*{message}") as caught:
        MertEncoder(str(tmp_path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", FORMS)
def test_wrong_weights_are_refused_by_name(tmp_path: Path, form: str) -> None:
    model = publish(tmp_path, {}, form)
    state = published(model)
    state["encoder.layers.1.attention.w_q.bias"] = state.pop("encoder.layers.1.attention.q_proj.bias")
    state["feature_projection.projection.bias"] = torch.zeros(7)
    write_weights(tmp_path, state, form)
    with pytest.raises(UserError) as caught:
        MertEncoder(str(tmp_path))
    told = str(caught.value)
    assert "lacks encoder.layers.1.attention.q_proj.bias" in told and "(7,) instead of (32,)" in told
    assert "unknown encoder.layers.1.attention.w_q.bias" in told and "\n" not in told


@pytest.mark.parametrize("form", FORMS)
def test_damaged_and_hostile_weights_are_refused(tmp_path: Path, form: str) -> None:
    publish(tmp_path, {}, form)
    file = sorted(path for path in tmp_path.iterdir() if path.suffix in (".bin", ".safetensors"))[-1]
    for path in [*damaged(file)]:
        path.rename(file)
        with pytest.raises(UserError, match=file.name) as caught:
            MertEncoder(str(tmp_path))
        assert "\n" not in str(caught.value)
    torch.save({"encoder.layer_norm.bias": Canary(tmp_path / "ran")}, file)
    with pytest.raises(UserError, match=file.name):
        MertEncoder(str(tmp_path))
    assert not (tmp_path / "ran").exists()
    file.unlink()
    with pytest.raises(UserError, match="neither" if "shards" not in form else file.name):
        MertEncoder(str(tmp_path))


def test_a_hub_id_fetches_weights_and_never_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    publish(tmp_path, {})
    asked: list[Any] = []

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(checkpoints, "snapshot_download", download)
    encoder = MertEncoder("m-a-p/MERT-v1-95M")
    assert encoder.fingerprint() == MertEncoder(str(tmp_path)).fingerprint()
    assert asked == [("m-a-p/MERT-v1-95M", ["*.json", "*.safetensors", "*.bin"])]


def test_the_preprocessor_file_decides_on_normalising(tmp_path: Path) -> None:
    publish(tmp_path, {})
    wave = 3 + noise(9_000)
    plain = MertEncoder(str(tmp_path))
    assert torch.equal(plain.frontend(wave), wave)
    file = tmp_path / "preprocessor_config.json"
    library = Wav2Vec2FeatureExtractor(sampling_rate=24_000, do_normalize=True)
    file.write_text(library.to_json_string())
    normed = MertEncoder(str(tmp_path))
    expected = library(wave.numpy(), sampling_rate=24_000, return_tensors="pt").input_values[0]
    torch.testing.assert_close(normed.frontend(wave), expected, rtol=1e-5, atol=1e-5)
    assert normed.fingerprint() != plain.fingerprint()
    assert normed.frontend(torch.ones(5)).tolist() == [0.0] * 400, "silence stays finite, and so does its padding"
    file.write_text(json.dumps({"do_normalize": False, "sampling_rate": 24000}))
    assert MertEncoder(str(tmp_path)).fingerprint() == plain.fingerprint()
    file.write_text(json.dumps({"sampling_rate": 16000}))
    with pytest.raises(UserError, match="24000"):
        MertEncoder(str(tmp_path))


@pytest.mark.parametrize(("changes", "megabytes"), [(REAL, 378), (LARGE, 1262)], ids=["95M", "330M"])
def test_the_real_graphs_have_the_published_size(tmp_path: Path, changes: dict[str, Any], megabytes: int) -> None:
    """Built without memory; the published files hold float32."""
    (tmp_path / "config.json").write_text(json.dumps({**SMALL, **changes}))
    with torch.device("meta"):
        model = build_mert(tmp_path / "config.json")
    assert 4 * sum(x.numel() for x in model.parameters()) / 1e6 == pytest.approx(megabytes, abs=1)
