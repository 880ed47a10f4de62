"""Every family against transformers' own model and feature extractor, on checkpoints that the library wrote."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import ClapConfig, ClapModel

from omnichat.encoders.transformers_audio import TransformersEncoder
from omnichat.encoders.transformers_wave import receptive_field
from tests.helpers.official_transformers import CLAP, OFFICIAL

torch.set_num_threads(1)

WAVES = [name for name in OFFICIAL if not name.startswith(("ast", "clap"))]


def noise(samples: int, gain: float = 0.1) -> Tensor:
    return gain * torch.randn(samples, generator=torch.Generator().manual_seed(samples))


def load(folder: Path, **options: Any) -> TransformersEncoder:
    return TransformersEncoder(str(folder), dtype="float32", **options)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", WAVES)
def test_waveform_models_equal_transformers(tmp_path: Path, name: str) -> None:
    official = OFFICIAL[name]
    reference = official.write(tmp_path)
    encoder = load(tmp_path, layers="mix")
    for samples in (16_123, 407, 40_000):
        wave = 0.3 + noise(samples)  # an offset, which do_normalize must take away
        with torch.no_grad():
            theirs = reference(**official.features(wave), output_hidden_states=True)
        ours = encoder.encode_waves([wave]).x_BTD[0]
        assert ours.shape[1] == theirs.last_hidden_state.shape[1]
        for number in range(3):
            close(ours[number], theirs.hidden_states[number][0])
        close(ours[3], theirs.last_hidden_state[0])


@pytest.mark.parametrize("name", WAVES)
def test_padding_changes_nothing(tmp_path: Path, name: str) -> None:
    """The same clip alone in a pass of its own length, and with 2 s of padding after it."""
    OFFICIAL[name].write(tmp_path)
    encoder = load(tmp_path, layers="mix")
    x = encoder.frontend(noise(9_001))
    frames = (len(x) - encoder.backbone.least) // encoder.backbone.hop + 1
    with torch.no_grad():
        exact, counts = encoder.hidden_states([x], len(x))
        padded, padded_counts = encoder.hidden_states([x, encoder.frontend(noise(39_000))], 41_000)
    assert counts == [frames] and padded_counts[0] == frames
    for one, other in zip(exact, padded, strict=True):
        torch.testing.assert_close(other[0, :frames], one[0], rtol=1e-5, atol=1e-5)


def test_rate_and_times_follow_from_the_convolutions(tmp_path: Path) -> None:
    assert receptive_field((10, 3, 3, 3, 3, 2, 2), (5, 2, 2, 2, 2, 2, 2)) == (400, 320)
    assert receptive_field((9, 4, 3), (4, 3, 2)) == (45, 24)
    OFFICIAL["odd-strides"].write(tmp_path)
    encoder = load(tmp_path)
    assert encoder.sample_rate == 8000 and encoder.receptive_sec == 45 / 8000
    assert encoder.spec.rate_hz == 8000 / 24
    times = encoder.encode_waves([noise(8000)]).time_sec[0]
    assert len(times) == (8000 - 45) // 24 + 1
    torch.testing.assert_close(times[:2], torch.tensor([22.5, 46.5]) / 8000)
    assert encoder.encode_waves([noise(3)]).mask_BT.sum() == 1


@pytest.mark.parametrize("name", ["ast", "ast-small-grid"])
def test_ast_equals_transformers_time_major(tmp_path: Path, name: str) -> None:
    official = OFFICIAL[name]
    reference = official.write(tmp_path)
    encoder = load(tmp_path, layers="mix")
    grid = (12, 101) if name == "ast" else ((64 - 16) // 12 + 1, (200 - 16) // 8 + 1)
    patch_hop = reference.config.time_stride
    for samples in (4_000, 16_000, 30_001):
        wave = noise(samples)
        features = official.features(wave)
        mel_frames = 1 + (samples - 400) // 160
        x = encoder.frontend(wave)
        assert len(x) == mel_frames
        close(x, features["input_values"][0][:mel_frames])
        with torch.no_grad():
            theirs = reference(**features, output_hidden_states=True)
        encoded = encoder.encode_waves([wave])
        steps = (mel_frames - 16) // patch_hop + 1
        assert encoded.x_BTD.shape[2] == steps * grid[0]
        states = [*theirs.hidden_states[:2], theirs.last_hidden_state]
        for number, state in enumerate(states):
            for step in (0, steps - 1):
                for band in (0, grid[0] - 1):
                    theirs_at = state[0, 2 + band * grid[1] + step]
                    close(encoded.x_BTD[0, number, step * grid[0] + band], theirs_at)
        close(encoded.time_sec[0, -1], torch.tensor((steps - 1) * patch_hop * 0.01 + 0.0875))


@pytest.mark.parametrize("name", ["clap", "clap-fused"])
def test_clap_equals_transformers(tmp_path: Path, name: str) -> None:
    official = OFFICIAL[name]
    reference = official.write(tmp_path)
    encoder = load(tmp_path, layers="mix")
    for samples in (480_000, 100_000):
        wave = noise(samples)
        features = official.features(wave)
        mel = encoder.frontend(wave)
        torch.testing.assert_close(mel[:, :-1], features["input_features"][0, 0], rtol=1e-4, atol=1e-3)
        features["is_longer"] = torch.zeros(1, 1, dtype=torch.bool)  # which the extractor sets at random for fused ones
        with torch.no_grad():
            theirs = reference(**features, output_hidden_states=True)
        encoded = encoder.encode_waves([wave])
        # [B, D, frequency, time] of the library's last map.
        expected = theirs.last_hidden_state[0].mean(1).T
        frames = encoded.x_BTD.shape[2]
        assert frames == (32 if samples == 480_000 else 7)
        close(encoded.x_BTD[0, -1], expected[:frames])
        # Its hidden states are maps of the stacked image: quarters of the clip below each other, two rows each.
        entry = theirs.hidden_states[-2][0].unflatten(1, (4, 2)).mean(2).flatten(1).T
        close(encoded.x_BTD[0, 0], entry[:frames])


def test_clap_frames_stand_where_their_sound_is() -> None:
    """A click moves the frame whose centre is nearest, in every quarter of the stacked image."""
    encoder = TransformersEncoder(family="clap", layers=0, dtype="float32")  # before the attention over the whole image
    for second in (0.8, 3.3, 6.1, 9.4):
        wave = noise(480_000, 0.01)
        other = wave.clone()
        at = int(second * 48_000)
        other[at : at + 480] += noise(480, 0.5)
        one, two = encoder.encode_waves([wave]), encoder.encode_waves([other])
        most = (one.x_BTD - two.x_BTD).norm(dim=-1)[0].argmax()
        assert abs(float(one.time_sec[0, most]) - second) < 0.17


@pytest.mark.parametrize("family", ["ast", "clap"])
def test_long_clips_are_chunked_and_never_cut(family: str) -> None:
    encoder = TransformersEncoder(family=family, dtype="float32")
    hop = {"ast": 1010 * 160, "clap": 480_000}[family]  # samples between the starts of chunks
    frames = {"ast": 101 * 12, "clap": 32}[family]
    wave = noise(2 * hop + encoder.sample_rate)
    whole, tail = encoder.encode_waves([wave]), encoder.encode_waves([wave[2 * hop :]])
    assert whole.x_BTD.shape[1] == 2 * frames + tail.x_BTD.shape[1]
    close(whole.x_BTD[0, 2 * frames :], tail.x_BTD[0])
    shift = 2 * hop / encoder.sample_rate
    torch.testing.assert_close(whole.time_sec[0, 2 * frames :], tail.time_sec[0] + shift)
    times = whole.time_sec[0].unique()
    assert times.diff().max() < 1.1 * times.diff().min(), "the grid of times has no seam"


@pytest.mark.parametrize("name", [name for name in OFFICIAL if OFFICIAL[name].head is not None])
def test_heads_and_prefixes_of_tuned_models_are_dropped(tmp_path: Path, name: str) -> None:
    official = OFFICIAL[name]
    model = official.write(tmp_path, head=True)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert len({name.split(".")[0] for name in names}) > 1, "the file has something beside the encoder"
    prefixed = load(tmp_path)
    base = tmp_path / "base"
    inner = getattr(model, model.base_model_prefix, None)
    inner = model.audio_model if inner is None else inner  # CLAP's
    inner.save_pretrained(base)
    official.front_end().save_pretrained(base)
    plain = load(base)
    assert plain.fingerprint() == prefixed.fingerprint()
    assert "random" not in plain.description


def test_the_audio_tower_of_a_whole_clap(tmp_path: Path) -> None:
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = ClapConfig(text_config={**text, "vocab_size": 50}, audio_config=CLAP)
    model = ClapModel(config).eval()
    model.save_pretrained(tmp_path)
    OFFICIAL["clap"].front_end().save_pretrained(tmp_path)
    ours = load(tmp_path)
    features = OFFICIAL["clap"].features(noise(480_000))
    with torch.no_grad():
        theirs = model.audio_model(**features).last_hidden_state[0].mean(1).T
    close(ours.encode_waves([noise(480_000)]).x_BTD[0], theirs)


def test_shards_pickles_and_older_places_of_the_front_end(tmp_path: Path) -> None:
    official = OFFICIAL["wavlm"]
    model = official.write(tmp_path / "one")
    expected = load(tmp_path / "one").fingerprint()

    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    assert (tmp_path / "shards" / "model.safetensors.index.json").is_file()
    shutil.copy(tmp_path / "one" / "preprocessor_config.json", tmp_path / "shards")
    assert load(tmp_path / "shards").fingerprint() == expected

    old = tmp_path / "old"  # a .bin under the older names of weight norm, and a processor's file
    old.mkdir()
    shutil.copy(tmp_path / "one" / "config.json", old)
    state = {
        name.replace("parametrizations.weight.original0", "weight_g").replace(
            "parametrizations.weight.original1", "weight_v"
        ): tensor
        for name, tensor in load_file(tmp_path / "one" / "model.safetensors").items()
    }
    assert any(name.endswith("weight_g") for name in state)
    torch.save(state, old / "pytorch_model.bin")
    front = json.loads((tmp_path / "one" / "preprocessor_config.json").read_text())
    (old / "processor_config.json").write_text(json.dumps({"feature_extractor": front}))
    assert load(old).fingerprint() == expected
