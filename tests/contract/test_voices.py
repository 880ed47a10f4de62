"""What every voice keeps: repeatable where it says so, in range, styles that can be measured, picklable."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from omegaconf import OmegaConf

from omnichat.audio import effects
from omnichat.schema import EMOTIONS, Style
from omnichat.synthesis.base import Utterance, Voice
from omnichat.synthesis.checks.styles import median_hz
from omnichat.utils.errors import UserError
from omnichat.utils.parts import build_part
from tests.config.composing import composed, files
from tests.helpers import voices

TEXT = "They called me today about the garden."
SAYS_WORDS = {"piper", "cosyvoice"}  # the others are random weights: their sounds have no measurable pitch


def node(name: str) -> dict[str, Any]:
    """A voice's settings, composed as the verb does it."""
    tree = OmegaConf.to_container(composed("synthesize", [f"voice={name}"]).voice, resolve=True)
    assert isinstance(tree, dict)
    return tree


def built(name: str, folder: Path, stack: ExitStack) -> Voice:
    """The voice of configs/voice/NAME.yaml, with small weights or a server of our own where it asks for the user's."""
    settings = node(name)
    if name == "transformers":
        settings["path"] = str(voices.vits_folder(folder / "vits"))
    elif name == "cosyvoice":
        settings["server"] = stack.enter_context(voices.cosy_server())[0]
    return build_part(settings, "voice", Voice)


@pytest.fixture(scope="module", params=files("voice"))
def voice(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Voice]:
    pytest.importorskip("parselmouth")
    with ExitStack() as stack:
        voice = built(request.param, tmp_path_factory.mktemp(request.param), stack)
        voice.config_name = request.param  # type: ignore[attr-defined]
        yield voice


def needs_words(voice: Voice) -> None:
    if voice.config_name not in SAYS_WORDS:  # type: ignore[attr-defined]
        pytest.skip("random weights")


def test_the_same_arguments_give_the_same_samples_in_every_process(voice: Voice) -> None:
    copy = pickle.loads(pickle.dumps(voice))
    style = Style("high", "fast", "fearful")
    speaker = next(iter(voice.speakers))
    wave, rate = voice.speak(TEXT, speaker, style, 7)
    assert (wave.dtype, wave.ndim, rate) == (np.float32, 1, voice.sample_rate)
    if not voice.reproducible:
        assert voice.describe()["reproducible"] is False, "the card must say so"
        return
    voice.speak("Something else in between.", speaker, Style(), 3)
    assert np.array_equal(wave, voice.speak(TEXT, speaker, style, 7)[0])
    assert np.array_equal(wave, copy.speak(TEXT, speaker, style, 7)[0])
    assert not np.array_equal(wave, voice.speak(TEXT, speaker, style, 8)[0]), "a seed must matter"


def test_a_batch_is_its_clips_in_order(voice: Voice) -> None:
    first, second = list(voice.speakers)[:2]
    lines = [
        Utterance(TEXT, first, Style("low", None, "sad"), 1),
        Utterance("Good morning.", second, Style(), 2),
        Utterance(TEXT, second, Style("high", "slow", None), 3),
    ]
    alone = [voice.speak(line.text, line.speaker, line.style, line.seed)[0] for line in lines]
    for one, other in zip(voice.speak_batch(lines), alone, strict=True):
        assert np.array_equal(one, other)  # the stand-in server is repeatable, though a real one is not
    assert voice.speak_batch([]) == []


def test_every_emotion_of_every_speaker_is_sound_speech(voice: Voice) -> None:
    for speaker in voice.speakers:
        seen = []
        for emotion in EMOTIONS:
            wave, rate = voice.speak(TEXT, speaker, Style("normal", "normal", emotion), 1)
            assert np.isfinite(wave).all() and np.abs(wave).max() <= 1.0
            assert 1.0 < len(wave) / rate < 6.0
            assert -32 < effects.active_level_db(wave, rate) < -15
            seen.append(wave)
        assert len({wave.tobytes() for wave in seen}) == len(EMOTIONS) or not voice.reproducible


@pytest.mark.parametrize("emotion", ["neutral", "angry", "fearful"])
def test_pitch_and_speed_can_be_measured_in_any_emotion(voice: Voice, emotion: str) -> None:
    needs_words(voice)
    for speaker in list(voice.speakers)[:2]:
        pitches = [voice.speak(TEXT, speaker, Style(pitch, None, emotion), 1) for pitch in ("low", "normal", "high")]
        hz = [median_hz(*clip) for clip in pitches]
        assert hz[0] * 1.1 < hz[1] < hz[2] / 1.1, (speaker, hz)
        lengths = [
            len(voice.speak(TEXT, speaker, Style(None, speed, emotion), 1)[0]) for speed in ("fast", "normal", "slow")
        ]
        assert lengths[0] * 1.05 < lengths[1] < lengths[2] / 1.05, (speaker, lengths)


def test_emotion_moves_neither_pitch_nor_speed_much(voice: Voice) -> None:
    needs_words(voice)
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


def test_description_and_promises_are_fit_for_a_card(voice: Voice) -> None:
    assert {"name", "licence"} <= set(json.loads(json.dumps(voice.describe())))
    for values in voice.promises().values():
        assert set(values) == set(EMOTIONS)
