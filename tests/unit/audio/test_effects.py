"""Levels, mixes, loops and fades."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnichat.audio import effects
from omnichat.utils.errors import UserError

RATE = 16000


def speechlike(seed: int, seconds: float = 1.0) -> np.ndarray:
    """Noise bursts with pauses between them."""
    rng = np.random.default_rng(seed)
    wave = 0.05 * rng.standard_normal(round(seconds * RATE))
    wave[(np.arange(len(wave)) // (RATE // 5)) % 2 == 1] = 0.0
    return wave.astype(np.float32)


@settings(max_examples=25, deadline=None)
@given(snr_db=st.floats(-10, 30), speech_gain=st.floats(-30, 6), noise_gain=st.floats(-30, 6), seed=st.integers(0, 99))
def test_background_lies_exactly_snr_below_the_active_speech(
    snr_db: float, speech_gain: float, noise_gain: float, seed: int
) -> None:
    speech = effects.gain_db(speechlike(seed), speech_gain)
    noise = effects.gain_db(0.1 * np.random.default_rng(seed + 1).standard_normal(RATE).astype(np.float32), noise_gain)
    scaled = effects.background_at_snr(speech, noise, RATE, snr_db)
    measured = effects.active_level_db(speech, RATE) - effects.active_level_db(scaled, RATE)
    assert measured == pytest.approx(snr_db, abs=0.1)
    mixed = effects.mix_at_snr(speech, noise, RATE, snr_db)
    assert np.abs(mixed).max() <= 0.98 + 1e-6
    total = speech.astype(np.float64) + scaled
    # the peak guard scales the sum as a whole, so the ratio survives it
    assert np.allclose(mixed * (np.abs(total).max() / np.abs(mixed).max()), total, atol=1e-4 * np.abs(total).max())


def test_pauses_do_not_lower_the_active_level() -> None:
    burst = speechlike(0)[: RATE // 5]
    padded = np.concatenate([burst, np.zeros(RATE, dtype=np.float32)])
    assert effects.active_level_db(padded, RATE) == pytest.approx(effects.active_level_db(burst, RATE), abs=0.2)
    assert effects.rms_db(padded) < effects.rms_db(burst) - 5


@settings(max_examples=30, deadline=None)
@given(
    length=st.integers(20, 200),
    first=st.integers(0, 500),
    second=st.integers(0, 500),
    share=st.floats(0, 0.5),
    offset=st.integers(0, 700),
)
def test_a_loop_can_be_cut_anywhere(length: int, first: int, second: int, share: float, offset: int) -> None:
    wave = np.random.default_rng(length).standard_normal(length).astype(np.float32)
    fade = int(length * share)
    whole = effects.loop(wave, first + second, offset, fade)
    parts = [effects.loop(wave, first, offset, fade), effects.loop(wave, second, offset + first, fade)]
    assert np.array_equal(whole, np.concatenate(parts))
    assert len(whole) == first + second


def test_a_loop_plays_the_recording_and_then_fades_into_its_beginning() -> None:
    wave = np.ones(1000, dtype=np.float32)
    out = effects.loop(wave, 2000, 0, 100)
    assert np.array_equal(out[:900], wave[:900])
    # equal power of two equal signals peaks at sqrt(2) in the middle of the seam, and is 1 outside it
    assert out[900:1000].max() == pytest.approx(np.sqrt(2), abs=0.01)
    assert np.array_equal(out[1000:1800], np.ones(800, dtype=np.float32))
    ramp = np.arange(1000, dtype=np.float32)
    assert np.array_equal(effects.loop(ramp, 2500, 0, 0), np.resize(ramp, 2500))


def test_fade_starts_and_ends_at_nothing_and_leaves_the_middle() -> None:
    wave = np.ones(RATE, dtype=np.float32)
    out = effects.fade(wave, RATE, 0.01, 0.02)
    assert out[0] < 0.01 and out[-1] < 0.01
    assert np.array_equal(out[RATE // 2 : RATE // 2 + 100], wave[:100])
    assert wave.min() == 1.0, "the input is not touched"
    assert len(effects.fade(wave[:10], RATE, 0.01, 0.01)) == 10


def test_peak_guard_scales_down_only() -> None:
    quiet = np.array([0.1, -0.2], dtype=np.float32)
    assert np.array_equal(effects.guard_peak(quiet), quiet)
    loud = effects.guard_peak(np.array([1.0, -4.0], dtype=np.float32), ceiling=0.5)
    assert np.allclose(loud, [0.125, -0.5])


def test_level_is_set_exactly_and_silence_stays_silent() -> None:
    assert effects.active_level_db(effects.to_level_db(speechlike(3), RATE, -24.0), RATE) == pytest.approx(
        -24.0, abs=0.01
    )
    silence = np.zeros(100, dtype=np.float32)
    assert not effects.to_level_db(silence, RATE, -24.0).any()
    assert effects.rms_db(silence) == effects.SILENCE_DB


def test_mistakes_name_themselves() -> None:
    speech = speechlike(0)
    with pytest.raises(UserError, match="silent"):
        effects.mix_at_snr(speech, np.zeros_like(speech), RATE, 5.0)
    with pytest.raises(UserError, match="samples"):
        effects.mix_at_snr(speech, speech[:-1], RATE, 5.0)
    with pytest.raises(UserError, match="empty"):
        effects.loop(speech[:0], 10)
    with pytest.raises(UserError, match="cross-fade"):
        effects.loop(speech[:10], 10, 0, 6)
