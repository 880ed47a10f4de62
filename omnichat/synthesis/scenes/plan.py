"""The plan of one scene: all that is drawn for it, before a word is spoken."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from omnichat.schema import SPEAKERS
from omnichat.synthesis.base import Sound
from omnichat.synthesis.scenes.config import SceneConfig
from omnichat.utils.seeding import python_rng

USER, REPLY = "u", "r"  # the current turn and its reply; each variant has its own, "u0", "r0", "u1", ..


@dataclass(frozen=True, slots=True)
class PlannedRoom:
    """A room: a recording's name, or the numbers of a simulated one."""

    recording: str | None = None
    rt60_sec: float | None = None
    direct_db: float | None = None


@dataclass(frozen=True, slots=True)
class PlannedBackchannel:
    """One backchannel.

    Attributes:
        key: of its clip ("k0", "k1", ..). under: key of the turn ("h2"; "u" = the current turn of every variant).
        speaker, text: who says what.
        at: where in the time that the turn leaves free, 0 = as early as possible, 1 = as late.
        level_db: against the turn.
    """

    key: str
    under: str
    speaker: str
    text: str
    at: float
    level_db: float


@dataclass(frozen=True, slots=True)
class ScenePlan:
    """What a dialogue's scene will be; plain values, so that it can be stored and compared.

    Attributes:
        sound: the background, None where there is none; placement and snr_db belong to it.
        at: key of the turn that the event comes before or lies under: "u" (every variant's current turn) or an earlier
            user turn ("h2"); None where the background lies under everything.
        room, telephone: what the one microphone does to every voice.
        gain_db: after loudness is normalised.
        gaps_sec: from the end of a turn to the start of the next, for turns 1, 2, ..; negative = it begins early. Empty
            = turns have no times.
        backchannels: in the order of the turns.
    """

    sound: Sound | None = None
    placement: str | None = None
    snr_db: float | None = None
    at: str | None = None
    room: PlannedRoom | None = None
    telephone: bool = False
    gain_db: float = 0.0
    gaps_sec: tuple[float, ...] = ()
    backchannels: tuple[PlannedBackchannel, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` makes an equal plan of them."""
        return asdict(self)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> ScenePlan:
        """The plan that `to_json` described."""
        sound, room = value["sound"], value["room"]
        if sound is not None:
            sound = Sound(**{**sound, "keywords": tuple(sound["keywords"])})
        backchannels = tuple(PlannedBackchannel(**said) for said in value["backchannels"])
        rest = {"sound": sound, "room": None if room is None else PlannedRoom(**room)}
        return ScenePlan(**{**value, **rest, "gaps_sec": tuple(value["gaps_sec"]), "backchannels": backchannels})


def turn_keys(history_turns: int) -> list[str]:
    """Keys of a dialogue's turns in order: "h0", .., "u", "r"."""
    return [*(f"h{index}" for index in range(history_turns)), USER, REPLY]


def speaker_of(key: str) -> str:
    """Who speaks a turn: A first, then in turns; "u" is A's, "r" is B's. Works for "u0" and "r0" too."""
    if key.startswith("h"):
        return SPEAKERS[int(key[1:]) % 2]
    return SPEAKERS[0] if key.startswith(USER) else SPEAKERS[1]


def draw_plan(
    config: SceneConfig, scenario: str, history_turns: int, sound: Sound | None, rooms: Sequence[str], seed: int
) -> ScenePlan:
    """Draw a scene. Each aspect has its own generator, so switching one on leaves the others as they were.

    Args:
        scenario: "music" loops its sound, whatever the placements say.
        rooms: names of recorded rooms; empty = simulated ones.
    """
    placement = snr_db = at = None
    if sound is not None:
        placement, at, snr_db = _background(config, scenario, history_turns, python_rng(seed, "background"))
    keys = turn_keys(history_turns)
    rng = python_rng(seed, "gain")
    return ScenePlan(
        sound=sound,
        placement=placement,
        snr_db=snr_db,
        at=at,
        room=_room(config, rooms, python_rng(seed, "room")),
        telephone=rng.random() < config.telephone_share,
        gain_db=_uniform(rng, config.gain_db),
        gaps_sec=_gaps(config, keys, at if placement in ("before", "between") else None, python_rng(seed, "gaps")),
        backchannels=_backchannels(config, keys, python_rng(seed, "backchannels")),
    )


def _background(
    config: SceneConfig, scenario: str, history_turns: int, rng: random.Random
) -> tuple[str, str | None, float]:
    """(placement, turn that has it, ratio in dB)."""
    if scenario == "music":
        return "loop", None, round(rng.uniform(*config.music_snr_db), 1)
    weights = dict(config.placements)
    if history_turns == 0 and weights.get("between", 0.0) > 0:  # no earlier turn: it comes before the only one
        weights["before"] = weights.get("before", 0.0) + weights.pop("between")
    placement = rng.choices(list(weights), weights=list(weights.values()))[0]
    at: str | None = USER
    if placement == "between":
        # between two turns; only where the history has a single exchange, before its first
        earlier = range(2, history_turns, 2) or range(0, history_turns, 2)
        at = f"h{rng.choice(list(earlier))}"
    elif placement == "loop":
        at = None
    return placement, at, round(rng.uniform(*config.event_snr_db), 1)


def _room(config: SceneConfig, rooms: Sequence[str], rng: random.Random) -> PlannedRoom | None:
    if rng.random() >= config.room.share:
        return None
    if rooms:
        return PlannedRoom(recording=rng.choice(list(rooms)))
    rt60_sec, direct_db = _uniform(rng, config.room.rt60_sec), _uniform(rng, config.room.direct_db)
    return PlannedRoom(rt60_sec=rt60_sec, direct_db=direct_db)


def _gaps(config: SceneConfig, keys: Sequence[str], event_at: str | None, rng: random.Random) -> tuple[float, ...]:
    """Pauses and overlaps; the turn that an event comes before does not begin early, for the event is in the pause."""
    if rng.random() >= config.overlap.share:
        return ()
    gaps = []
    for key in keys[1:]:
        early = rng.random() < config.overlap.turn_share
        pause, overlap = _uniform(rng, config.overlap.pause_sec), _uniform(rng, config.overlap.seconds)
        gaps.append(-overlap if early and key != event_at else pause)
    return tuple(gaps)


def _backchannels(config: SceneConfig, keys: Sequence[str], rng: random.Random) -> tuple[PlannedBackchannel, ...]:
    settings = config.backchannel
    if rng.random() >= settings.share:
        return ()
    said: list[PlannedBackchannel] = []
    for key in keys[:-1]:  # the reply is what the model learns to say: nobody speaks under it
        chosen, text, at = rng.random() < settings.turn_share, rng.choice(settings.words), rng.random()
        level_db = _uniform(rng, settings.level_db)
        if chosen:
            speaker = SPEAKERS[1 - SPEAKERS.index(speaker_of(key))]
            said.append(PlannedBackchannel(f"k{len(said)}", key, speaker, text, round(at, 3), level_db))
    return tuple(said)


def _uniform(rng: random.Random, bounds: tuple[float, float]) -> float:
    return round(rng.uniform(*bounds), 3)
