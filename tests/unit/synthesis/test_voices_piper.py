"""Piper files of one and of many speakers, beside each other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omnichat.schema import Style
from omnichat.synthesis.base import ClipFailed, Utterance, Voice
from omnichat.synthesis.checks.styles import median_hz
from omnichat.synthesis.voices import prosody, styled
from omnichat.synthesis.voices.piper import PiperPraatVoice
from omnichat.synthesis.voices.prosody import Prosody
from omnichat.synthesis.voices.styled import SpeakerPreset, check_spoken
from omnichat.utils.errors import UserError
from omnichat.utils.parts import build_part
from tests.contract.test_voices import node
from tests.helpers.voices import piper_model

TEXT = "they called me today about the garden"
PRESET = "omnichat.synthesis.voices.styled.SpeakerPreset"

pytest.importorskip("parselmouth")
pytest.importorskip("onnx")


def voice(path: Path | str, speakers: dict[str, dict[str, Any]], **fields: Any) -> Voice:
    presets = {name: {"_target_": PRESET} | preset for name, preset in speakers.items()}
    return build_part(node("piper") | {"path": str(path), "speakers": presets} | fields, "voice", Voice)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return piper_model(tmp_path_factory.mktemp("many"), (110.0, 180.0), ("bob", "eve"))


def test_speakers_of_one_file_speak_with_their_own_pitch(many: Path) -> None:
    spoken = voice(many, {"b": {"speaker_id": "bob"}, "e": {"speaker_id": 1}, "first": {}, "f": {"speaker_id": "0"}})
    hz = {name: median_hz(*spoken.speak(TEXT, name, Style(), 1)) for name in spoken.speakers}
    assert [hz[name] for name in ("b", "first", "f")] == pytest.approx([110.0] * 3, rel=0.03)
    assert hz["e"] == pytest.approx(180.0, rel=0.04), "no formant shift, no pitch of a preset: as recorded"
    high = median_hz(*spoken.speak(TEXT, "e", Style("high"), 1))
    assert high == pytest.approx(hz["e"] * 2 ** (3.5 / 12), rel=0.03)


def test_a_further_take_is_as_long_as_it_is_asked_to_be(many: Path) -> None:
    spoken = voice(many, {"b": {"speaker_id": "bob"}})
    lines = [
        Utterance(TEXT, "b", Style("normal", speed), 1, stretch)
        for speed in ("normal", "fast")
        for stretch in (1.0, 1.2)
    ]
    plain, longer, fast, fast_longer = (len(wave) for wave in spoken.speak_batch(lines))
    assert longer / plain == pytest.approx(1.2, rel=0.01) and fast_longer / fast == pytest.approx(1.2, rel=0.01)
    assert np.array_equal(spoken.speak_batch(lines[:1])[0], spoken.speak(TEXT, "b", Style("normal", "normal"), 1)[0])


def test_two_files_play_two_speakers(many: Path, tmp_path: Path) -> None:
    other = piper_model(tmp_path, (140.0,))
    spoken = voice(many, {"a": {"speaker_id": "eve"}, "b": {"path": str(other)}})
    hz = [median_hz(*spoken.speak(TEXT, name, Style(), 1)) for name in ("a", "b")]
    assert hz == pytest.approx([180.0, 140.0], rel=0.04)
    assert spoken.describe()["speakers"]["b"]["path"] == str(other)


@pytest.mark.parametrize(
    ("speaker", "said"),
    [
        ({"speaker_id": 2}, "speakers.x.speaker_id=2 is not valid; the model has 2 speaker"),
        ({"speaker_id": -1}, "0 to 1"),
        ({"speaker_id": "bo"}, "did you mean 'bob'"),
        ({"embedding": "v.npy"}, "takes a speaker_id, no vector"),
        ({"path": "none.onnx"}, "none.onnx: no such file"),
        ({"formant_ratio": 3.0}, "formant_ratio must be in"),
        ({"tracker_hz": [200.0, 210.0]}, "must span"),
    ],
)
def test_a_speaker_that_is_not_there_is_told_before_anything_is_spoken(
    many: Path, speaker: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError, match=r"voice") as error:
        voice(many, {"x": speaker})
    assert said in str(error.value) and "\n" not in str(error.value)


def test_files_that_are_no_piper_voice_are_told_in_one_line(many: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"nothing of the kind")
    settings = json.loads((many.parent / "voice.onnx.json").read_text())
    for text, said in (("{", "not JSON"), ("[]", "not the settings"), (json.dumps(settings), "not a Piper voice")):
        (tmp_path / "bad.onnx.json").write_text(text)
        with pytest.raises(UserError, match=said) as error:
            voice(tmp_path / "bad.onnx", {"x": {}}).speak(TEXT, "x", Style(), 1)
        assert "\n" not in str(error.value)


def test_the_stretch_is_kept_exactly_by_overlap_add_and_asked_of_the_model_otherwise(many: Path) -> None:
    lengths = {}
    for speed_by in ("praat", "model"):
        spoken = voice(many, {"b": {}}, speed_by=speed_by, jitter_speed=0.0)
        lengths[speed_by] = [len(spoken.speak(TEXT, "b", Style(None, s), 1)[0]) for s in ("slow", "normal", "fast")]
        assert isinstance(spoken, PiperPraatVoice)
        assert len(spoken._cache) == (1 if speed_by == "praat" else 3), "one plain clip serves every speed"
    for slow, normal, fast in lengths.values():
        assert (slow / normal, fast / normal) == pytest.approx((1.28, 0.8), rel=0.02)
    with pytest.raises(UserError, match=r"voice\.speed_by"):
        voice(many, {"b": {}}, speed_by="magic")


def test_clips_that_are_no_speech_are_refused_with_a_reason_to_count() -> None:
    good = 0.1 * np.ones(16000, dtype=np.float32)
    assert check_spoken(good, 16000, "x") is not None
    nan = good.copy()
    nan[5] = np.nan
    for bad, reason in (
        (nan, "not finite"),
        (good[:0], "no possible length"),
        (good[:100], "no possible length"),
        (np.tile(good, 130), "no possible length"),
        (0 * good, "silence"),
        (good[None], "no mono clip"),
    ):
        with pytest.raises(ClipFailed, match=reason) as error:
            check_spoken(bad, 16000, "words")
        assert not any(character.isdigit() for character in error.value.reason)
        assert isinstance(error.value, UserError), "uncaught, it is still one line"


def test_promises_order_the_emotions() -> None:
    flat, lively = Prosody(range_scale=0.3, level_db=-3.0), Prosody(range_scale=1.8, final_st=3.0, level_db=2.0)
    from omnichat.synthesis.voices.prosody import promised_range_st

    assert promised_range_st(flat) < promised_range_st(Prosody()) < promised_range_st(lively)
    assert SpeakerPreset().formant_ratio == 1.0


def test_plain_speech_is_kept_within_its_memory_the_last_used_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    spoken_by: PiperPraatVoice = build_part(node("piper"), "voice", PiperPraatVoice)
    monkeypatch.setattr(styled, "_CACHE_MB", 1.0)
    spoken = []

    def speak(text: str, *_: object) -> tuple[np.ndarray, int, float]:
        spoken.append(text)
        return np.full(100_000, 0.1, dtype=np.float32), 16000, 1.0  # 0.4 MB

    monkeypatch.setattr(spoken_by, "_speak_plain", speak)
    for text in ("a", "b", "a", "c", "a", "b"):
        spoken_by._plain(text, "ada", 1.0, 0)
    assert spoken == ["a", "b", "c", "b"], "two fit; the one not used for longest went"


def test_a_clip_is_the_same_whatever_was_made_of_its_analysis_before(
    many: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    speakers = {"b": {"speaker_id": "bob"}, "high": {"speaker_id": "bob", "formant_ratio": 1.2, "median_hz": 170.0}}
    lines = [
        Utterance(TEXT, name, Style(pitch, speed, mood), 1)
        for name in speakers
        for pitch, speed, mood in (("high", "slow", "surprised"), ("low", "fast", "sad"), ("normal", "normal", None))
    ]
    analysed: list[float] = []
    monkeypatch.setattr(styled, "analyse", lambda *given: analysed.append(given[2]) or prosody.analyse(*given))
    together = voice(many, speakers).speak_batch(lines)
    assert analysed == [1.0, 1.2], "once for each speaker, though both say it with one recording"
    for wave, line in zip(together, lines, strict=True):
        assert np.array_equal(wave, voice(many, speakers).speak_batch([line])[0])


def test_analyses_of_the_newest_sentences_are_kept(many: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(styled, "_ANALYSED", 2)
    spoken = voice(many, {"b": {}})
    assert isinstance(spoken, PiperPraatVoice)
    for text in ("one of them", "two of them", "three of them"):
        spoken.speak(text, "b", Style(), 1)
    assert [len(plain.analyses) for plain in spoken._cache.values()] == [0, 1, 1]
    assert np.array_equal(
        spoken.speak("one of them", "b", Style(), 1)[0], voice(many, {"b": {}}).speak("one of them", "b", Style(), 1)[0]
    )
