"""emotion2vec: golden values of the reference code, the published layouts, padding, and what is refused."""

from __future__ import annotations

import logging
import math
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from omnichat.encoders import checkpoints
from omnichat.encoders.emotion2vec import Emotion2vec, Emotion2vecConfig, Emotion2vecEncoder, alibi_slopes
from omnichat.utils.errors import UserError
from tests.helpers.bad_files import Canary, damaged
from tests.helpers.official_emotion2vec import AUDIO, BASE, LARGE, Sizes, base_file, plus_file, shapes, weights

torch.set_num_threads(1)

WIDTH = Sizes().width
# Hidden states of `wave()` under `base_file()` at (layer 0, 1, 4; frame 0, 7, 48; channel 0, 13, 47), from the
# reference implementation in funasr 1.4.16 (models/emotion2vec).
GOLDEN: list[list[list[float]]] = [
    [[-0.573798, -1.120128, 1.594251], [0.412272, -0.507607, 1.888786], [0.649474, -0.312895, 1.852197]],
    [[-0.516907, 0.054768, 0.506428], [0.483051, -0.351304, 0.67193], [-0.182783, -0.034742, 1.260216]],
    [[-0.316536, 0.927132, -0.179654], [-0.540675, 0.511457, -0.044028], [-0.413219, 0.77102, -0.274964]],
]


def wave(samples: int = 16_000) -> Tensor:
    time = torch.arange(samples, dtype=torch.float64) / 16_000
    return (0.02 + 0.3 * torch.sin(2 * math.pi * (200 * time + 400 * time**2)) * (1.1 + torch.sin(9 * time))).float()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.save(base_file(), tmp_path / "emotion2vec_base.pt")
    return tmp_path / "emotion2vec_base.pt"


def test_equals_the_reference_implementation(file: Path) -> None:
    hidden = Emotion2vecEncoder(str(file), layers="mix", dtype="float32").encode_waves([wave()]).x_BTD[0]
    assert hidden.shape == (5, 49, WIDTH)
    picked = hidden[[0, 1, 4]][:, [0, 7, 48]][..., [0, 13, 47]]
    torch.testing.assert_close(picked, torch.tensor(GOLDEN), rtol=0, atol=2e-5)


def test_every_published_layout_gives_the_same_features(tmp_path: Path, file: Path) -> None:
    """Base and plus, bare and wrapped, with training's leftovers and without; all encoder weights are the same."""
    state = weights(decoder=False)
    flat = {**state, f"{AUDIO}alibi_scale": state[f"{AUDIO}alibi_scale"][0]}  # four axes, as early files
    contents = {"plus": plus_file(), "bare": state, "funasr": {"state_dict": base_file()["model"]}, "old": flat}
    expected = Emotion2vecEncoder(str(file)).fingerprint()
    for name, content in contents.items():
        torch.save(content, tmp_path / f"{name}.pt")
        assert Emotion2vecEncoder(str(tmp_path / f"{name}.pt")).fingerprint() == expected, name
    assert Emotion2vecEncoder(str(tmp_path)).fingerprint() == expected, "a folder, under the published name"
    (tmp_path / "plus").mkdir()
    (tmp_path / "plus.pt").rename(tmp_path / "plus" / "model.pt")
    assert Emotion2vecEncoder(str(tmp_path / "plus")).fingerprint() == expected
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty: holds no emotion2vec_base\.pt or model\.pt"):
        Emotion2vecEncoder(str(tmp_path / "empty"))


def test_the_tensors_tell_depth_and_heads(tmp_path: Path) -> None:
    torch.save(plus_file(Sizes(width=64, heads=4, prenet=1, blocks=3, conv_width=24)), tmp_path / "model.pt")
    encoder = Emotion2vecEncoder(str(tmp_path), layers="mix")
    cfg = encoder.cfg
    assert (cfg.width, cfg.ffn, cfg.heads, cfg.prenet, cfg.blocks, cfg.conv_width) == (64, 256, 4, 1, 3, 24)
    assert encoder.spec.layers == 5 and encoder.description == f"emotion2vec, 4 x 64, {tmp_path.name}"


