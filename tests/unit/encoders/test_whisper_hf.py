"""Whisper in transformers' layout: the same features as transformers' own encoder, in every form it is published."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import WhisperFeatureExtractor, WhisperForAudioClassification
from whisper.model import Whisper

from omnichat.encoders import checkpoints
from omnichat.encoders.whisper import WhisperEncoder
from omnichat.encoders.whisper_files import find_whisper, load_whisper, load_whisper_encoder
from omnichat.utils.errors import UserError
from tests.helpers.official_whisper import as_transformers, small_whisper, write_openai, write_transformers

torch.set_num_threads(1)
FORMS = ("whole", "sharded", "bin", "base", "encoder")


@pytest.fixture(scope="module", params=[80, 128])
def model(request: pytest.FixtureRequest) -> Whisper:
    return small_whisper(request.param)


@pytest.fixture(scope="module")
def small() -> Whisper:
    return small_whisper()


def noise(samples: int, gain: float = 0.1) -> Tensor:
    return gain * torch.randn(samples, generator=torch.Generator().manual_seed(samples))


@torch.no_grad()
def test_features_are_those_of_transformers_encoder(model: Whisper, tmp_path: Path) -> None:
    """The whole way: their feature extractor and encoder on one side, ours on the other."""
    encoder = WhisperEncoder(str(write_transformers(tmp_path, model, "whole")), layers="mix", dtype="float32")
    theirs, extract = as_transformers(model).model.encoder, WhisperFeatureExtractor(feature_size=model.dims.n_mels)
    for wave in (noise(30_001, 0.9), noise(333, 0.001), noise(479_999)):
        mel = extract(wave.numpy(), sampling_rate=16_000, return_tensors="pt").input_features
        expected = theirs(mel, output_hidden_states=True)
        ours, length = encoder.encode_waves([wave]).x_BTD[0], -(-len(wave) // 320)
        assert len(ours) == model.dims.n_audio_layer + 1
        wanted = [*expected.hidden_states[:-1], expected.last_hidden_state]
        for layer, reference in zip(ours, wanted, strict=True):
            assert (layer - reference[0, :length]).norm() <= 1e-4 * reference[0, :length].norm()


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_the_model_that_the_openai_file_holds(form: str, small: Whisper, tmp_path: Path) -> None:
    folder = write_transformers(tmp_path / "folder", small, form)
    assert (len(list(folder.glob("model-*-of-*.safetensors"))) > 1) == (form == "sharded")
    encoder = WhisperEncoder(str(folder), dtype="float32")
    official = WhisperEncoder(str(write_openai(tmp_path / "small.pt", small)), dtype="float32")
    assert encoder.fingerprint() == official.fingerprint()
    assert torch.equal(encoder.encode_waves([noise(9000)]).x_BTD, official.encode_waves([noise(9000)]).x_BTD)
    if form == "encoder":
        with pytest.raises(UserError, match="lacks decoder"):
            load_whisper(folder)
        return
    whole = load_whisper(folder)
    assert whole.dims == small.dims
    for name, tensor in small.state_dict().items():
        assert torch.equal(whole.state_dict()[name], tensor), name


def test_a_classifier_brings_its_encoder(small: Whisper, tmp_path: Path) -> None:
    classifier = WhisperForAudioClassification(as_transformers(small).config)
    classifier.encoder.load_state_dict(as_transformers(small).model.encoder.state_dict())
    classifier.save_pretrained(tmp_path)
    encoder, _ = load_whisper_encoder(tmp_path)
    assert all(torch.equal(x, small.encoder.state_dict()[name]) for name, x in encoder.state_dict().items())


def test_the_decoder_is_not_read(small: Whisper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    original = checkpoints._read_one

    def watched(path: Path, what: str, skip: Sequence[str]) -> dict[str, Tensor]:
        content = original(path, what, skip)
        read.extend(content)
        return content

    monkeypatch.setattr(checkpoints, "_read_one", watched)
    load_whisper_encoder(write_transformers(tmp_path, small, "sharded"))
    assert read and not [name for name in read if "decoder" in name or "proj_out" in name]


@pytest.mark.parametrize("form", ["whole", "bin"])
def test_a_hub_id_fetches_one_copy_of_the_weights(
    form: str, small: Whisper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repository may hold safetensors, .bin, float32 shards and code; what is read is fetched, nothing else."""
    published = write_transformers(tmp_path / "hub", small, form)
    for name in ("run.py", "flax_model.msgpack", "model.fp32-00001-of-00002.safetensors", "tokenizer.json"):
        (published / name).write_bytes(b"x")
    if form == "whole":
        (published / "pytorch_model.bin").write_bytes(b"a second copy")
    fetched = tmp_path / "fetched"

    def snapshot(repo: str, allow_patterns: list[str]) -> str:
        assert repo == "owner/name"
        for path in published.iterdir():
            if any(fnmatch(path.name, pattern) for pattern in allow_patterns):
                fetched.mkdir(exist_ok=True)
                shutil.copy(path, fetched)
        return str(fetched)

    monkeypatch.setattr(checkpoints, "snapshot_download", snapshot)
    load_whisper_encoder(find_whisper("owner/name"))
    weights = {"whole": "model.safetensors", "bin": "pytorch_model.bin"}[form]
    assert {path.name for path in fetched.iterdir()} == {"config.json", weights}


