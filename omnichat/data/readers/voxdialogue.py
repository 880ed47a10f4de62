"""VoxDialogue (Cheng et al. 2025), as its scripts and as its spoken benchmark; ShareChatX scripts have the same shape.

A script file, any .json below the folder: a list of dialogues, one dialogue, or {topic: dialogue or list of them}.
{"history_turns": ["A (female, happy, fast, high): Words.", "B (male, ...): ...", ...],   also "history turns"
 "current_turn": "A: Words.", "current_turn_style_1": "(female, sad, slow, low)", ..._2, ..._3,
 "response_of_current_style_1": "B (male, sad, slow, low): Words.", ..._2, ..._3, "aspect_list": "topic"}
Where the styles differ in words (stress, laughter) there is no "current_turn": "current_turn_style_1" is a whole turn.

The spoken benchmark, processed_dialog*.json with the recordings beside it:
{"<topic>": {"<dialogue>": [{"turn_id": 0, "speaker_id": "A", "spk_info": "...", "content": "Words.",
  "insturct_style": "A female speaker with low pitch, fast speaking rate, and sad emotion.",
  "wav_path": "<topic>/<dialogue>/001.wav"}, ...]}}
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omnichat.audio.io import audio_info
from omnichat.data.corpus import check_inside
from omnichat.data.labels import LabelMaps, check_label_maps, check_split_rule, split_by, style_of
from omnichat.data.readers.base import Issues, Reader, UniqueIds, varied, words_of
from omnichat.schema import SCENARIOS, SPLITS, Dialogue, Scene, Speaker, Style, Turn
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.files import read_json

SPOKEN = "processed_dialog"  # how the names of the benchmark's index files begin
ORDERS = ("auto", "pitch", "volume")
EMOTIONS = {"calm": "neutral", "excited": "happy", "worried": "fearful"}
_TURN = re.compile(r"\s*([AB])\s*(?:(\([^()]{0,200}\))\s*:?|:)\s*(.*)", re.DOTALL)
_SPOKEN_STYLE = re.compile(
    r"(?:an?\s+)?(?P<gender>\w+) speaker with (?P<pitch>\w+) pitch, (?P<speed>\w+) speaking rate,?"
    r" and (?P<emotion>\w+) emotion",
    re.IGNORECASE,
)
_MARKS = re.compile(r"</?\w{1,20}>|\[\w{1,20}\]")  # <stress> and [laughter]: how it is said, not what
_LOOSE = re.compile(r"\s+([.,!?;:])")  # a stop that a mark has parted from its word
_GENDERS = ("male", "female")


@dataclass(frozen=True, slots=True)
class _Said:
    """One turn of a script as it stands there: speaker, attributes in their order, words."""

    speaker: str
    attributes: tuple[str, ...]
    words: str


class VoxDialogue(Reader):
    """Reader of script files and of the spoken benchmark; what a file is, its name and shape tell.

    A script with three styles gives three dialogues, which share its history; where the current words are the same and
    the styles are not, their current turns share `variant_of`. The speaker of the current turn is A, the user. Scripts
    have no recordings (`need_audio=none` prepares their words).

    The attributes of a style stand in an order that differs by subset: gender and emotion come first, then speed, then
    pitch or volume; an age, a volume or a fidelity may take a place. Each is recognised by the words that a file uses
    in its place; a place whose words ("normal", "low") tell nothing apart is left open. `fourth` settles the fourth
    place where the file alone does not. How the current turn was spoken is also kept in the dialogue's `attributes`,
    with what the schema has no labels for (gender, age, volume, fidelity), and with `subset`, the benchmark's part: the
    folder below `path`, or the file, that the dialogue comes from.

    Args:
        path: the folder; every .json below it is read.
        scenario: of the dialogues: emotion, audio, music, daily, or auto: by a folder that is called audio or music,
            else emotion.
        split: train, dev, test, or hash: 80/10/10 by topic, so that no topic is in two splits.
        fourth: what the fourth attribute of a style is: auto, pitch or volume.
        emotions: what emotion words outside the schema mean; null leaves a turn's emotion open.
    """

    name = "voxdialogue"
    licence = "not stated by its publisher (VoxDialogue, ICLR 2025)"
    kind = "synthetic"

    def __init__(
        self,
        path: str,
        scenario: str = "auto",
        split: str = "test",
        fourth: str = "auto",
        emotions: Mapping[str, str | None] = EMOTIONS,
    ) -> None:
        super().__init__(path)
        if scenario not in (*SCENARIOS, "auto"):
            raise one_of("source.scenario", scenario, (*SCENARIOS, "auto"))
        if fourth not in ORDERS:
            raise one_of("source.fourth", fourth, ORDERS)
        check_split_rule("source.split", split, SPLITS)
        self.maps: LabelMaps = {"emotion": emotions}
        check_label_maps("source", self.maps)
        self.scenario, self.split, self.fourth = scenario, split, fourth
        self.files = sorted(self.root.rglob("*.json"))
        spoken = {path.parent for path in self.files if path.name.startswith(SPOKEN)}
        # the benchmark's folders repeat each dialogue in a file of its own
        self.files = [p for p in self.files if p.parent in spoken or not spoken & set(p.parents)]
        if not self.files:
            raise UserError(f"{self.root}: holds no .json files; path names a folder with VoxDialogue's scripts")

    def dialogues(self) -> Iterator[Dialogue]:
        """Yield the dialogues in the order of the files' paths and of the entries in them."""
        self.issues = []
        self._notes, self._ids = Issues(), UniqueIds()
        for path in self.files:
            value = read_json(path)
            if path.name.startswith(SPOKEN):
                yield from self._spoken_file(path, value)
            else:
                yield from self._script_file(path, value)
        self.issues += self._notes.lines()

    # scripts

    def _script_file(self, path: Path, value: Any) -> Iterator[Dialogue]:
        entries = list(_entries(path, value))
        parsed = []
        for place, topic, raw in entries:
            try:
                parsed.append((place, topic, *_parse(raw)))
            except UserError as error:
                self._notes.add(f"skipped, {error}", place)
        fields = _fields([said.attributes for *_, history, versions in parsed for said in _all(history, versions)])
        if self.fourth != "auto":
            fields = {place: name for place, name in fields.items() if place != 3} | {3: self.fourth}
        for number, (place, topic, history, versions) in enumerate(parsed):
            yield from self._script(path, number, place, topic, history, versions, fields)

    def _script(
        self,
        path: Path,
        number: int,
        place: str,
        topic: str | None,
        history: Sequence[_Said],
        versions: Sequence[tuple[_Said, _Said]],
        fields: Mapping[int, str],
    ) -> Iterator[Dialogue]:
        stem = _identity(path.relative_to(self.root).with_suffix("").parts, number)
        heard = [(current.words, self._style(current, fields, place)) for current, _ in versions]
        several = varied(heard)
        for index, (current, reply) in enumerate(versions):
            roles = {current.speaker: "A", reply.speaker: "B"}
            turns = []
            for said in (*history, current, reply):
                style = self._style(said, fields, place)
                group = f"{self.name}-{stem}" if said is current and heard[index] in several else None
                turns.append(Turn(roles[said.speaker], said.words, style, variant_of=group))
            genders = {roles[said.speaker]: _gender(said.attributes) for said in (*history, current, reply)}
            speakers = {role: Speaker(f"{self.name}-{role}", gender) for role, gender in sorted(genders.items())}
            traits = {fields[n]: word for n, word in enumerate(current.attributes) if n in fields}
            yield self._dialogue(path, f"{stem}-v{index}", place, topic, turns, speakers, traits)

    def _style(self, said: _Said, fields: Mapping[int, str], place: str) -> Style:
        words = {
            fields[n]: word for n, word in enumerate(said.attributes) if fields.get(n) in ("emotion", "speed", "pitch")
        }
        style, unknown = style_of(words, self.maps)
        for word in unknown:
            self._notes.add(f"{word} is no label, left open", place)
        return style

    # the spoken benchmark

    def _spoken_file(self, path: Path, value: Any) -> Iterator[Dialogue]:
        if not isinstance(value, dict):
            raise UserError(f"{path}: expected an object of topics, got {type(value).__name__}")
        for topic, dialogues in value.items():
            if not isinstance(dialogues, dict):
                raise UserError(f"{path}: topic {topic[:60]!r}: expected an object of dialogues by name")
            for name, turns in dialogues.items():
                place = f"{path}: {topic[:60]!r} {name[:60]!r}"
                try:
                    yield self._spoken(path, topic, name, turns, place)
                except _Skip as error:
                    self._notes.add(f"skipped, {error}", place)

    def _spoken(self, path: Path, topic: str, name: str, raw_turns: Any, place: str) -> Dialogue:
        if not isinstance(raw_turns, list) or len(raw_turns) < 2 or not all(isinstance(t, dict) for t in raw_turns):
            raise _Skip("not a list of two turns or more")
        letters = [raw.get("speaker_id") for raw in raw_turns]
        if set(map(str, letters)) - {"A", "B"} or letters[-1] == letters[-2]:
            raise _Skip("its speakers are not A and B, or no reply follows the last turn")
        roles = {letters[-2]: "A", letters[-1]: "B"}
        turns, speakers, traits = [], {}, {}
        for number, raw in enumerate(raw_turns):
            words = _said_words(raw.get("content"))
            if words is None:
                raise _Skip(f"turn {number} has no words")
            found = _SPOKEN_STYLE.search(str(raw.get("insturct_style"))[:500])
            style, unknown = style_of(
                {} if found is None else {key: found[key] for key in ("pitch", "speed", "emotion")}, self.maps
            )
            for word in unknown:
                self._notes.add(f"{word} is no label, left open", place)
            role = roles[letters[number]]
            if role == "A":
                traits = {} if found is None else {key: text.lower() for key, text in found.groupdict().items()}
            speakers[role] = Speaker(
                words_of(raw.get("spk_info")) or f"{self.name}-{role}", _gender((found["gender"],) if found else ())
            )
            turns.append(
                Turn(role, words, style, **self._recording(path, raw.get("wav_path"), f"{place} turn {number}"))
            )
        stem = _identity(path.relative_to(self.root).parent.parts, topic, name)
        return self._dialogue(path, stem, place, topic.replace("_", " "), turns, dict(sorted(speakers.items())), traits)

    def _recording(self, path: Path, wav: Any, place: str) -> dict[str, Any]:
        """The fields of a turn that tell of its recording; {} where there is none, which is counted."""
        relative = f"{path.parent.relative_to(self.root).as_posix()}/{wav}".removeprefix("./")
        try:
            if not isinstance(wav, str):
                raise UserError("it names no recording")
            check_inside(wav)
            check_inside(relative)
            rate, seconds = audio_info(self.root / relative)
        except UserError as error:
            absent = isinstance(wav, str) and str(error).endswith("no such audio file")
            self._notes.add("no such recording, its words are kept" if absent else f"no recording: {error}", place)
            return {}
        if seconds <= 0:
            self._notes.add("its recording holds no samples", place)
            return {}
        return {"audio": relative, "sample_rate": rate, "seconds": seconds}

    def _dialogue(
        self,
        path: Path,
        stem: str,
        place: str,
        topic: str | None,
        turns: Sequence[Turn],
        speakers: dict[str, Speaker],
        traits: Mapping[str, str],
    ) -> Dialogue:
        subject = words_of(topic)
        scenario = self.scenario
        if scenario == "auto":
            folders = [part.lower() for part in path.relative_to(self.root.parent).parts]
            scenario = "music" if "music" in folders or path.stem == "music" else "emotion"
            scenario = "audio" if "audio" in folders or path.stem == "audio" else scenario
        scene = None
        if scenario in ("audio", "music") and subject is not None:
            scene = Scene(subject, "loop" if scenario == "music" else "under")
        return Dialogue(
            id=self._ids.take(f"{self.name}-{stem}", place),
            source=self.name,
            kind=self.kind,
            scenario=scenario,
            split=split_by(self.split, self.name, subject or stem),
            turns=tuple(turns),
            speakers=speakers,
            scene=scene,
            topic=subject,
            attributes=self._attributes(path, turns, traits),
        )

    def _attributes(self, path: Path, turns: Sequence[Turn], traits: Mapping[str, str]) -> dict[str, str]:
        """How the last user turn was spoken, by our labels where there are any, and the part of the benchmark."""
        style = next((turn.style for turn in reversed(turns) if turn.speaker == "A"), Style())
        labels = {name: getattr(style, name, None) or word for name, word in traits.items()}
        below = path.relative_to(self.root).with_suffix("").parts
        named = len(below) > 1 or not (below[0].isdigit() or below[0].startswith(SPOKEN))
        found = labels | {"subset": below[0] if named else self.root.resolve().name}
        kept = {name: (words_of(value) or "")[:100] for name, value in found.items()}
        return {name: value for name, value in kept.items() if value and value.isprintable()}


