"""Text-to-speech models in the library's layout, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from omnichat.schema import Style
from omnichat.synthesis.base import Voice
from omnichat.synthesis.voices.transformers_tts import TransformersVoice, read_vector
from omnichat.utils.errors import UserError
from omnichat.utils.parts import build_part
from tests.contract.test_voices import node
from tests.helpers.voices import speecht5_folders, vits_folder

TEXT = "they called me today about the garden"
PRESET = "omnichat.synthesis.voices.styled.SpeakerPreset"

pytest.importorskip("parselmouth")


def voice(path: Path | str, speakers: dict[str, dict[str, Any]], **fields: Any) -> TransformersVoice:
    presets = {name: {"_target_": PRESET} | preset for name, preset in speakers.items()}
    settings = node("transformers") | {"path": str(path), "speakers": presets} | fields
    made = build_part(settings, "voice", Voice)
    assert isinstance(made, TransformersVoice)
    return made


def test_vits_draws_a_clip_s_noise_from_its_own_seed(tmp_path: Path) -> None:
    spoken = voice(vits_folder(tmp_path), {"a": {}})
    plain, rate, left = spoken._speak_plain(TEXT, spoken.presets["a"], 1.0, 5)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert np.array_equal(plain, spoken._speak_plain(TEXT, spoken.presets["a"], 1.0, 5)[0])
    assert torch.equal(state, torch.get_rng_state()), "the program's own randomness goes on as before"
    assert not np.array_equal(plain, spoken._speak_plain(TEXT, spoken.presets["a"], 1.0, 6)[0])
    assert (rate, left) == (16000, 1.0)
    slow = spoken._speak_plain(TEXT, spoken.presets["a"], 1.5, 5)[0]
    assert len(slow) > 1.1 * len(plain), "its own speaking rate"


def test_speakers_of_a_multi_speaker_vits_differ(tmp_path: Path) -> None:
    speakers: dict[str, dict[str, Any]] = {"a": {"speaker_id": 0}, "b": {"speaker_id": 1}, "c": {}}
    spoken = voice(vits_folder(tmp_path, speakers=2), speakers, jitter_speed=0.0)
    a, b, c = (spoken.speak(TEXT, name, Style(), 1)[0] for name in "abc")
    assert len(a) != len(b) or not np.allclose(a, b)
    assert len(a) == len(c), "the first one where none is named"
    with pytest.raises(UserError, match="speaker_id=2 is not valid; the model has 2"):
        voice(tmp_path, {"x": {"speaker_id": 2}}).speak(TEXT, "x", Style(), 1)


def test_speecht5_takes_an_x_vector_and_a_vocoder(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    model, vocoder, vector = speecht5_folders(tmp_path)
    both = {"a": {"embedding": str(vector)}}
    spoken = voice(model, both, vocoder=str(vocoder))
    wave, rate, left = spoken._speak_plain(TEXT, spoken.presets["a"], 1.28, 5)
    assert np.array_equal(wave, spoken._speak_plain(TEXT, spoken.presets["a"], 1.28, 5)[0])
    assert (rate, left) == (16000, 1.28), "it has no rate of its own: overlap-add stretches"
    for settings, said in (
        ({"speakers": both}, "vocoder is null"),
        ({"speakers": {"a": {}}, "vocoder": str(vocoder)}, "needs an embedding"),
    ):
        with pytest.raises(UserError, match=said):
            voice(model, **settings).speak(TEXT, "a", Style(), 1)
    np.save(tmp_path / "short.npy", np.ones(7, dtype=np.float32))
    with pytest.raises(UserError, match="has 7 values, the model takes 12"):
        voice(model, {"a": {"embedding": str(tmp_path / "short.npy")}}, vocoder=str(vocoder)).speak(
            TEXT, "a", Style(), 1
        )


def test_vectors_are_read_strictly(tmp_path: Path) -> None:
    np.save(tmp_path / "v.npy", np.arange(3.0))
    save_file({"x": torch.arange(3.0)}, tmp_path / "v.safetensors")
    assert torch.equal(read_vector("k", tmp_path / "v.npy"), read_vector("k", tmp_path / "v.safetensors"))
    np.save(tmp_path / "two.npy", np.ones((2, 3)))
    np.save(tmp_path / "nan.npy", np.array([1.0, np.nan]))
    np.save(tmp_path / "object.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    save_file({"x": torch.ones(2), "y": torch.ones(2)}, tmp_path / "pair.safetensors")
    (tmp_path / "torn.npy").write_bytes((tmp_path / "v.npy").read_bytes()[:20])
    (tmp_path / "v.pt").write_bytes(b"")
    names = ("two.npy", "nan.npy", "object.npy", "pair.safetensors", "torn.npy", "v.pt", "none.npy")
    for name in names:
        with pytest.raises(UserError, match=rf"^k: .*{name}") as error:
            read_vector("k", tmp_path / name)
        assert "\n" not in str(error.value)


def test_a_model_that_lacks_a_weight_or_is_none_is_refused(tmp_path: Path) -> None:
    vits_folder(tmp_path / "vits")
    weights = load_file(tmp_path / "vits" / "model.safetensors")
    del weights["text_encoder.project.weight"]
    save_file(weights, tmp_path / "vits" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lack 1 weights of the model, the first is text_encoder\.project\.weight"):
        voice(tmp_path / "vits", {"a": {}}).speak(TEXT, "a", Style(), 1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="bert"):
        voice(tmp_path / "other", {"a": {}}).speak(TEXT, "a", Style(), 1)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="not readable as a text-to-speech model"):
        voice(tmp_path / "empty", {"a": {}}).speak(TEXT, "a", Style(), 1)
    with pytest.raises(UserError, match=r"voice\.device"):
        voice(tmp_path, {"a": {}}, device="tpu")
