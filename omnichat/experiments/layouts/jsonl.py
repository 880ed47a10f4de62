"""Replies of any system as a JSONL file, by the names of its columns."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from omnichat.data.labels import LabelMaps, check_label_maps, style_of
from omnichat.evaluation.predictions import INPUTS, Heard, Line, Prediction, Reply, read_predictions
from omnichat.experiments.layouts.base import Layout
from omnichat.experiments.runs import Row, setting
from omnichat.schema import KINDS, SCENARIOS, SPLITS, Scene, Style
from omnichat.text.style_format import parse_reply
from omnichat.utils.errors import UserError, one_of

STYLED = ("heard", "reference", "hypothesis")
COLUMNS = (
    *("id", "reference", "hypothesis", "history", "heard", "source", "scenario", "split", "variant_of"),
    *("scene", "keywords"),
    *(f"{who}_{label}" for who in STYLED for label in ("emotion", "pitch", "speed")),
)


class JsonlReplies(Layout):
    """One reply a line, whatever its fields are called; `a.b` is the field b of the object a.

    `history` is a list of texts in which the speakers take turns, or of objects {"speaker" or "role": a name of
    `speakers`, "text" or "content": words}. Where `heard` names no column, the last line of the history is the turn
    that is answered. An id "x#5" says that the reply is turn 5 of dialogue x; other ids are dialogues' own, and the
    reply comes after the history. A hypothesis without style labels counts as one whose style could not be parsed.

    With `references`, a file of ours says everything but the reply, and `id` and `hypothesis` are all that is read; an
    id is then the file's own (`x#5`), or that of a dialogue of which it holds one reply.

    Args:
        columns: our name (COLUMNS) -> the file's; names left out, or null, are not read.
        attributes: attribute -> column, for scores per attribute.
        labels: words outside our labels: {emotion | pitch | speed: {word: label, or null to leave it open}}.
        speakers: A and B -> names of the user and of the system in the history, in lower case.
        references: a predictions file of ours; null = the file states its own references.
        style_tag: the hypothesis begins with a style tag such as ours, "[normal, fast, happy] ...", which is cut off.
        source, scenario, split, kind, input: what they are where no column says it.
    """

    def __init__(
        self,
        columns: Mapping[str, str | None],
        attributes: Mapping[str, str],
        labels: Mapping[str, Mapping[str, str | None]],
        speakers: Mapping[str, Sequence[str]],
        references: str | None = None,
        style_tag: bool = False,
        source: str = "outside",
        scenario: str = "daily",
        split: str = "test",
        kind: str = "real",
        input: str = "speech",
    ) -> None:
        super().__init__()
        for name in columns:
            if name not in COLUMNS:
                raise one_of("layout.columns", name, COLUMNS)
        needed = ("id", "hypothesis") if references is not None else ("id", "hypothesis", "reference")
        for name in needed:
            if columns.get(name) is None:
                raise UserError(f"layout.columns.{name} must name a column of the file")
        self.labels: LabelMaps = labels
        check_label_maps("layout.labels", self.labels)
        for name, got, choices in (("scenario", scenario, SCENARIOS), ("split", split, SPLITS), ("kind", kind, KINDS)):
            if got not in choices:
                raise one_of(f"layout.{name}", got, choices)
        if input not in INPUTS:
            raise one_of("layout.input", input, INPUTS)
        if set(speakers) != {"A", "B"}:
            raise UserError("layout.speakers must hold the names of A (the user) and of B")
        self._unknown = Counter[str]()
        self.columns = {name: column for name, column in columns.items() if column is not None}
        self.attributes, self.references, self.style_tag = dict(attributes), references, style_tag
        self.roles = {name.lower(): role for role, names in speakers.items() for name in (role, *names)}
        self.defaults = {"source": source, "scenario": scenario, "split": split, "kind": kind, "input": input}

    def read(self, path: Path) -> dict[str, tuple[Prediction, ...]]:
        """Return the file's replies; see `Layout.read`."""
        self._unknown = Counter[str]()
        parse = self._prediction
        if self.references is not None:
            parse = partial(self._answer, known=_References(Path(self.references)))
        found = read_predictions(path, parse)
        if self._unknown:
            told = ", ".join(f"{word} ({count})" for word, count in self._unknown.most_common(5))
            self.notes.append(f"{path}: style words that are no labels were left open: {told}")
        return {"": found}

    def _answer(self, row: Row, known: _References) -> Prediction:
        hypothesis, raw = self._hypothesis(row)
        return replace(known.of(self._text(row, "id")), hypothesis=hypothesis, raw=raw)

    def _prediction(self, row: Row) -> Prediction:
        lines = self._history(row)
        heard = self._optional(row, "heard")
        if heard is None and lines:
            heard, lines = lines[-1].text, lines[:-1]
        name = self._text(row, "id")
        dialogue, _, number = name.rpartition("#")
        if not dialogue or not (number.isascii() and number.isdigit()):
            dialogue, number = name, str(len(lines) + 1)
        scene = None
        if (caption := self._optional(row, "scene")) is not None:
            scene = Scene(caption, keywords=self._keywords(row))
        hypothesis, raw = self._hypothesis(row)
        fields: dict[str, Any] = {key: self._optional(row, key) or value for key, value in self.defaults.items()}
        attributes = {key: _field(row, column) for key, column in self.attributes.items()}
        return Prediction(
            id=f"{dialogue}#{int(number)}",
            dialogue=dialogue,
            turn=int(number),
            **fields,
            history=tuple(lines),
            heard=Heard(heard or "", self._style(row, "heard"), scene),
            variant_of=self._optional(row, "variant_of"),
            reference=Reply(self._text(row, "reference"), self._style(row, "reference")),
            hypothesis=hypothesis,
            raw=raw,
            attributes={key: str(value) for key, value in attributes.items() if value is not None},
        )

    def _hypothesis(self, row: Row) -> tuple[Reply, str]:
        raw = self._text(row, "hypothesis")
        if self.style_tag:
            style, words = parse_reply(raw)
            return Reply(words, style), raw
        return Reply(raw, self._style(row, "hypothesis") or None), raw

    def _history(self, row: Row) -> list[Line]:
        value = _field(row, self.columns["history"]) if "history" in self.columns else None
        if value is None:
            return []
        if not isinstance(value, list):
            raise UserError(f"{self.columns['history']} (history) must be a list, got {type(value).__name__}")
        # before a turn that is answered comes the other's; where the history ends with it, it is the user's
        last = "B" if "heard" in self.columns else "A"
        lines = []
        for number, said in enumerate(value):
            if isinstance(said, str):
                speaker = last if (len(value) - number) % 2 else "AB"[last == "A"]
                lines.append(Line(speaker, said))
                continue
            where = f"{self.columns['history']}[{number}]"
            if not isinstance(said, dict):
                raise UserError(f"{where} must be a text or an object, got {type(said).__name__}")
            name, words = said.get("speaker", said.get("role")), said.get("text", said.get("content"))
            if not isinstance(words, str):
                raise UserError(f"{where} has no text or content")
            if not isinstance(name, str) or name.lower() not in self.roles:
                raise one_of(f"{where} speaker", name, self.roles)
            lines.append(Line(self.roles[name.lower()], words))
        return lines

    def _style(self, row: Row, who: str) -> Style:
        words = {label: self._optional(row, f"{who}_{label}") for label in ("emotion", "pitch", "speed")}
        style, unknown = style_of({label: word for label, word in words.items() if word is not None}, self.labels)
        self._unknown.update(unknown)
        return style

    def _keywords(self, row: Row) -> tuple[str, ...]:
        value = _field(row, self.columns["keywords"]) if "keywords" in self.columns else None
        if value is None:
            return ()
        if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
            raise UserError(f"{self.columns['keywords']} (keywords) must be a list of texts")
        return tuple(value)

    def _text(self, row: Row, name: str) -> str:
        value = self._optional(row, name, numbers=name == "id")
        if value is None or (name == "id" and not value.strip()):
            said = " (an empty text where the system said nothing)" if name == "hypothesis" else ""
            column = self.columns[name]
            raise UserError(f"{column}: a text is missing there{said}; it was to be the {name} (layout.columns)")
        return value

    def _optional(self, row: Row, name: str, numbers: bool = False) -> str | None:
        if name not in self.columns:
            return None
        value = _field(row, self.columns[name])
        if numbers and isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        if value is not None and not isinstance(value, str):
            raise UserError(f"{self.columns[name]} ({name}) must be a text, got {type(value).__name__}")
        return value


class _References:
    """A predictions file of ours, by reply and by dialogue."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.by_name: dict[str, list[Prediction]] = defaultdict(list)
        for prediction in read_predictions(path):
            for name in (prediction.key, prediction.id, prediction.dialogue):
                self.by_name[name].append(prediction)

    def of(self, name: str) -> Prediction:
        found = self.by_name.get(name, [])
        if len(found) == 1:
            return found[0]
        if found:
            raise UserError(f"id {name!r} may be any of {len(found)} replies in {self.path}: {found[0].key}, ...")
        raise UserError(f"id {name!r} is not in layout.references={self.path}")


def _field(row: Row, column: str) -> Any:
    """The value of a column, or of a field inside an object by its dotted name; None where it is not there."""
    return row[column] if column in row else setting(row, column)
