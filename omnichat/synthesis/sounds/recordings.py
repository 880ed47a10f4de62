"""Reading a background recording that may be anything: checked before memory is asked for, and kept for a while."""

from __future__ import annotations

import io
import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch

from omnichat.audio.io import resample
from omnichat.data.audit import BadAudio, check_recording, missing_wav_bytes
from omnichat.synthesis.base import Wave
from omnichat.utils.errors import UserError

SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus")
_MAX_RATE_HZ = 384_000  # more is no recording but a forged header
_MAX_CHANNELS = 8
_MAX_PEAK = 16.0  # of full scale; floating point and lossy decoders pass 1 by a little
_MP3_GUESS = 0.05  # share by which an MP3 may be shorter than it seems


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a recording must be to be used, and what is done about those that are not.

    Args:
        min_sec, max_sec: bounds of its length in seconds.
        max_bad: share of a source's recordings that may be unusable before it is refused as a whole.
        memory_mb: how much of the recordings, as they are mixed, a process keeps in memory, MB.
        follow_links: whether a file of the folder may be a link that leads out of it, as all are in the snapshots of a
            Hugging Face cache.
    """

    min_sec: float = 0.2
    max_sec: float = 600.0
    max_bad: float = 0.1
    memory_mb: float = 64.0
    follow_links: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.min_sec <= self.max_sec:
            raise UserError(f"limits need 0 < min_sec <= max_sec, got {self.min_sec} and {self.max_sec}")
        if not 0 <= self.max_bad <= 1:
            raise UserError(f"limits.max_bad must be in [0, 1], got {self.max_bad}")
        if self.memory_mb < 0:
            raise UserError(f"limits.memory_mb must be >= 0, got {self.memory_mb}")


def check_place(path: Path, root: Path, where: str, limits: Limits | None = None) -> None:
    """Raise BadAudio for a file that is a link out of its source's folder, unless `limits` follow such links.

    A collection comes from elsewhere: it must not decide what of this disk is read, and copied into a corpus. Who keeps
    recordings in another place names that place, or says that the links of this folder can be trusted. A path that
    itself leads out (by ".." or from the root) is refused in any case.
    """
    follow = limits is not None and limits.follow_links
    try:
        if follow:
            inside = Path(os.path.abspath(path)).is_relative_to(os.path.abspath(root))
        else:
            inside = path.resolve().is_relative_to(root.resolve())
    except (OSError, RuntimeError):  # links in a circle
        inside = False
    if not inside:
        hint = "" if follow or limits is None else ", or set limits.follow_links=true"
        raise BadAudio(
            "outside of the folder",
            f"{where}: lies outside of {root}, by a link or its path: name or copy its target{hint}",
        )


def check_header(recording: Path | bytes, where: str, limits: Limits) -> None:
    """Raise BadAudio for a recording that its header, or the size of its file, shows to be unusable.

    Nothing is decoded, so whole collections can be looked through.
    """
    with _opened(recording, where) as file:
        _check_claims(file, where, limits)
    if cut := _missing_bytes(recording):
        raise BadAudio("truncated", f"{where}: {cut} bytes fewer than its header claims")


def read_checked(recording: Path | bytes, where: str, sample_rate: int, limits: Limits) -> Wave:
    """Decode a recording as mono float32 [N] at `sample_rate` Hz; channels are averaged.

    Raises:
        BadAudio: it is missing, unreadable, truncated, silent, not finite, or of a length out of bounds; the message
            begins with `where`.
    """
    check_header(recording, where, limits)
    with _opened(recording, where) as file:
        rate, claimed = file.samplerate, file.frames
        # an MP3 has no header of the whole: its length is guessed from its size, and part of that is no sound
        least = round(claimed * (1 - _MP3_GUESS)) if file.format == "MP3" else claimed
        try:
            samples_NC = file.read(dtype="float32", always_2d=True)
        except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
            raise BadAudio("unreadable", f"{where}: not readable as audio ({str(error).splitlines()[0]})") from None
    if len(samples_NC) and not np.abs(samples_NC).max() < _MAX_PEAK and np.isfinite(samples_NC).all():
        raise BadAudio("beyond full scale", f"{where}: holds samples far beyond full scale: not a recording")
    if len(samples_NC) < max(1, least):
        raise BadAudio("truncated", f"{where}: {len(samples_NC)} samples where its header claims {claimed}")
    wave_N = torch.from_numpy(np.ascontiguousarray(samples_NC.mean(axis=1)))
    bounds = {"min_sec": limits.min_sec, "max_sec": limits.max_sec}
    check_recording(wave_N, rate, "", where, max_words_per_sec=float("inf"), **bounds)
    return resample(wave_N, rate, sample_rate).numpy()


def _opened(recording: Path | bytes, where: str) -> soundfile.SoundFile:
    if isinstance(recording, Path) and not recording.is_file():
        raise BadAudio("missing", f"{where}: no such audio file ({recording})")
    try:
        return soundfile.SoundFile(str(recording) if isinstance(recording, Path) else io.BytesIO(recording))
    except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
        raise BadAudio("unreadable", f"{where}: not readable as audio ({str(error).splitlines()[0]})") from None


def _check_claims(file: soundfile.SoundFile, where: str, limits: Limits) -> None:
    """Raise BadAudio where a header claims what no recording of ours is."""
    if not 0 < file.samplerate <= _MAX_RATE_HZ or not 0 < file.channels <= _MAX_CHANNELS:
        raise BadAudio(
            "forged header", f"{where}: header claims {file.channels} channels at {file.samplerate} Hz: not a recording"
        )
    seconds = file.frames / file.samplerate
    if seconds > limits.max_sec:
        raise BadAudio("too long", f"{where}: header claims {seconds:.1f} s, at most {limits.max_sec:g} s are allowed")
    if seconds < limits.min_sec:
        raise BadAudio("too short", f"{where}: lasts {seconds:.3f} s, at least {limits.min_sec:g} s are asked for")


def _missing_bytes(recording: Path | bytes) -> int:
    if isinstance(recording, bytes):
        return missing_wav_bytes(io.BytesIO(recording), len(recording))
    with open(recording, "rb") as handle:
        return missing_wav_bytes(handle, recording.stat().st_size)


class WaveStore:
    """The last used recordings, up to a number of bytes; one alone may be larger. Pickles as an empty one."""

    def __init__(self, memory_mb: float) -> None:
        self.memory_mb = memory_mb
        self._waves: OrderedDict[tuple[str, int], Wave] = OrderedDict()

    def get(self, name: str, sample_rate: int, read: Callable[[], Wave]) -> Wave:
        """The recording of a name at a rate, read where it is not kept."""
        key = (name, sample_rate)
        if key not in self._waves:
            wave_N = read()
            wave_N.flags.writeable = False  # every dialogue that hears it shares it
            self._waves[key] = wave_N
        self._waves.move_to_end(key)
        while len(self._waves) > 1 and self.bytes > self.memory_mb * 1e6:
            self._waves.popitem(last=False)
        return self._waves[key]

    @property
    def bytes(self) -> int:
        """Memory in use."""
        return sum(wave.nbytes for wave in self._waves.values())

    def __getstate__(self) -> dict[str, object]:
        """Pickle the size only."""
        return {"memory_mb": self.memory_mb, "_waves": OrderedDict()}
