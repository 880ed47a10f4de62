"""BEATs against the published graph: golden values of the reference code, checkpoint loading, relative buckets."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from omnichat.encoders.beats import Beats, BeatsConfig, BeatsEncoder, relative_buckets
from omnichat.utils.errors import UserError

torch.set_num_threads(1)

# cfg of a published file, at a small size.
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
# Hidden states of `wave()` under `checkpoint()` at (token 0, 7, 100, 199; channel 0, 13, 31), from the reference
# implementation in speechbrain 1.1.2 (lobes/models/beats.py), whose graph is the official one.
GOLDEN: list[list[list[float]]] = [
    [
        [-2.242773, -1.192257, -1.380648],
        [-1.323025, -0.277570, -1.242033],
        [0.490976, 0.600799, 0.229472],
        [-1.714062, -0.450430, -1.591892],
    ],
    [
        [-1.646531, 1.057184, -0.375407],
        [-1.700652, 1.460510, -0.821136],
        [-0.415657, 2.070148, -0.101426],
        [-1.957768, 1.190123, -0.983808],
    ],
    [
        [0.831159, 1.637269, -1.059767],
        [0.774712, 1.896671, -1.226746],
        [1.157467, 1.634482, -0.467423],
        [-0.025077, 1.580701, -1.092041],
    ],
]


def wave() -> Tensor:
    time = torch.arange(65_000, dtype=torch.float64) / 16_000
    return (0.3 * torch.sin(2 * math.pi * (200 * time + 400 * time**2)) * (1 + torch.sin(9 * time)) / 2).float()


def checkpoint() -> dict[str, Any]:
    """A fine-tuned checkpoint under the published names, every tensor a fixed function of its place."""
    names = {
        name: tensor.shape for name, tensor in Beats(BeatsConfig.from_checkpoint(CFG, Path("x"))).state_dict().items()
    }
    published = {"original0": "weight_g", "original1": "weight_v"}
    shapes = {
        name.replace(f"parametrizations.weight.{name.split('.')[-1]}", published.get(name.split(".")[-1], "")): shape
        for name, shape in sorted(names.items())
    }
    shapes |= {"predictor.weight": torch.Size([5, 32]), "predictor.bias": torch.Size([5])}
    state = {}
    for number, (name, shape) in enumerate(sorted(shapes.items())):
        if "relative_attention_bias" in name:
            number = 1000  # one table, stored once a layer
        ramp = torch.arange(shape.numel(), dtype=torch.float64)
        values = torch.sin(ramp * 1.7 + (ramp % 7) * (0.3 + number) + number).reshape(shape)
        scale, offset = (0.1, 1.0) if name.endswith(("norm.weight", "grep_a", "weight_g")) else (0.5, 0.0)
        state[name] = (offset + scale * values).float()
    return {"cfg": CFG, "model": state, "label_dict": {0: "/m/09x0r"}}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.save(checkpoint(), tmp_path / "BEATs_small.pt")
    return tmp_path / "BEATs_small.pt"


def test_equals_the_reference_implementation(file: Path) -> None:
    encoder = BeatsEncoder(str(file), layers="mix", dtype="float32")
    hidden = encoder.encode_waves([wave()]).x_BTD[0]
    assert hidden.shape == (3, 200, 32)
    picked = hidden[:, [0, 7, 100, 199]][..., [0, 13, 31]]
    torch.testing.assert_close(picked, torch.tensor(GOLDEN), rtol=0, atol=2e-5)


def test_a_padded_neighbour_does_not_change_checkpoint_features(file: Path) -> None:
    encoder = BeatsEncoder(str(file), dtype="float32")
    long = encoder.encode_waves([wave()])
    short = encoder.encode_waves([wave()[:9000]])
    both = encoder.encode_waves([wave()[:9000], wave()])
    torch.testing.assert_close(both.x_BTD[1], long.x_BTD[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(both.x_BTD[0][both.mask_BT[0]], short.x_BTD[0], rtol=1e-5, atol=1e-5)


def test_tokens_are_time_major_and_band_minor(file: Path) -> None:
    """Change the four highest bands of one patch of the filter bank: before mixing, only their tokens change."""
    encoder = BeatsEncoder(str(file), layers=0, dtype="float32")
    fbank = encoder.frontend(wave())
    other = fbank.clone()
    other[16 * 5 : 16 * 6, 64:] += 1.0
    embed = encoder.model.patch_embedding
    one, two = (embed(x[None, None]).flatten(2).transpose(1, 2)[0] for x in (fbank, other))
    changed = (one - two).abs().amax(1).nonzero().flatten().tolist()
    assert changed == [44, 45, 46, 47]
    times = encoder.frame_times(48)
    assert times[40:48].unique().tolist() == pytest.approx([5 * 0.16 + 0.0875])


def test_relative_buckets_are_exact_when_near_and_capped_when_far() -> None:
    offsets = torch.tensor([0, 1, -1, 79, -79, 80, -80, 799, -799, 5000, -5000])
    # 160 a sign: exact below 80, then 80 logarithmic ones up to distance 800.
    assert relative_buckets(offsets, 320, 800).tolist() == [0, 161, 1, 239, 79, 240, 80, 319, 159, 319, 159]
    middle = 80 + int(80 * math.log(250 / 80) / math.log(10))
    assert relative_buckets(torch.tensor([-250]), 320, 800).item() == middle


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["model"].pop("encoder.layers.1.fc1.bias"), r"encoder\.layers\.1\.fc1\.bias"),
        (lambda c: c["model"].update({"encoder.extra": torch.zeros(1)}), "encoder.extra"),
        (lambda c: c["model"].update({"layer_norm.bias": torch.zeros(3)}), "layer_norm.bias"),
        (lambda c: c.update(cfg={**CFG, "layer_norm_first": True}), "layer_norm_first"),
        (lambda c: c.update(cfg={k: v for k, v in CFG.items() if k != "max_distance"}), "max_distance"),
        (lambda c: c.pop("cfg"), "`cfg` and `model`"),
    ],
)
def test_a_wrong_checkpoint_is_refused_by_name(change: Any, message: str, tmp_path: Path) -> None:
    content = checkpoint()
    change(content)
    torch.save(content, tmp_path / "wrong.pt")
    with pytest.raises(UserError, match=message) as caught:
        BeatsEncoder(str(tmp_path / "wrong.pt"))
    assert "\n" not in str(caught.value)


def test_a_checkpoint_cannot_run_code(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "ran"),))

    torch.save({"cfg": CFG, "model": Payload()}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match=r"evil\.pt"):
        BeatsEncoder(str(tmp_path / "evil.pt"))
    assert not (tmp_path / "ran").exists()
    with pytest.raises(UserError, match="no such"):
        BeatsEncoder(str(tmp_path / "absent.pt"))
