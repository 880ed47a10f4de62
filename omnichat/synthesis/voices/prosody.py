"""How an emotion sounds: a signature of pitch movement, timbre and modulation, laid over plain speech.

Two steps. `resynthesise` moves formants, pitch and duration with Praat's overlap-add (PSOLA); `colour` then shapes
the spectrum, the envelope and the breath in NumPy. Pitch height and speed are attributes of their own: a signature
keeps the median pitch and (nearly) the duration, so that emotion is not told by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.fft import next_fast_len
from scipy.signal import resample

from omnichat.audio import effects
from omnichat.utils.errors import UserError

_TIME_STEP_SEC = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class Prosody:
    """One emotion's signature. The default of each field changes nothing; st = semitones.

    Attributes:
        range_scale: factor on the pitch range around its median (in semitones; 0 = monotone).
        slope_st: straight pitch movement from start to end.
        final_st: further movement within the last `final_share` of the clip.
        final_share: the share of the clip that counts as final.
        tremor_hz, tremor_st: rate and depth of vibrato.
        beat_hz, beat_depth: rate and depth (0 to 1) of loudness modulation.
        stretch: duration factor (kept near 1: speed is its own attribute).
        tilt_db: spectral slope in dB an octave around 1 kHz; above 0 is brighter.
        peaks: (centre Hz, gain dB, width in octaves) of resonances or holes.
        breath_db: level of aspiration noise relative to the speech, in dB; None = none.
        drive_db: gain into soft saturation (a pressed, harsh voice); 0 = none.
        level_db: loudness relative to the common speech level.
    """

    range_scale: float = 1.0
    slope_st: float = 0.0
    final_st: float = 0.0
    final_share: float = 0.35
    tremor_hz: float = 0.0
    tremor_st: float = 0.0
    beat_hz: float = 0.0
    beat_depth: float = 0.0
    stretch: float = 1.0
    tilt_db: float = 0.0
    peaks: Sequence[Sequence[float]] = ()
    breath_db: float | None = None
    drive_db: float = 0.0
    level_db: float = 0.0

    def __post_init__(self) -> None:
        if self.range_scale < 0 or self.stretch <= 0 or not 0 < self.final_share <= 1 or not 0 <= self.beat_depth <= 1:
            raise UserError(
                "voice prosody needs range_scale >= 0, stretch > 0, 0 < final_share <= 1 and 0 <= beat_depth <= 1"
            )
        if any(len(peak) != 3 for peak in self.peaks):
            raise UserError("voice prosody: every peak is [centre Hz, gain dB, width in octaves]")


def contour_hz(f0_T: np.ndarray, time_T: np.ndarray, seconds: float, median_hz: float, prosody: Prosody) -> np.ndarray:
    """Return the new pitch contour of voiced frames: float [T] in Hz with median `median_hz` exactly.

    Args:
        f0_T: measured pitch in Hz of the voiced frames. time_T: their times in seconds, of a clip of `seconds`.
    """
    position_T = time_T / seconds
    semitones_T = 12 * np.log2(f0_T / np.median(f0_T))
    # octave jumps of the tracker would become shrieks when the range is widened
    semitones_T = np.clip(semitones_T, -7.0, 7.0) * prosody.range_scale
    semitones_T = semitones_T + prosody.slope_st * position_T
    final_T = np.clip((position_T - (1 - prosody.final_share)) / prosody.final_share, 0.0, 1.0)
    semitones_T = semitones_T + prosody.final_st * final_T
    semitones_T = semitones_T + prosody.tremor_st * np.sin(2 * np.pi * prosody.tremor_hz * time_T)
    semitones_T = np.clip(semitones_T - np.median(semitones_T), -14.0, 16.0)
    return median_hz * 2 ** (semitones_T / 12)


@dataclass(frozen=True, slots=True)
class Analysis:
    """Plain speech as Praat takes it apart, for any number of resyntheses (`analyse`)."""

    rate_hz: float
    formant_ratio: float
    pitch: Any
    manipulation: Any
    seconds: float


def analyse(wave_N: np.ndarray, plain_rate: int, formant_ratio: float, tracker_hz: Sequence[float] | None) -> Analysis:
    """Find pitch and pulses of float32 [N] speech at `plain_rate` Hz, played `formant_ratio` times faster.

    The tracker looks for pitch between the two values of `tracker_hz`; None: around what it finds in a first wide pass.
    """
    import parselmouth
    from parselmouth.praat import call

    rate = plain_rate * formant_ratio
    sound = parselmouth.Sound(wave_N.astype(np.float64), sampling_frequency=rate)
    low, high = tracker_hz or pitch_bounds(wave_N, plain_rate)
    pitch = sound.to_pitch_ac(
        time_step=_TIME_STEP_SEC, pitch_floor=low * formant_ratio, pitch_ceiling=high * formant_ratio
    )
    return Analysis(rate, formant_ratio, pitch, call([sound, pitch], "To Manipulation"), sound.duration)


def resynthesise(
    plain: Analysis,
    sample_rate: int,
    *,
    median_hz: float | None,
    shift_st: float,
    stretch: float,
    prosody: Prosody,
    seed: int,
) -> np.ndarray:
    """Give speech another vocal-tract length, pitch contour and duration: float32 [N'] at `sample_rate` Hz.

    Its median pitch becomes `shift_st` semitones from `median_hz` (None: from its own).

    Praat's "Change gender" does the same in fixed form: the clip is played `formant_ratio` times faster, and
    overlap-add puts pitch and duration where they belong. A clip without voiced frames only gets the formants and
    the duration. Praat draws the pulses of unvoiced sounds at random; `seed` (0 to 2**31 - 1) makes them repeatable.
    """
    from parselmouth.praat import call, run

    f0_T = plain.pitch.selected_array["frequency"]
    voiced_T = f0_T > 0
    factor = stretch * prosody.stretch * plain.formant_ratio
    if voiced_T.any():  # in every clip of an analysis or in none, so that no other clip's contour stays in it
        # times as they will be after stretching, so that tremor keeps its rate
        time_T = plain.pitch.xs()[voiced_T] * factor
        normal_hz = median_hz or float(np.median(f0_T[voiced_T])) / plain.formant_ratio
        target_hz = normal_hz * 2 ** (shift_st / 12)
        new_T = contour_hz(f0_T[voiced_T], time_T, plain.seconds * factor, target_hz, prosody)
        call([_pitch_tier(plain.pitch, voiced_T, new_T), plain.manipulation], "Replace pitch tier")
    duration = call("Create DurationTier", "duration", 0.0, plain.seconds)
    call(duration, "Add point", 0.0, factor)
    call([duration, plain.manipulation], "Replace duration tier")
    run(f"random_initializeWithSeedUnsafelyButPredictably ({seed})")
    try:
        result = call(plain.manipulation, "Get resynthesis (overlap-add)")
    finally:
        run("random_initializeSafelyAndUnpredictably ()")
    return _to_rate(result.values[0], plain.rate_hz, sample_rate)


def _pitch_tier(pitch: Any, voiced_T: np.ndarray, hz_V: np.ndarray) -> Any:
    """Praat's PitchTier with one point for each voiced frame. By way of a matrix: a call for each point takes longer
    than all the rest."""
    from parselmouth.praat import call

    frames = len(voiced_T)
    matrix = call("Create Matrix", "hz", pitch.xmin, pitch.xmax, frames, pitch.dx, pitch.x1, 1, 1, 1, 1, 1, "0")
    matrix.values[0, voiced_T] = hz_V
    return call(call(matrix, "To Pitch"), "Down to PitchTier")


def _to_rate(wave_N: np.ndarray, from_hz: float, to_hz: float) -> np.ndarray:
    """Resample between any two rates by the spectrum: float32 [about N x to / from].

    Padding keeps the end from wrapping around to the beginning. Lengths are whole numbers, so the ratio is met within
    one sample of the whole clip.
    """
    size = next_fast_len(len(wave_N) + round(0.05 * from_hz), real=True)
    padded = np.zeros(size)
    padded[: len(wave_N)] = wave_N
    out = resample(padded, round(size * to_hz / from_hz))
    return out[: round(len(wave_N) * to_hz / from_hz)].astype(np.float32)


def pitch_bounds(wave_N: np.ndarray, sample_rate: int) -> tuple[float, float]:
    """Floor and ceiling in Hz for tracking one clip's pitch, from a first pass between 60 and 600 Hz.

    Three quarters of the lower quartile and twice the upper one (after Hirst, 2011): a tracker with narrow bounds makes
    fewer octave errors. The wide bounds where nothing is voiced.
    """
    import parselmouth

    sound = parselmouth.Sound(wave_N.astype(np.float64), sampling_frequency=sample_rate)
    f0_T = sound.to_pitch_ac(time_step=_TIME_STEP_SEC, pitch_floor=60.0, pitch_ceiling=600.0)
    voiced_T = f0_T.selected_array["frequency"]
    voiced_T = voiced_T[voiced_T > 0]
    if not len(voiced_T):
        return 60.0, 600.0
    lower, upper = np.percentile(voiced_T, (25, 75))
    return max(50.0, 0.75 * float(lower)), min(600.0, 2.0 * float(upper))


def promised_range_st(prosody: Prosody) -> float:
    """Pitch range of a signature in semitones (10th to 90th percentile), laid over one plain two-second contour."""
    time_T = np.arange(0.1, 1.9, _TIME_STEP_SEC)
    plain_T = 120.0 * 2 ** ((2.0 * np.sin(2 * np.pi * 1.3 * time_T) - 1.0 * time_T) / 12)
    semitones_T = 12 * np.log2(contour_hz(plain_T, time_T, 2.0, 120.0, prosody) / 120.0)
    low, high = np.percentile(semitones_T, (10, 90))
    return float(high - low)


def colour(wave_N: np.ndarray, sample_rate: int, prosody: Prosody, rng: np.random.Generator) -> np.ndarray:
    """Shape spectrum, envelope and breath: float32 [N]. The level of the result is the caller's business."""
    wave = wave_N.astype(np.float64)
    if prosody.drive_db:
        wave = _drive(wave, sample_rate, prosody.drive_db)
    wave = _equalise(wave, sample_rate, prosody)
    if prosody.beat_depth:
        phase = 2 * np.pi * prosody.beat_hz * np.arange(len(wave)) / sample_rate + rng.uniform(0, 2 * np.pi)
        wave = wave * (1 - prosody.beat_depth * (0.5 - 0.5 * np.cos(phase)))
    if prosody.breath_db is not None:
        wave = wave + _breath(wave, sample_rate, prosody.breath_db, rng)
    return wave.astype(np.float32)


def _drive(wave: np.ndarray, sample_rate: int, drive_db: float) -> np.ndarray:
    """Saturate softly: at 0 dB the active level sits at the knee of tanh."""
    level = 10 ** (effects.active_level_db(wave.astype(np.float32), sample_rate) / 20)
    gain = 10 ** (drive_db / 20) / max(level, 1e-6)
    return np.tanh(wave * gain) / gain


def _equalise(wave: np.ndarray, sample_rate: int, prosody: Prosody) -> np.ndarray:
    """Apply tilt and peaks as one zero-phase gain curve; below 100 Hz and above 7 kHz the tilt stays flat."""
    if not prosody.tilt_db and not prosody.peaks:
        return wave
    size = next_fast_len(len(wave) + sample_rate // 10, real=True)  # room for the filter's tail: it must not wrap
    hz = np.maximum(np.fft.rfftfreq(size, 1 / sample_rate), 1.0)
    octave = np.log2(np.clip(hz, 100.0, 7000.0) / 1000.0)
    gain = prosody.tilt_db * octave
    for centre_hz, peak_db, width in prosody.peaks:
        gain = gain + peak_db * np.exp(-0.5 * (np.log2(hz / centre_hz) / width) ** 2)
    return np.fft.irfft(np.fft.rfft(wave, size) * 10 ** (gain / 20), size)[: len(wave)]


def _breath(wave: np.ndarray, sample_rate: int, breath_db: float, rng: np.random.Generator) -> np.ndarray:
    """Noise above about 1 kHz that follows the speech's envelope."""
    noise = np.diff(rng.standard_normal(len(wave) + 1))  # +6 dB an octave: aspiration is bright
    width = max(1, round(0.03 * sample_rate))
    envelope = np.sqrt(np.convolve(np.square(wave), np.ones(width) / width, mode="same"))
    return noise * envelope * (10 ** (breath_db / 20) / np.sqrt(2.0))
