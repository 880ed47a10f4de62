"""Labels against measures: calibration, verdicts turn by turn, and what the corpus is told."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnichat.schema import EMOTIONS, PITCHES, SPEEDS, Style
from omnichat.synthesis.base import ClipFailed, Voice
from omnichat.synthesis.checks.base import Clip
from omnichat.synthesis.checks.calibration import SpeakerNorm, out_of_order, sentences
from omnichat.synthesis.checks.measures import fit_durations, log_rate, measure, span_sec, text_sizes, voiced_hz
from omnichat.synthesis.checks.styles import StyleCheck
from omnichat.synthesis.checks.suite import CheckSuite
from omnichat.utils.errors import UserError

RATE = 16000
TEXTS = ("We talked about the broken window.", "No.", "It was extraordinarily complicated, I am afraid.")

pytest.importorskip("parselmouth")


class Buzz(Voice):
    """Obeys its labels by arithmetic; `deaf` speakers do not, and `fails` seeds are failed."""

    def __init__(self, deaf: Sequence[str] = (), failing: bool = False) -> None:
        self.deaf = set(deaf)
        self.failing = failing
        self.calls = 0

    @property
    def speakers(self) -> dict[str, str | None]:
        return {"ann": "female", "bob": "male"}

    @property
    def sample_rate(self) -> int:
        return RATE

    def speak(self, text: str, speaker: str, style: Style, seed: int) -> tuple[np.ndarray, int]:
        self.calls += 1
        if self.failing and self.calls % 3 == 0:
            raise ClipFailed("the voice gave silence")
        pitch, speed = (None, None) if speaker in self.deaf else (style.pitch, style.speed)
        hz = {"ann": 210.0, "bob": 100.0}[speaker] * {"low": 0.82, "high": 1.22}.get(pitch or "", 1.0)
        seconds = float(text_sizes(text) @ [0.03, 0.04, 0.05, 0.2, 0.1])
        seconds *= {"slow": 1.28, "fast": 0.8}.get(speed or "", 1.0)
        range_st, level = (4.0, 0.1) if style.emotion == "happy" else (1.0, 0.05)
        time = np.arange(round(seconds * RATE)) / RATE
        f0 = hz * 2 ** (range_st * np.sin(2 * np.pi * 2 * time) / 12)
        phase = 2 * np.pi * np.cumsum(f0) / RATE
        wave = sum(np.sin(k * phase) / k for k in range(1, 10))
        return (level * wave / np.abs(wave).max()).astype(np.float32), RATE

    def promises(self) -> dict[str, dict[str, float]]:
        return {
            "range_st": {e: 6.0 if e == "happy" else 2.0 for e in EMOTIONS},
            "level_db": {e: 3.0 if e == "happy" else 0.0 for e in EMOTIONS},
        }

    def describe(self) -> dict[str, str]:
        return {"name": "buzz", "licence": "none"}


def check(**fields: object) -> StyleCheck:
    return StyleCheck(1.08, 1.05, **fields)  # type: ignore[arg-type]


def calibrated(voice: Voice, **fields: object) -> StyleCheck:
    made = check(**fields)
    made.use(json.loads(json.dumps(made.calibrate(voice, ["ann", "bob"]))))
    return made


def spoken(voice: Voice, style: Style, text: str = TEXTS[0], speaker: str = "ann") -> Clip:
    return Clip(*voice.speak(text, speaker, style, 0), text, speaker, style)


@pytest.fixture(scope="module")
def norm_check() -> StyleCheck:
    return calibrated(Buzz())


def test_calibration_is_json_the_same_each_time_and_travels(norm_check: StyleCheck) -> None:
    first, again = (check().calibrate(Buzz(), ["ann", "bob"]) for _ in range(2))
    assert json.dumps(first) == json.dumps(again)
    copy = pickle.loads(pickle.dumps(norm_check))
    clips = [spoken(Buzz(), Style("low", "slow", "sad"))]
    assert copy.examine(clips) == norm_check.examine(clips)
    norm = SpeakerNorm.from_json(first["speakers"]["ann"])
    assert 2 ** norm.pitch_log2["normal"] == pytest.approx(210.0, rel=0.02)
    assert norm.rate_log["slow"] == pytest.approx(-np.log(1.28), abs=0.02)
    assert norm.rate_log["fast"] == pytest.approx(-np.log(0.8), abs=0.02)
    assert norm.tracker_hz[0] < 0.8 * 210 and norm.tracker_hz[1] < 4 * 210
    assert out_of_order(norm) == []


@pytest.mark.parametrize("verdict", ["side", "nearest"])
@pytest.mark.parametrize("text", TEXTS)
def test_every_true_label_is_in_order_and_every_false_one_is_not(verdict: str, text: str) -> None:
    margins = {"pitch_margin_st": 1.0, "rate_margin": 0.03} if verdict == "side" else {}
    judge = calibrated(Buzz(), verdict=verdict, max_wrong_share=0.0, **margins)
    for speaker in ("ann", "bob"):
        for said in PITCHES:
            clip = spoken(Buzz(), Style(said, None, "neutral"), text, speaker)
            for label in PITCHES:
                finding = judge.examine([replace(clip, style=Style(label))])
                assert finding.clips[0]["pitch_in_order"] is (label == said), (speaker, said, label)
                assert bool(finding.reasons) == (label != said)
        for spoken_speed in SPEEDS:
            clip = spoken(Buzz(), Style(None, spoken_speed, "neutral"), text, speaker)
            for label in SPEEDS:
                found = judge.examine([replace(clip, style=Style(None, label))]).clips[0]
                assert found["rate_in_order"] is (label == spoken_speed), (speaker, text, spoken_speed, label)


def test_a_margin_asks_for_more_and_a_share_allows_some() -> None:
    voice = Buzz()
    true = [spoken(voice, Style("low")) for _ in range(9)]
    false = spoken(voice, Style("high"))
    mixed = [*true, replace(false, style=Style("low"))]
    reason = "more turns than max_wrong_share do not have the pitch of their label"
    assert calibrated(voice, max_wrong_share=0.1).examine(mixed).reasons == []
    assert calibrated(voice, max_wrong_share=0.09).examine(mixed).reasons == [reason]
    assert calibrated(voice, pitch_margin_st=5.0).examine(true).reasons == [reason], "low is 3.4 semitones below"
    slow = [spoken(voice, Style(None, "slow"))]
    assert calibrated(voice, rate_margin=0.1).examine(slow).reasons == []
    assert calibrated(voice, rate_margin=0.4).examine(slow).reasons


def test_unlabelled_turns_and_unknown_speakers_are_not_judged(norm_check: StyleCheck) -> None:
    clip = spoken(Buzz(), Style())
    assert norm_check.examine([clip]).clips[0]["pitch_in_order"] is None
    stranger = norm_check.examine([replace(clip, voice="eve", style=Style("low"))])
    assert stranger.clips[0]["pitch_in_order"] is None and stranger.clips[0]["median_hz"] and not stranger.reasons
    hiss = (0.05 * np.random.default_rng(0).standard_normal(RATE)).astype(np.float32)
    unvoiced = norm_check.examine([replace(clip, wave_N=hiss, style=Style("low"))])
    assert unvoiced.clips[0]["pitch_in_order"] is False, "a label that cannot be heard is not in order"


def test_a_voice_that_ignores_its_labels_is_told_and_rejected(caplog: pytest.LogCaptureFixture) -> None:
    voice = Buzz(deaf=["bob"])
    judge = calibrated(voice)
    assert any("bob does not obey" in record.getMessage() for record in caplog.records)
    assert not any("ann does not obey" in record.getMessage() for record in caplog.records)
    styles = [Style(pitch, speed) for pitch in PITCHES for speed in SPEEDS]
    assert len(judge.examine([spoken(voice, style, speaker="bob") for style in styles]).reasons) == 2
    assert judge.examine([spoken(voice, style, speaker="ann") for style in styles]).reasons == []


def test_clips_that_fail_in_calibration_are_tried_again() -> None:
    judge = calibrated(Buzz(failing=True))
    assert judge.examine([spoken(Buzz(), Style("low", "fast"))]).reasons == []


class Mute(Buzz):
    """Says nothing: silence, or a failure of every clip."""

    def speak(self, text: str, speaker: str, style: Style, seed: int) -> tuple[np.ndarray, int]:
        if self.failing:
            raise ClipFailed("the voice gave silence")
        return np.zeros(RATE, dtype=np.float32), RATE


@pytest.mark.parametrize("failing", [True, False])
def test_a_mute_voice_cannot_be_learnt(failing: bool) -> None:
    with pytest.raises(UserError, match="speaker 'ann': nothing voiced"):
        check().calibrate(Mute(failing=failing), ["ann"])


def test_the_corpus_is_told_shares_means_and_kept_promises(norm_check: StyleCheck) -> None:
    voice = Buzz()
    clips = [spoken(voice, Style(p, s, e)) for p in PITCHES for s in SPEEDS for e in ("neutral", "happy")]
    summary = norm_check.summarise([norm_check.examine(clips)])
    assert summary["pitch_turns_in_order"] == summary["rate_turns_in_order"] == 1.0 and summary["in_order"] is True
    assert list(summary["ann_median_hz"]) == list(PITCHES)
    assert summary["emotions_range_st_in_order"] == summary["emotions_level_db_in_order"] == 1.0
    swap = {"neutral": "happy", "happy": "neutral"}
    lying = [replace(c, style=replace(c.style, emotion=swap[str(c.style.emotion)])) for c in clips]
    assert norm_check.summarise([norm_check.examine(lying)])["emotions_range_st_in_order"] == 0.0


def test_the_suite_hands_calibrations_over() -> None:
    suite = CheckSuite({"styles": check()})
    learnt = suite.calibrate(Buzz(), ["ann"])
    assert set(learnt) == {"styles"}
    suite.use(json.loads(json.dumps(learnt)))
    clip = spoken(Buzz(), Style("low"))
    assert pickle.loads(pickle.dumps(suite)).examine([clip])["styles"].clips[0]["pitch_in_order"] is True
    with pytest.raises(UserError, match="calibration of check"):
        suite.use({"words": {}})


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"emotions": ["glad"]}, "emotions entry"),
        ({"emotions": []}, "is empty"),
        ({"verdict": "mine"}, "verdict"),
        ({"max_wrong_share": 1.5}, "max_wrong_share"),
        ({"pitch_margin_st": -1.0}, "pitch_margin_st"),
    ],
)
def test_wrong_settings_are_refused(fields: dict[str, object], said: str) -> None:
    with pytest.raises(UserError, match=rf"checks\.styles.*{said}"):
        check(**fields)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.floats(0.01, 0.2), min_size=5, max_size=5),
    st.floats(0.5, 2.0),
)
def test_durations_that_follow_the_sizes_are_fitted_exactly(weights: list[float], tempo: float) -> None:
    texts = sentences()
    seconds = [float(text_sizes(text) @ weights) for text in texts]
    fitted = fit_durations(texts, seconds)
    assert min(fitted) >= 0
    for text in TEXTS:
        expected = float(text_sizes(text) @ weights)
        assert log_rate(text, expected / tempo, fitted) == pytest.approx(np.log(tempo), abs=1e-6)
    assert log_rate("x", 0.0, fitted) is None


def test_measures_of_a_tone_are_those_it_was_made_of() -> None:
    time = np.arange(RATE) / RATE
    tone = (0.1 * np.sin(2 * np.pi * 220 * time)).astype(np.float32)
    padded = np.concatenate([np.zeros(RATE // 2), tone, np.zeros(RATE // 4)]).astype(np.float32)
    found = measure(Clip(padded, RATE, "x", "a", Style()))
    assert found.median_hz == pytest.approx(220, rel=0.01) and found.range_st == pytest.approx(0, abs=0.1)
    assert found.span_sec == pytest.approx(1.0, abs=0.03) and found.level_db == pytest.approx(-23.0, abs=0.3)
    assert len(voiced_hz(tone, RATE, (300.0, 500.0))) < len(voiced_hz(tone, RATE))
    assert span_sec(np.zeros(10, dtype=np.float32), RATE) == 0.0
    assert len(voiced_hz(tone[:10], RATE)) == 0


def test_a_wrong_tempo_is_suspected_with_the_factor_that_puts_it_right() -> None:
    voice = Buzz()
    judge = calibrated(voice, max_wrong_share=0.0)
    right = spoken(voice, Style("normal", "fast"))
    clips = [right, replace(spoken(voice, Style("normal", "normal")), style=Style("normal", "slow")), right]
    found = judge.examine(clips)
    factors = judge.suspects(found)
    assert factors is not None and list(factors) == [1] and factors[1] == pytest.approx(1.28, rel=0.02)
    cured = [right, spoken(voice, Style("normal", "slow")), right]
    again = judge.examine_again(cured, found, [1])
    assert again == judge.examine(cured) and not again.reasons
    high = judge.examine([right, replace(spoken(voice, Style("high")), style=Style("low"))])
    assert judge.suspects(high) == {1: 1.0}, "pitch: another take"
