"""Is the clip a sound recording at all? Duration, level, clipping, offset, silence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from omnichat.audio import effects
from omnichat.synthesis.checks.base import Check, Clip, Finding, histogram, unusable, with_fresh
from omnichat.utils.errors import UserError

_FULL_SCALE = 0.999
SECONDS_EDGES = (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 15.0, 30.0)


class SignalCheck(Check):
    """Limits on the waveform of each turn, and on the length of the whole.

    Args:
        min_seconds, max_seconds: of a turn.
        min_level_db, max_level_db: of a turn's active part, dB re full scale.
        max_clipped: highest share of samples at full scale.
        min_active: lowest share of the clip that is not silence.
        max_edge_sec: longest silence before the first and after the last sound of a turn.
        max_inner_sec: longest silence between two sounds of a turn.
        max_dc: highest offset: the absolute mean of all samples, re full scale.
        max_dialogue_sec: longest dialogue, all its distinct clips together, variants included.
    """

    name = "signal"

    def __init__(
        self,
        min_seconds: float,
        max_seconds: float,
        min_level_db: float,
        max_level_db: float,
        max_clipped: float,
        min_active: float,
        max_edge_sec: float = 1.0,
        max_inner_sec: float = 1.5,
        max_dc: float = 0.01,
        max_dialogue_sec: float = 240.0,
    ) -> None:
        if not 0 <= min_seconds < max_seconds or not min_level_db < max_level_db:
            raise UserError("checks.signal needs 0 <= min_seconds < max_seconds and min_level_db < max_level_db")
        self.min_seconds = min_seconds
        self.max_seconds = max_seconds
        self.min_level_db = min_level_db
        self.max_level_db = max_level_db
        self.max_clipped = max_clipped
        self.min_active = min_active
        self.max_edge_sec = max_edge_sec
        self.max_inner_sec = max_inner_sec
        self.max_dc = max_dc
        self.max_dialogue_sec = max_dialogue_sec

    def examine(self, clips: Sequence[Clip]) -> Finding:
        """See `Check.examine`; clips carry the measures of `_look`, the dialogue its "seconds"."""
        if (finding := unusable(clips)) is not None:
            return finding
        return self._judge([_look(clip) for clip in clips])

    def examine_again(self, clips: Sequence[Clip], before: Finding, fresh: Sequence[int]) -> Finding:
        """See `Check.examine_again`."""
        if (finding := unusable(clips)) is not None or not all(before.clips):
            return finding or self.examine(clips)
        return self._judge(with_fresh(before, fresh, [_look(clips[i]) for i in fresh]))

    def suspects(self, finding: Finding) -> dict[int, float] | None:
        """See `Check.suspects`: no turn is at fault where all of them are too long together."""
        if finding.dialogue.get("seconds", 0.0) > self.max_dialogue_sec:
            return None
        return {i: 1.0 for i, clip in enumerate(finding.clips) if clip and self._faults(clip)} or None

    def _judge(self, measured: list[dict[str, Any]]) -> Finding:
        """The finding on the measures of all clips."""
        finding = Finding(clips=measured)
        seconds = sum(clip["seconds"] for clip in finding.clips)
        finding.dialogue = {"seconds": round(seconds, 3)}
        found: dict[str, None] = {}
        for clip in finding.clips:
            found |= dict.fromkeys(self._faults(clip))
        if seconds > self.max_dialogue_sec:
            found["the dialogue is longer than max_dialogue_sec"] = None
        finding.reasons = list(found)
        return finding

    def _faults(self, clip: dict[str, float]) -> list[str]:
        """What is wrong with one clip's measures."""
        limits = (
            (
                "a turn is shorter than min_seconds or longer than max_seconds",
                self.min_seconds <= clip["seconds"] <= self.max_seconds,
            ),
            (
                "a turn's level is outside min_level_db to max_level_db",
                self.min_level_db <= clip["level_db"] <= self.max_level_db,
            ),
            ("a turn is clipped", clip["clipped"] <= self.max_clipped),
            ("a turn is mostly silence", clip["active"] >= self.min_active),
            ("a turn begins or ends with more silence than max_edge_sec", clip["edge_sec"] <= self.max_edge_sec),
            ("a turn pauses longer than max_inner_sec", clip["inner_sec"] <= self.max_inner_sec),
            ("a turn's offset is above max_dc", clip["dc"] <= self.max_dc),
        )
        return [reason for reason, kept in limits if not kept]

    def thresholds(self) -> dict[str, Any]:
        """All limits."""
        return dict(vars(self))

    def summarise(self, findings: Sequence[Finding]) -> dict[str, Any]:
        """Extremes and means over turns, and a histogram of their lengths."""
        clips = [clip for finding in findings for clip in finding.clips]
        seconds = [clip["seconds"] for clip in clips]
        levels = [clip["level_db"] for clip in clips]
        return {
            "seconds_mean": float(np.mean(seconds)),
            "seconds_max": float(np.max(seconds)),
            "level_db_mean": float(np.mean(levels)),
            "level_db_min": float(np.min(levels)),
            "level_db_max": float(np.max(levels)),
            "active_mean": float(np.mean([clip["active"] for clip in clips])),
            "edge_sec_max": float(np.max([clip["edge_sec"] for clip in clips])),
            "inner_sec_max": float(np.max([clip["inner_sec"] for clip in clips])),
            "dc_max": float(np.max([clip["dc"] for clip in clips])),
            "dialogue_seconds_mean": float(np.mean([finding.dialogue["seconds"] for finding in findings])),
            "dialogue_seconds_max": float(np.max([finding.dialogue["seconds"] for finding in findings])),
            "histogram_seconds": histogram(seconds, SECONDS_EDGES),
        }


def _look(clip: Clip) -> dict[str, float]:
    """All measures of one clip."""
    wave, rate = clip.wave_N, clip.sample_rate
    mask = effects.active_mask(wave, rate)
    sounds = np.flatnonzero(mask)
    edge = inner = len(wave)
    if len(sounds):
        edge = max(int(sounds[0]), len(wave) - 1 - int(sounds[-1]))
        inner = int(np.diff(sounds).max(initial=1)) - 1
    return {
        "seconds": clip.seconds,
        "level_db": round(effects.rms_db(wave[mask]), 2),
        "clipped": float(np.mean(np.abs(wave) >= _FULL_SCALE)),
        "active": float(mask.mean()),
        "edge_sec": round(edge / rate, 3),
        "inner_sec": round(inner / rate, 3),
        "dc": round(abs(float(np.mean(wave, dtype=np.float64))), 6),
    }