class _Skip(UserError):
    """A dialogue that is left out; the message says why."""


def _entries(path: Path, value: Any) -> Iterator[tuple[str, str | None, Mapping[str, Any]]]:
    """(place, topic, dialogue) of a script file. Raises UserError where it is no file of scripts."""
    if isinstance(value, dict) and not _is_script(value):
        groups: list[tuple[str | None, Any]] = list(value.items())
    else:
        groups = [(None, value)]
    for topic, group in groups:
        members = group if isinstance(group, list) else [group]
        for number, raw in enumerate(members):
            where = f"entry {number}" if topic is None else f"topic {topic[:60]!r} entry {number}"
            if not isinstance(raw, dict):
                raise UserError(f"{path}: {where} is not a script: expected an object, got {type(raw).__name__}")
            own = raw.get("aspect_list")
            yield f"{path}: {where}", own if isinstance(own, str) else topic, raw


def _is_script(value: Mapping[str, Any]) -> bool:
    return any(key in value for key in ("history_turns", "history turns", "current_turn", "current_turn_style_1"))


def _parse(raw: Mapping[str, Any]) -> tuple[list[_Said], list[tuple[_Said, _Said]]]:
    """(history, [(current turn, reply) of each style]). Raises UserError with what is wrong."""
    history = raw.get("history_turns", raw.get("history turns"))
    if not isinstance(history, list):
        raise UserError("it has no list 'history_turns'")
    before = [_said(text, f"history turn {number}") for number, text in enumerate(history)]
    versions = []
    for number in range(1, 10):
        style, response = raw.get(f"current_turn_style_{number}"), raw.get(f"response_of_current_style_{number}")
        if style is None and response is None:
            break
        if not isinstance(style, str):
            raise UserError(f"current_turn_style_{number} is no text")
        if style.lstrip().startswith("("):
            current = _said(raw.get("current_turn"), "current_turn")
            current = _Said(current.speaker, _attributes(style), current.words)
        else:
            current = _said(style, f"current_turn_style_{number}")
        reply = _said(response, f"response_of_current_style_{number}")
        if reply.speaker == current.speaker:
            raise UserError(f"response_of_current_style_{number} is said by the speaker of the current turn")
        versions.append((current, reply))
    if not versions:
        raise UserError("it has no 'current_turn_style_1' with its response")
    return before, versions


