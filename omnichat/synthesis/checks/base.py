"""The interface of a check: it measures the clips of one dialogue and says what is wrong with them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from omnichat.schema import Style
from omnichat.synthesis.base import Voice, Wave
from omnichat.utils.errors import UserError


@dataclass(frozen=True, slots=True)
class Clip:
    """One spoken turn before any scene is added: mono float32 [N] at `sample_rate` Hz."""

    wave_N: Wave
    sample_rate: int
    text: str
    voice: str
    style: Style

    @property
    def seconds(self) -> float:
        """Length."""
        return len(self.wave_N) / self.sample_rate


@dataclass(slots=True)
class Finding:
    """What one check found in one dialogue.

    Attributes:
        reasons: why the dialogue is rejected, as short sentences without figures, so that they can be counted.
        clips: JSON measures of each clip, in order. dialogue: JSON measures of the whole.
    """

    reasons: list[str] = field(default_factory=list)
    clips: list[dict[str, Any]] = field(default_factory=list)
    dialogue: dict[str, Any] = field(default_factory=dict)


class Check(ABC):
    """Measures dialogues. Picklable: models load on first use, in each process.

    Whatever the clips hold, a check gives reasons: it raises for a wrong configuration only.
    """

    name: str

    def calibrate(self, voice: Voice, speakers: Sequence[str]) -> dict[str, Any] | None:
        """Measure what the check must know of the speakers before it can judge: JSON, or None where that is nothing.

        Called once, in one process, before the first dialogue; every process then gets the result through `use`.
        """
        return None

    def use(self, calibration: dict[str, Any]) -> None:
        """Take what `calibrate` returned, here or in an earlier run."""
        raise NotImplementedError(f"{type(self).__name__} takes no calibration")

    @abstractmethod
    def examine(self, clips: Sequence[Clip]) -> Finding:
        """Measure the distinct clips of one dialogue and its variants."""

    def examine_again(self, clips: Sequence[Clip], before: Finding, fresh: Sequence[int]) -> Finding:
        """Measure a dialogue of which some turns were spoken again; here all of it.

        Args:
            before: this check's finding on the same dialogue with the earlier clips.
            fresh: positions of the clips that are new since then; the measures of the others still hold.
        """
        return self.examine(clips)

    def confirm(self, clips: Sequence[Clip], finding: Finding) -> Finding:
        """Look as closely as this check can at a dialogue that its finding rejects; here that was done.

        Called before a dialogue is refused for good, not before turns of it are spoken again: that may cost less than
        the closer look.
        """
        return finding

    def suspects(self, finding: Finding) -> dict[int, float] | None:
        """Which turns are at fault in a finding with reasons.

        Returns:
            Position of each turn -> factor on its duration that would put it right (1.0 = another take may).
            None = no single turns are: the whole dialogue has to be made anew.
        """
        return None

    @abstractmethod
    def thresholds(self) -> dict[str, Any]:
        """Limits as they stand in config, for the data card."""

    @abstractmethod
    def summarise(self, findings: Sequence[Finding]) -> dict[str, Any]:
        """JSON figures over the accepted dialogues of a corpus."""


def unusable(clips: Sequence[Clip], longest_sec: float = 600.0) -> Finding | None:
    """A finding with reasons if a clip cannot be measured: no mono samples, not finite, beyond [-1, 1], too long."""
    reasons: dict[str, None] = {}
    for clip in clips:
        if clip.wave_N.ndim != 1 or len(clip.wave_N) == 0:
            reasons["a turn holds no samples"] = None
        elif not np.isfinite(clip.wave_N).all():
            reasons["a turn holds samples that are not finite"] = None
        elif np.abs(clip.wave_N).max() > 1.0:
            reasons["a turn holds samples beyond full scale"] = None
        elif clip.seconds > longest_sec:
            reasons["a turn is too long to be measured"] = None
    return Finding(list(reasons), [{} for _ in clips]) if reasons else None


def with_fresh(before: Finding, fresh: Sequence[int], measured: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The measures of all clips: those of `before`, and in the positions `fresh` those that are measured now."""
    clips = list(before.clips)
    for position, found in zip(fresh, measured, strict=True):
        clips[position] = found
    return clips


def lowest(values: Sequence[float], share: float = 0.25) -> list[int]:
    """Positions of the lowest values: a share of them, at least one."""
    count = max(1, round(share * len(values)))
    return sorted(int(i) for i in np.argsort(values, kind="stable")[:count])


def need_rate(clips: Sequence[Clip], rate_hz: int, name: str) -> None:
    """Raise UserError if a clip has another sample rate than the check's model hears."""
    if other := [clip.sample_rate for clip in clips if clip.sample_rate != rate_hz]:
        raise UserError(
            f"the {name} check hears {rate_hz} Hz, the voice speaks at {other[0]} Hz; set voice.sample_rate"
        )


def histogram(values: Sequence[float], edges: Sequence[float]) -> dict[str, int]:
    """Counts in [edge, next edge), keyed "low-high"; what lies outside counts at the nearest end."""
    counts, _ = np.histogram(np.clip(values, edges[0], edges[-1]), bins=np.asarray(edges))
    return {f"{low:g}-{high:g}": int(n) for low, high, n in zip(edges[:-1], edges[1:], counts, strict=True)}


def group_means(pairs: Sequence[tuple[str, float]]) -> Mapping[str, float]:
    """Mean of the values of each key."""
    keys = dict.fromkeys(key for key, _ in pairs)
    return {key: float(np.mean([value for k, value in pairs if k == key])) for key in keys}
