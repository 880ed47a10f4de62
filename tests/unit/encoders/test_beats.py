"""BEATs against the published graph: golden values of the reference code, checkpoint loading, relative buckets."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from omnichat.encoders.beats import Beats, BeatsConfig, BeatsEncoder, relative_buckets
from omnichat.utils.errors import UserError
from tests.helpers.bad_files import Canary, damaged
from tests.helpers.official_beats import CFG, PRETRAINED, REAL, checkpoint, shapes

torch.set_num_threads(1)

# Hidden states of `wave()` under `checkpoint()` at (token 0, 7, 100, 199; channel 0, 13, 31), from the reference
# implementation in speechbrain 1.1.2 (lobes/models/beats.py), whose graph is the official one.
GOLDEN: list[list[list[float]]] = [
    [
        [-2.129873, -1.199136, -1.403465],
        [0.301971, -1.389444, 0.467396],
        [0.002659, -1.289724, 0.234679],
        [0.505024, -0.821271, 0.610415],
    ],
    [
        [-2.68208, 0.155554, -0.792175],
        [-0.452557, -0.182845, 0.315974],
        [-0.09812, 0.501373, 0.692019],
        [-0.165082, 0.323917, 0.451548],
    ],
    [
        [-0.29022, 0.755482, -0.871731],
        [0.947726, 0.420258, -0.403171],
        [1.38843, 0.880085, -0.36429],
        [1.104401, 0.633507, -0.325778],
    ],
]


TABLE = "self_attn.relative_attention_bias.weight"


def wave() -> Tensor:
    """A chirp over noise: without the noise the logarithm of near-silent bands would magnify a processor's rounding."""
    number = torch.arange(65_000, dtype=torch.float64)
    time = number / 16_000
    noise = torch.sin(number**2 * 0.7347)
    chirp = 0.3 * torch.sin(2 * math.pi * (200 * time + 400 * time**2)) * (1 + torch.sin(9 * time)) / 2
    return (chirp + 0.3 * noise).float()


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
        (lambda c: c.update(cfg={**CFG, "encoder_layers": "2"}), "encoder_layers='2'"),
        (lambda c: c.update(cfg={**CFG, "encoder_attention_heads": 5}), "no multiple of cfg.encoder_attention_heads=5"),
        (lambda c: c.update(cfg={**CFG, "num_buckets": 3}), "cfg.num_buckets=3 must be at least 4"),
        (lambda c: c.update(cfg={**CFG, "max_distance": 2}), "more than a quarter"),
        (lambda c: c.update(cfg={**CFG, "max_distance": 0}), "max_distance=0"),
        (lambda c: c.update(cfg={**CFG, "encoder_layers": 3}), r"lacks encoder\.layers\.2\.fc1\.bias"),
        (lambda c: c["model"].update({"encoder.layers.1." + TABLE: torch.zeros(320, 2)}), r"layers\.1\..*differs from"),
        (lambda c: c["model"].update({"layer_norm.bias": [0.0]}), "layer_norm.bias is not a tensor"),
        (lambda c: c.pop("cfg"), "`cfg` and `model`"),
        (lambda c: c.update(model=None), "`cfg` and `model`"),
    ],
)
def test_a_wrong_checkpoint_is_refused_by_name(change: Any, message: str, tmp_path: Path) -> None:
    content = checkpoint()
    change(content)
    torch.save(content, tmp_path / "wrong.pt")
    with pytest.raises(UserError, match=message) as caught:
        BeatsEncoder(str(tmp_path / "wrong.pt"))
    assert "\n" not in str(caught.value)


def test_damaged_and_hostile_files_are_refused(tmp_path: Path, file: Path) -> None:
    for path in damaged(file):
        with pytest.raises(UserError, match=path.name) as caught:
            BeatsEncoder(str(path))
        assert "\n" not in str(caught.value)
    canary = Canary(tmp_path / "ran")
    for number, content in enumerate(({"cfg": CFG, "model": canary}, {**checkpoint(), "extra": canary})):
        torch.save(content, tmp_path / f"evil{number}.pt")
        with pytest.raises(UserError, match=rf"evil{number}\.pt: refused.*mkdir"):
            BeatsEncoder(str(tmp_path / f"evil{number}.pt"))
    assert not (tmp_path / "ran").exists()
    with pytest.raises(UserError, match="no such"):
        BeatsEncoder(str(tmp_path / "absent.pt"))


def test_pretrained_and_fine_tuned_files_hold_the_same_encoder(tmp_path: Path, file: Path) -> None:
    torch.save(checkpoint(**PRETRAINED), tmp_path / "pre.pt")
    pretrained = torch.load(tmp_path / "pre.pt", weights_only=True)
    assert set(pretrained) == {"cfg", "model"} and "predictor.bias" not in pretrained["model"]
    one, two = BeatsEncoder(str(file)), BeatsEncoder(str(tmp_path / "pre.pt"))
    assert {name: x.shape for name, x in one.state_dict().items()} == {n: x.shape for n, x in two.state_dict().items()}


@pytest.mark.parametrize("changes", [{"conv_bias": True}, {"deep_norm": False}, {"embed_dim": 32}, {"conv_pos": 64}])
def test_the_config_in_the_file_sets_the_graph(tmp_path: Path, changes: dict[str, Any], file: Path) -> None:
    torch.save(checkpoint(**changes), tmp_path / "other.pt")
    other = BeatsEncoder(str(tmp_path / "other.pt"), dtype="float32")
    usual = BeatsEncoder(str(file), dtype="float32")
    assert other.fingerprint() != usual.fingerprint()
    assert not torch.allclose(other.encode_waves([wave()]).x_BTD, usual.encode_waves([wave()]).x_BTD, atol=1e-3)


def test_half_precision_files_are_computed_in_float32(tmp_path: Path, file: Path) -> None:
    content = checkpoint()
    content["model"] = {name: x.half() for name, x in content["model"].items()}
    torch.save(content, tmp_path / "half.pt")
    half = BeatsEncoder(str(tmp_path / "half.pt"), dtype="float32")
    assert {x.dtype for x in half.state_dict().values()} == {torch.float32}
    full = BeatsEncoder(str(file), dtype="float32")
    torch.testing.assert_close(half.encode_waves([wave()]).x_BTD, full.encode_waves([wave()]).x_BTD, rtol=0, atol=0.02)


def test_the_real_graph_has_the_published_tensors() -> None:
    """Without memory: names, shapes and the count of 90.7 million parameters, head included."""
    cfg = {**CFG, **REAL}
    with torch.device("meta"):
        model = Beats(BeatsConfig.from_checkpoint(cfg, Path("x")))
    ours = {}
    for name, x in model.state_dict().items():
        name = name.replace("parametrizations.weight.original0", "weight_g")
        ours[name.replace("parametrizations.weight.original1", "weight_v")] = tuple(x.shape)
    published = shapes(cfg)
    assert ours == {name: shape for name, shape in published.items() if not name.startswith("predictor.")}
    count = sum(x.numel() for x in model.parameters()) + 527 * 769  # the table counts once, as it is tied
    assert count == pytest.approx(90.7e6, abs=0.05e6)
