"""Read, resample and write audio with soundfile; mono float32 in [-1, 1] everywhere.

A recording is a file of its own or one inside a Parquet shard; both are read alike.
"""

from __future__ import annotations

import io as _io
from math import gcd
from pathlib import Path

import numpy as np
import scipy.signal
import soundfile
import torch
import torchaudio.functional
from torch import Tensor

from omnichat.utils.errors import UserError
from omnichat.utils.files import write_bytes_atomic
from omnichat.utils.packed import PackedFile, Recording

MAX_SECONDS = 600.0  # a longer clip is a wrong file or a forged header; refused before memory is asked for
MAX_RATE_HZ = 384_000  # of bytes from elsewhere: a rate decides how much memory a second takes
CONTAINERS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3", "AIFF")  # of bytes from elsewhere, as soundfile names them
_BLOCK = 65_536  # samples that are decoded at a time
# Of torchaudio's resampling kernel, in samples. Its size is the product of the two rates, each over their common
# divisor: 70 thousand from 44.1 to 16 kHz, 700 million (2.8 GB, thrice) from 44.101.
_MAX_KERNEL = 4_000_000


def audio_info(path: Recording) -> tuple[int, float]:
    """Return (sample rate in Hz, seconds) from the header. Raises UserError for a missing or unreadable file."""
    try:
        info = soundfile.info(_openable(path))
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        raise UserError(_unreadable(path, error)) from None
    return int(info.samplerate), info.frames / info.samplerate


def load_audio(path: Recording, sample_rate: int, max_seconds: float = MAX_SECONDS) -> Tensor:
    """Read a file as mono at `sample_rate`: float32 [N] in [-1, 1]; channels are averaged.

    Raises:
        UserError: the file is missing, unreadable, empty, longer than `max_seconds` or holds NaN.
    """
    rate, seconds = audio_info(path)
    if seconds > max_seconds:
        raise UserError(f"{path}: header claims {seconds:.0f} s of audio, the limit is {max_seconds:.0f} s")
    try:
        samples, rate = soundfile.read(_openable(path), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        raise UserError(_unreadable(path, error)) from None
    if len(samples) == 0:
        raise UserError(f"{path}: holds no samples")
    mono = samples.mean(axis=1)
    if not np.isfinite(mono).all():
        raise UserError(f"{path}: holds samples that are not finite")
    return resample(torch.from_numpy(mono), rate, sample_rate)


def decode_audio(data: bytes, name: str, max_seconds: float = MAX_SECONDS) -> tuple[Tensor, int]:
    """Decode a recording that somebody sent: (mono float32 [N] in [-1, 1], N >= 1, its own rate in Hz).

    Nothing touches a disk, and memory grows with the samples that are there, not with those that a header claims.

    Args:
        data: a whole file of one of CONTAINERS. name: what messages call it.

    Raises:
        UserError: not readable, another container, empty, longer than `max_seconds`, a rate above MAX_RATE_HZ, or
            samples that are not finite.
    """
    try:
        with soundfile.SoundFile(_io.BytesIO(data)) as file:
            rate = int(file.samplerate)
            if file.format not in CONTAINERS:
                raise UserError(f"{name}: audio as {file.format}; choose one of: {', '.join(CONTAINERS)}")
            if not 1 <= rate <= MAX_RATE_HZ:
                raise UserError(f"{name}: header claims {rate} samples a second, the limit is {MAX_RATE_HZ}")
            if file.frames / rate > max_seconds:
                raise UserError(
                    f"{name}: header claims {file.frames / rate:.0f} s of audio, the limit is {max_seconds:g} s"
                )
            mono = _blocks(file, int(max_seconds * rate) + 1)
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        # An error's own words begin with the address of the buffer.
        told = getattr(error, "error_string", None) or "damaged"
        raise UserError(f"{name}: not readable as audio ({' '.join(str(told).split())})") from None
    if len(mono) == 0:
        raise UserError(f"{name}: holds no samples")
    if len(mono) > max_seconds * rate:
        raise UserError(f"{name}: holds more than the limit of {max_seconds:g} s of audio")
    if not np.isfinite(mono).all():
        raise UserError(f"{name}: holds samples that are not finite")
    return torch.from_numpy(mono), rate


def _blocks(file: soundfile.SoundFile, most: int) -> np.ndarray:
    """At most about `most` frames as mono float32 [N], decoded block by block."""
    pieces: list[np.ndarray] = []
    read, frames = 0, max(1, _BLOCK // int(file.channels))
    while read < most:
        block = file.read(frames, dtype="float32", always_2d=True)
        if len(block) == 0:
            break
        pieces.append(block.mean(axis=1))
        read += len(block)
    return np.concatenate(pieces) if pieces else np.zeros(0, np.float32)


def resample(wave_N: Tensor, from_hz: int, to_hz: int) -> Tensor:
    """Resample float32 [N] with torchaudio's windowed sinc; the same tensor if the rates agree.

    Two rates of which one is no common one (a header may claim any) are resampled by SciPy's polyphase filter, whose
    memory grows with the larger rate alone.
    """
    if from_hz == to_hz:
        return wave_N
    common = gcd(from_hz, to_hz)
    if (from_hz // common) * (to_hz // common) > _MAX_KERNEL:
        resampled = scipy.signal.resample_poly(wave_N.numpy(), to_hz // common, from_hz // common)
        return torch.from_numpy(np.ascontiguousarray(resampled, dtype=np.float32))
    return torchaudio.functional.resample(wave_N, from_hz, to_hz)


def encode_audio(wave_N: Tensor | np.ndarray, sample_rate: int, container: str = "FLAC") -> bytes:
    """Return mono samples as 16-bit file bytes (FLAC or WAV, or OGG/Opus). Raises ValueError if a sample clips."""
    samples = np.asarray(wave_N, dtype=np.float32)
    peak = float(np.abs(samples).max(initial=0.0))
    if not peak <= 1.0:
        raise ValueError(f"samples must lie in [-1, 1], peak is {peak}")
    buffer = _io.BytesIO()
    subtype = "OPUS" if container == "OGG" else "PCM_16"
    soundfile.write(buffer, samples, sample_rate, format=container, subtype=subtype)
    return buffer.getvalue()


def save_audio(path: Path, wave_N: Tensor | np.ndarray, sample_rate: int) -> None:
    """Write mono samples atomically; the suffix (.wav, .flac, .ogg) names the container."""
    write_bytes_atomic(path, encode_audio(wave_N, sample_rate, path.suffix.lstrip(".").upper()))


def _openable(path: Recording) -> str | _io.BytesIO:
    """What soundfile opens."""
    return _io.BytesIO(path.read_bytes()) if isinstance(path, PackedFile) else str(path)


def _unreadable(path: Recording, error: Exception) -> str:
    if not path.exists():
        return f"{path}: no such audio file"
    return f"{path}: not readable as audio ({str(error).splitlines()[0]})"
