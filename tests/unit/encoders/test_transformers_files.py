"""Folders in transformers' layout that are wrong: one line says what, and nothing of them is run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from omnichat.encoders.transformers_audio import TransformersEncoder
from omnichat.utils.errors import UserError
from tests.helpers.official_transformers import OFFICIAL

torch.set_num_threads(1)

KINDS = ["wav2vec2", "hubert", "wavlm", "data2vec", "ast", "clap"]


def refused(folder: Path, match: str, **options: Any) -> str:
    """The message of the refusal: one line that says where and, by `match`, what."""
    with pytest.raises(UserError, match=match) as caught:
        TransformersEncoder(str(folder), **options)
    message = str(caught.value)
    assert "\n" not in message and str(folder) in message
    return message


def edit(path: Path, **changes: Any) -> None:
    """Change a JSON file; None takes a key away."""
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))


@pytest.mark.parametrize("kind", KINDS)
def test_missing_unknown_and_misshapen_tensors_are_named(tmp_path: Path, kind: str) -> None:
    OFFICIAL[kind].write(tmp_path)
    weights = tmp_path / "model.safetensors"
    good = load_file(weights)
    victim = sorted(name for name in good if name.endswith("bias") and "norm" in name.lower())[0]
    stem = ".".join(victim.split(".")[-3:]).removeprefix("audio_encoder.")

    renamed = dict(good)
    renamed["mystery.weight"] = renamed.pop(victim)
    save_file(renamed, str(weights))
    message = refused(tmp_path, "lacks")
    assert stem in message and "mystery.weight" in message

    save_file({**good, victim: torch.zeros(3)}, str(weights))
    assert stem in refused(tmp_path, r"\(3,\) instead of")

    save_file({**good, "another_head.weight": torch.zeros(3)}, str(weights))
    refused(tmp_path, "unknown.*another_head")


@pytest.mark.parametrize("kind", ["wav2vec2", "clap"])
def test_a_stray_tensor_beside_a_prefixed_encoder_does_not_slip_in(tmp_path: Path, kind: str) -> None:
    official = OFFICIAL[kind]
    official.write(tmp_path, head=True)
    weights = tmp_path / "model.safetensors"
    good = load_file(weights)
    prefix = "wav2vec2." if kind == "wav2vec2" else "audio_model.audio_encoder."
    inside = next(name for name in sorted(good) if name.startswith(prefix) and name.endswith("weight"))
    save_file({**good, inside.removeprefix(prefix): good[inside] + 1}, str(weights))
    refused(tmp_path, "unknown.*beside")


def test_a_prefix_of_another_family_is_an_error(tmp_path: Path) -> None:
    OFFICIAL["wav2vec2"].write(tmp_path, head=True)
    edit(tmp_path / "config.json", model_type="hubert")
    refused(tmp_path, "lacks .*holds unknown")


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_damaged_weights(tmp_path: Path, name: str) -> None:
    OFFICIAL["hubert"].write(tmp_path)
    if name.endswith("bin"):
        torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / name)
        (tmp_path / "model.safetensors").unlink()
    content = (tmp_path / name).read_bytes()
    for wrong in (content[: len(content) // 2], b"", b"no weights at all"):
        (tmp_path / name).write_bytes(wrong)
        refused(tmp_path, name)
    (tmp_path / name).unlink()
    refused(tmp_path, "neither")


class Payload:
    """Makes a file when it is unpickled the ordinary way."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.canary),)