def _said(text: Any, what: str) -> _Said:
    match = _TURN.fullmatch(text[:4000]) if isinstance(text, str) else None
    words = _said_words(match[3]) if match is not None else None
    if match is None or words is None:
        raise UserError(f"{what} is not 'A (attributes): words'")
    return _Said(match[1], _attributes(match[2] or ""), words)


def _said_words(text: Any) -> str | None:
    return words_of(_LOOSE.sub(r"\1", _MARKS.sub(" ", text))) if isinstance(text, str) else None


def _attributes(text: str) -> tuple[str, ...]:
    return tuple(part.strip().lower()[:40] for part in text.strip("() ").split(",") if part.strip())


def _all(history: Sequence[_Said], versions: Sequence[tuple[_Said, _Said]]) -> Iterator[_Said]:
    yield from history
    for current, reply in versions:
        yield current
        yield reply


def _fields(styles: Sequence[tuple[str, ...]]) -> dict[int, str]:
    """What each place of a file's styles is: gender, emotion, speed, pitch, volume, age or fidelity; or not there."""
    fields = {0: "gender", 1: "emotion"}
    for place in (2, 3):
        words = {style[place] for style in styles if len(style) > place}
        if any(word.isdigit() for word in words):
            fields[place] = "age"
        elif words & {"loud", "quiet"}:
            fields[place] = "volume"
        elif words & {"good", "bad", "poor"}:
            fields[place] = "fidelity"
        elif place == 2 and words & {"slow", "fast"}:
            fields[place] = "speed"
        elif words & {"high"}:
            fields[place] = "pitch"
    return fields


def _gender(attributes: Sequence[str]) -> str | None:
    return attributes[0] if attributes and attributes[0] in _GENDERS else None


def _identity(*parts: Any) -> str:
    """An id of folders, names and numbers."""
    flat = [str(inner) for part in parts for inner in (part if isinstance(part, tuple) else (part,))]
    return words_of("-".join(flat)) or "unnamed"
