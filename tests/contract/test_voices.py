"""What every voice keeps: repeatable, in range, styles that can be measured, picklable."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from omnichat.audio import effects
from omnichat.schema import EMOTIONS, Style
from omnichat.synthesis.base import Voice
from omnichat.synthesis.checks.styles import median_hz
from omnichat.utils.errors import UserError

CONFIGS = Path(__file__).parents[2] / "configs" / "voice"
VOICES: dict[str, Callable[[], Voice]] = {
    path.stem: lambda path=path: instantiate(OmegaConf.load(path), _convert_="all") for path in CONFIGS.glob("*.yaml")
}
TEXT = "They called me today about the garden."


@pytest.fixture(scope="module", params=VOICES)
def voice(request: pytest.FixtureRequest) -> Voice:
    pytest.importorskip("parselmouth")
    return VOICES[request.param]()


def test_the_same_arguments_give_the_same_samples_in_every_process(voice: Voice) -> None:
    copy = pickle.loads(pickle.dumps(voice))
    style = Style("high", "fast", "fearful")
    speaker = next(iter(voice.speakers))
    wave, rate = voice.speak(TEXT, speaker, style, 7)
    voice.speak("Something else in between.", speaker, Style(), 3)
    assert np.array_equal(wave, voice.speak(TEXT, speaker, style, 7)[0])
    assert np.array_equal(wave, copy.speak(TEXT, speaker, style, 7)[0])
    assert not np.array_equal(wave, voice.speak(TEXT, speaker, style, 8)[0]), "a seed must matter"
    assert (wave.dtype, wave.ndim, rate) == (np.float32, 1, voice.sample_rate)


def test_every_emotion_of_every_speaker_is_sound_speech(voice: Voice) -> None:
    for speaker in voice.speakers:
        seen = []
        for emotion in EMOTIONS:
            wave, rate = voice.speak(TEXT, speaker, Style("normal", "normal", emotion), 1)
            assert np.isfinite(wave).all() and np.abs(wave).max() <= 1.0
            assert 1.0 < len(wave) / rate < 6.0
            assert -32 < effects.active_level_db(wave, rate) < -15
            seen.append(wave)
        assert len({wave.tobytes() for wave in seen}) == len(EMOTIONS)


@pytest.mark.parametrize("emotion", ["neutral", "angry", "fearful"])
def test_pitch_and_speed_can_be_measured_in_any_emotion(voice: Voice, emotion: str) -> None:
    for speaker in list(voice.speakers)[:2]:
        pitches = [voice.speak(TEXT, speaker, Style(pitch, None, emotion), 1) for pitch in ("low", "normal", "high")]
        hz = [median_hz(*clip) for clip in pitches]
        assert hz[0] * 1.1 < hz[1] < hz[2] / 1.1, (speaker, hz)
        lengths = [
            len(voice.speak(TEXT, speaker, Style(None, speed, emotion), 1)[0]) for speed in ("fast", "normal", "slow")
        ]
        assert lengths[0] * 1.05 < lengths[1] < lengths[2] / 1.05, (speaker, lengths)


def test_emotion_moves_neither_pitch_nor_speed_much(voice: Voice) -> None:
    speaker = next(iter(voice.speakers))
    clips = {emotion: voice.speak(TEXT, speaker, Style("normal", "normal", emotion), 1) for emotion in EMOTIONS}
    neutral = clips.pop("neutral")
    for emotion, clip in clips.items():
        # a pitch label is a step of 22 %; a tracker that loses frames of a wide contour sees its median move
        assert median_hz(*clip) == pytest.approx(median_hz(*neutral), rel=0.17), emotion
        assert len(clip[0]) == pytest.approx(len(neutral[0]), rel=0.08), emotion


def test_an_unknown_speaker_is_the_user_s_mistake(voice: Voice) -> None:
    with pytest.raises(UserError, match="choose one of"):
        voice.speak(TEXT, "nobody", Style(), 0)


def test_description_is_fit_for_a_card(voice: Voice) -> None:
    import json

    assert {"name", "licence"} <= set(json.loads(json.dumps(voice.describe())))
