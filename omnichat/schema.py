"""The one dialogue schema that every reader yields and every writer writes, and the audio types that layers share.

Shape letters used everywhere: B clips (or dialogues) in a batch, T expert frames, L encoder layers, W windows,
K queries a window, S positions of an LLM sequence, D width.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from torch import Tensor

from omnichat.utils.errors import UserError, one_of

Pitch = Literal["low", "normal", "high"]
Speed = Literal["slow", "normal", "fast"]
Emotion = Literal["neutral", "happy", "sad", "angry", "surprised", "fearful", "disgusted"]
Kind = Literal["synthetic", "real"]
Scenario = Literal["emotion", "audio", "music", "daily"]
Split = Literal["train", "dev", "test"]
Placement = Literal["before", "under", "between", "loop"]

PITCHES: tuple[str, ...] = get_args(Pitch)
SPEEDS: tuple[str, ...] = get_args(Speed)
EMOTIONS: tuple[str, ...] = get_args(Emotion)
KINDS: tuple[str, ...] = get_args(Kind)
SCENARIOS: tuple[str, ...] = get_args(Scenario)
SPLITS: tuple[str, ...] = get_args(Split)
PLACEMENTS: tuple[str, ...] = get_args(Placement)
SPEAKERS = ("A", "B")
_ATTRIBUTE = re.compile(r"[a-z][a-z0-9_-]{0,39}")
_ROUNDING_SEC = 0.001  # by which times that were rounded may disagree


@dataclass(frozen=True, slots=True)
class Style:
    """How a turn is spoken; an attribute that a corpus lacks is None."""

    pitch: str | None = None
    speed: str | None = None
    emotion: str | None = None

    def __post_init__(self) -> None:
        for name, choices in (("pitch", PITCHES), ("speed", SPEEDS), ("emotion", EMOTIONS)):
            value = getattr(self, name)
            if value is not None and value not in choices:
                raise one_of(f"style.{name}", value, choices)

    def __bool__(self) -> bool:
        return any((self.pitch, self.speed, self.emotion))


@dataclass(frozen=True, slots=True)
class Speaker:
    """Who speaks: the voice's name and, if known, gender."""

    voice: str
    gender: str | None = None


@dataclass(frozen=True, slots=True)
class Scene:
    """Background sound of a dialogue, mixed at `snr_db` (speech level minus background level, in dB).

    `placement`: "before" or "under" the last user turn, "between" earlier turns (in the pause before an earlier user
    turn, at the start of that turn's recording), or "loop", under the whole dialogue.
    `audio` is the background recording (path relative to the corpus, or None if it is only in the mix);
    `keywords` are the words by which a reply can show that it heard the sound.
    """

    caption: str
    placement: str = "under"
    snr_db: float | None = None
    audio: str | None = None
    keywords: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.placement not in PLACEMENTS:
            raise one_of("scene.placement", self.placement, PLACEMENTS)