def test_a_pickled_payload_is_not_run(tmp_path: Path) -> None:
    OFFICIAL["wavlm"].write(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    canary = tmp_path / "canary"
    torch.save({"encoder.layer_norm.weight": Payload(canary)}, tmp_path / "pytorch_model.bin")
    refused(tmp_path, "nothing of it was executed")
    assert not canary.exists()
    torch.load(tmp_path / "pytorch_model.bin", weights_only=False)
    assert canary.exists(), "the payload works where it is let"


def test_remote_code_is_never_looked_at(tmp_path: Path) -> None:
    OFFICIAL["hubert"].write(tmp_path)
    canary = tmp_path / "canary"
    (tmp_path / "modeling_evil.py").write_text(f"import os\nos.mkdir({str(canary)!r})\nclass Evil: pass\n")
    edit(tmp_path / "config.json", auto_map={"AutoModel": "modeling_evil.Evil", "AutoConfig": "modeling_evil.Evil"})
    edit(tmp_path / "preprocessor_config.json", auto_map={"AutoFeatureExtractor": "modeling_evil.Evil"})
    TransformersEncoder(str(tmp_path))
    assert not canary.exists()


def test_families_that_disagree_or_are_unknown(tmp_path: Path) -> None:
    OFFICIAL["hubert"].write(tmp_path)
    refused(tmp_path, "holds a hubert, not a wavlm", family="wavlm")
    edit(tmp_path / "config.json", model_type="mert_model")
    refused(tmp_path, "model_type='mert_model'.*choose one of")
    assert TransformersEncoder(str(tmp_path), family="hubert").family == "hubert"  # an unknown type can be vouched for
    for wrong in ("hubbert", None):
        with pytest.raises(UserError, match=r"family=.*choose one of: wav2vec2"):
            TransformersEncoder(family=wrong)
    with pytest.raises(UserError, match=r"family='hubbert'.*did you mean 'hubert'"):
        TransformersEncoder(str(tmp_path), family="hubbert")
    (tmp_path / "config.json").unlink()
    refused(tmp_path, "no such file")
    with pytest.raises(UserError, match="no such file or folder"):
        TransformersEncoder(str(tmp_path / "nowhere"))


@pytest.mark.parametrize(
    ("kind", "changes", "match"),
    [
        ("wav2vec2", {"hidden_size": "wide"}, "hidden_size"),
        ("wav2vec2", {"num_attention_heads": 5}, "num_heads"),
        ("wav2vec2", {"conv_stride": [5, 2]}, "convolution"),
        ("wavlm", {"hidden_act": "no_such"}, "no_such"),
        ("ast", {"max_length": 512}, "max_length: 1024 in the front-end, 512 in the graph"),
        ("clap", {"enable_fusion": True, "fusion_type": "channel_map"}, "fusion_type"),
        ("clap", {"num_mel_bins": 32}, "feature_size: 64 in the front-end, 32 in the graph"),
    ],
)
def test_a_configuration_that_cannot_be(tmp_path: Path, kind: str, changes: dict[str, Any], match: str) -> None:
    OFFICIAL[kind].write(tmp_path)
    if match.startswith(
        ("max_length", "feature_size", "fusion_type")
    ):  # weights that fit, so that only the front-end does not
        OFFICIAL[kind].write(tmp_path, **changes)
    else:
        edit(tmp_path / "config.json", **changes)
    refused(tmp_path, match)


@pytest.mark.parametrize(
    ("kind", "changes", "match"),
    [
        ("wavlm", {"sampling_rate": "16 kHz"}, "sampling_rate must be a int"),
        ("wavlm", {"sampling_rate": 0}, "sampling_rate must be at least 1"),
        ("wavlm", {"do_normalize": 1}, "do_normalize must be a bool"),
        ("clap", {"padding": "mirror"}, "padding='mirror' is not valid.*repeatpad"),
        ("clap", {"max_length_s": 20}, "do not fit"),
    ],
)
def test_a_front_end_that_cannot_be(tmp_path: Path, kind: str, changes: dict[str, Any], match: str) -> None:
    OFFICIAL[kind].write(tmp_path)
    edit(tmp_path / "preprocessor_config.json", **changes)
    refused(tmp_path, match)
    (tmp_path / "preprocessor_config.json").unlink()
    refused(tmp_path, "how the audio is prepared")


def test_the_front_end_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    OFFICIAL["wavlm"].write(tmp_path)
    before = TransformersEncoder(str(tmp_path)).fingerprint()
    edit(tmp_path / "config.json", hidden_dropout=0.3, vocab_size=99)  # shapes no frame
    assert TransformersEncoder(str(tmp_path)).fingerprint() == before
    edit(tmp_path / "preprocessor_config.json", do_normalize=False)
    assert TransformersEncoder(str(tmp_path)).fingerprint() != before
