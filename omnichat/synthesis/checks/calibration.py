"""How each speaker of a voice sounds in each style: spoken once, before the first dialogue is judged by it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from omnichat.schema import PITCHES, SPEEDS, Style
from omnichat.synthesis.base import ClipFailed, Utterance, Voice, Wave
from omnichat.synthesis.checks.base import Clip
from omnichat.synthesis.checks.measures import WIDE_HZ, Measures, fit_durations, log_rate, measure
from omnichat.utils.errors import UserError
from omnichat.utils.log import get_logger
from omnichat.utils.progress import progress
from omnichat.utils.seeding import derive_seed

log = get_logger(__name__)

SENTENCES = Path(__file__).with_name("sentences.yaml")
_TRIES = 3  # seeds for a sentence that a voice fails
_LEAST = 8  # plain sentences without which five coefficients are not told
_FLOOR, _CEILING = 0.62, 2.2  # of the lowest and highest label's median: where a speaker's pitch is looked for


@dataclass(frozen=True, slots=True)
class SpeakerNorm:
    """One speaker, all of it JSON.

    Attributes:
        tracker_hz: lowest and highest pitch to look for, narrow enough that no octave is mistaken.
        pitch_log2: pitch label -> logarithm to base 2 of the median pitch in Hz.
        rate_log: speed label -> logarithm of tempo relative to `durations` (see `measures.log_rate`).
        durations: coefficients of `measures.text_sizes` at normal speed.
    """

    tracker_hz: tuple[float, float]
    pitch_log2: dict[str, float]
    rate_log: dict[str, float]
    durations: tuple[float, ...]

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> SpeakerNorm:
        """Read what `as_json` wrote."""
        low, high = raw["tracker_hz"]
        return cls((low, high), dict(raw["pitch_log2"]), dict(raw["rate_log"]), tuple(raw["durations"]))

    def as_json(self) -> dict[str, Any]:
        """Plain lists and mappings."""
        return asdict(self) | {"tracker_hz": list(self.tracker_hz), "durations": list(self.durations)}


def calibrate_speakers(voice: Voice, speakers: Sequence[str], emotions: Sequence[str]) -> dict[str, SpeakerNorm]:
    """Let every speaker say the packaged sentences and measure them.

    The sentences come once at normal pitch and speed, and a few of them in every pair of low or high with slow or fast,
    in each of `emotions` in turn: labels are judged across emotions, so they are learnt across them.

    Raises:
        UserError: a speaker of whom too little is voiced to be measured.
    """
    norms = {}
    lines = list(_script(emotions))
    with progress(len(speakers), "calibrate", unit="speaker") as bar:
        for speaker in speakers:
            clips = _speak(voice, speaker, lines)
            norms[speaker] = _norm(speaker, clips)
            bar.update()
    return norms


def out_of_order(norm: SpeakerNorm) -> list[str]:
    """Labels that a speaker does not obey, e.g. "pitch low is not below normal"; empty = all is well."""
    wrong = []
    for name, values, order in (("pitch", norm.pitch_log2, PITCHES), ("speed", norm.rate_log, SPEEDS)):
        for low, high in pairwise(order):
            if values[low] >= values[high]:
                wrong.append(f"{name} {low!r} is not below {high!r}")
    return wrong


@cache
def sentences() -> tuple[str, ...]:
    """The packaged sentences."""
    return tuple(yaml.safe_load(SENTENCES.read_text(encoding="utf-8")))


def _script(emotions: Sequence[str]) -> Iterator[tuple[str, Style]]:
    """(text, style) of each clip of one speaker."""
    texts = sentences()
    for text in texts:
        yield text, Style("normal", "normal", "neutral")
    position = 0
    for emotion in emotions:
        yield texts[position % len(texts)], Style("normal", "normal", emotion)
        for pitch, speed in product((PITCHES[0], PITCHES[-1]), (SPEEDS[0], SPEEDS[-1])):
            yield texts[position % len(texts)], Style(pitch, speed, emotion)
            position += 1


def _speak(voice: Voice, speaker: str, lines: Sequence[tuple[str, Style]]) -> list[Clip]:
    """The clips of all lines in their order; one that the voice fails again and again is left out."""
    wanted = [
        Utterance(text, speaker, style, derive_seed(0, "calibrate", speaker, number))
        for number, (text, style) in enumerate(lines)
    ]
    try:
        waves: list[Wave | None] = list(voice.speak_batch(wanted))
    except ClipFailed:
        waves = [_try(voice, line) for line in wanted]
    return [
        Clip(wave, voice.sample_rate, line.text, speaker, line.style)
        for line, wave in zip(wanted, waves, strict=True)
        if wave is not None
    ]


def _try(voice: Voice, line: Utterance) -> Wave | None:
    for attempt in range(_TRIES):
        try:
            return voice.speak(line.text, line.speaker, line.style, derive_seed(line.seed, attempt))[0]
        except ClipFailed as error:
            log.warning("calibration: %s", error)
    return None


def _norm(speaker: str, clips: Sequence[Clip]) -> SpeakerNorm:
    first = [measure(clip) for clip in clips]
    rough = _label_medians(speaker, clips, first)
    tracker_hz = (
        max(40.0, _FLOOR * 2 ** min(rough.values())),
        min(2 * WIDE_HZ[1], _CEILING * 2 ** max(rough.values())),
    )
    found = [measure(clip, tracker_hz) for clip in clips]
    plain = [
        (clip.text, one.span_sec)
        for clip, one in zip(clips, found, strict=True)
        if clip.style == Style("normal", "normal", "neutral") and one.span_sec > 0
    ]
    if len(plain) < _LEAST:
        raise UserError(
            f"speaker {speaker!r}: only {len(plain)} plain sentences are speech; the style check needs more"
        )
    durations = fit_durations([text for text, _ in plain], [seconds for _, seconds in plain])
    rates: dict[str, list[float]] = {speed: [] for speed in SPEEDS}
    for clip, one in zip(clips, found, strict=True):
        rate = log_rate(clip.text, one.span_sec, durations)
        if rate is not None and clip.style.speed is not None:
            rates[clip.style.speed].append(rate)
    if lacking := [speed for speed, values in rates.items() if not values]:
        raise UserError(f"speaker {speaker!r}: nothing spoken in speed {lacking[0]!r}; the style check cannot learn it")
    rate_log = {speed: float(np.median(values)) for speed, values in rates.items()}
    return SpeakerNorm(tracker_hz, _label_medians(speaker, clips, found), rate_log, tuple(durations))


def _label_medians(speaker: str, clips: Sequence[Clip], found: Sequence[Measures]) -> dict[str, float]:
    """Pitch label -> middle of its clips' logarithms of pitch; a clip that is mistracked does not move it."""
    out = {}
    for pitch in PITCHES:
        pairs = zip(clips, found, strict=True)
        values = [np.log2(one.median_hz) for clip, one in pairs if clip.style.pitch == pitch and one.median_hz]
        if not values:
            raise UserError(f"speaker {speaker!r}: nothing voiced in pitch {pitch!r}; the style check cannot learn it")
        out[pitch] = float(np.median(values))
    return out
