"""Recordings on their way in and out of a page: uploads read and checked, WAV files kept for players."""

from __future__ import annotations

import secrets
import threading
from collections import OrderedDict
from pathlib import Path

import numpy as np
from torch import Tensor

from omnichat.audio.io import audio_info, decode_audio, encode_audio
from omnichat.model.pretrained.conversation import Sound, sound_of
from omnichat.utils.errors import UserError

MIN_SEC = 0.1  # a shorter recording is a slip of the mouse
MAX_RATE = 48_000  # Hz; more is memory that no expert hears
FORMATS = "WAV, FLAC, Ogg, Opus or MP3"


class SoundStore:
    """WAV files in memory under names that cannot be guessed; the oldest give way.

    Args:
        max_bytes: of all together.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._files: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def put(self, wav: bytes) -> str:
        """Keep a file; returns its name."""
        name = secrets.token_urlsafe(24)
        with self._lock:
            self._files[name] = wav
            self._bytes += len(wav)
            while self._bytes > self.max_bytes and len(self._files) > 1:
                self._bytes -= len(self._files.popitem(last=False)[1])
        return name

    def get(self, name: str) -> bytes | None:
        """The file, None where it is not (or no longer) kept."""
        with self._lock:
            return self._files.get(name)


def wav_of(wave_N: Tensor | np.ndarray, sample_rate: int) -> bytes:
    """Mono samples as a 16-bit WAV file; what lies outside [-1, 1] is clipped."""
    return encode_audio(np.clip(np.asarray(wave_N, dtype=np.float32), -1.0, 1.0), sample_rate, "WAV")


def read_upload(path: str, folder: Path, max_sec: float) -> Sound:
    """A recording that was uploaded.

    Args:
        path: as the page names it.
        folder: the only one that files are read from.
        max_sec: length.

    Raises:
        UserError: another folder's file, no audio, too short, too long; one line that names the file, not its folder.
    """
    file = Path(path)
    name = file.name[:80]
    if not file.resolve().is_relative_to(folder.resolve()) or not file.is_file():
        raise UserError(f"{name}: not an upload of this page; choose the file again")
    try:
        _, seconds = audio_info(file)
    except UserError:
        raise UserError(f"{name}: not readable as audio; give a file in {FORMATS}") from None
    if seconds > max_sec:
        raise UserError(f"{name}: {seconds:.1f} s long; at most {max_sec:g} s are heard, cut it first")
    if seconds < MIN_SEC:
        raise UserError(f"{name}: {seconds:.2f} s long; at least {MIN_SEC} s must be there to hear")
    try:
        sound = sound_of(*decode_audio(file.read_bytes(), name, max_sec))
    except OSError:
        raise UserError(f"{name}: is no longer kept; choose the file again") from None
    return sound if sound.sample_rate <= MAX_RATE else sound_of(sound.at(MAX_RATE), MAX_RATE)
