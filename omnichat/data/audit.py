"""Checks of one recording before it may enter a corpus: whole, finite, audible, and of a believable length."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile
import torch
from torch import Tensor

from omnichat.audio.io import MAX_SECONDS, audio_info
from omnichat.utils.errors import UserError


class BadAudio(UserError):
    """A recording that fails a check; `reason` is the short name under which it is counted."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def read_recording(path: Path, max_sec: float = MAX_SECONDS) -> tuple[Tensor, int]:
    """Read a file as mono at its own rate: (float32 [N], rate in Hz); channels are averaged.

    The header is checked before memory is asked for, and the samples that come are counted against it: a file cut in
    half otherwise reads without an error.

    Raises:
        BadAudio: missing, unreadable, empty, truncated, over-long.
    """
    if not path.is_file():
        raise BadAudio("missing", f"{path}: no such audio file")
    try:
        rate, seconds = audio_info(path)
    except UserError as error:
        raise BadAudio("unreadable", str(error)) from None
    if seconds > max_sec:
        raise BadAudio("too long", f"{path}: header claims {seconds:.1f} s, the limit is {max_sec:g} s")
    with open(path, "rb") as handle:
        cut = missing_wav_bytes(handle, path.stat().st_size)
    if cut:
        raise BadAudio("truncated", f"{path}: {cut} bytes fewer than its header claims")
    try:
        samples_NC, rate = soundfile.read(str(path), dtype="float32", always_2d=True)
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        raise BadAudio("unreadable", f"{path}: not readable as audio ({str(error).splitlines()[0]})") from None
    if len(samples_NC) == 0:
        raise BadAudio("empty", f"{path}: holds no samples")
    if len(samples_NC) < round(seconds * rate):
        raise BadAudio(
            "truncated", f"{path}: {len(samples_NC)} samples where its header claims {round(seconds * rate)}"
        )
    return torch.from_numpy(np.ascontiguousarray(samples_NC.mean(axis=1))), rate


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
