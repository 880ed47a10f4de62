"""Do the labels tell the truth? Pitch and tempo of every styled turn, held against how its speaker's labels sound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from typing import Any

import numpy as np

from omnichat.schema import EMOTIONS, PITCHES, SPEEDS
from omnichat.synthesis.base import Voice
from omnichat.synthesis.checks.base import Check, Clip, Finding, group_means, unusable, with_fresh
from omnichat.synthesis.checks.calibration import SpeakerNorm, calibrate_speakers, out_of_order
from omnichat.synthesis.checks.measures import log_rate, measure, voiced_hz
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.log import get_logger

log = get_logger(__name__)

VERDICTS = ("side", "nearest")
_PROMISED_STEP = {"range_st": 2.0, "level_db": 1.0}  # promises nearer to one another are not held apart


class StyleCheck(Check):
    """Agreement of measured pitch and tempo with the labels, turn by turn and over the corpus.

    What a label sounds like is learnt from each speaker (`calibrate`): the middle of its pitch and tempo under each
    label. Tempo is that of the words: actual seconds against those expected of a sentence with as many letters, vowels,
    words and pauses, so a sentence of long words is not slow. A turn is in order if it lies on the right side of its
    speaker's normal (low below, high above; slow, fast likewise), and normal if it lies between the two others.

    Args:
        min_pitch_step, min_rate_step: smallest ratio of mean pitch and mean letters per second from one label to the
            next over the whole corpus; stated on the card.
        emotions: in which the labels are learnt, besides plain speech.
        verdict: "side" as above, or "nearest": the nearest label must be the turn's own.
        pitch_margin_st: how far beyond the line a turn must lie, in semitones.
        rate_margin: the same for tempo, as a share (0.02 = 2 %).
        max_wrong_share: largest share of a dialogue's labelled turns out of order, for pitch and for tempo each.
    """

    name = "styles"

    def __init__(
        self,
        min_pitch_step: float,
        min_rate_step: float,
        emotions: Sequence[str] = ("neutral", "happy", "sad", "angry", "surprised"),
        verdict: str = "side",
        pitch_margin_st: float = 0.0,
        rate_margin: float = 0.0,
        max_wrong_share: float = 0.1,
    ) -> None:
        for emotion in emotions:
            if emotion not in EMOTIONS:
                raise one_of("checks.styles.emotions entry", emotion, EMOTIONS)
        if verdict not in VERDICTS:
            raise one_of("checks.styles.verdict", verdict, VERDICTS)
        if not emotions:
            raise UserError("checks.styles.emotions is empty; name at least neutral")
        if not 0 <= max_wrong_share <= 1 or pitch_margin_st < 0 or not 0 <= rate_margin < 1:
            raise UserError("checks.styles needs 0 <= max_wrong_share <= 1, pitch_margin_st >= 0, 0 <= rate_margin < 1")
        self.emotions = list(emotions)
        self.verdict = verdict
        self.pitch_margin_st = pitch_margin_st
        self.rate_margin = rate_margin
        self.max_wrong_share = max_wrong_share
        self.min_pitch_step = min_pitch_step
        self.min_rate_step = min_rate_step
        self._norms: dict[str, SpeakerNorm] = {}
        self._promises: dict[str, dict[str, float]] = {}

    def calibrate(self, voice: Voice, speakers: Sequence[str]) -> dict[str, Any]:
        """See `Check.calibrate`: some forty sentences a speaker. Warns of labels that a speaker does not obey."""
        norms = calibrate_speakers(voice, speakers, self.emotions)
        for name, norm in norms.items():
            for fault in out_of_order(norm):
                log.warning("speaker %s does not obey its labels: %s", name, fault)
        return {
            "speakers": {name: norm.as_json() for name, norm in norms.items()},
            "promises": {measure: dict(values) for measure, values in voice.promises().items()},
        }

    def use(self, calibration: dict[str, Any]) -> None:
        """See `Check.use`."""
        self._norms = {name: SpeakerNorm.from_json(raw) for name, raw in calibration["speakers"].items()}
        self._promises = calibration["promises"]

    def examine(self, clips: Sequence[Clip]) -> Finding:
        """See `Check.examine`; clips carry labels and measures, and where their speaker is calibrated "pitch_in_order"
        and "rate_in_order" (None where the turn has no such label)."""
        if (finding := unusable(clips)) is not None:
            return finding
        return self._judge([self._look(clip) for clip in clips])

    def examine_again(self, clips: Sequence[Clip], before: Finding, fresh: Sequence[int]) -> Finding:
        """See `Check.examine_again`."""
        if (finding := unusable(clips)) is not None or not all(before.clips):
            return finding or self.examine(clips)
        return self._judge(with_fresh(before, fresh, [self._look(clips[i]) for i in fresh]))

    def suspects(self, finding: Finding) -> dict[int, float] | None:
        """See `Check.suspects`: the turns out of order, with the factor that brings a tempo to the middle of its
        label's."""
        wrong: dict[int, float] = {}
        for key in ("pitch", "rate"):
            if finding.dialogue.get(f"{key}_wrong_share", 0.0) > self.max_wrong_share:
                wrong |= {i: 1.0 for i, clip in enumerate(finding.clips) if clip[f"{key}_in_order"] is False}
        for i in wrong:
            clip = finding.clips[i]
            if clip["rate_in_order"] is False and clip["log_rate"] is not None:
                wrong[i] = float(np.exp(clip["log_rate"] - self._norms[clip["voice"]].rate_log[clip["speed"]]))
        return wrong or None

    def _judge(self, measured: list[dict[str, Any]]) -> Finding:
        """The finding on the measures of all clips."""
        finding = Finding(clips=measured)
        for key, what in (("pitch", "pitch"), ("rate", "speed")):
            verdicts = [clip[f"{key}_in_order"] for clip in finding.clips if clip[f"{key}_in_order"] is not None]
            if verdicts:
                finding.dialogue[f"{key}_wrong_share"] = wrong = 1.0 - float(np.mean(verdicts))
                if wrong > self.max_wrong_share:
                    finding.reasons.append(f"more turns than max_wrong_share do not have the {what} of their label")
        return finding

    def _look(self, clip: Clip) -> dict[str, Any]:
        """Measures and verdicts of one clip."""
        norm = self._norms.get(clip.voice)
        found = measure(clip, norm.tracker_hz) if norm else measure(clip)
        letters = sum(character.isalpha() for character in clip.text)
        out: dict[str, Any] = {
            "voice": clip.voice,
            "pitch": clip.style.pitch,
            "speed": clip.style.speed,
            "emotion": clip.style.emotion,
            "median_hz": _rounded(found.median_hz, 2),
            "range_st": _rounded(found.range_st, 2),
            "level_db": round(found.level_db, 2),
            "letters_per_sec": _rounded(letters / found.span_sec, 3) if found.span_sec > 0 else None,
            "pitch_in_order": None,
            "rate_in_order": None,
        }
        if norm is not None:
            pitch = float(np.log2(found.median_hz)) if found.median_hz else None
            rate = log_rate(clip.text, found.span_sec, norm.durations)
            out["log_rate"] = _rounded(rate, 4)
            out["pitch_in_order"] = self._verdict(
                clip.style.pitch, pitch, norm.pitch_log2, PITCHES, self.pitch_margin_st / 12
            )
            out["rate_in_order"] = self._verdict(
                clip.style.speed, rate, norm.rate_log, SPEEDS, float(np.log1p(self.rate_margin))
            )
        return out

    def _verdict(
        self, label: str | None, value: float | None, middles: Mapping[str, float], order: Sequence[str], margin: float
    ) -> bool | None:
        """Whether a value fits its label; None without a label, False where nothing could be measured."""
        if label is None:
            return None
        if value is None:
            return False
        if self.verdict == "nearest":
            others = [abs(value - middle) for name, middle in middles.items() if name != label]
            return abs(value - middles[label]) + margin < min(others)
        low, normal, high = (middles[name] for name in order)
        if label == order[0]:
            return value < normal - margin
        if label == order[-1]:
            return value > normal + margin
        return low + margin < value < high - margin

    def thresholds(self) -> dict[str, Any]:
        """All limits."""
        names = ("verdict", "pitch_margin_st", "rate_margin", "max_wrong_share", "min_pitch_step", "min_rate_step")
        return {name: getattr(self, name) for name in names}

    def summarise(self, findings: Sequence[Finding]) -> dict[str, Any]:
        """Shares of labelled turns in order; means by speaker and label, and "in_order": whether every speaker's means
        are (None: too few labels); where the voice promises it, shares of pairs of emotions in the promised order."""
        clips = [clip for finding in findings for clip in finding.clips if clip]
        out: dict[str, Any] = {}
        for key in ("pitch", "rate"):
            verdicts = [clip[f"{key}_in_order"] for clip in clips if clip[f"{key}_in_order"] is not None]
            if verdicts:
                out[f"{key}_turns_in_order"] = float(np.mean(verdicts))
        verdicts = []
        voices = list(dict.fromkeys(clip["voice"] for clip in clips))
        for label, key, order, step in (
            ("pitch", "median_hz", PITCHES, self.min_pitch_step),
            ("speed", "letters_per_sec", SPEEDS, self.min_rate_step),
        ):
            for voice in voices:
                means = _means(clips, voice, label, key)
                present = [means[name] for name in order if name in means]
                out[f"{voice}_{key}"] = {name: round(means[name], 2) for name in order if name in means}
                verdicts += [high >= low * step for low, high in pairwise(present)]
        out["in_order"] = all(verdicts) if verdicts else None
        return out | self._emotions(clips, voices)

    def _emotions(self, clips: Sequence[Mapping[str, Any]], voices: Sequence[str]) -> dict[str, Any]:
        """Mean range and loudness by emotion, and how many pairs of emotions are in the promised order."""
        out: dict[str, Any] = {}
        for key, step in _PROMISED_STEP.items():
            promised, right = self._promises.get(key, {}), []
            for voice in voices:
                means = _means(clips, voice, "emotion", key)
                out[f"{voice}_{key}"] = {name: round(means[name], 2) for name in EMOTIONS if name in means}
                for one, other in combinations([name for name in promised if name in means], 2):
                    if abs(apart := promised[one] - promised[other]) >= step:
                        right.append((means[one] - means[other]) * apart > 0)
            if right:
                out[f"emotions_{key}_in_order"] = float(np.mean(right))
        return out


def _means(clips: Sequence[Mapping[str, Any]], voice: str, label: str, key: str) -> Mapping[str, float]:
    return group_means([(c[label], c[key]) for c in clips if c["voice"] == voice and c[label] and c[key] is not None])


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(float(value), digits)


def median_hz(wave_N: np.ndarray, sample_rate: int) -> float | None:
    """Median pitch in Hz of a clip of unknown speaker, None where nothing is voiced."""
    voiced_T = voiced_hz(wave_N, sample_rate)
    return _rounded(float(np.median(voiced_T)), 2) if len(voiced_T) else None