def _config(change: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        raw = json.loads((folder / "config.json").read_text())
        change(raw)
        (folder / "config.json").write_text(json.dumps(raw))

    return apply


def _weights(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        state = load_file(str(folder / "model.safetensors"))
        change(state)
        save_file(state, str(folder / "model.safetensors"))

    return apply


def _cut(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


ENCODER = "model.encoder."
DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "other model": (_config(lambda c: c.update(model_type="bert")), "model_type is 'bert'"),
    "size missing": (_config(lambda c: c.pop("encoder_layers")), "lacks encoder_layers"),
    "size a word": (_config(lambda c: c.update(encoder_layers="two")), "n_audio_layer"),
    "too deep": (_config(lambda c: c.update(encoder_layers=900_000)), "holds 2 encoder blocks"),
    "heads": (_config(lambda c: c.update(encoder_attention_heads=5)), "multiple of n_audio_head"),
    "ffn": (_config(lambda c: c.update(encoder_ffn_dim=100)), "encoder_ffn_dim"),
    "activation": (_config(lambda c: c.update(activation_function="relu")), "activation_function"),
    "positions": (_config(lambda c: c.update(max_source_positions=100)), "n_audio_ctx=100"),
    "mels": (_config(lambda c: c.update(num_mel_bins=128)), "conv1"),
    "no config": (lambda folder: (folder / "config.json").unlink(), r"config\.json"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "neither"),
    "truncated": (_cut, "safetensors"),
    "tensor missing": (_weights(lambda s: s.pop(f"{ENCODER}layers.1.fc1.bias")), r"lacks blocks\.1\.mlp\.0\.bias"),
    "tensor unknown": (_weights(lambda s: s.update({f"{ENCODER}layers.0.q.bias": torch.ones(3)})), "unknown"),
    "key bias": (_weights(lambda s: s.update({f"{ENCODER}layers.0.self_attn.k_proj.bias": torch.ones(32)})), "unknown"),
    "shape": (_weights(lambda s: s.update({f"{ENCODER}layer_norm.bias": torch.ones(3)})), "other shapes"),
    "prefix": (
        _weights(lambda s: [s.update({f"net.{name}": s.pop(name)}) for name in list(s)]),
        "holds no Whisper encoder",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_by_name(damage: str, small: Whisper, tmp_path: Path) -> None:
    change, message = DAMAGES[damage]
    change(write_transformers(tmp_path, small, "whole"))
    with pytest.raises(UserError, match=message) as caught:
        WhisperEncoder(str(tmp_path))
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_an_output_layer_of_its_own_is_refused_where_it_would_be_lost(small: Whisper, tmp_path: Path) -> None:
    folder = write_transformers(tmp_path, small, "bin")
    state = torch.load(folder / "pytorch_model.bin", weights_only=True)
    state["proj_out.weight"] = state["proj_out.weight"] + 1
    torch.save(state, folder / "pytorch_model.bin")
    load_whisper_encoder(folder)
    with pytest.raises(UserError, match=r"proj_out\.weight differs"):
        load_whisper(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "evil.pt"])
def test_a_pickled_payload_is_not_executed(name: str, small: Whisper, tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return (os.mkdir, (str(tmp_path / "ran"),))

    folder = write_transformers(tmp_path / "folder", small, "bin")
    torch.save({"dims": Payload(), "model_state_dict": {}, f"{ENCODER}conv1.weight": Payload()}, folder / name)
    with pytest.raises(UserError, match="nothing of it was executed"):
        WhisperEncoder(str(folder if name.endswith(".bin") else folder / name))
    assert not (tmp_path / "ran").exists()
    with pytest.raises(UserError, match=r"evil\.safetensors: says no sizes"):
        (folder / "evil.safetensors").write_bytes(b"x")
        WhisperEncoder(str(folder / "evil.safetensors"))
