"""What a clip measures: pitch, its range, loudness, and the tempo of its words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from omnichat.audio import effects
from omnichat.synthesis.checks.base import Clip
from omnichat.utils.errors import UserError

WIDE_HZ = (60.0, 500.0)  # where the pitch of any voice lies
_VOWELS = re.compile(r"[aeiouyàáâäåæçèéêëìíîïòóôöøùúûüœ]+")
_PAUSES = re.compile(r"[,;:.!?\u2026-]+\s")  # inside the sentence: its end is no pause
_SHORTEST_SEC = 0.06  # what Praat's tracker can look at


@dataclass(frozen=True, slots=True)
class Measures:
    """One clip: median pitch in Hz and range (10th to 90th percentile) in semitones, None where nothing is voiced;
    active level in dB re full scale; seconds from the first to the last sound."""

    median_hz: float | None
    range_st: float | None
    level_db: float
    span_sec: float


def measure(clip: Clip, tracker_hz: Sequence[float] = WIDE_HZ) -> Measures:
    """Measure one clip; `tracker_hz` holds the lowest and the highest pitch to look for."""
    f0_T = voiced_hz(clip.wave_N, clip.sample_rate, tracker_hz)
    low, middle, high = np.percentile(f0_T, (10, 50, 90)) if len(f0_T) else (0.0, 0.0, 0.0)
    return Measures(
        float(middle) if len(f0_T) else None,
        float(12 * np.log2(high / low)) if len(f0_T) else None,
        effects.active_level_db(clip.wave_N, clip.sample_rate),
        span_sec(clip.wave_N, clip.sample_rate),
    )


def voiced_hz(wave_N: np.ndarray, sample_rate: int, tracker_hz: Sequence[float] = WIDE_HZ) -> np.ndarray:
    """Pitch in Hz of the voiced 10 ms frames, float64 [T] (Praat, autocorrelation); empty where nothing is voiced."""
    try:
        import parselmouth
    except ImportError as error:
        raise UserError(
            f"the style check needs the extra 'synthesis': pip install omnichat[synthesis] ({error})"
        ) from None
    low, high = tracker_hz
    if len(wave_N) / sample_rate < max(_SHORTEST_SEC, 3.5 / low):  # three periods fit into Praat's window
        return np.zeros(0)
    sound = parselmouth.Sound(wave_N.astype(np.float64), sampling_frequency=sample_rate)
    f0_T = sound.to_pitch_ac(time_step=0.01, pitch_floor=low, pitch_ceiling=high).selected_array["frequency"]
    return np.asarray(f0_T[f0_T > 0])


def span_sec(wave_N: np.ndarray, sample_rate: int) -> float:
    """Seconds from the first to the last active sample; pauses in between count, as they follow the tempo too."""
    active = np.flatnonzero(effects.active_mask(wave_N, sample_rate))
    return float(active[-1] + 1 - active[0]) / sample_rate if len(active) else 0.0


def text_sizes(text: str) -> np.ndarray:
    """What a sentence's length is told by: letters, groups of vowels, words, pauses, and one. float64 [5]."""
    low = text.lower()
    letters = sum(character.isalnum() for character in low)
    return np.array([letters, len(_VOWELS.findall(low)), len(low.split()), len(_PAUSES.findall(low)), 1.0])


def fit_durations(texts: Sequence[str], seconds: Sequence[float]) -> list[float]:
    """Coefficients [5] of `text_sizes` that give the seconds of sentences: least squares of relative errors, none below
    zero, so that a longer sentence is never expected to be shorter."""
    spoken = np.asarray(seconds, dtype=np.float64)
    sizes = np.stack([text_sizes(text) for text in texts])
    coefficients, _ = nnls(sizes / spoken[:, None], np.ones(len(spoken)))
    return [float(value) for value in coefficients]


def log_rate(text: str, seconds: float, durations: Sequence[float]) -> float | None:
    """Natural logarithm of expected by actual seconds: 0 = as fast as expected, above = faster. None for silence."""
    expected = float(text_sizes(text) @ np.asarray(durations))
    return float(np.log(expected / seconds)) if seconds > 0 and expected > 0 else None
