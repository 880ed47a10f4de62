"""The predictions file: one object a reply, complete enough that every metric can be computed again without a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omnichat.schema import KINDS, SCENARIOS, SPEAKERS, SPLITS, Dialogue, Scene, Style, check_attributes
from omnichat.text.style_format import parse_reply
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.files import iterate_jsonl, write_jsonl_atomic

INPUTS = ("speech", "text", "asr", "speech_text")
NO_STYLE = Style()  # a turn of a corpus that labels no style
_HEAD = ("id", "dialogue", "turn", "source", "kind", "scenario", "split", "stand_in")
_REQUIRED = (*_HEAD, "history", "heard", "variant_of", "reference", "hypothesis", "raw", "input")
_OPTIONAL = ("audio_file", "attention", "experts", "window_sec", "attributes")


@dataclass(frozen=True, slots=True)
class Line:
    """One turn of the history: who spoke ("A" or "B") and the words."""

    speaker: str
    text: str


@dataclass(frozen=True, slots=True)
class Heard:
    """The user's turn that is answered: its words, how it was spoken, and the background sound, if any."""

    text: str
    style: Style = NO_STYLE
    scene: Scene | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply's words and style. A generated reply whose style could not be parsed has style None."""

    text: str
    style: Style | None = NO_STYLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One reply of a model beside its reference.

    `id` is `<dialogue>#<turn>`, `turn` the index of the reply in its dialogue. `raw` is the generated text as it came.
    `attention` [windows][experts] is the attention mass that each expert got in each window of the heard turn
    (`window_sec` seconds long each); it and `audio_file` (relative to the run folder) are kept on a sample of rows.
    `attributes` are the dialogue's labels outside the schema (name -> text); scores are told apart by them.
    """

    id: str
    dialogue: str
    turn: int
    source: str
    kind: str
    scenario: str
    split: str
    history: tuple[Line, ...]
    heard: Heard
    reference: Reply
    hypothesis: Reply
    raw: str
    input: str
    stand_in: bool = False
    variant_of: str | None = None
    audio_file: str | None = None
    attention: tuple[tuple[float, ...], ...] | None = None
    experts: tuple[str, ...] | None = None
    window_sec: float | None = None
    attributes: dict[str, str] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The reply's name among those of several corpora, which may use the same dialogue ids."""
        return f"{self.source}/{self.id}"

    def __post_init__(self) -> None:
        for name, choices in (("kind", KINDS), ("scenario", SCENARIOS), ("split", SPLITS), ("input", INPUTS)):
            if getattr(self, name) not in choices:
                raise one_of(name, getattr(self, name), choices)
        if self.id != f"{self.dialogue}#{self.turn}":
            raise UserError(f"id must be {self.dialogue}#{self.turn} (dialogue#turn), got {self.id!r}")
        if self.reference.style is None:
            raise UserError("reference.style must be an object")
        check_attributes("attributes", self.attributes)
        if self.attention is not None:
            if not self.experts or self.window_sec is None or not self.window_sec > 0:
                raise UserError("a row with attention states its experts and a positive window_sec")
            if any(len(row) != len(self.experts) for row in self.attention):
                raise UserError(f"attention must hold {len(self.experts)} numbers a window, one an expert")


def prediction_of(dialogue: Dialogue, turn: int, source: str, raw: str, given: str, **kept: Any) -> Prediction:
    """A generated reply beside its reference.

    Args:
        turn: index of the reply in `dialogue`; the turn before it is the one that was heard.
        source: name of the corpus.
        raw: the generated text, style and words.
        given: what the model was given, one of INPUTS.
        kept: audio_file, attention, experts and window_sec, where they are there.
    """
    style, words = parse_reply(raw)
    heard, reference = dialogue.turns[turn - 1], dialogue.turns[turn]
    return Prediction(
        id=f"{dialogue.id}#{turn}",
        dialogue=dialogue.id,
        turn=turn,
        source=source,
        kind=dialogue.kind,
        scenario=dialogue.scenario,
        split=dialogue.split,
        stand_in=dialogue.stand_in,
        history=tuple(Line(each.speaker, each.text) for each in dialogue.turns[: turn - 1]),
        heard=Heard(heard.text, heard.style, dialogue.scene),
        variant_of=heard.variant_of,
        reference=Reply(reference.text, reference.style),
        hypothesis=Reply(words, style),
        raw=raw,
        input=given,
        attributes=dialogue.attributes,
        **kept,
    )


def prediction_to_json(prediction: Prediction) -> dict[str, Any]:
    """Return the JSON object of one line of a predictions file."""

    def style(value: Style | None) -> dict[str, str] | None:
        if value is None:
            return None
        return {key: got for key in ("pitch", "speed", "emotion") if (got := getattr(value, key)) is not None}

    p = prediction
    scene = None
    if p.heard.scene is not None:
        scene = {"caption": p.heard.scene.caption, "keywords": list(p.heard.scene.keywords)}
    row: dict[str, Any] = {name: getattr(p, name) for name in _HEAD}
    row["history"] = [{"speaker": line.speaker, "text": line.text} for line in p.history]
    row["heard"] = {"text": p.heard.text, "style": style(p.heard.style), "scene": scene}
    row["variant_of"] = p.variant_of
    row["reference"] = {"text": p.reference.text, "style": style(p.reference.style)}
    row["hypothesis"] = {"text": p.hypothesis.text, "style": style(p.hypothesis.style)}
    row |= {"raw": p.raw, "input": p.input}
    if p.attributes:
        row["attributes"] = dict(p.attributes)
    if p.audio_file is not None:
        row["audio_file"] = p.audio_file
    if p.attention is not None and p.experts is not None:
        row |= {"attention": [list(w) for w in p.attention], "experts": list(p.experts), "window_sec": p.window_sec}
    return row


