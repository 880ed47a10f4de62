"""Contours and colours: medians stay, movements go where the signature says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnichat.audio import effects
from omnichat.synthesis.voices.prosody import Prosody, colour, contour_hz
from omnichat.utils.errors import UserError

RATE = 16000
TIME = np.arange(0.2, 2.0, 0.01)
F0 = 110 * 2 ** (0.2 * np.sin(5 * TIME))


@settings(max_examples=40, deadline=None)
@given(
    median=st.floats(60, 300),
    range_scale=st.floats(0, 2),
    slope=st.floats(-4, 4),
    final=st.floats(-5, 9),
    tremor=st.floats(0, 1),
)
def test_the_median_is_kept_whatever_the_movement(
    median: float, range_scale: float, slope: float, final: float, tremor: float
) -> None:
    prosody = Prosody(range_scale=range_scale, slope_st=slope, final_st=final, tremor_hz=7.0, tremor_st=tremor)
    assert np.median(contour_hz(F0, TIME, 2.2, median, prosody)) == pytest.approx(median, rel=1e-3)


def test_movements_go_where_they_should() -> None:
    def semitones(**fields: float) -> np.ndarray:
        return 12 * np.log2(contour_hz(F0, TIME, 2.0, 100.0, Prosody(**fields)) / 100.0)

    assert np.ptp(semitones(range_scale=0.0)) < 1e-6
    assert np.ptp(semitones(range_scale=2.0)) == pytest.approx(2 * np.ptp(semitones()), rel=1e-6)
    rise = semitones(range_scale=0.0, final_st=6.0, final_share=0.25)
    assert rise[-1] - rise[0] == pytest.approx(6.0, abs=0.3) and abs(rise[len(rise) // 2] - rise[0]) < 1e-6
    wave = np.abs(np.fft.rfft(semitones(range_scale=0.0, tremor_hz=7.0, tremor_st=1.0)))
    assert np.fft.rfftfreq(len(TIME), 0.01)[wave[1:].argmax() + 1] == pytest.approx(7.0, abs=0.5)


def band_db(wave: np.ndarray, low: float, high: float) -> float:
    hz = np.fft.rfftfreq(len(wave), 1 / RATE)
    return 10 * float(np.log10((np.abs(np.fft.rfft(wave)) ** 2)[(hz >= low) & (hz < high)].sum()))


def test_colours_are_measurable() -> None:
    rng = np.random.default_rng(0)
    noise = (0.05 * rng.standard_normal(RATE)).astype(np.float32)

    def apply(**fields: object) -> np.ndarray:
        return colour(noise, RATE, Prosody(**fields), np.random.default_rng(1))

    assert np.allclose(apply(), noise)
    tilt = apply(tilt_db=-6.0)
    change = [band_db(tilt, hz * 0.95, hz * 1.05) - band_db(noise, hz * 0.95, hz * 1.05) for hz in (1000, 2000, 4000)]
    assert change == pytest.approx([0, -6, -12], abs=0.7)
    peak = apply(peaks=[[2000.0, 10.0, 0.3]])
    assert band_db(peak, 1900, 2100) - band_db(noise, 1900, 2100) == pytest.approx(10, abs=0.7)
    beaten = np.abs(apply(beat_hz=4.0, beat_depth=0.9)).reshape(-1, RATE // 40).mean(axis=1)
    assert np.abs(np.fft.rfft(beaten - beaten.mean())).argmax() == 4
    breathy = apply(breath_db=-10.0) - noise
    assert effects.rms_db(breathy) - effects.rms_db(noise) == pytest.approx(-10, abs=1)
    driven = apply(drive_db=12.0)
    assert np.abs(driven).max() / driven.std() < np.abs(noise).max() / noise.std()


def test_impossible_signatures_are_refused() -> None:
    for fields in ({"stretch": 0.0}, {"beat_depth": 1.5}, {"final_share": 0.0}, {"peaks": [[100.0, 3.0]]}):
        with pytest.raises(UserError, match="voice prosody"):
            Prosody(**fields)