@pytest.mark.parametrize(("sizes", "million"), [(BASE, 93.8), (LARGE, 162.1)], ids=["base", "plus_large"])
def test_the_real_graphs_have_the_published_tensors(sizes: Sizes, million: float) -> None:
    """Built without memory; base is counted with its decoder, as its file holds one."""
    cfg = Emotion2vecConfig(sizes.width, 4 * sizes.width, sizes.heads, sizes.prenet, sizes.blocks, sizes.conv_width)
    with torch.device("meta"):
        model = Emotion2vec(cfg)
        published = {name: torch.zeros(shape) for name, shape in shapes(sizes, decoder=sizes == BASE).items()}
    ours = {name: tuple(x.shape) for name, x in model.state_dict().items()}
    assert ours == {name: tuple(x.shape) for name, x in published.items() if ".decoder." not in name}
    assert cfg == Emotion2vecConfig.from_state(published, Path("x"))
    assert sum(x.numel() for x in published.values()) / 1e6 == pytest.approx(million, abs=0.05)


def test_slopes_are_those_of_alibi() -> None:
    eight = [2.0**-power for power in range(1, 9)]
    assert alibi_slopes(8).tolist() == eight
    between = [2.0**-power for power in (0.5, 1.5, 2.5, 3.5)]  # every second one of sixteen
    torch.testing.assert_close(alibi_slopes(12), torch.tensor(eight + between))
    assert alibi_slopes(1).tolist() == [2.0**-8] and len(alibi_slopes(3)) == 3


