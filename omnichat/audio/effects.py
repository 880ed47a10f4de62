"""Levels, mixes, fades, rooms, bands on mono waveforms: NumPy float32 [N] in [-1, 1], levels in dB re full scale."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyloudnorm
import scipy.signal

from omnichat.utils.errors import UserError

SILENCE_DB = -120.0  # what a level of nothing is called
CEILING = 0.98  # no sample of a finished clip is larger
_LOUDNESS_BLOCK_SEC = 0.4  # gating block of BS.1770: what is shorter has no loudness
_BAND_ORDER = 6  # of the telephone's Butterworth filter, which is run forwards and backwards
_MIXING_SEC = 0.0025  # between the direct path and the first reflections of a simulated room


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


def guard_peak(wave_N: np.ndarray, ceiling: float = CEILING) -> np.ndarray:
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


def pooled_level_db(waves: Sequence[np.ndarray], sample_rate: int) -> float:
    """Active level in dB of several clips as one: each by its own loudest frame, so that a quiet one counts too."""
    active = [wave_N[active_mask(wave_N, sample_rate)] for wave_N in waves]
    return rms_db(np.concatenate(active)) if active else SILENCE_DB


def loudness_lufs(wave_N: np.ndarray, sample_rate: int) -> float | None:
    """Integrated loudness in LUFS (ITU-R BS.1770-4, gated); None for silence.

    A clip shorter than the gating block of 0.4 s is measured as if it were repeated.
    """
    block = int(np.ceil(_LOUDNESS_BLOCK_SEC * sample_rate)) + 1
    if len(wave_N) == 0:
        return None
    if len(wave_N) < block:
        wave_N = np.tile(wave_N, -(-block // len(wave_N)))
    lufs = float(pyloudnorm.Meter(sample_rate).integrated_loudness(wave_N.astype(np.float64)))
    return lufs if np.isfinite(lufs) else None


def band_limit(wave_N: np.ndarray, sample_rate: int, low_hz: float = 300.0, high_hz: float = 3400.0) -> np.ndarray:
    """Keep a band only, by default a telephone's: float32 [N]. Zero phase, so nothing moves in time.

    A Butterworth filter is run forwards and backwards: 6 dB down at both edges. Where the sampling rate does not reach
    the upper edge, only the lower one is cut.

    Raises:
        UserError: the edges are no band below half the sampling rate.
    """
    if not 0 < low_hz < high_hz or low_hz >= sample_rate / 2:
        raise UserError(f"a band of {low_hz:g} to {high_hz:g} Hz does not exist at {sample_rate} Hz")
    if high_hz < 0.49 * sample_rate:
        sections = scipy.signal.butter(_BAND_ORDER, [low_hz, high_hz], "bandpass", fs=sample_rate, output="sos")
    else:
        sections = scipy.signal.butter(_BAND_ORDER, low_hz, "highpass", fs=sample_rate, output="sos")
    if len(wave_N) == 0:
        return wave_N.astype(np.float32)
    padding = min(len(wave_N) - 1, round(0.02 * sample_rate))
    return scipy.signal.sosfiltfilt(sections, wave_N.astype(np.float64), padlen=padding).astype(np.float32)


def simulated_room(rng: np.random.Generator, sample_rate: int, rt60_sec: float, direct_db: float) -> np.ndarray:
    """Return a room's impulse response: float32 [N], energy 1, the direct path at sample 0.

    Polack's model (1988): after the direct path comes Gaussian noise whose level falls by 60 dB in `rt60_sec`.

    Args:
        rng: draws the noise.
        rt60_sec: reverberation time.
        direct_db: energy of the direct path over that of the reverberation, dB; about 10 near the speaker, 0 far away.
    """
    start = round(_MIXING_SEC * sample_rate)
    length = max(start + 1, round(rt60_sec * sample_rate))
    response = np.zeros(length)
    times = np.arange(length - start) / sample_rate
    tail = rng.standard_normal(length - start) * 10.0 ** (-3.0 * times / rt60_sec)
    response[start:] = tail * 10.0 ** (-direct_db / 20) / np.sqrt(np.square(tail).sum())
    response[0] = 1.0
    return unit_energy(response)


def recorded_room(response_N: np.ndarray, sample_rate: int, max_sec: float = 2.0) -> np.ndarray:
    """A recorded impulse response as `simulated_room` returns one: what comes before the direct path is cut off.

    The direct path is the largest sample. Raises UserError for a silent recording.
    """
    if not np.abs(response_N).max(initial=0.0) > 0:
        raise UserError("a room's impulse response is silent")
    start = int(np.abs(response_N).argmax())
    return unit_energy(response_N[start : start + max(1, round(max_sec * sample_rate))].astype(np.float64))


def unit_energy(response_N: np.ndarray) -> np.ndarray:
    """Scale an impulse response so that white noise keeps its level: float32 [N]."""
    return (response_N / np.sqrt(np.square(response_N).sum())).astype(np.float32)


def in_room(wave_N: np.ndarray, response_N: np.ndarray) -> np.ndarray:
    """A clip as it is heard in a room, with the room's end after it: float32 [N + response - 1]."""
    if len(wave_N) == 0:
        return wave_N.astype(np.float32)
    return scipy.signal.oaconvolve(wave_N.astype(np.float64), response_N.astype(np.float64)).astype(np.float32)


def safe_gain(waves: Sequence[np.ndarray], wanted: float = 1.0, ceiling: float = CEILING) -> float:
    """The largest factor, at most `wanted`, at which no sample of any clip passes `ceiling`."""
    peak = max((float(np.abs(wave_N).max(initial=0.0)) for wave_N in waves), default=0.0)
    # a hair below the ceiling: the product is rounded to float32
    return wanted if peak * wanted <= ceiling * (1 - 1e-6) else ceiling * (1 - 1e-6) / peak


def _ramp(length: int) -> np.ndarray:
    """Raised cosine from 0 to 1, float32 [length], without its end points."""
    return (0.5 - 0.5 * np.cos(np.pi * (np.arange(length) + 0.5) / length)).astype(np.float32)
