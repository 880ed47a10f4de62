"""Rooms, bands and loudness: what each is by definition, measured."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnichat.audio import effects
from omnichat.utils.errors import UserError

RATE = 16000


def tone(hz: float, seconds: float = 1.0, level_db: float = -20.0, rate: int = RATE) -> np.ndarray:
    """A sine whose RMS level is `level_db`."""
    t = np.arange(round(seconds * rate)) / rate
    return (np.sqrt(2) * 10 ** (level_db / 20) * np.sin(2 * np.pi * hz * t)).astype(np.float32)


@pytest.mark.parametrize("rt60_sec", [0.2, 0.5, 1.0])
@pytest.mark.parametrize("direct_db", [0.0, 9.0])
def test_a_simulated_room_has_its_reverberation_time_and_its_direct_path(rt60_sec: float, direct_db: float) -> None:
    response = effects.simulated_room(np.random.default_rng(1), RATE, rt60_sec, direct_db).astype(np.float64)
    assert np.square(response).sum() == pytest.approx(1.0, abs=1e-5)
    assert np.abs(response).argmax() == 0
    tail = np.square(response[1:])
    assert 10 * np.log10(response[0] ** 2 / tail.sum()) == pytest.approx(direct_db, abs=1e-3)
    # Schroeder's backward integration: the slope from -5 to -25 dB, tripled, is the reverberation time
    decay = 10 * np.log10(np.cumsum(tail[::-1])[::-1] / tail.sum() + 1e-30)
    start, end = (int(np.argmax(decay < level)) for level in (-5.0, -25.0))
    assert 3 * (end - start) / RATE == pytest.approx(rt60_sec, rel=0.15)


def test_a_recorded_room_begins_with_its_direct_path() -> None:
    response = np.concatenate([0.01 * np.ones(100), [0.9], 0.1 * np.ones(5000)])
    cut = effects.recorded_room(response, RATE, max_sec=0.1)
    assert len(cut) == 1600 and np.abs(cut).argmax() == 0 and np.square(cut).sum() == pytest.approx(1.0, abs=1e-4)
    with pytest.raises(UserError, match="impulse response is silent"):
        effects.recorded_room(np.zeros(10), RATE)


def test_a_room_keeps_the_level_of_noise_and_adds_its_end() -> None:
    response = effects.simulated_room(np.random.default_rng(1), RATE, 0.4, 0.0)
    wave = np.random.default_rng(2).standard_normal(10 * RATE).astype(np.float32)
    heard = effects.in_room(wave, response)
    assert len(heard) == len(wave) + len(response) - 1
    assert effects.rms_db(heard[: len(wave)]) == pytest.approx(effects.rms_db(wave), abs=0.3)
    assert np.allclose(effects.in_room(wave[:1000], np.array([1.0])), wave[:1000], atol=1e-6)
    assert len(effects.in_room(wave[:0], response)) == 0


@pytest.mark.parametrize(
    ("hz", "kept_db"), [(60, -40), (150, -20), (500, 0), (1000, 0), (2700, 0), (4500, -20), (7000, -40)]
)
def test_a_telephone_keeps_its_band(hz: float, kept_db: float) -> None:
    change = effects.rms_db(effects.band_limit(tone(hz), RATE)[2000:-2000]) - effects.rms_db(tone(hz)[2000:-2000])
    assert change == pytest.approx(0.0, abs=0.5) if kept_db == 0 else change < kept_db


def test_a_band_moves_nothing_in_time_and_needs_to_exist() -> None:
    click = np.zeros(RATE, np.float32)
    click[5000] = 1.0
    heard = effects.band_limit(click, RATE)
    assert np.abs(heard).argmax() == 5000
    assert np.allclose(heard[4000:5000], heard[5001:6001][::-1], atol=1e-6), "zero phase"
    assert len(effects.band_limit(click[:1], RATE)) == 1 and len(effects.band_limit(click[:0], RATE)) == 0
    narrow = effects.band_limit(tone(150, rate=6000), 6000)
    assert effects.rms_db(narrow[600:-600]) < -40, "where the rate holds no upper edge, the lower one still cuts"
    with pytest.raises(UserError, match="does not exist at 500 Hz"):
        effects.band_limit(click, 500)


def test_loudness_is_that_of_the_standard() -> None:
    """BS.1770 is set so that a sine of 997 Hz at full scale in one channel is -3.01 LUFS: its RMS level in dB."""
    assert effects.loudness_lufs(tone(997, 5.0, -3.01, 48000), 48000) == pytest.approx(-3.01, abs=0.1)
    assert effects.loudness_lufs(tone(997, 5.0, -23.0), RATE) == pytest.approx(-23.0, abs=0.15)
    gated = np.concatenate([tone(997, 5.0, -23.0), np.zeros(20 * RATE, np.float32)])
    assert effects.loudness_lufs(gated, RATE) == pytest.approx(-23.0, abs=0.3), "silence does not count"


@settings(max_examples=40, deadline=None)
@given(samples=st.integers(1, 12000), level_db=st.floats(-50, 0))
def test_short_clips_have_a_loudness_too(samples: int, level_db: float) -> None:
    noise = np.random.default_rng(samples).standard_normal(samples) + 0.1
    wave = effects.gain_db(noise.astype(np.float32) / np.sqrt(np.mean(noise**2)), level_db)
    lufs = effects.loudness_lufs(wave, RATE)
    assert lufs is None or -90 < lufs < level_db + 6
    louder = effects.loudness_lufs(effects.gain_db(wave, 6.0), RATE)
    if lufs is not None and lufs > -60:
        assert louder == pytest.approx(lufs + 6.0, abs=0.01)


def test_silence_has_no_loudness() -> None:
    assert effects.loudness_lufs(np.zeros(RATE, np.float32), RATE) is None
    assert effects.loudness_lufs(np.zeros(0, np.float32), RATE) is None


@settings(max_examples=60, deadline=None)
@given(peaks=st.lists(st.floats(0, 1e4, width=32), min_size=0, max_size=5), wanted=st.floats(0.0, 100.0))
def test_a_safe_gain_never_clips_and_never_exceeds_what_is_wanted(peaks: list[float], wanted: float) -> None:
    waves = [np.array([peak, -peak / 2, 0.0], np.float32) for peak in peaks]
    factor = effects.safe_gain(waves, wanted)
    assert 0 <= factor <= wanted
    for wave in waves:
        assert np.abs((wave * np.float32(factor)).astype(np.float32)).max() <= 0.98
    if all(peak * wanted <= 0.97 for peak in peaks):
        assert factor == wanted


def test_the_level_of_several_clips_counts_each_by_its_own_active_part() -> None:
    loud, quiet = tone(500, 1.0, -10.0), tone(500, 1.0, -50.0)
    expected = 10 * np.log10((10**-1.0 + 10**-5.0) / 2)
    assert effects.pooled_level_db([loud, quiet], RATE) == pytest.approx(expected, abs=0.01)
    assert effects.pooled_level_db([], RATE) == effects.SILENCE_DB
