"""Do the labels tell the truth? Measured pitch and rate must rise with their labels, speaker by speaker."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from omnichat.audio import effects
from omnichat.schema import PITCHES, SPEEDS
from omnichat.synthesis.checks.base import Check, Clip, Finding, group_means
from omnichat.utils.errors import UserError


class StyleCheck(Check):
    """Order of measured pitch (low < normal < high) and rate (slow < normal < fast) over the corpus.

    A single clip can be an exception (a sentence of long words is slow to say), so no dialogue is rejected for it; the
    card states for each speaker whether means are in order by at least the steps below.

    Args:
        min_pitch_step: smallest ratio of mean median pitch from one label to the next.
        min_rate_step: the same for letters per second of active speech.
    """

    name = "styles"

    def __init__(self, min_pitch_step: float, min_rate_step: float) -> None:
        self.min_pitch_step = min_pitch_step
        self.min_rate_step = min_rate_step

    def examine(self, clips: Sequence[Clip]) -> Finding:
        """See `Check.examine`; clips carry labels, "median_hz" (None if unvoiced) and "letters_per_sec"."""
        finding = Finding()
        for clip in clips:
            active_sec = effects.active_mask(clip.wave_N, clip.sample_rate).sum() / clip.sample_rate
            letters = sum(character.isalpha() for character in clip.text)
            finding.clips.append(
                {
                    "voice": clip.voice,
                    "pitch": clip.style.pitch,
                    "speed": clip.style.speed,
                    "median_hz": median_hz(clip.wave_N, clip.sample_rate),
                    "letters_per_sec": round(letters / active_sec, 3) if active_sec > 0 else None,
                }
            )
        return finding

    def thresholds(self) -> dict[str, float]:
        """Both steps."""
        return {"min_pitch_step": self.min_pitch_step, "min_rate_step": self.min_rate_step}

    def summarise(self, findings: Sequence[Finding]) -> dict[str, Any]:
        """Means by speaker and label, and "in_order": whether every speaker's labels are (None: too few labels)."""
        clips = [clip for finding in findings for clip in finding.clips]
        out: dict[str, Any] = {}
        verdicts: list[bool] = []
        for label, measure, order, step in (
            ("pitch", "median_hz", PITCHES, self.min_pitch_step),
            ("speed", "letters_per_sec", SPEEDS, self.min_rate_step),
        ):
            for voice in dict.fromkeys(clip["voice"] for clip in clips):
                pairs = [(c[label], c[measure]) for c in clips if c["voice"] == voice and c[label] and c[measure]]
                means = group_means(pairs)
                present = [means[name] for name in order if name in means]
                out[f"{voice}_{measure}"] = {name: round(means[name], 2) for name in order if name in means}
                verdicts += [high >= low * step for low, high in pairwise(present)]
        out["in_order"] = all(verdicts) if verdicts else None
        return out


def median_hz(wave_N: np.ndarray, sample_rate: int) -> float | None:
    """Median pitch of the voiced frames in Hz (Praat, autocorrelation), None where nothing is voiced."""
    try:
        import parselmouth
    except ImportError as error:
        raise UserError(
            f"the style check needs the extra 'synthesis': pip install omnichat[synthesis] ({error})"
        ) from None
    sound = parselmouth.Sound(wave_N.astype(np.float64), sampling_frequency=sample_rate)
    if sound.duration < 0.06:
        return None
    f0_T = sound.to_pitch_ac(time_step=0.01, pitch_floor=60.0, pitch_ceiling=500.0).selected_array["frequency"]
    voiced_T = f0_T[f0_T > 0]
    return round(float(np.median(voiced_T)), 2) if len(voiced_T) else None
