"""Checks reject what they are for, with the real recogniser, speaker encoder and voice."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from whisper.decoding import DecodingOptions, DecodingTask

from omnichat.encoders.whisper_asr import WINDOW_SEC, WhisperTranscriber
from omnichat.schema import EMOTIONS, SPEEDS, Style
from omnichat.synthesis.base import Voice
from omnichat.synthesis.checks.base import Clip, histogram
from omnichat.synthesis.checks.signal import SignalCheck
from omnichat.synthesis.checks.speakers import SpeakerCheck, SpeakerEncoder, load_speaker_encoder
from omnichat.synthesis.checks.styles import StyleCheck, median_hz
from omnichat.synthesis.checks.suite import CheckSuite
from omnichat.synthesis.checks.words import WordErrorCheck
from omnichat.utils.assets import resolve_path
from omnichat.utils.errors import UserError

RATE = 16000
CONFIGS = Path(__file__).parents[3] / "configs"
TEXTS = ("They called me today about the garden.", "I am so sorry about the phone bill.", "My sister told me about it.")


@pytest.fixture(scope="module")
def suite() -> CheckSuite:
    torch.set_num_threads(1)
    return instantiate(OmegaConf.load(CONFIGS / "checks" / "default.yaml"), _convert_="all")


@pytest.fixture(scope="module")
def voice() -> Voice:
    pytest.importorskip("parselmouth")
    return instantiate(OmegaConf.load(CONFIGS / "voice" / "piper.yaml"), _convert_="all")


@pytest.fixture(scope="module")
def clips(voice: Voice) -> list[Clip]:
    made = []
    for i, text in enumerate(TEXTS):
        for speaker, pitch in (("ada", "high"), ("joe", "low")):
            style = Style(pitch, ("slow", "normal", "fast")[i], EMOTIONS[i * 3])
            made.append(Clip(*voice.speak(text, speaker, style, i), text, speaker, style))
    return made


def changed(clip: Clip, **fields: object) -> Clip:
    values = {name: getattr(clip, name) for name in ("wave_N", "sample_rate", "text", "voice", "style")}
    return Clip(**(values | fields))


def test_good_speech_passes_and_is_described(suite: CheckSuite, clips: list[Clip]) -> None:
    findings = suite.examine(clips)
    assert list(findings) == ["signal", "styles", "speakers", "words"]
    assert [f.reasons for f in findings.values()] == [[], [], [], []]
    assert findings["words"].dialogue["wer"] <= 0.05
    assert findings["words"].clips[0]["asr_text"].lower().startswith("they called me")
    summary = suite.summarise([findings])
    assert summary["words"]["wer"] == pytest.approx(findings["words"].dialogue["wer"])
    speakers = findings["speakers"].dialogue
    assert (
        speakers["gap"] == pytest.approx(speakers["within"] - speakers["between"], abs=1e-3) and speakers["gap"] >= 0.15
    )
    assert summary["speakers"]["gap_min"] == speakers["gap"]
    assert set(suite.describe()) == set(findings)


def test_other_words_than_the_script_s_are_rejected(suite: CheckSuite, clips: list[Clip]) -> None:
    wrong = [changed(clips[0], text="My brother sold us an old bicycle."), *clips[1:]]
    reasons = suite.checks["words"].examine(wrong).reasons
    assert "word error rate of a turn above max_turn_wer" in reasons
    assert "word error rate of the dialogue above max_dialogue_wer" in reasons
    half = [changed(clips[0], wave_N=clips[0].wave_N[: len(clips[0].wave_N) // 3])]
    assert suite.checks["words"].examine(half).reasons


def exact(check: Any, max_tokens: int = 40) -> WhisperTranscriber:
    """The check's Whisper in float32."""
    return WhisperTranscriber(resolve_path(check.path), max_tokens)


