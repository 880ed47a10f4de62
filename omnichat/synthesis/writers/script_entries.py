"""Scripts as people and other projects write them down: our own lines, and VoxDialogue's.

**Our own form**, one object a line of a .jsonl file:

    {"scenario": "emotion", "split": "train", "topic": "...", "sound": {"caption": "...", "keywords": ["..."]},
     "history": [{"speaker": "A", "text": "...", "pitch": "...", "speed": "...", "emotion": "..."}, ...],
     "current": "...",
     "variants": [{"style": {"pitch": "...", "speed": "...", "emotion": "..."},
                   "reply": {"text": "...", "pitch": "...", "speed": "...", "emotion": "..."}}, ...]}

`split`, `topic` and `sound` may be missing, and so may any label.

**VoxDialogue's form** (Cheng et al., ICLR 2025; its script files): a list of objects, an object from topic to object,
or lines of objects with `history_turns` (or "history turns"), `current_turn`, `current_turn_style_1`, ... and
`response_of_current_style_1`, ...; `aspect_list` is the topic (or, with scenario audio or music, the sound's caption).
A turn is "A (female, happy, fast, high): words": gender, emotion, then whichever of speed, pitch, volume, fidelity or
age the file is about. The third label counts where it is a speed, the fourth where it is a pitch; but where any entry
of the file says "loud" or "quiet", the fourth is the volume, also where it says "low".
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnichat.schema import EMOTIONS, PITCHES, SPEEDS, SPLITS, Style
from omnichat.synthesis.base import NO_TOPIC, Line, Variant
from omnichat.synthesis.writers.labels import map_label, plain, tidy
from omnichat.utils.errors import UserError

SCENARIOS = ("emotion", "audio", "music")
MAX_FILE_BYTES = 1 << 30
_HISTORY = ("history_turns", "history turns")
_TURN = re.compile(r"\s*([AB])\s*(?:\(([^()]*)\))?\s*:\s*(.*)", re.DOTALL)
_VOLUMES = ("loud", "quiet")
_FIELDS = {
    "script": ("scenario", "split", "topic", "sound", "history", "current", "variants"),
    "line": ("speaker", "text", "pitch", "speed", "emotion"),
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One script of a file, before it is asked for.

    Attributes:
        where: file and line, or file and number of the entry, for messages.
        split: None = the file does not say. caption, keywords: of its sound; None and () where it has none.
    """

    where: str
    scenario: str
    split: str | None
    topic: str
    history: tuple[Line, ...]
    current: str
    variants: tuple[Variant, ...]
    caption: str | None = None
    keywords: tuple[str, ...] = ()


class BadEntry(Exception):
    """An entry that is no script: what is wrong with it, without where it stands."""


