"""The interface of a source of background sounds, and what all sources do alike: account for what cannot be used."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

from omnichat.data.audit import BadAudio
from omnichat.synthesis.base import Sound, Wave
from omnichat.synthesis.sounds.recordings import Limits, WaveStore
from omnichat.utils.errors import UserError
from omnichat.utils.log import get_logger
from omnichat.utils.seeding import python_rng

log = get_logger(__name__)
_NAMED = 5  # issues that the log names one by one


class SoundSource(ABC):
    """Recordings with captions, each of a split. Picklable; recordings are read in each process.

    Attributes:
        name: short name; `Sound.name` begins with it.
        limits: what a recording must be.
        issues: what cannot be used, one line each: file, line and reason.
        bad: number of unusable recordings by reason. looked: recordings that the source names, usable or not.
    """

    def __init__(self, name: str, limits: Limits) -> None:
        self.name = name
        self.limits = limits
        self.issues: list[str] = []
        self.bad: Counter[str] = Counter()
        self.looked = 0
        self._waves = WaveStore(limits.memory_mb)
        self._left_out: set[str] = set()
        self._read_once: set[str] = set()

    @abstractmethod
    def sounds(self, split: str) -> list[Sound]:
        """The sounds of a split, in a fixed order; their headers have been looked at.

        Raises:
            UserError: the source is not there, cannot be parsed, has nothing for this split, or too much of it is bad.
        """

    @abstractmethod
    def load(self, name: str, sample_rate: int) -> Wave:
        """The whole recording of a sound: mono float32 [N] at `sample_rate` Hz, read-only; the last few are kept.

        Raises:
            BadAudio: it cannot be used.
        """

    def heard(self, name: str, split: str, sample_rate: int) -> Wave:
        """The part of a recording that a split hears: all of it, where no two splits share a recording."""
        return self.load(name, sample_rate)

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """JSON facts for the data card, all that decides the sounds among them: name, licence, split_rule, counts,
        a hash of names and captions, and what was left out."""

    def deck(self, split: str, seed: int, sample_rate: int) -> Iterator[Sound]:
        """Sounds of a split without end: what a reply must name occurs equally often (within one).

        Every recording is read before it is dealt for the first time, and left out where it is bad; so no worker meets
        a bad one.

        Raises:
            UserError: no recording can be used, or too many cannot.
        """
        groups: dict[tuple[str, ...], list[Sound]] = {}
        for sound in self.sounds(split):
            groups.setdefault(sound.keywords, []).append(sound)
        rng = python_rng(seed, "sounds", split)
        pack = list(groups.values())
        while True:
            rng.shuffle(pack)
            dealt = 0
            for group in pack:
                order = rng.sample(group, len(group))
                usable = next((sound for sound in order if self._usable(sound, sample_rate)), None)
                if usable is not None:
                    dealt += 1
                    yield usable
            if dealt == 0:
                raise UserError(f"{self.name}: no recording of the split {split} can be used ({self.issues[0]})")

    def left_out(self) -> dict[str, int]:
        """Unusable recordings by reason, for a card."""
        return dict(sorted(self.bad.items()))

    def _issue(self, message: str, reason: str, count: int = 1) -> None:
        """Note something that cannot be used; the first few are logged."""
        self.issues.append(message)
        self.bad[reason] += count
        if len(self.issues) <= _NAMED:
            log.warning("left out: %s", message)

    def _check_share(self) -> None:
        """Raise UserError where more of the source is bad than `limits` allow."""
        bad = self.bad.total()
        if bad > self.limits.max_bad * max(self.looked, bad):
            raise UserError(
                f"{self.name}: {bad} of {max(self.looked, bad)} recordings cannot be used, e.g. {self.issues[0]}; "
                f"limits.max_bad={self.limits.max_bad:g} allows fewer"
            )

    def _usable(self, sound: Sound, sample_rate: int) -> bool:
        if sound.name in self._left_out:
            return False
        if sound.name not in self._read_once:
            try:
                self.load(sound.name, sample_rate)
            except BadAudio as error:
                self._left_out.add(sound.name)
                self._issue(str(error), error.reason)
                self._check_share()
                return False
            self._read_once.add(sound.name)
        return True


def none_for(source: str, split: str, sounds: Sequence[Sound]) -> list[Sound]:
    """The sounds as a list. Raises UserError where there are none."""
    if not sounds:
        raise UserError(f"{source}: has no recording for the split {split}")
    return list(sounds)