@dataclass(frozen=True, slots=True)
class Backchannel:
    """What the listener says under the other's turn ("mm-hm"), without taking over; it is in that turn's recording.

    `start_seconds` counts from the start of the turn's recording.
    """

    speaker: str
    text: str
    start_seconds: float
    seconds: float

    def __post_init__(self) -> None:
        if self.speaker not in SPEAKERS:
            raise one_of("backchannel.speaker", self.speaker, SPEAKERS)
        if not isinstance(self.text, str) or not self.text.strip():
            raise UserError("backchannel.text must be a non-empty string")
        if not 0 <= self.start_seconds < float("inf"):
            raise UserError(f"backchannel.start_seconds must be at least 0 and finite, got {self.start_seconds}")
        if not 0 < self.seconds < float("inf"):
            raise UserError(f"backchannel.seconds must be positive and finite, got {self.seconds}")


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of one speaker.

    `audio` is a path relative to the corpus folder (absolute paths are the reader's business), `sample_rate` in Hz,
    `seconds` its length; None where a corpus has no recording. `variant_of` names the group of turns that have the
    same words in other styles. `asr_text` is what a recogniser heard. `start_seconds`, from the start of the dialogue,
    is set where turns overlap. `backchannels` are the listener's, in order; they are no turns.
    """

    speaker: str
    text: str
    style: Style = Style()
    audio: str | None = None
    sample_rate: int | None = None
    seconds: float | None = None
    sha256: str | None = None
    asr_text: str | None = None
    variant_of: str | None = None
    start_seconds: float | None = None
    backchannels: tuple[Backchannel, ...] = ()

    def __post_init__(self) -> None:
        if self.speaker not in SPEAKERS:
            raise one_of("turn.speaker", self.speaker, SPEAKERS)
        if not isinstance(self.text, str) or not self.text.strip():
            raise UserError("turn.text must be a non-empty string")
        if self.seconds is not None and not 0 < self.seconds < float("inf"):
            raise UserError(f"turn.seconds must be positive and finite, got {self.seconds}")
        if self.audio is not None and (self.seconds is None or self.sample_rate is None):
            raise UserError("a turn with audio states its seconds and sample_rate")
        for said in self.backchannels:
            if said.speaker == self.speaker:
                raise UserError(f"turn.backchannels: {said.text!r} is by {said.speaker}, whose own turn it is")
            end = said.start_seconds + said.seconds
            if self.seconds is not None and end > self.seconds + _ROUNDING_SEC:
                raise UserError(
                    f"turn.backchannels: {said.text!r} ends at {end:.3f} s, the turn at {self.seconds:.3f} s"
                )


@dataclass(frozen=True, slots=True)
class Dialogue:
    """One dialogue of two speakers: A is the user, B is the one whom the model plays.

    The variants of a dialogue (same words, other style of the last user turn, other reply) are dialogues of their own
    that share their history; their last user turn carries one `variant_of`.
    """

    id: str
    source: str
    kind: str
    scenario: str
    split: str
    turns: tuple[Turn, ...]
    speakers: dict[str, Speaker] = field(default_factory=dict)
    scene: Scene | None = None
    language: str = "en"
    topic: str | None = None
    stand_in: bool = False  # made to take a real corpus's place in a demonstration; every report says so
    attributes: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, choices in (("kind", KINDS), ("scenario", SCENARIOS), ("split", SPLITS)):
            if getattr(self, name) not in choices:
                raise one_of(f"dialogue.{name}", getattr(self, name), choices)
        if not self.turns:
            raise UserError(f"dialogue {self.id!r} has no turns")
        check_attributes("dialogue.attributes", self.attributes)


def check_attributes(key: str, attributes: Mapping[str, str]) -> None:
    """Raise UserError where an attribute's name is no lower-case word or its value no short line of text."""
    for name, value in attributes.items():
        if not isinstance(name, str) or not _ATTRIBUTE.fullmatch(name):
            raise UserError(f"{key}: name {str(name)[:60]!r} must be of a-z, 0-9, _ and -, and begin with a letter")
        if not isinstance(value, str) or not value.strip() or not value.isprintable() or len(value) > 100:
            raise UserError(f"{key}.{name} must be a line of 1 to 100 characters, got {str(value)[:60]!r}")


def dialogue_to_json(dialogue: Dialogue) -> dict[str, Any]:
    """Return the JSON object of one manifest line; attributes that are None or empty are left out."""

    def drop(pairs: dict[str, Any]) -> dict[str, Any]:
        return {
            key: value
            for key, value in pairs.items()
            if value is not None and value is not False and value not in ((), {}, [])
        }

    def turn(t: Turn) -> dict[str, Any]:
        style = drop({"pitch": t.style.pitch, "speed": t.style.speed, "emotion": t.style.emotion})
        names = ("audio", "sample_rate", "seconds", "sha256", "asr_text", "variant_of", "start_seconds")
        said = [asdict(backchannel) for backchannel in t.backchannels]
        rest = {"style": style} | {n: getattr(t, n) for n in names} | {"backchannels": said}
        return {"speaker": t.speaker, "text": t.text} | drop(rest)

    scene = None
    if dialogue.scene is not None:
        s = dialogue.scene
        scene = {"caption": s.caption, "placement": s.placement}
        scene |= drop({"snr_db": s.snr_db, "audio": s.audio, "keywords": list(s.keywords)})
    head = {name: getattr(dialogue, name) for name in ("id", "source", "kind", "scenario", "split", "language")}
    speakers = {key: drop({"voice": s.voice, "gender": s.gender}) for key, s in dialogue.speakers.items()}
    tail = {"topic": dialogue.topic, "stand_in": dialogue.stand_in, "speakers": speakers, "scene": scene}
    tail |= {"attributes": dict(dialogue.attributes)}
    return head | drop(tail) | {"turns": [turn(t) for t in dialogue.turns]}


def _check_types(what: str, fields: dict[str, Any], text: tuple[str, ...], numbers: tuple[str, ...] = ()) -> None:
    """Raise UserError where a field that is there and not null has another JSON type than it must have."""
    for name in text:
        if fields.get(name) is not None and not isinstance(fields[name], str):
            raise UserError(f"{what}.{name} must be text, got {type(fields[name]).__name__}")
    for name in numbers:
        number = fields.get(name)
        if number is not None and (isinstance(number, bool) or not isinstance(number, int | float)):
            raise UserError(f"{what}.{name} must be a number, got {type(number).__name__}")
        if number is not None and not math.isfinite(number):
            raise UserError(f"{what}.{name} must be finite, got {number}")


def _check_fields(what: str, got: Any, allowed: tuple[str, ...], required: tuple[str, ...]) -> dict[str, Any]:
    """A JSON object that has all required and no unknown fields, else UserError."""
    if not isinstance(got, dict):
        raise UserError(f"{what} must be a JSON object, got {type(got).__name__}")
    if unknown := set(got) - set(allowed):
        raise one_of(f"{what} field", sorted(unknown)[0], allowed)
    if missing := [name for name in required if name not in got]:
        raise UserError(f"{what} lacks the field {missing[0]!r}")
    return got


def dialogue_from_json(value: dict[str, Any]) -> Dialogue:
    """Parse one manifest object. Raises UserError that names the unknown, missing or invalid field."""
    head = ("id", "source", "kind", "scenario", "split")
    allowed = (*head, "language", "topic", "stand_in", "speakers", "scene", "attributes", "turns")
    _check_fields("dialogue", value, allowed, (*head, "turns"))
    _check_types("dialogue", value, (*head, "language", "topic"))
    if not value["id"]:
        raise UserError("dialogue.id must be a non-empty string")
    if not isinstance(value.get("stand_in", False), bool):
        raise UserError("dialogue.stand_in must be true or false")
    if not isinstance(value["turns"], list):
        raise UserError("dialogue.turns must be a list")
    turns = tuple(_turn_from_json(f"turns[{number}]", raw) for number, raw in enumerate(value["turns"]))
    scene = None
    if value.get("scene") is not None:
        raw = _check_fields("scene", value["scene"], tuple(Scene.__dataclass_fields__), ("caption",))
        _check_types("scene", raw, ("caption", "placement", "audio"), ("snr_db",))
        words = raw.get("keywords", [])
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise UserError("scene.keywords must be a list of words")
        scene = Scene(**{**raw, "keywords": tuple(words)})
    speakers = {}
    for key, raw in _check_fields("speakers", value.get("speakers", {}), SPEAKERS, ()).items():
        fields = _check_fields(f"speakers.{key}", raw, ("voice", "gender"), ("voice",))
        _check_types(f"speakers.{key}", fields, ("voice", "gender"))
        speakers[key] = Speaker(**fields)
    attributes = value.get("attributes", {})
    if not isinstance(attributes, dict):
        raise UserError(f"dialogue.attributes must be a JSON object, got {type(attributes).__name__}")
    rest = {name: value[name] for name in (*head, "language", "topic", "stand_in") if name in value}
    return Dialogue(**rest, speakers=speakers, scene=scene, turns=turns, attributes=dict(attributes))


def _turn_from_json(what: str, raw: Any) -> Turn:
    fields = dict(_check_fields(what, raw, tuple(Turn.__dataclass_fields__), ("speaker", "text")))
    style = _check_fields(f"{what}.style", fields.pop("style", {}), ("pitch", "speed", "emotion"), ())
    names = ("speaker", "text", "audio", "sha256", "asr_text", "variant_of")
    _check_types(what, fields, names, ("sample_rate", "seconds", "start_seconds"))
    _check_types(f"{what}.style", style, ("pitch", "speed", "emotion"))
    said = fields.pop("backchannels", None) or []
    if not isinstance(said, list):
        raise UserError(f"{what}.backchannels must be a list, got {type(said).__name__}")
    spoken = [_backchannel_from_json(f"{what}.backchannels[{number}]", one) for number, one in enumerate(said)]
    try:
        return Turn(style=Style(**style), **fields, backchannels=tuple(spoken))
    except UserError as error:
        raise UserError(f"{what}: {error}") from None


def _backchannel_from_json(what: str, raw: Any) -> Backchannel:
    names = tuple(Backchannel.__dataclass_fields__)
    fields = _check_fields(what, raw, names, names)
    _check_types(what, fields, ("speaker", "text"), ("start_seconds", "seconds"))
    if missing := [name for name in names if fields[name] is None]:
        raise UserError(f"{what}.{missing[0]} must not be null")
    try:
        return Backchannel(**fields)
    except UserError as error:
        raise UserError(f"{what}: {error}") from None


@dataclass(slots=True)
class EncodedAudio:
    """What one expert heard in a batch of clips.

    Attributes:
        x_BTD: features, float; [B, T, D], or [B, L, T, D] where all layers are kept for a learned mix.
        mask_BT: bool, True = valid.
        time_sec: float32 [B, T], the centre time of each frame in its clip (whatever at invalid frames).
    """

    x_BTD: Tensor
    mask_BT: Tensor
    time_sec: Tensor

    def to(self, device: Any, non_blocking: bool = False) -> EncodedAudio:
        """Move to a device."""
        move = (t.to(device, non_blocking=non_blocking) for t in (self.x_BTD, self.mask_BT, self.time_sec))
        return EncodedAudio(*move)
