"""Would a stranger tell who speaks when? Diarization error of the whole dialogue against the script's timeline.

The clips are laid one after the other; a backend that knows nothing of the script says who speaks when, and its error
is the usual one: missed, invented and confused speech by all speech, under the best naming of its speakers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import AgglomerativeClustering

from omnichat.audio import effects
from omnichat.synthesis.checks.base import Check, Clip, Finding, histogram, need_rate, unusable
from omnichat.synthesis.checks.speakers import RATE_HZ, SpeakerEncoder, load_speaker_encoder
from omnichat.utils.assets import resolve_path
from omnichat.utils.errors import UserError

FRAME_SEC = 0.01
SILENT = -1
ERROR_EDGES = (0.0, 0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0)


@dataclass(frozen=True, slots=True)
class Timeline:
    """A dialogue's audio, float32 [N] at 16 kHz, and who speaks in each 10 ms frame: int [T], SILENT or a number."""

    wave_N: np.ndarray
    speaker_T: np.ndarray


class DiarizationCheck(Check):
    """Diarization error of a dialogue of two speakers.

    Args:
        path: Resemblyzer's pretrained.pt, for the backend of our own: embeddings of sliding windows between pauses,
            clustered in two.
        pipeline: a pyannote.audio pipeline in its place: a folder, a configuration file or a hub id; null = our own.
        max_error: highest diarization error of a dialogue.
        gap_sec: silence laid between two clips. window_sec, step_sec: length and step of an embedded window.
        collar_sec: time on both sides of a change of speaker that does not count.
    """

    name = "diarization"

    def __init__(
        self,
        path: str,
        pipeline: str | None,
        max_error: float,
        gap_sec: float,
        window_sec: float,
        step_sec: float,
        collar_sec: float,
    ) -> None:
        if not 0 <= max_error <= 1 or not 0.4 <= window_sec <= 5 or not 0 < step_sec <= window_sec:
            raise UserError(
                "checks.diarization needs 0 <= max_error <= 1, 0.4 <= window_sec <= 5 and 0 < step_sec <= window_sec"
            )
        if not 0 <= gap_sec <= 5 or not 0 <= collar_sec <= 1:
            raise UserError("checks.diarization needs 0 <= gap_sec <= 5 and 0 <= collar_sec <= 1")
        if pipeline is not None and find_spec("pyannote") is None:
            raise UserError("checks.diarization.pipeline needs pyannote.audio: pip install pyannote.audio, or set null")
        self.path = path
        self.pipeline = pipeline
        self.max_error = max_error
        self.gap_sec = gap_sec
        self.window_sec = window_sec
        self.step_sec = step_sec
        self.collar_sec = collar_sec
        self._model: Any = None

    def examine(self, clips: Sequence[Clip]) -> Finding:
        """See `Check.examine`; the dialogue carries "error" (None without speech or with one speaker)."""
        need_rate(clips, RATE_HZ, self.name)
        if (finding := unusable(clips)) is not None:
            return finding
        finding = Finding(clips=[{} for _ in clips])
        if not clips or any(not clip.wave_N.any() for clip in clips):
            finding.reasons = ["a turn is silent"] if clips else []
            return finding
        if len({clip.voice for clip in clips}) != 2:
            finding.dialogue["error"] = None
            return finding
        line = timeline(clips, self.gap_sec)
        guess_T = self._pyannote(line) if self.pipeline is not None else self._cluster(line)
        finding.dialogue["error"] = error = round(diarization_error(line.speaker_T, guess_T, self.collar_sec), 4)
        if error > self.max_error:
            finding.reasons.append("diarization error above max_error")
        return finding

    def thresholds(self) -> dict[str, Any]:
        """The limit, and what it is measured with."""
        return {"max_error": self.max_error, "collar_sec": self.collar_sec, "gap_sec": self.gap_sec}

    def summarise(self, findings: Sequence[Finding]) -> dict[str, Any]:
        """Mean, extreme and histogram over dialogues."""
        errors = [e for finding in findings if (e := finding.dialogue.get("error")) is not None]
        if not errors:
            return {}
        return {
            "error_mean": float(np.mean(errors)),
            "error_max": float(np.max(errors)),
            "histogram_dialogues": histogram(errors, ERROR_EDGES),
        }

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the settings only."""
        return self.__dict__ | {"_model": None}

    def _cluster(self, line: Timeline) -> np.ndarray:
        """Our own backend: windows of each stretch of sound, embedded and clustered in two. int [T]."""
        if self._model is None:
            self._model = load_speaker_encoder(resolve_path(self.path))
        model: SpeakerEncoder = self._model
        guess_T = np.full(len(line.speaker_T), SILENT)
        frame = round(FRAME_SEC * RATE_HZ)
        windows: list[tuple[int, int]] = []
        stretches = sounding(line.wave_N)
        for start, stop in stretches:
            windows += _windows(start, stop, round(self.window_sec / FRAME_SEC), round(self.step_sec / FRAME_SEC))
        if len(windows) < 2:
            return guess_T
        embedded = model.embed([line.wave_N[start * frame : stop * frame] for start, stop in windows])
        labels = AgglomerativeClustering(n_clusters=2, metric="cosine", linkage="average").fit_predict(embedded)
        centres = np.array([(start + stop) / 2 for start, stop in windows])
        for start, stop in stretches:
            inside = [i for i, (low, high) in enumerate(windows) if low >= start and high <= stop]
            frames = np.arange(start, stop)
            nearest = np.abs(frames[:, None] - centres[inside][None]).argmin(axis=1)
            guess_T[start:stop] = labels[inside][nearest]
        return guess_T

    def _pyannote(self, line: Timeline) -> np.ndarray:
        """The optional backend. int [T]."""
        if self._model is None:
            from pyannote.audio import Pipeline

            assert self.pipeline is not None
            try:
                self._model = Pipeline.from_pretrained(self.pipeline)
            except (OSError, ValueError, RuntimeError, KeyError) as error:
                first = str(error).splitlines()[0] if str(error) else type(error).__name__
                raise UserError(f"checks.diarization.pipeline={self.pipeline}: cannot be loaded ({first})") from None
            if self._model is None:
                raise UserError(f"checks.diarization.pipeline={self.pipeline}: no such pipeline, or no access to it")
        audio = {"waveform": torch.from_numpy(line.wave_N)[None], "sample_rate": RATE_HZ}
        found = self._model(audio, num_speakers=2)
        annotation = getattr(found, "speaker_diarization", found)  # from 4.0 on, one of several results
        guess_T = np.full(len(line.speaker_T), SILENT)
        names: dict[Any, int] = {}
        for segment, _, label in annotation.itertracks(yield_label=True):
            start, stop = round(segment.start / FRAME_SEC), round(segment.end / FRAME_SEC)
            guess_T[start:stop] = names.setdefault(label, len(names))
        return guess_T


def timeline(clips: Sequence[Clip], gap_sec: float) -> Timeline:
    """Lay clips at 16 kHz one after the other; a turn speaks from its first to its last sound."""
    frame = round(FRAME_SEC * RATE_HZ)
    numbers = {voice: i for i, voice in enumerate(dict.fromkeys(clip.voice for clip in clips))}
    waves, speakers = [], []
    for clip in clips:
        frames = -(-len(clip.wave_N) // frame) + round(gap_sec / FRAME_SEC)
        wave = np.zeros(frames * frame, dtype=np.float32)
        wave[: len(clip.wave_N)] = clip.wave_N
        active = np.flatnonzero(effects.active_mask(clip.wave_N, RATE_HZ))
        who = np.full(frames, SILENT)
        if len(active):
            who[active[0] // frame : active[-1] // frame + 1] = numbers[clip.voice]
        waves.append(wave)
        speakers.append(who)
    return Timeline(np.concatenate(waves), np.concatenate(speakers))


def sounding(wave_N: np.ndarray, shortest_pause_sec: float = 0.2) -> list[tuple[int, int]]:
    """Stretches of sound as frame numbers [start, stop): what a pause of `shortest_pause_sec` or more parts."""
    frame = round(FRAME_SEC * RATE_HZ)
    active = np.flatnonzero(effects.active_mask(wave_N, RATE_HZ, FRAME_SEC, 35.0)[::frame])
    if not len(active):
        return []
    breaks = np.flatnonzero(np.diff(active) > round(shortest_pause_sec / FRAME_SEC))
    starts = np.concatenate([active[:1], active[breaks + 1]])
    stops = np.concatenate([active[breaks], active[-1:]]) + 1
    return [(int(start), int(stop)) for start, stop in zip(starts, stops, strict=True)]


def _windows(start: int, stop: int, length: int, step: int) -> list[tuple[int, int]]:
    """Windows of `length` frames in [start, stop), the last one flush with the end; one shorter one if they are few."""
    if stop - start <= length:
        return [(start, stop)]
    first = list(range(start, stop - length, step))
    return [(low, low + length) for low in [*first, stop - length]]


def diarization_error(truth_T: np.ndarray, guess_T: np.ndarray, collar_sec: float) -> float:
    """(missed + invented + confused frames) / frames of speech, outside the collars, under the best naming.

    Args:
        truth_T, guess_T: int [T], SILENT or a speaker's number. Overlapping speech is not known here.
    """
    collar = round(collar_sec / FRAME_SEC)
    counted = np.ones(len(truth_T), dtype=bool)
    for change in np.flatnonzero(np.diff(truth_T)) + 1:
        counted[max(0, change - collar) : change + collar] = False
    truth, guess = truth_T[counted], guess_T[counted]
    speech = int((truth != SILENT).sum())
    if speech == 0:
        return 0.0
    both = (truth != SILENT) & (guess != SILENT)
    pairs = np.zeros((int(truth.max()) + 1, max(int(guess.max()) + 1, 1)))
    np.add.at(pairs, (truth[both], guess[both]), 1)
    rows, columns = linear_sum_assignment(pairs, maximize=True)
    right = float(pairs[rows, columns].sum())
    missed = int(((truth != SILENT) & (guess == SILENT)).sum())
    invented = int(((truth == SILENT) & (guess != SILENT)).sum())
    return (missed + invented + int(both.sum()) - right) / speech
