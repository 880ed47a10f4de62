"""Levels, mixes and fades on mono waveforms: NumPy float32 [N], values in [-1, 1], levels in dB re full scale."""

from __future__ import annotations

import numpy as np

from omnichat.utils.errors import UserError

SILENCE_DB = -120.0  # what a level of nothing is called


def rms_db(wave_N: np.ndarray) -> float:
    """Root-mean-square level of a whole clip in dB (0 dB = a full-scale square wave)."""
    if len(wave_N) == 0:
        return SILENCE_DB
    power = float(np.mean(np.square(wave_N, dtype=np.float64)))
    return max(SILENCE_DB, 10.0 * float(np.log10(power))) if power > 0 else SILENCE_DB


def active_mask(wave_N: np.ndarray, sample_rate: int, frame_sec: float = 0.02, range_db: float = 30.0) -> np.ndarray:
    """Bool [N]: samples of the frames within `range_db` of the loudest frame, i.e. speech without its pauses."""
    frame = max(1, round(frame_sec * sample_rate))
    frames = -(-len(wave_N) // frame)
    padded = np.zeros(frames * frame)
    padded[: len(wave_N)] = wave_N
    power = np.square(padded).reshape(frames, frame).mean(axis=1)
    loudest = power.max(initial=0.0)
    if loudest == 0:
        return np.zeros(len(wave_N), dtype=bool)
    active = power >= loudest * 10 ** (-range_db / 10)
    return np.repeat(active, frame)[: len(wave_N)]


def active_level_db(wave_N: np.ndarray, sample_rate: int) -> float:
    """RMS level in dB of the active part only (see `active_mask`); pauses do not lower it."""
    return rms_db(wave_N[active_mask(wave_N, sample_rate)])


def gain_db(wave_N: np.ndarray, gain: float) -> np.ndarray:
    """Scale by `gain` dB."""
    return (wave_N * 10 ** (gain / 20)).astype(np.float32)


def to_level_db(wave_N: np.ndarray, sample_rate: int, level_db: float) -> np.ndarray:
    """Scale so that the active level is `level_db`; a silent clip is returned as it is."""
    now = active_level_db(wave_N, sample_rate)
    return wave_N.astype(np.float32) if now <= SILENCE_DB else gain_db(wave_N, level_db - now)


def guard_peak(wave_N: np.ndarray, ceiling: float = 0.98) -> np.ndarray:
    """Scale the whole clip down where a sample would pass `ceiling`; never up, never by clipping."""
    peak = float(np.abs(wave_N).max(initial=0.0))
    return wave_N.astype(np.float32) if peak <= ceiling else (wave_N * (ceiling / peak)).astype(np.float32)


def fade(wave_N: np.ndarray, sample_rate: int, in_sec: float = 0.01, out_sec: float = 0.01) -> np.ndarray:
    """Raised-cosine fade at both ends; ends that would meet share the clip between them."""
    out = wave_N.astype(np.float32).copy()
    total = max(in_sec + out_sec, 1e-9)
    shrink = min(1.0, len(out) / sample_rate / total)
    head, tail = (round(sec * shrink * sample_rate) for sec in (in_sec, out_sec))
    if head:
        out[:head] *= _ramp(head)
    if tail:
        out[-tail:] *= _ramp(tail)[::-1]
    return out


def loop(wave_N: np.ndarray, length: int, offset: int = 0, cross_fade: int = 0) -> np.ndarray:
    """Return samples [offset, offset + length) of `wave_N` repeated for ever.

    Where one pass meets the next, `cross_fade` samples overlap with equal power, so a period is N - cross_fade long.
    `loop(w, n, 0)` followed by `loop(w, m, n)` is `loop(w, n + m, 0)`: a dialogue can be cut into turns.

    Raises:
        UserError: an empty recording, or a cross-fade longer than half of it.
    """
    if len(wave_N) == 0:
        raise UserError("a background recording is empty")
    if not 0 <= cross_fade <= len(wave_N) // 2:
        raise UserError(f"cross-fade of {cross_fade} samples does not fit a recording of {len(wave_N)} samples")
    period = wave_N.astype(np.float32)
    start = offset
    if cross_fade:
        ramp = _ramp(cross_fade)
        seam = period[-cross_fade:] * np.sqrt(1 - ramp) + period[:cross_fade] * np.sqrt(ramp)
        # the period starts after the first pass's own beginning, so that the first pass is untouched up to its seam
        period = np.concatenate([period[cross_fade:-cross_fade], seam.astype(np.float32)])
        start = offset - cross_fade
    index = np.arange(start, start + length)
    out = period[index % len(period)]
    first = index < 0
    out[first] = wave_N[: cross_fade or None][index[first] + cross_fade] if first.any() else out[first]
    return out.astype(np.float32)


def mix_at_snr(speech_N: np.ndarray, background_N: np.ndarray, sample_rate: int, snr_db: float) -> np.ndarray:
    """Add a background so that the speech's active level is `snr_db` above the background's active level.

    Both inputs have the same length. The sum is scaled down as a whole where it would clip, which keeps the ratio.

    Raises:
        UserError: lengths differ, or one of the two is silent.
    """
    return guard_peak(speech_N + background_at_snr(speech_N, background_N, sample_rate, snr_db))


def background_at_snr(speech_N: np.ndarray, background_N: np.ndarray, sample_rate: int, snr_db: float) -> np.ndarray:
    """Return the background scaled for `mix_at_snr`, without adding it. Same errors."""
    if len(speech_N) != len(background_N):
        raise UserError(f"speech has {len(speech_N)} samples, its background {len(background_N)}")
    speech_db = active_level_db(speech_N, sample_rate)
    background_db = active_level_db(background_N, sample_rate)
    if min(speech_db, background_db) <= SILENCE_DB:
        raise UserError("speech or background is silent: no signal-to-noise ratio exists")
    return gain_db(background_N, speech_db - snr_db - background_db)


def _ramp(length: int) -> np.ndarray:
    """Raised cosine from 0 to 1, float32 [length], without its end points."""
    return (0.5 - 0.5 * np.cos(np.pi * (np.arange(length) + 0.5) / length)).astype(np.float32)
