"""What scenes may be like: shares and ranges, from which the plan of each dialogue draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from omnichat.schema import PLACEMENTS
from omnichat.utils.errors import UserError, one_of


@dataclass(kw_only=True, slots=True)
class RoomConfig:
    """Rooms that both speakers are in.

    Attributes:
        share: of the dialogues that are in a room; the others are as dry as the voices.
        recordings: folder of recorded impulse responses, of which each split has its own; null = simulated rooms.
        rt60_sec: [shortest, longest] reverberation time of a simulated room, seconds.
        direct_db: [lowest, highest] energy of the direct path over that of the reverberation, dB.
    """

    share: float = 0.0
    recordings: str | None = None
    rt60_sec: tuple[float, float] = (0.2, 0.6)
    direct_db: tuple[float, float] = (0.0, 9.0)

    def __post_init__(self) -> None:
        _check_share("scene.room.share", self.share)
        _check_range("scene.room.rt60_sec", self.rt60_sec, above=0.0)
        _check_range("scene.room.direct_db", self.direct_db)


@dataclass(kw_only=True, slots=True)
class OverlapConfig:
    """Turns with times, some of which begin before the one before them has ended.

    Attributes:
        share: of the dialogues that have a timeline; in the others turns follow each other and have no times.
        turn_share: probability that a turn of such a dialogue begins early.
        seconds: [shortest, longest] overlap; never more than half of either turn.
        pause_sec: [shortest, longest] pause before a turn that does not begin early.
    """

    share: float = 0.0
    turn_share: float = 0.3
    seconds: tuple[float, float] = (0.15, 0.6)
    pause_sec: tuple[float, float] = (0.1, 0.7)

    def __post_init__(self) -> None:
        _check_share("scene.overlap.share", self.share)
        _check_share("scene.overlap.turn_share", self.turn_share)
        _check_range("scene.overlap.seconds", self.seconds, above=0.0)
        _check_range("scene.overlap.pause_sec", self.pause_sec, low=0.0)


@dataclass(kw_only=True, slots=True)
class BackchannelConfig:
    """What a listener says without taking over.

    Attributes:
        share: of the dialogues that have any.
        turn_share: probability that a turn of such a dialogue has one; the last reply never has.
        words: what is said; one is drawn each time.
        level_db: [lowest, highest] level against the turn under which it lies, dB.
    """

    share: float = 0.0
    turn_share: float = 0.4
    words: list[str] = field(default_factory=lambda: ["Mm-hm.", "Right.", "I see.", "Okay.", "Yeah."])
    level_db: tuple[float, float] = (-10.0, -4.0)

    def __post_init__(self) -> None:
        _check_share("scene.backchannel.share", self.share)
        _check_share("scene.backchannel.turn_share", self.turn_share)
        _check_range("scene.backchannel.level_db", self.level_db)
        if self.share > 0 and (not self.words or not all(word.strip() for word in self.words)):
            raise UserError("scene.backchannel.words must hold at least one word, and none that is empty")


@dataclass(kw_only=True, slots=True)
class SceneConfig:
    """How scenes are drawn.

    Attributes:
        placements: where an event is heard -> how often, relative to the others. before and under the last user turn;
            between: in the pause before an earlier user turn, so that a listener must remember it; loop: under the
            whole dialogue. Music always loops.
        event_snr_db, music_snr_db: [lowest, highest] ratio of speech to background; drawn anew for every dialogue.
        event_sec: longest event before the words. gap_sec: pause between event and words.
        cross_fade_sec: overlap where a looped recording starts again.
        room, overlap, backchannel: see there.
        telephone_share: of the dialogues that are heard through a telephone's band, 300 to 3400 Hz.
        loudness_lufs: integrated loudness (BS.1770) of each dialogue with its variants, reached by one gain, so that
            emotions keep their levels; null = the voices' own level.
        gain_db: [lowest, highest] further gain, drawn for every dialogue.
    """

    placements: dict[str, float] = field(
        default_factory=lambda: {"before": 0.5, "under": 0.5, "between": 0.0, "loop": 0.0}
    )
    event_snr_db: tuple[float, float] = (0.0, 8.0)
    music_snr_db: tuple[float, float] = (3.0, 10.0)
    event_sec: float = 1.6
    gap_sec: float = 0.1
    cross_fade_sec: float = 0.05
    room: RoomConfig = field(default_factory=RoomConfig)
    overlap: OverlapConfig = field(default_factory=OverlapConfig)
    backchannel: BackchannelConfig = field(default_factory=BackchannelConfig)
    telephone_share: float = 0.0
    loudness_lufs: float | None = -26.0
    gain_db: tuple[float, float] = (0.0, 0.0)

    def __post_init__(self) -> None:
        _check_placements(self.placements)
        for key in ("event_snr_db", "music_snr_db", "gain_db"):
            _check_range(f"scene.{key}", getattr(self, key))
        _check_share("scene.telephone_share", self.telephone_share)
        if self.event_sec <= 0 or self.gap_sec < 0 or self.cross_fade_sec < 0:
            raise UserError("scene needs event_sec > 0, gap_sec >= 0 and cross_fade_sec >= 0")
        if self.loudness_lufs is not None and not -60 <= self.loudness_lufs <= -6:
            raise UserError(f"scene.loudness_lufs must be null or in [-60, -6], got {self.loudness_lufs:g}")


def _check_placements(placements: Mapping[str, float]) -> None:
    for name, weight in placements.items():
        if name not in PLACEMENTS:
            raise one_of("scene.placements", name, PLACEMENTS)
        if not 0 <= weight < float("inf"):
            raise UserError(f"scene.placements.{name} must be >= 0, got {weight}")
    if not sum(placements.values()) > 0:
        raise UserError("scene.placements must hold a number above 0")


def _check_share(key: str, share: float) -> None:
    if not 0 <= share <= 1:
        raise UserError(f"{key} must be in [0, 1], got {share}")


def _check_range(
    key: str, bounds: tuple[float, float], low: float = float("-inf"), above: float = float("-inf")
) -> None:
    """Raise UserError unless `bounds` is [lowest, highest], at least `low` and more than `above`, and finite."""
    if len(bounds) != 2 or not above < bounds[0] <= bounds[1] < float("inf") or bounds[0] < low:
        said = f" and above {above:g}" if above > float("-inf") else ""
        said += f" and at least {low:g}" if low > float("-inf") else ""
        raise UserError(f"{key} must be [lowest, highest]{said}, got {list(bounds)}")