def test_padding_changes_nothing(file: Path) -> None:
    """Neither a bucket's silence behind a clip nor whatever stands there reaches a valid frame."""
    encoder = Emotion2vecEncoder(str(file), dtype="float32")
    x = encoder.frontend(wave(20_000))
    frames = torch.tensor([(len(x) - 400) // 320 + 1])
    with torch.no_grad():
        alone = encoder.model(x[None], frames)
        for tail in (torch.zeros(16_000), 100 * torch.randn(16_000, generator=torch.Generator().manual_seed(0))):
            padded = encoder.model(torch.cat([x, tail])[None], frames)
            for one, two in zip(alone, padded, strict=True):
                torch.testing.assert_close(two[:, : one.shape[1]], one, rtol=1e-5, atol=1e-5)


def test_the_waveform_is_normalised_over_its_own_samples(file: Path) -> None:
    encoder = Emotion2vecEncoder(str(file), dtype="float32")
    x = encoder.frontend(wave())
    torch.testing.assert_close(x.mean(), torch.tensor(0.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(x.var(correction=0), torch.tensor(1.0), atol=1e-3, rtol=0)
    torch.testing.assert_close(encoder.frontend(3 * wave() + 0.2), x, rtol=1e-3, atol=1e-3)
    short = encoder.frontend(wave(100))
    assert len(short) == 400 and not short[100:].any() and short[:100].std() > 0.9, "padded after it was normalised"
    torch.testing.assert_close(encoder.frame_times(2), torch.tensor([0.0125, 0.0325]))


def test_a_random_build_says_so_and_needs_sizes_that_fit(caplog: pytest.LogCaptureFixture, file: Path) -> None:
    with caplog.at_level(logging.INFO, logger="omnichat"):
        small = Emotion2vecEncoder(depth=4, seed=3)
        assert small.description == "emotion2vec, 4 x 96, random weights (seed 3)" and "licence" not in caplog.text
        assert (small.cfg.prenet, small.cfg.blocks) == (1, 3)
        Emotion2vecEncoder(str(file))
    assert "FunASR's model licence" in caplog.text
    for wrong, message in (({"width": 90}, "width=90"), ({"depth": 0}, "depth"), ({"heads": 0}, "heads")):
        with pytest.raises(UserError, match=message):
            Emotion2vecEncoder(**wrong)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("blocks.1.mlp.fc2.bias"), r"lacks blocks\.1\.mlp\.fc2\.bias"),
        (lambda c: c.pop(f"{AUDIO}alibi_scale"), r"lacks modality_encoders\.AUDIO\.alibi_scale"),
        (lambda c: c.pop(f"{AUDIO}project_features.2.weight"), r"lacks .*project_features\.2\.weight"),
        (lambda c: c.pop(f"{AUDIO}local_encoder.conv_layers.6.2.1.bias"), r"lacks .*conv_layers\.6\.2\.1\.bias"),
        (lambda c: c.update({"blocks.0.attn.kv.weight": torch.zeros(1)}), r"unknown blocks\.0\.attn\.kv\.weight"),
        (lambda c: c.update({"norm.weight": torch.zeros(WIDTH)}), r"unknown norm\.weight"),
        (lambda c: c.update({f"{AUDIO}extra_tokens": torch.zeros(10, WIDTH)}), "expected 3 dimensions"),
        (lambda c: c.update({f"{AUDIO}alibi_scale": torch.ones(4, 1, 3, 1, 1)}), r"\(4, 1, 3, 1, 1\) instead of"),
        (lambda c: c.update({f"{AUDIO}alibi_scale": torch.ones(1, 1, 7, 1, 1)}), "7 heads"),
        (lambda c: c.update({"blocks.0.norm1.bias": 3}), r"blocks\.0\.norm1\.bias is not a tensor"),
        (lambda c: c.clear(), "lacks modality_encoders"),
    ],
)
def test_a_wrong_checkpoint_is_refused_by_name(change: Any, message: str, tmp_path: Path) -> None:
    content = base_file()
    change(content["model"])
    torch.save(content, tmp_path / "wrong.pt")
    with pytest.raises(UserError, match=rf"wrong\.pt: .*{message}") as caught:
        Emotion2vecEncoder(str(tmp_path / "wrong.pt"))
    assert "\n" not in str(caught.value)


def test_damaged_and_hostile_files_are_refused(tmp_path: Path, file: Path) -> None:
    for path in damaged(file):
        with pytest.raises(UserError, match=path.name) as caught:
            Emotion2vecEncoder(str(path))
        assert "\n" not in str(caught.value)
    torch.save({**base_file(), "cfg": Canary(tmp_path / "ran")}, file)
    with pytest.raises(UserError, match=r"refused, nothing of it was executed.*mkdir") as caught:
        Emotion2vecEncoder(str(file))
    assert not (tmp_path / "ran").exists() and "trust" not in str(caught.value)
    torch.save([1, 2], file)
    with pytest.raises(UserError, match="maps names to tensors"):
        Emotion2vecEncoder(str(file))


def test_a_trainers_objects_are_refused_with_the_way_to_convert(tmp_path: Path, file: Path) -> None:
    torch.save({**base_file(), "args": Namespace(arch="data2vec_multi")}, file)
    with pytest.raises(UserError, match=r"wants to run argparse\.Namespace.*torch\.save") as caught:
        Emotion2vecEncoder(str(file))
    assert "\n" not in str(caught.value)
    # The way that it names, followed.
    torch.save({"model": torch.load(file, map_location="cpu", weights_only=False)["model"]}, tmp_path / "new.pt")
    assert Emotion2vecEncoder(str(tmp_path / "new.pt")).cfg.depth == 4


def test_a_hub_id_fetches_the_weights_alone(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(checkpoints, "snapshot_download", download)
    assert (
        Emotion2vecEncoder("emotion2vec/emotion2vec_base").fingerprint() == Emotion2vecEncoder(str(file)).fingerprint()
    )
    assert asked == [("emotion2vec/emotion2vec_base", ["*.pt"])]