def prediction_from_json(value: dict[str, Any]) -> Prediction:
    """Parse one object of a predictions file. Raises UserError that names the field at fault."""
    _object("prediction", value, _REQUIRED, _OPTIONAL)
    for name in ("id", "dialogue", "source", "kind", "scenario", "split", "raw", "input"):
        _typed(name, value[name], str)
    _typed("turn", value["turn"], int)
    _typed("stand_in", value["stand_in"], bool)
    for name in ("variant_of", "audio_file"):
        if value.get(name) is not None:
            _typed(name, value[name], str)
    history = []
    for number, raw in enumerate(_typed("history", value["history"], list)):
        line = _object(f"history[{number}]", raw, ("speaker", "text"))
        if line["speaker"] not in SPEAKERS:
            raise one_of(f"history[{number}].speaker", line["speaker"], SPEAKERS)
        history.append(Line(line["speaker"], _typed(f"history[{number}].text", line["text"], str)))
    heard = _object("heard", value["heard"], ("text", "style", "scene"))
    scene = None
    if heard["scene"] is not None:
        raw = _object("heard.scene", heard["scene"], ("caption",), ("keywords",))
        keywords = _typed("heard.scene.keywords", raw.get("keywords", []), list)
        words = tuple(_typed("heard.scene.keywords", word, str) for word in keywords)
        scene = Scene(_typed("heard.scene.caption", raw["caption"], str), keywords=words)
    return Prediction(
        **{name: value[name] for name in (*_HEAD, "raw", "input", "variant_of")},
        history=tuple(history),
        heard=Heard(_typed("heard.text", heard["text"], str), _style("heard.style", heard["style"]) or Style(), scene),
        reference=_reply("reference", value["reference"]),
        hypothesis=_reply("hypothesis", value["hypothesis"]),
        audio_file=value.get("audio_file"),
        attributes=dict(_typed("attributes", value.get("attributes", {}), dict)),
        **_attention(value),
    )


def looks_like_prediction(value: dict[str, Any]) -> bool:
    """Whether an object has the fields of a predictions file, whatever they hold."""
    return all(name in value for name in _REQUIRED)


def read_predictions(
    path: Path, parse: Callable[[dict[str, Any]], Prediction] = prediction_from_json
) -> tuple[Prediction, ...]:
    """Read a predictions file, or one of another layout whose lines `parse` understands.

    Raises:
        UserError: `FILE:LINE: reason` of the first line that is not a prediction, an id twice in a source, or no line.
    """
    found: dict[str, Prediction] = {}
    for number, value in iterate_jsonl(path):
        try:
            prediction = parse(value)
        except UserError as error:
            raise UserError(f"{path}:{number}: {error}") from None
        if prediction.key in found:
            raise UserError(f"{path}:{number}: id {prediction.id!r} of source {prediction.source!r} appears twice")
        found[prediction.key] = prediction
    if not found:
        raise UserError(f"{path}: holds no predictions")
    return tuple(found.values())


def write_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Write a predictions file atomically, one reply a line."""
    write_jsonl_atomic(path, [prediction_to_json(prediction) for prediction in predictions])


def _object(what: str, value: Any, required: tuple[str, ...], optional: tuple[str, ...] = ()) -> dict[str, Any]:
    _typed(what, value, dict)
    if unknown := sorted(set(value) - set(required) - set(optional)):
        raise one_of(f"{what} field", unknown[0], required + optional)
    if missing := [name for name in required if name not in value]:
        raise UserError(f"{what} lacks the field {missing[0]!r}")
    return dict(value)


def _typed(what: str, value: Any, kind: type) -> Any:
    # bool is an int to isinstance, yet `true` is no turn index
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise UserError(f"{what} must be of type {kind.__name__}, got {type(value).__name__}")
    return value


def _style(what: str, value: Any) -> Style | None:
    if value is None:
        return None
    try:
        return Style(**_object(what, value, (), ("pitch", "speed", "emotion")))
    except TypeError:  # an unhashable label, such as a list
        raise UserError(f"{what}: labels must be strings") from None


def _reply(what: str, value: Any) -> Reply:
    reply = _object(what, value, ("text", "style"))
    return Reply(_typed(f"{what}.text", reply["text"], str), _style(f"{what}.style", reply["style"]))


def _attention(value: dict[str, Any]) -> dict[str, Any]:
    if value.get("attention") is None:
        return {}
    rows = _typed("attention", value["attention"], list)
    experts = tuple(str(name) for name in _typed("experts", value.get("experts"), list))
    try:
        mass = tuple(tuple(float(cell) for cell in row) for row in rows)
        window_sec = float(value["window_sec"])
    except (TypeError, ValueError, KeyError):
        raise UserError("attention must be a list of lists of numbers, with window_sec in seconds") from None
    return {"attention": mass, "experts": experts, "window_sec": window_sec}