def test_short_window_and_whisper_s_own_window_hear_the_same(suite: CheckSuite, clips: list[Clip]) -> None:
    words = suite.checks["words"]
    assert isinstance(words, WordErrorCheck)
    waves = [clip.wave_N for clip in clips]
    assert words.transcribe(waves, 1.0) == words.transcribe(waves, WINDOW_SEC)
    # our encoder pass on the full window is Whisper's own
    listener = exact(words)
    mel_BFT = torch.randn(1, 80, 3000, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert torch.allclose(listener.encode(mel_BFT), listener.model.encoder(mel_BFT), atol=1e-5)
    with pytest.raises(UserError, match="at most 30 s"):
        words.transcribe([np.zeros(31 * RATE, dtype=np.float32)], 1.0)


def test_transcripts_are_those_of_whisper_s_own_decoding(suite: CheckSuite, clips: list[Clip]) -> None:
    """Rows that leave the batch, silence that all share, and logits of few candidates change no token; batched or
    alone."""
    listener = exact(suite.checks["words"], 12)
    waves = [clip.wave_N for clip in clips] + [np.zeros(RATE, dtype=np.float32), clips[0].wave_N[: RATE // 2]]
    options = DecodingOptions(language="en", without_timestamps=True, fp16=False, sample_len=12)
    task = DecodingTask(listener.model, options)
    task._get_audio_features = lambda features: features  # type: ignore[method-assign]
    for window_sec in (1.0, 5.0, WINDOW_SEC):
        ours = listener.transcribe(waves, window_sec)
        with torch.inference_mode():
            encoded = listener._features(waves, window_sec)
            silence_TD = listener._silence_TD[len(encoded[0]) :]
            features_BTD = torch.stack([torch.cat([own_TD, silence_TD]) for own_TD in encoded])
            theirs = [result.text.strip() for result in task.run(features_BTD)]
        assert features_BTD.shape[1] == 1500
        assert ours == theirs and len({len(text.split()) for text in ours}) > 2, "sentences of several lengths"
        assert [listener.transcribe([wave], window_sec)[0] for wave in waves[:3]] == ours[:3]


def test_a_clip_is_encoded_in_a_window_of_its_own(suite: CheckSuite, clips: list[Clip]) -> None:
    """Longer neighbours change neither its features nor where silence begins."""
    listener = exact(suite.checks["words"])
    short, long = clips[0].wave_N, np.tile(clips[1].wave_N, 3)
    with torch.inference_mode():
        alone, beside = listener._features([short], 1.0)[0], listener._features([short, long], 1.0)[0]
    assert len(beside) > len(alone) >= (len(short) / RATE + 1) * 50
    assert torch.allclose(alone, beside[: len(alone)], atol=1e-5)
    assert torch.equal(beside[len(alone) :], listener._silence_TD[len(alone) : len(beside)])


def test_one_voice_for_both_speakers_is_rejected(suite: CheckSuite, clips: list[Clip], voice: Voice) -> None:
    fake = []
    for i, clip in enumerate(clips):
        wave, rate = voice.speak(clip.text, "ada", Style("normal", "normal", "neutral"), i)
        fake.append(changed(clip, wave_N=wave, sample_rate=rate))
    reasons = suite.checks["speakers"].examine(fake).reasons
    assert "the speakers are not as far apart as min_gap asks" in reasons
    assert "the two speakers are more alike than max_between allows" in reasons


def test_a_turn_in_the_other_s_voice_is_rejected(suite: CheckSuite, clips: list[Clip], voice: Voice) -> None:
    wave, _ = voice.speak(TEXTS[0], "joe", Style("low", "normal", "neutral"), 1)
    swapped = [changed(clips[0], wave_N=wave), *clips[1:]]
    assert (
        "a turn is nearer to the other speaker than min_margin allows"
        in suite.checks["speakers"].examine(swapped).reasons
    )


def test_speaker_encoder_ignores_level_and_reads_strictly(suite: CheckSuite, clips: list[Clip], tmp_path: Path) -> None:
    check = suite.checks["speakers"]
    assert isinstance(check, SpeakerCheck)
    check.examine(clips[:1])
    model = check._model
    assert model is not None
    one, quiet, third = model.embed([clips[0].wave_N, 0.1 * clips[0].wave_N, clips[1].wave_N])
    assert np.allclose(one, model.embed([clips[0].wave_N])[0], atol=1e-5), "alone as among others"
    assert not np.allclose(one, third, atol=0.1)
    assert one.shape == (256,) and np.linalg.norm(one) == pytest.approx(1.0, abs=1e-5)
    assert np.allclose(one, quiet, atol=1e-4)
    state = {k: v for k, v in SpeakerEncoder().state_dict().items() if not k.startswith(("mel", "linear.bias"))}
    torch.save({"model_state": state}, tmp_path / "broken.pt")
    with pytest.raises(UserError, match=r"not the GE2E speaker encoder.*linear\.bias"):
        load_speaker_encoder(tmp_path / "broken.pt")
    with pytest.raises(UserError, match="no such file"):
        load_speaker_encoder(tmp_path / "none.pt")


def test_signal_faults_have_names() -> None:
    check = SignalCheck(0.5, 5.0, -40.0, -10.0, 0.0, 0.3)
    noise = (0.05 * np.random.default_rng(0).standard_normal(RATE)).astype(np.float32)

    def reasons(wave: np.ndarray) -> str:
        return " ".join(check.examine([Clip(wave, RATE, "x", "a", Style())]).reasons)

    assert reasons(noise) == ""
    assert "shorter" in reasons(noise[: RATE // 4]) and "longer" in reasons(np.tile(noise, 6))
    assert "level" in reasons(0.01 * noise) and "level" in reasons(np.zeros(RATE, dtype=np.float32))
    assert "clipped" in reasons(np.clip(noise * 8, -1, 1))
    assert "silence" in reasons(np.concatenate([noise, np.zeros(3 * RATE, dtype=np.float32)]))
    assert "finite" in reasons(np.full(RATE, np.nan, dtype=np.float32))
    quiet = np.zeros(RATE * 6 // 5, dtype=np.float32)
    assert "begins or ends with more silence" in reasons(np.concatenate([noise, noise, quiet]))
    assert "begins or ends with more silence" in reasons(np.concatenate([quiet, noise, noise]))
    assert "pauses longer" in reasons(np.concatenate([noise, quiet, quiet, noise]))
    assert "offset" in reasons(noise + 0.02)
    assert "full scale" in reasons(noise * 40)
    many = [Clip(noise, RATE, "x", "a", Style())] * 300
    assert "the dialogue is longer than max_dialogue_sec" in check.examine(many).reasons
    with pytest.raises(UserError, match="min_seconds < max_seconds"):
        SignalCheck(5.0, 0.5, -40.0, -10.0, 0.0, 0.3)


def test_labels_that_lie_are_seen(voice: Voice) -> None:
    check = StyleCheck(1.08, 1.05)
    styles = [Style("low", "fast"), Style("normal", "slow"), Style("high", "normal")]
    spoken = [Clip(*voice.speak(TEXTS[0], "ada", style, 0), TEXTS[0], "ada", style) for style in styles]
    assert check.summarise([check.examine(spoken)])["in_order"] is True
    swapped = [changed(clip, style=Style(clip.style.pitch, speed)) for clip, speed in zip(spoken, SPEEDS, strict=True)]
    assert check.summarise([check.examine(swapped)])["in_order"] is False
    hz = [220.0, 180.0]
    t = np.arange(RATE) / RATE
    tones = [
        Clip((0.1 * np.sin(2 * np.pi * f * t)).astype(np.float32), RATE, "x" * 10, "a", Style(pitch))
        for f, pitch in zip(hz, ("low", "high"), strict=True)
    ]
    assert median_hz(tones[0].wave_N, RATE) == pytest.approx(220, rel=0.01)
    assert check.summarise([check.examine(tones)])["in_order"] is False
    assert median_hz(np.zeros(RATE, dtype=np.float32), RATE) is None


def test_checks_travel_to_a_worker_without_their_models(suite: CheckSuite, clips: list[Clip]) -> None:
    suite.examine(clips[:2])
    assert len(pickle.dumps(suite)) < 100_000
    with pytest.raises(UserError, match="give it that name"):
        CheckSuite({"sound": suite.checks["signal"]})
    assert "words" not in CheckSuite(suite.checks | {"words": None}).checks
    with pytest.raises(UserError, match="float32, bfloat16"):
        WordErrorCheck("x", 0.1, 0.1, 10.0, "float16", 10)


def test_histogram_counts_every_value() -> None:
    assert histogram([0.0, 0.05, 0.3, 7.0], (0.0, 0.1, 0.2, 0.4)) == {"0-0.1": 2, "0.1-0.2": 0, "0.2-0.4": 2}