def raw_entries(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield (where, object) of a script file: JSONL, a JSON list of objects, or a JSON object from topic to object.

    Raises:
        UserError: no such file, or not of that form; with line and column, or the entry's number.
    """
    if not path.is_file():
        raise UserError(f"writer.path: {path}: no such file")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise UserError(f"writer.path: {path}: larger than {MAX_FILE_BYTES >> 20} MB; split it")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start})") from None
    if path.suffix == ".jsonl":
        yield from _lines(path, text)
        return
    value = _parse(str(path), text)
    if isinstance(value, dict) and any(key in value for key in (*_HISTORY, "history", "current_turn", "current")):
        value = [value]
    if isinstance(value, dict):
        value = [{"aspect_list": key, **one} if isinstance(one, dict) else one for key, one in value.items()]
    if not isinstance(value, list):
        raise UserError(f"{path}: expected a list or an object of scripts, got {type(value).__name__}")
    for number, entry in enumerate(value):
        if not isinstance(entry, dict):
            raise UserError(f"{path}: entry {number}: expected a JSON object, got {type(entry).__name__}")
        yield f"{path}: entry {number}", entry


def read_entry(where: str, value: Mapping[str, Any], scenario: str, fourth_is_volume: bool) -> Entry:
    """Read one object, in whichever form it is. Raises BadEntry saying what is wrong with it.

    Args:
        scenario: of an entry that does not state its own.
        fourth_is_volume: see `says_volume`.
    """
    if any(key in value for key in _HISTORY):
        return _read_vox(where, value, scenario, fourth_is_volume)
    return _read_own(where, value, scenario)


def whole_style(style: Style) -> Style:
    """The style with what a file leaves open as a voice speaks it: normal and neutral."""
    return Style(style.pitch or "normal", style.speed or "normal", style.emotion or "neutral")


def says_volume(value: Mapping[str, Any]) -> bool:
    """Whether a VoxDialogue entry speaks of volume where others have pitch."""
    texts = [*_list(value, _HISTORY), *(value[key] for key in value if "style" in str(key))]
    heads = [text.partition(":")[0] for text in texts if isinstance(text, str)]
    return any(word.strip(" ()").lower() in _VOLUMES for head in heads for word in head.split(","))


def _lines(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            value = _parse(f"{path}:{number}", line)
            if not isinstance(value, dict):
                raise UserError(f"{path}:{number}: expected a JSON object, got {type(value).__name__}")
            yield f"{path}:{number}", value


def _parse(where: str, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if "\n" not in text else f"line {error.lineno}, column {error.colno}"
        raise UserError(f"{where}: not readable as JSON: {error.msg} ({place})") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not readable as JSON: {type(error).__name__}") from None


def _read_vox(where: str, value: Mapping[str, Any], scenario: str, fourth_is_volume: bool) -> Entry:
    history = tuple(_vox_line(turn, fourth_is_volume) for turn in _list(value, _HISTORY))
    if "current_turn" not in value:
        raise BadEntry("no current_turn: its variants differ in words and not only in style")
    speaker, _, current = _vox_turn(value["current_turn"])
    if speaker != "A":
        raise BadEntry("current_turn is not A's")
    variants: list[Variant] = []
    while (style_key := f"current_turn_style_{len(variants) + 1}") in value:
        reply_key = f"response_of_current_style_{len(variants) + 1}"
        if reply_key not in value:
            raise BadEntry(f"lacks {reply_key}")
        if not isinstance(value[style_key], str):
            raise BadEntry(f"{style_key} must be text")
        reply = _vox_line(value[reply_key], fourth_is_volume)
        if reply.speaker != "B":
            raise BadEntry(f"{reply_key} is not B's")
        variants.append(Variant(_vox_style(value[style_key].strip(" ()"), fourth_is_volume), reply))
    if not variants:
        raise BadEntry("lacks current_turn_style_1")
    topic = value.get("aspect_list", NO_TOPIC)
    if not isinstance(topic, str):
        raise BadEntry("aspect_list must be text")
    caption = plain(topic) if value.get("scenario", scenario) != "emotion" else None
    own = {"scenario": value.get("scenario", scenario), "split": value.get("split")}
    return _entry(where, own, topic, history, current, tuple(variants), caption, ())


def _vox_turn(text: Any) -> tuple[str, str, str]:
    match = _TURN.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise BadEntry('a turn must be like "A (female, happy, fast, high): words"')
    return match[1], match[2] or "", match[3]


def _vox_line(text: Any, fourth_is_volume: bool) -> Line:
    speaker, labels, words = _vox_turn(text)
    return Line(speaker, _spoken(words, speaker), _vox_style(labels, fourth_is_volume))


def _vox_style(labels: str, fourth_is_volume: bool) -> Style:
    """The style in "female, happy, fast, high": gender first, then emotion, then what the file is about."""
    found: dict[str, str] = {}
    for place, word in enumerate(part.strip() for part in labels.split(",")):
        if place == 1:
            if (emotion := map_label("emotion", word)) is None:
                raise BadEntry("an emotion that is not known")
            found["emotion"] = emotion
        elif place == 2 and (speed := map_label("speed", word)) is not None:
            found["speed"] = speed
        elif place == 3 and not fourth_is_volume and (pitch := map_label("pitch", word)) is not None:
            found["pitch"] = pitch
    return Style(**found)


def _read_own(where: str, value: Mapping[str, Any], scenario: str) -> Entry:
    _known(value, _FIELDS["script"], "the script")
    for key in ("history", "current", "variants"):
        if key not in value:
            raise BadEntry(f"lacks {key!r}")
    history = tuple(_own_line(turn, None) for turn in _list(value, ("history",)))
    variants = []
    for variant in _list(value, ("variants",)):
        if not isinstance(variant, dict) or set(variant) != {"style", "reply"}:
            raise BadEntry("a variant must have a style and a reply")
        variants.append(Variant(_own_style(variant["style"]), _own_line(variant["reply"], "B")))
    if not variants:
        raise BadEntry("has no variants")
    sound, caption = value.get("sound"), None
    keywords: tuple[str, ...] = ()
    if sound is not None:
        if (
            not isinstance(sound, dict)
            or set(sound) != {"caption", "keywords"}
            or not isinstance(sound["caption"], str)
        ):
            raise BadEntry("sound must have a caption and keywords")
        keywords = tuple(word.strip() for word in _list(sound, ("keywords",)) if isinstance(word, str) and word.strip())
        caption = plain(sound["caption"])
    own = {"scenario": value.get("scenario", scenario), "split": value.get("split")}
    topic = value.get("topic", NO_TOPIC)
    return _entry(where, own, topic, history, value["current"], tuple(variants), caption, keywords)


def _own_line(value: Any, speaker: str | None) -> Line:
    if not isinstance(value, dict):
        raise BadEntry("a turn must be a JSON object")
    _known(value, _FIELDS["line"], "a turn")
    who = map_label("speaker", value.get("speaker", speaker))
    if who is None or (speaker is not None and who != speaker):
        raise BadEntry("a turn has another speaker than A or B" if speaker is None else "a reply is not B's")
    return Line(
        who,
        _spoken(value.get("text"), who),
        _own_style({k: v for k, v in value.items() if k not in ("speaker", "text")}),
    )


def _own_style(value: Any) -> Style:
    if not isinstance(value, dict):
        raise BadEntry("a style must be a JSON object")
    _known(value, ("pitch", "speed", "emotion"), "a style")
    labels = {}
    for kind, word in value.items():
        if word is not None and (label := map_label(kind, word)) is None:
            choices = {"pitch": PITCHES, "speed": SPEEDS, "emotion": EMOTIONS}[kind]
            raise BadEntry(f"{kind} must be one of: {', '.join(choices)}")
        labels[kind] = None if word is None else label
    return Style(**labels)


def _entry(
    where: str,
    own: Mapping[str, Any],
    topic: Any,
    history: tuple[Line, ...],
    current: Any,
    variants: tuple[Variant, ...],
    caption: str | None,
    keywords: tuple[str, ...],
) -> Entry:
    if own["scenario"] not in SCENARIOS:
        raise BadEntry(f"scenario must be one of: {', '.join(SCENARIOS)}")
    if own["split"] is not None and own["split"] not in SPLITS:
        raise BadEntry(f"split must be one of: {', '.join(SPLITS)}")
    if not isinstance(topic, str):
        raise BadEntry("topic must be text")
    if any(line.speaker != "AB"[place % 2] for place, line in enumerate(history)) or len(history) % 2:
        raise BadEntry("the history does not alternate A, B, up to B")
    topic = plain(topic)[:80] or NO_TOPIC
    if caption is not None and own["scenario"] == "emotion":
        raise BadEntry("a script of scenario emotion has a sound")
    heard = [whole_style(variant.style) for variant in variants]
    if len(set(heard)) < len(heard):
        raise BadEntry("two variants have the same style")
    spoken = _spoken(current, "A")
    return Entry(where, own["scenario"], own["split"], topic, history, spoken, variants, caption, keywords)


def _spoken(text: Any, speaker: str) -> str:
    if not isinstance(text, str):
        raise BadEntry("a sentence must be text")
    spoken, problem = tidy(text, speaker)
    if problem is not None or not spoken:
        raise BadEntry(problem or "an empty sentence")
    return spoken


def _list(value: Mapping[str, Any], keys: tuple[str, ...]) -> list[Any]:
    found: Any = next((value[key] for key in keys if key in value), [])
    if not isinstance(found, list):
        raise BadEntry(f"{keys[0]} must be a list")
    return found


def _known(value: Mapping[str, Any], fields: tuple[str, ...], what: str) -> None:
    if unknown := sorted(str(key) for key in value if key not in fields):
        raise BadEntry(f"{what} has the unknown field {unknown[0][:40]!r}; known: {', '.join(fields)}")
