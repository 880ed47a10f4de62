"""Checks of one recording before it may enter a corpus: whole, finite, audible, and of a believable length."""

from __future__ import annotations

import io
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import torch
from torch import Tensor

from omnichat.audio.io import MAX_SECONDS
from omnichat.utils.errors import UserError

_RATES_HZ = (4000, 384000)
_MAX_CHANNELS = 16
_BLOCK = 1 << 20  # frames read at once


class BadAudio(UserError):
    """A recording that fails a check; `reason` is the short name under which it is counted."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def read_recording(path: Path, max_sec: float = MAX_SECONDS) -> tuple[Tensor, int]:
    """Read a file as mono at its own rate: (float32 [N], rate in Hz); channels are averaged.

    Raises:
        BadAudio: missing, unreadable, empty, truncated, over-long, of a rate that no recording has.
    """
    if not path.is_file():
        raise BadAudio("missing", f"{path}: no such audio file")
    with open(path, "rb") as handle:
        cut = missing_wav_bytes(handle, path.stat().st_size)
    if cut:
        raise BadAudio("truncated", f"{path}: {cut} bytes fewer than its header claims")
    return mono(*read_samples(str(path), str(path), max_sec))


def decode_recording(content: bytes, where: str, max_sec: float = MAX_SECONDS) -> tuple[Tensor, int]:
    """The same of a file's bytes; `where` names them in messages."""
    return mono(*read_samples(io.BytesIO(content), where, max_sec))


def mono(samples_NC: np.ndarray, rate: int) -> tuple[Tensor, int]:
    """The mean of the channels, as a tensor [N], and the rate."""
    return torch.from_numpy(np.ascontiguousarray(samples_NC.mean(axis=1))), rate


def read_samples(
    file: str | io.BytesIO,
    where: str,
    max_sec: float = MAX_SECONDS,
    start_sec: float = 0.0,
    end_sec: float | None = None,
) -> tuple[np.ndarray, int]:
    """Samples float32 [N, C] between two times, and the rate in Hz.

    The header is checked before memory is asked for, memory grows with the samples that come, and these are counted
    against the header: a file cut in half otherwise reads without an error.

    Raises:
        BadAudio: unreadable, empty, truncated, longer than `max_sec`, of a rate or of channels that no recording has.
    """
    try:
        with soundfile.SoundFile(file) as sound:
            rate, frames = sound.samplerate, sound.frames
            check_header(rate, frames, sound.channels, where, max_sec)
            first = min(frames, max(0, round(start_sec * rate)))
            last = frames if end_sec is None else min(frames, max(first, round(end_sec * rate)))
            if first:
                sound.seek(first)
            blocks = []
            left = last - first
            while left > 0 and len(block := sound.read(min(left, _BLOCK), dtype="float32", always_2d=True)):
                blocks.append(block)
                left -= len(block)
    except (soundfile.LibsndfileError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise _bad(where, error) from None
    if last == first:
        raise BadAudio("empty", f"{where}: holds no samples")
    if left > 0:
        raise BadAudio("truncated", f"{where}: {last - first - left} samples where its header claims {last - first}")
    return np.concatenate(blocks), rate


def check_header(rate: int, frames: int, channels: int, where: str, max_sec: float = MAX_SECONDS) -> None:
    """Raise BadAudio where a header claims what no recording of speech has."""
    if not _RATES_HZ[0] <= rate <= _RATES_HZ[1]:
        raise BadAudio("sample rate", f"{where}: a sample rate of {rate} Hz is not believable")
    if channels > _MAX_CHANNELS:
        raise BadAudio("channels", f"{where}: has {channels} channels, at most {_MAX_CHANNELS} are read")
    if frames > max_sec * rate:
        raise BadAudio("too long", f"{where}: header claims {frames / rate:.1f} s, the limit is {max_sec:g} s")


def _bad(where: str, error: Exception) -> BadAudio:
    if isinstance(error, BadAudio):
        return error
    reason = (str(error).splitlines() or [type(error).__name__])[0]
    return BadAudio("unreadable", f"{where}: not readable as audio ({reason})")


def check_recording(
    wave_N: Tensor, rate: int, text: str, where: str, *, min_sec: float, max_sec: float, max_words_per_sec: float
) -> None:
    """Raise BadAudio unless the samples can be a recording of `text`.

    Args:
        wave_N: mono float32 [N] at `rate` Hz.
        text: the words said; a recording too short for its words was cut off or belongs to another turn.
        where: names the recording in the message.
        min_sec, max_sec: bounds of its length in seconds.
        max_words_per_sec: fastest speech to believe; fast English speech stays below five words a second.
    """
    seconds = len(wave_N) / rate
    if not bool(torch.isfinite(wave_N).all()):
        raise BadAudio("not finite", f"{where}: holds samples that are not finite")
    if seconds < min_sec:
        raise BadAudio("too short", f"{where}: lasts {seconds:.3f} s, at least {min_sec:g} s are asked for")
    if seconds > max_sec:
        raise BadAudio("too long", f"{where}: lasts {seconds:.1f} s, at most {max_sec:g} s are allowed")
    if float(wave_N.abs().max()) < 1e-4:  # -80 dBFS: below the noise of any microphone
        raise BadAudio("silent", f"{where}: is silent")
    words = len(text.split())
    if words > max_words_per_sec * seconds + 1:
        raise BadAudio("too short for its words", f"{where}: {words} words in {seconds:.2f} s: cut off or misplaced")


def missing_wav_bytes(handle: BinaryIO, total: int) -> int:
    """Bytes by which a WAV file of `total` bytes falls short of what its data chunk claims; 0 for other formats.

    libsndfile believes the file's size and not the header's, so it cannot tell a cut file from a short one. Sizes of 0
    and 0xFFFFFFFF are what streaming writers leave; they claim nothing.
    """
    head = handle.read(12)
    if len(head) < 12 or head[:4] != b"RIFF" or head[8:] != b"WAVE":
        return 0
    while len(chunk := handle.read(8)) == 8:
        name, size = struct.unpack("<4sI", chunk)
        if name == b"data":
            left = total - handle.tell()
            return max(0, size - left) if size not in (0, 0xFFFFFFFF) else 0
        handle.seek(size + size % 2, 1)
    return 0
