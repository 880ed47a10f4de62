"""StyleTalk (Lin, Chiang and Lee 2024, arXiv 2402.12786) and tables of its shape: one row a dialogue.

train.csv, eval.csv     diag_id,context,curr_audio_id,res_audio_id,curr_text,res_text,
                        curr_emotion,curr_speed,curr_volume,res_emotion,res_speed,res_volume
                        context: "A : Words. B : Words. A : Words."; curr_text: "B: Words."; res_text: "Words."
<curr_audio_id>         recordings of the current turn and of the reply; the context has none
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omnichat.audio.io import audio_info
from omnichat.data.corpus import check_inside
from omnichat.data.labels import LabelMaps, check_label_maps, style_of
from omnichat.data.readers.base import Issues, Reader, UniqueIds, varied, words_of
from omnichat.data.tables import iterate_csv
from omnichat.schema import KINDS, SCENARIOS, SPLITS, Dialogue, Speaker, Style, Turn
from omnichat.utils.errors import UserError, one_of

COLUMNS: dict[str, str | None] = {
    "id": "diag_id",
    "context": "context",
    "current": "curr_text",
    "response": "res_text",
    "current_audio": "curr_audio_id",
    "response_audio": "res_audio_id",
    "current_emotion": "curr_emotion",
    "current_speed": "curr_speed",
    "current_pitch": None,
    "response_emotion": "res_emotion",
    "response_speed": "res_speed",
    "response_pitch": None,
}
NEEDED = ("id", "context", "current", "response")
FILES: dict[str, str | None] = {"train": "train.csv", "dev": None, "test": "eval.csv"}
LABELS: dict[str, dict[str, str | None]] = {
    "emotion": {"friendly": "happy", "hopeful": "happy", "unfriendly": "angry", "shouting": "angry", "whispering": None}
}
_SPACED = re.compile(r"(?:^|\s)([AB]) : ")  # as it was published
_TIGHT = re.compile(r"(?:^|\s)([AB])\s*:\s+")
_HEAD = re.compile(r"\s*([AB])\s*:\s*")
_TOPIC = re.compile(r"[_-]?\d+$")  # "health_306" is of the topic health


class StyleTalk(Reader):
    """Reader of such tables.

    The speaker of the current turn is A, the user, whatever letter the table gives it; the other one, whose reply is
    the response, is B. Rows of one id with the same context and current words, but of different styles, are variants.
    The context has no recordings, so `need_audio=none` prepares it with those that there are. The published volume
    labels have no counterpart in the schema; the published emotions are speaking styles, and `labels` says what each
    is taken for.

    Args:
        path: the folder with the tables.
        name, licence, kind, scenario: of the corpus.
        files: split -> its table below the folder, null where there is none.
        columns: what is read -> the table's column; null where there is none. Only id, context, current and response
            must be there.
        labels: {pitch | speed | emotion: {word of the table: label, or null to leave it open}}.
        audio: folder below `path` that the audio columns are relative to.
    """

    def __init__(
        self,
        path: str,
        name: str = "styletalk",
        licence: str = "MIT",
        kind: str = "synthetic",
        scenario: str = "emotion",
        files: Mapping[str, str | None] = FILES,
        columns: Mapping[str, str | None] = COLUMNS,
        labels: Mapping[str, Mapping[str, str | None]] = LABELS,
        audio: str = ".",
    ) -> None:
        super().__init__(path)
        for key, value, choices in (("kind", kind, KINDS), ("scenario", scenario, SCENARIOS)):
            if value not in choices:
                raise one_of(f"source.{key}", value, choices)
        for key, given, choices in (("files", files, SPLITS), ("columns", columns, tuple(COLUMNS))):
            for entry in given:
                if entry not in choices:
                    raise one_of(f"source.{key}", entry, choices)
        self.columns = {key: columns.get(key) for key in COLUMNS}
        if absent := [key for key in NEEDED if not self.columns[key]]:
            raise UserError(f"source.columns.{absent[0]} must name a column")
        check_label_maps("source.labels", labels)
        self.maps: LabelMaps = labels
        self.name, self.licence, self.kind, self.scenario = name, licence, kind, scenario
        self.tables = [(split, self.root / file) for split in SPLITS if (file := files.get(split)) is not None]
        self.tables = [(split, table) for split, table in self.tables if table.is_file()]
        if not self.tables:
            named = ", ".join(str(file) for file in files.values() if file is not None)
            raise UserError(f"{self.root}: holds none of the tables of source.files ({named})")
        self.audio = "" if audio in ("", ".") else f"{audio.rstrip('/')}/"

    def dialogues(self) -> Iterator[Dialogue]:
        """Yield the dialogues in the order of the splits' tables and of their rows."""
        self.issues = []
        notes, ids = Issues(), UniqueIds()
        heard: list[tuple[tuple[str, ...], Style]] = []
        for split, table in self.tables:
            heard += [(_key(split, row), self._style(row, "current")[0]) for _, row in self._rows(table)]
        several = varied(heard)
        names = {key: f"{self.name}-group{n}" for n, key in enumerate(dict.fromkeys(key for key, _ in heard))}
        number: Counter[str] = Counter()
        for split, table in self.tables:
            for place, row in self._rows(table):
                key = _key(split, row)
                group = names[key] if (key, self._style(row, "current")[0]) in several else None
                identity, turns = words_of(row["id"]), self._turns(row, place, notes, group)
                if identity is None or turns is None:
                    notes.add("skipped, it has no id" if identity is None else "skipped, a turn has no words", place)
                    continue
                yield Dialogue(
                    id=ids.take(f"{self.name}-{identity}-{number[identity]}", place),
                    source=self.name,
                    kind=self.kind,
                    scenario=self.scenario,
                    split=split,
                    turns=turns,
                    speakers={role: Speaker(f"{self.name}-{role}") for role in "AB"},
                    topic=_TOPIC.sub("", identity) or None,
                )
                number[identity] += 1
        self.issues += notes.lines()

    def _rows(self, table: Path) -> Iterator[tuple[str, dict[str, str]]]:
        """(FILE:LINE, {what: text}) of a table; a column that it lacks or that is not named has empty cells."""
        wanted = {key: column for key, column in self.columns.items() if column is not None}
        for place, row in iterate_csv(table, [str(self.columns[key]) for key in NEEDED]):
            yield place, {key: row.get(wanted.get(key, ""), "") for key in COLUMNS}

    def _turns(self, row: Mapping[str, str], place: str, notes: Issues, group: str | None) -> tuple[Turn, ...] | None:
        """The turns of a row; None where one has no words."""
        head = _HEAD.match(row["current"])
        user = head[1] if head is not None else "B"
        said: list[tuple[str, Any]] = []
        pattern = _SPACED if _SPACED.search(row["context"]) else _TIGHT
        before, *parts = pattern.split(row["context"])
        if before.strip():
            notes.add("words of the context stand before the first speaker, left out", place)
        said += [("A" if letter == user else "B", words) for letter, words in zip(parts[::2], parts[1::2], strict=True)]
        said += [("A", _HEAD.sub("", row["current"], count=1)), ("B", _HEAD.sub("", row["response"], count=1))]
        turns = []
        for index, (role, text) in enumerate(said):
            if (words := words_of(text)) is None:
                return None
            which = {len(said) - 2: "current", len(said) - 1: "response"}.get(index)
            if which is None:
                turns.append(Turn(role, words))
                continue
            style, unknown = self._style(row, which)
            for word in unknown:
                notes.add(f"{word} is no label, left open", place)
            sound = self._recording(row[f"{which}_audio"], place, notes)
            turns.append(Turn(role, words, style, variant_of=group if which == "current" else None, **sound))
        return tuple(turns)

    def _style(self, row: Mapping[str, str], which: str) -> tuple[Style, list[str]]:
        return style_of({key: row[f"{which}_{key}"] for key in ("pitch", "speed", "emotion")}, self.maps)

    def _recording(self, name: str, place: str, notes: Issues) -> dict[str, Any]:
        """The fields of a turn that tell of its recording; {} where there is none, which is counted."""
        if not name.strip():
            return {}
        relative = f"{self.audio}{name.strip()}"
        try:
            check_inside(relative)
            rate, seconds = audio_info(self.root / relative)
        except UserError as error:
            absent = str(error).endswith("no such audio file")
            notes.add("no such recording, its words are kept" if absent else f"no recording: {error}", place)
            return {}
        if seconds <= 0:
            notes.add("its recording holds no samples", place)
            return {}
        return {"audio": relative, "sample_rate": rate, "seconds": seconds}


def _key(split: str, row: Mapping[str, str]) -> tuple[str, ...]:
    return split, row["id"], row["context"], row["current"]
