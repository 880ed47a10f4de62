"""Is the clip a sound recording at all? Duration, level, clipping, silence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from omnichat.audio import effects
from omnichat.synthesis.checks.base import Check, Clip, Finding

_FULL_SCALE = 0.999


class SignalCheck(Check):
    """Limits on the waveform of each turn.

    Args:
        min_seconds, max_seconds: of a turn.
        min_level_db, max_level_db: of a turn's active part, dB re full scale.
        max_clipped: highest share of samples at full scale.
        min_active: lowest share of the clip that is not silence.
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
    ) -> None:
        self.min_seconds = min_seconds
        self.max_seconds = max_seconds
        self.min_level_db = min_level_db
        self.max_level_db = max_level_db
        self.max_clipped = max_clipped
        self.min_active = min_active

    def examine(self, clips: Sequence[Clip]) -> Finding:
        """See `Check.examine`; clips carry "seconds", "level_db", "clipped" and "active"."""
        finding = Finding()
        found: dict[str, None] = {}
        for clip in clips:
            if not np.isfinite(clip.wave_N).all():
                found["a turn holds samples that are not finite"] = None
                finding.clips.append({"seconds": clip.seconds})
                continue
            level_db = effects.active_level_db(clip.wave_N, clip.sample_rate)
            clipped = float(np.mean(np.abs(clip.wave_N) >= _FULL_SCALE)) if len(clip.wave_N) else 0.0
            mask = effects.active_mask(clip.wave_N, clip.sample_rate)
            active = float(mask.mean()) if len(mask) else 0.0
            finding.clips.append(
                {"seconds": clip.seconds, "level_db": round(level_db, 2), "clipped": clipped, "active": active}
            )
            if not self.min_seconds <= clip.seconds <= self.max_seconds:
                found["a turn is shorter than min_seconds or longer than max_seconds"] = None
            if not self.min_level_db <= level_db <= self.max_level_db:
                found["a turn's level is outside min_level_db to max_level_db"] = None
            if clipped > self.max_clipped:
                found["a turn is clipped"] = None
            if active < self.min_active:
                found["a turn is mostly silence"] = None
        finding.reasons = list(found)
        return finding

    def thresholds(self) -> dict[str, float]:
        """All limits."""
        return dict(vars(self))

    def summarise(self, findings: Sequence[Finding]) -> dict[str, Any]:
        """Extremes and means over turns."""
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
        }
