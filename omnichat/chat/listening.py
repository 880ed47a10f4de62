"""When a turn ends: voice activity detection over a microphone, or over a recording of several turns."""

from __future__ import annotations

import queue
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from omnichat.model.pretrained.conversation import Sound, sound_of
from omnichat.utils.errors import UserError

RATE_HZ = 16_000
CHUNK = 512  # samples that Silero's model judges at a time: 32 ms
_NEEDS = "pip install 'omnichat[mic]'"


@dataclass(kw_only=True, slots=True)
class VadConfig:
    """When somebody is taken to speak, and to have ended."""

    threshold: float = 0.5  # probability of speech from which on it is taken for speech
    min_silence_sec: float = 0.7  # of silence that end a turn
    pad_sec: float = 0.2  # kept before and after the speech
    min_speech_sec: float = 0.3  # a shorter sound is no turn
    max_turn_sec: float = 30.0  # a longer turn is cut here

    def __post_init__(self) -> None:
        if not 0.15 < self.threshold < 1:
            raise UserError(f"vad.threshold must lie in (0.15, 1), got {self.threshold}")
        for name in ("min_silence_sec", "min_speech_sec", "max_turn_sec"):
            if not 0 < getattr(self, name) < float("inf"):
                raise UserError(f"vad.{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.pad_sec <= self.min_silence_sec:
            raise UserError(f"vad.pad_sec must lie in [0, vad.min_silence_sec], got {self.pad_sec}")


class TurnDetector:
    """Samples as they come -> turns as they end. Silero VAD (MIT, its model inside the package) judges.

    Args:
        config: when a turn begins and ends.

    Raises:
        UserError: the package is not installed.
    """

    def __init__(self, config: VadConfig) -> None:
        try:
            from silero_vad import VADIterator, load_silero_vad
        except ImportError:
            raise UserError(f"voice activity detection needs silero-vad: {_NEEDS}") from None
        self.config = config
        self._vad = VADIterator(
            load_silero_vad(),
            threshold=config.threshold,
            sampling_rate=RATE_HZ,
            min_silence_duration_ms=round(1000 * config.min_silence_sec),
            speech_pad_ms=round(1000 * config.pad_sec),
        )
        self._rest = np.zeros(0, np.float32)  # less than a chunk
        self._kept: list[np.ndarray] = []  # chunks that may belong to a turn
        self._first = 0  # sample of the first of them
        self._seen = 0  # samples that were judged
        self._start: int | None = None

    @property
    def speaking(self) -> bool:
        """Whether a turn has begun and not ended."""
        return self._start is not None

    def feed(self, samples_N: np.ndarray) -> Iterator[Sound]:
        """Take samples, float32 [N] at 16 kHz, of any length; gives the turns that ended with them."""
        waiting = np.concatenate([self._rest, np.asarray(samples_N, np.float32)])
        whole = len(waiting) // CHUNK * CHUNK
        self._rest = waiting[whole:]
        for start in range(0, whole, CHUNK):
            if (turn := self._judge(waiting[start : start + CHUNK])) is not None:
                yield turn

    def end(self) -> Iterator[Sound]:
        """The recording is over: what was still being said is a turn."""
        padded = np.zeros(CHUNK, np.float32)
        padded[: len(self._rest)] = self._rest
        self._rest = np.zeros(0, np.float32)
        if (turn := self._judge(padded)) is not None:
            yield turn
        if self._start is not None and (turn := self._cut(self._seen)) is not None:
            yield turn

    def _judge(self, chunk: np.ndarray) -> Sound | None:
        self._kept.append(chunk)
        self._seen += CHUNK
        found: dict[str, int] | None = self._vad(torch.from_numpy(chunk))
        if found is not None and "start" in found:
            self._start = max(found["start"], self._first)
        if found is not None and "end" in found:
            return self._cut(found["end"])
        if self._start is None:
            self._forget()
        elif self._seen - self._start >= self.config.max_turn_sec * RATE_HZ:
            return self._cut(self._seen)
        return None

    def _forget(self) -> None:
        """Drop chunks that lie further back than a turn's padding could reach."""
        reach = round(self.config.pad_sec * RATE_HZ) + 2 * CHUNK
        while self._kept and self._first + CHUNK < self._seen - reach:
            self._kept.pop(0)
            self._first += CHUNK

    def _cut(self, end: int) -> Sound | None:
        assert self._start is not None
        samples = np.concatenate(self._kept)[self._start - self._first : min(end, self._seen) - self._first]
        speech = len(samples) / RATE_HZ - 2 * self.config.pad_sec
        self._start, self._kept, self._first = None, [], self._seen
        self._vad.triggered, self._vad.temp_end = False, 0
        return sound_of(samples, RATE_HZ) if speech >= self.config.min_speech_sec else None


def turns_of(sound: Sound, config: VadConfig) -> list[Sound]:
    """The turns inside one recording, at 16 kHz."""
    detector = TurnDetector(config)
    return [*detector.feed(sound.at(RATE_HZ).numpy()), *detector.end()]


def turns_from(blocks: Iterable[np.ndarray], config: VadConfig) -> Iterator[Sound]:
    """The turns in a stream of samples at 16 kHz, as they end."""
    detector = TurnDetector(config)
    for block in blocks:
        yield from detector.feed(block)
    yield from detector.end()


class Microphone:
    """Blocks of samples from the default microphone, float32 [512] at 16 kHz, until it is closed.

    Args:
        device: number or name, as sounddevice lists them; None: the default.

    Raises:
        UserError: sounddevice or PortAudio is missing, or there is no such microphone.
    """

    def __init__(self, device: int | str | None = None) -> None:
        try:
            import sounddevice
        except (ImportError, OSError) as error:  # OSError: the package is there, PortAudio's library is not
            raise UserError(f"a microphone needs sounddevice and PortAudio ({error}): {_NEEDS}") from None
        self._blocks: queue.Queue[np.ndarray | None] = queue.Queue()
        try:
            self._stream: Any = sounddevice.InputStream(
                samplerate=RATE_HZ, channels=1, dtype="float32", blocksize=CHUNK, device=device, callback=self._take
            )
            self._stream.start()
        except (sounddevice.PortAudioError, ValueError) as error:
            raise UserError(
                f"mic={device}: {str(error).splitlines()[0]}; python -m sounddevice lists devices"
            ) from None

    def _take(self, samples: np.ndarray, frames: int, when: Any, status: Any) -> None:
        self._blocks.put(samples[:, 0].copy())

    def __iter__(self) -> Iterator[np.ndarray]:
        while (block := self._blocks.get()) is not None:
            yield block

    def clear(self) -> None:
        """Forget what came meanwhile: the reply's own sound must not be the next turn."""
        with self._blocks.mutex:
            self._blocks.queue.clear()

    def close(self) -> None:
        """Stop listening; an iterator ends."""
        self._stream.close()
        self._blocks.put(None)
