"""Any data set of dialogues by a map of its columns: Parquet, JSON lines, JSON, CSV, or saved by `datasets`.

Three shapes. "dialogue", a row is a dialogue: `turns` is a column of objects, whose fields the other names name, or
(turns: null) the columns named are lists side by side. "turn", a row is a turn: rows of one `dialogue` belong
together, in the order of `order` or of the file. "exchange", a row is a question and its answer, as in spoken question
answering: `text`, `audio` and the labels are the question's, `answer` is the other's turn.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from omnichat.data.audit import decode_recording
from omnichat.data.hub import download
from omnichat.data.labels import LabelMaps, check_label_maps, check_split_rule, split_by, style_of
from omnichat.data.readers.base import Issues, Reader, UniqueIds, words_of
from omnichat.data.sound_cells import sound_of
from omnichat.data.table_files import SPLIT_WORDS, find_tables
from omnichat.data.tables import Table, open_table
from omnichat.schema import KINDS, SCENARIOS, SPLITS, Dialogue, Scene, Speaker, Turn
from omnichat.utils.errors import UserError, one_of

SHAPES = ("dialogue", "turn", "exchange")
NEEDED = {"dialogue": ("text",), "turn": ("text", "dialogue"), "exchange": ("text", "answer")}
COLUMNS: dict[str, str | None] = {
    "dialogue": None,
    "split": None,
    "topic": None,
    "caption": None,
    "turns": "turns",
    "order": None,
    "text": "text",
    "speaker": None,
    "emotion": None,
    "pitch": None,
    "speed": None,
    "audio": None,
    "answer": None,
    "answer_audio": None,
}
_OF_TURNS = ("text", "speaker", "emotion", "pitch", "speed", "audio")
_OF_ANSWERS = ("answer", "answer_audio")
_OF_ROWS = ("dialogue", "split", "topic", "caption", "order")
HUB = "hub:"
_CELL = re.compile(r"(.+)#row=(\d{1,12})&item=(\d{1,6})")


@dataclass(frozen=True, slots=True)
class _Raw:
    """One turn before roles are given: who, and the turn as if A had said it."""

    speaker: str | None
    turn: Turn
    order: float = 0.0


@dataclass(slots=True)
class _Group:
    """One dialogue as it is gathered: its place, what its row says of it, and its turns."""

    place: str
    split: str | None
    topic: str | None
    caption: str | None
    turns: list[_Raw]


class HuggingFace(Reader):
    """Reader of such data sets; nothing of a data set is run.

    Roles: `speakers` names who is A, the user, and who is B. Where it is null, who speaks first is A; without a column
    of speakers the turns alternate. Recordings are bytes in the table (as `datasets` stores Audio) or paths below
    `audio`. Labels are words, or numbers where the file names its class labels.

    Args:
        path: a folder with tables, one that `datasets` saved, or hub:ORGANISATION/NAME.
        revision: of a data set of the hub; null = its newest.
        name, licence, kind, scenario, language: of the corpus.
        shape: dialogue, turn or exchange; see the module.
        columns: what is read -> its column (or field of a turn); null where there is none. `text` must be there, and
            `turns` or lists side by side, or in the shape "turn" `dialogue`, or in the shape "exchange" `answer`, of
            which the first is taken where a cell lists several.
        files: split -> pattern of its tables below the folder; null = all tables there, split by their names.
        splits: word -> split: in the column of splits, in the files' names, of saved folders.
        split: of dialogues that no word tells: train, dev, test, or hash (80/10/10 by the dialogue).
        speakers: {A: [names], B: [names]}; null = in the order of speaking.
        ignore: speakers whose turns are left out.
        labels: {pitch | speed | emotion: {word or number: label, or null to leave it open}}; null = synonyms.
        audio: folder below `path` that paths of recordings are relative to.
    """

    def __init__(
        self,
        path: str,
        revision: str | None = None,
        name: str = "dialogues",
        licence: str = "not stated",
        kind: str = "real",
        scenario: str = "daily",
        language: str = "en",
        shape: str = "dialogue",
        columns: Mapping[str, str | None] = COLUMNS,
        files: Mapping[str, str | None] | None = None,
        splits: Mapping[str, str] = SPLIT_WORDS,
        split: str = "hash",
        speakers: Mapping[str, list[str]] | None = None,
        ignore: Sequence[str] = ("system",),
        labels: Mapping[str, Mapping[str, str | None]] | None = None,
        audio: str = ".",
    ) -> None:
        super().__init__(str(download(path.removeprefix(HUB), revision)) if path.startswith(HUB) else path)
        files, speakers, labels = files or {}, speakers or {}, labels or {}
        for key, value, choices in (
            ("kind", kind, KINDS),
            ("scenario", scenario, SCENARIOS),
            ("shape", shape, SHAPES),
        ):
            if value not in choices:
                raise one_of(f"source.{key}", value, choices)
        known: list[tuple[str, Mapping[str, Any], Sequence[str]]] = [
            ("columns", columns, tuple(COLUMNS)),
            ("files", files, SPLITS),
            ("speakers", speakers, ("A", "B")),
        ]
        for key, given, names in known:
            for entry in given:
                if entry not in names:
                    raise one_of(f"source.{key}", entry, names)
        for word, target in splits.items():
            if target not in SPLITS:
                raise one_of(f"source.splits.{word}", target, SPLITS)
        check_split_rule("source.split", split, SPLITS)
        check_label_maps("source.labels", labels)
        self.maps: LabelMaps = labels
        self.columns = {key: columns.get(key) for key in COLUMNS}
        for key in NEEDED[shape]:
            if self.columns[key] is None:
                raise UserError(f"source.columns.{key} must name a column where source.shape={shape}")
        for key in _OF_ANSWERS:
            if shape != "exchange" and self.columns[key] is not None:
                raise UserError(f"source.columns.{key} belongs to source.shape=exchange, but it is {shape}")
        if shape != "dialogue":
            self.columns["turns"] = None
        self.name, self.licence, self.kind, self.scenario = name, licence, kind, scenario
        self.language, self.shape, self.split = language, shape, split
        self.splits = {str(word).lower(): target for word, target in splits.items()}
        self.roles = {str(who).lower(): role for role, names in speakers.items() for who in names}
        self.ignore = {str(who).lower() for who in ignore}
        self.audio = "" if audio in ("", ".") else f"{audio.rstrip('/')}/"
        self.tables = find_tables(self.root, files, self.splits)
        self._open: Table | None = None

    def dialogues(self) -> Iterator[Dialogue]:
        """Yield the dialogues in the order of the splits, of the files' names and of their rows."""
        self.issues = []
        self._notes, self._ids = Issues(), UniqueIds()
        groups = self._by_dialogue() if self.shape == "turn" else self._by_row()
        for identity, group in groups:
            if (dialogue := self._dialogue(identity, group)) is not None:
                yield dialogue
        self.issues += self._notes.lines()

    def read(self, turn: Turn) -> tuple[Tensor, int]:
        """Decode the turn's bytes out of its table, or read its file."""
        match = _CELL.fullmatch(turn.audio or "")
        if match is None:
            return super().read(turn)
        path = self.root / match[1]
        if not any(path == table for _, table in self.tables):
            raise UserError(f"{self.root}: {turn.audio!r} names no recording of this corpus")
        if self._open is None or self._open.path != path:
            self._open = open_table(path)
        answers = self.shape == "exchange" and int(match[3]) == 1
        holder = str(self.columns["turns"] or self.columns["answer_audio" if answers else "audio"])
        _, place, cells = self._open.row(int(match[2]), [holder])
        item = self._items(cells.get(holder), int(match[3]))
        value = (
            item.get(self.columns["audio"]) if self.columns["turns"] is not None and isinstance(item, dict) else item
        )
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes):
            raise UserError(f"{place}: holds no recording")
        return decode_recording(content, place)

    @staticmethod
    def _items(cell: Any, number: int) -> Any:
        cell = _listed(cell)
        return (cell[number] if number < len(cell) else None) if isinstance(cell, list) else cell

    def _wanted(self, table: Table) -> list[str]:
        """The columns to read of a table. Raises UserError where one that is named is not there."""
        keys = _OF_ROWS + (("turns",) if self.columns["turns"] is not None else _OF_TURNS + _OF_ANSWERS)
        names = [(key, name) for key in keys if (name := self.columns[key]) is not None]
        present = table.columns()
        for key, name in names:
            if name not in present and present:
                raise one_of(f"{table.path}: source.columns.{key}", name, present)
        return [name for _, name in names]

    def _by_row(self) -> Iterator[tuple[str | None, _Group]]:
        for split, path in self.tables:
            table = open_table(path)
            for number, place, cells in table.rows(self._wanted(table)):
                group = self._group(place, split, cells)
                for item, fields in enumerate(self._fields(table, cells, place)):
                    if (raw := self._raw(table, number, item, fields, f"{place} turn {item}")) is not None:
                        group.turns.append(raw)
                yield self._identity(cells), group

    def _by_dialogue(self) -> Iterator[tuple[str | None, _Group]]:
        groups: dict[tuple[str | None, str], _Group] = {}
        order = self.columns["order"]
        for split, path in self.tables:
            table = open_table(path)
            for number, place, cells in table.rows(self._wanted(table)):
                identity = self._identity(cells)
                if identity is None:
                    self._notes.add("skipped, the row names no dialogue", place)
                    continue
                fields = {key: cells.get(name) for key in _OF_TURNS if (name := self.columns[key]) is not None}
                raw = self._raw(table, number, 0, self._named(table, fields), place)
                at = float(number) if order is None else _number(cells.get(order))
                if raw is None or at is None:
                    if raw is not None:
                        self._notes.add(f"skipped, the turn has no number in {order!r}", place)
                    continue
                group = groups.setdefault((split, identity), self._group(place, split, cells))
                group.turns.append(replace(raw, order=at))
        for (_, identity), group in groups.items():
            group.turns.sort(key=lambda raw: raw.order)
            yield identity, group

    def _identity(self, cells: Mapping[str, Any]) -> str | None:
        value = cells.get(self.columns["dialogue"] or "")
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else words_of(value)

    def _group(self, place: str, split: str | None, cells: Mapping[str, Any]) -> _Group:
        said = words_of(cells.get(self.columns["split"] or ""))
        if said is not None:
            split = self.splits.get(said.lower())
            if split is None:
                self._notes.add(f"{said[:40]!r} is none of source.splits", place)
        topic, caption = (words_of(cells.get(self.columns[key] or "")) for key in ("topic", "caption"))
        return _Group(place, split, topic, caption, [])

    def _fields(self, table: Table, cells: Mapping[str, Any], place: str) -> Iterator[dict[str, Any]]:
        """The turns of a row as {what: value}."""
        turns = self.columns["turns"]
        if self.shape == "exchange":
            yield from self._exchange(table, cells)
            return
        if turns is not None:
            items = _listed(cells.get(turns))
            if not isinstance(items, list):
                self._notes.add(f"skipped, {turns!r} is no list", place)
                return
            for item in items:
                if not isinstance(item, dict):
                    self._notes.add("a turn is no object, left out", place)
                    continue
                fields = {key: item.get(name) for key in _OF_TURNS if (name := self.columns[key]) is not None}
                yield self._named(table, fields)
            return
        lists = {key: cells.get(name) for key in _OF_TURNS if (name := self.columns[key]) is not None}
        texts = lists["text"]
        if not isinstance(texts, list):
            self._notes.add(f"skipped, {self.columns['text']!r} is no list", place)
            return
        for key, values in list(lists.items()):
            if not isinstance(values, list) or len(values) != len(texts):
                self._notes.add(
                    f"{self.columns[key]!r} is no list of as many entries as there are turns, left out", place
                )
                del lists[key]
        for number in range(len(texts)):
            yield self._named(table, {key: values[number] for key, values in lists.items() if isinstance(values, list)})

    def _exchange(self, table: Table, cells: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Question and answer as turns without a speaker, for they alternate."""
        asked = {key: cells.get(name) for key in _OF_TURNS if (name := self.columns[key]) is not None}
        yield self._named(table, asked | {"speaker": None})
        answers = cells.get(self.columns["answer"] or "")
        answer = next(filter(words_of, answers), None) if isinstance(answers, list) else answers
        if isinstance(answer, int | float) and not isinstance(answer, bool):
            answer = str(answer)
        yield {"text": answer, "audio": cells.get(self.columns["answer_audio"] or "")}

    def _named(self, table: Table, fields: dict[str, Any]) -> dict[str, Any]:
        """Class labels by their names in place of their numbers."""
        for key, value in fields.items():
            column, turns = self.columns[key], self.columns["turns"]
            names = table.labels.get(f"{turns}.{column}" if turns is not None else str(column))
            if names is not None and isinstance(value, int) and 0 <= value < len(names):
                fields[key] = names[value]
        return fields

    def _raw(self, table: Table, row: int, item: int, fields: Mapping[str, Any], place: str) -> _Raw | None:
        """A turn; None where it is left out."""
        speaker = fields.get("speaker")
        who = str(speaker)[:80] if isinstance(speaker, str | int) else None
        if who is not None and who.lower() in self.ignore:
            return None
        words = words_of(fields.get("text"))
        if words is None:
            self._notes.add("a turn has no words, left out", place)
            return None
        style, unknown = style_of({key: fields.get(key) for key in ("pitch", "speed", "emotion")}, self.maps)
        for word in unknown:
            self._notes.add(f"{word} is no label, left open", place)
        cell = f"{table.path.relative_to(self.root).as_posix()}#row={row}&item={item}"
        try:
            sound = sound_of(fields.get("audio"), self.root, self.audio, cell, place)
        except UserError as error:
            self._notes.add(str(error).removeprefix(f"{place}: "), place)
            sound = {}
        return _Raw(who, Turn("A", words, style, **sound))

    def _dialogue(self, identity: str | None, group: _Group) -> Dialogue | None:
        roles = dict(self.roles)
        turns = []
        for number, raw in enumerate(group.turns):
            who = f"\x1f{number % 2}" if raw.speaker is None else raw.speaker.lower()
            if who not in roles and not self.roles and len(roles) < 2:
                roles[who] = "AB"[len(roles)]
            if who not in roles:
                expected = "neither in source.speakers nor in source.ignore" if self.roles else "a third speaker"
                self._notes.add(f"skipped, {str(raw.speaker)[:40]!r} is {expected}", group.place)
                return None
            turns.append(replace(raw.turn, speaker=roles[who]))
        if len({turn.speaker for turn in turns}) < 2:
            self._notes.add("skipped, fewer than two speakers have words", group.place)
            return None
        name = identity or self._place_name(group.place)
        scene = None if group.caption is None else Scene(group.caption, "loop" if self.scenario == "music" else "under")
        return Dialogue(
            id=self._ids.take(f"{self.name}-{name}", group.place),
            source=self.name,
            kind=self.kind,
            scenario=self.scenario,
            split=group.split or split_by(self.split, self.name, name),
            turns=tuple(turns),
            speakers={role: Speaker(f"{self.name}-{role}") for role in "AB"},
            scene=scene,
            language=self.language,
            topic=group.topic,
        )

    def _place_name(self, place: str) -> str:
        """A name for a dialogue without an id: where it stands below the folder."""
        return re.sub(r"[^\w.]+", "-", place.removeprefix(f"{self.root}/"))


def _listed(cell: Any) -> Any:
    """A list of objects, also where a table keeps it as an object of lists, as `datasets` may."""
    if isinstance(cell, dict) and cell and all(isinstance(values, list) for values in cell.values()):
        length = min(len(values) for values in cell.values())
        return [{key: values[number] for key, values in cell.items()} for number in range(length)]
    return cell


def _number(value: Any) -> float | None:
    """A turn's place in its dialogue."""
    try:
        found = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        return None
    return found if found is not None and found == found and abs(found) < 1e15 else None
