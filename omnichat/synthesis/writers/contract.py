"""The script contract: what an answer must look like (a JSON schema for each request), and the way from text to script.

An answer is one JSON object:

    {"topic": "...",
     "history": [{"speaker": "A", "text": "...", "pitch": "normal", "speed": "fast", "emotion": "happy"}, ...],
     "current": "...",
     "replies": [{"variant": 1, "text": "...", "pitch": "...", "speed": "...", "emotion": "..."}, ...]}

`replies[i].variant` is the number, from 1, of the style of the request that it answers. Where a rule gives the style of
the replies, they have no labels of their own.

Whatever text comes in, a valid `Script` goes out, or a `Rejected` with reasons short enough to be counted: they hold
neither figures nor words of the answer.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import json_repair
import jsonschema

from omnichat.schema import EMOTIONS, PITCHES, SPEAKERS, SPEEDS, Style
from omnichat.synthesis.base import NO_TOPIC, Line, Rejected, Script, ScriptRequest, Variant, script_problems
from omnichat.synthesis.writers.labels import map_label, names_emotion, plain, tidy
from omnichat.utils.errors import one_of

REPLY_STYLES = ("chosen", "heard")
MAX_ANSWER_CHARS = 100_000
_STYLE_FIELDS: dict[str, tuple[str, ...]] = {"pitch": PITCHES, "speed": SPEEDS, "emotion": EMOTIONS}
# A word as a sentence may hold it: anything but space, ASCII punctuation, and the blocks of signs and emoji in Unicode;
# one apostrophe or hyphen inside, a comma after it. Characters stand for themselves: dialects differ in their escapes.
_LETTERS = "[^\\s\x01-/:-@\\[-`{-\u00bf\u2000-\u2bff\U0001f000-\U0001ffff]{1,15}"
_WORD = f"{_LETTERS}(['-]{_LETTERS})?[,;]?"
_TOPIC_WORDS = 6
_THOUGHTS = re.compile(r"<think>.*?</think>", re.DOTALL)
_FENCE = re.compile(r"```[a-zA-Z]*\s*\n(.*?)```", re.DOTALL)
_OBJECT_STARTS = 50  # braces tried as the beginning of the answer


def check_reply_style(reply_style: str) -> str:
    """Return `reply_style` if it is one of REPLY_STYLES; raise UserError otherwise."""
    if reply_style not in REPLY_STYLES:
        raise one_of("writer.reply_style", reply_style, REPLY_STYLES)
    return reply_style


def answer_schema(
    request: ScriptRequest, reply_style: str = "chosen", positional_words: int | None = None
) -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of the answer to a request.

    Args:
        reply_style: "chosen": every reply states its style; "heard": replies have the style that they answer.
        positional_words: None = what every server's schemas can express. Else also fix the speaker and number of each
            place (`prefixItems`), and let each text be one sentence of so many words at most (`pattern`).
    """
    text: dict[str, Any] = {"type": "string"}
    topic = text
    if positional_words is not None:
        text = text | {"pattern": rf"^{_WORD}( {_WORD}){{0,{positional_words - 1}}}[.!?]$"}
        topic = topic | {"pattern": rf"^{_WORD}( {_WORD}){{0,{_TOPIC_WORDS - 1}}}$"}
    labels: dict[str, Any] = {name: {"type": "string", "enum": list(values)} for name, values in _STYLE_FIELDS.items()}

    def turn(speakers: tuple[str, ...]) -> dict[str, Any]:
        return _object({"speaker": {"type": "string", "enum": list(speakers)}, "text": text, **labels})

    def reply(numbers: tuple[int, ...]) -> dict[str, Any]:
        own = labels if reply_style == "chosen" else {}
        return _object({"variant": {"type": "integer", "enum": list(numbers)}, "text": text, **own})

    turns, numbers = request.history_turns, tuple(range(1, len(request.styles) + 1))
    history, replies = _array(turn(SPEAKERS), turns), _array(reply(numbers), len(numbers))
    if positional_words is not None:
        history = _places([turn((SPEAKERS[place % 2],)) for place in range(turns)])
        replies = _places([reply((number,)) for number in numbers])
    return _object({"topic": topic, "history": history, "current": text, "replies": replies})


def parse_script(text: str, request: ScriptRequest, max_words: int, reply_style: str = "chosen") -> Script | Rejected:
    """Read an answer as the script of a request. Never raises for anything that `text` may hold."""
    if len(text) > MAX_ANSWER_CHARS:
        return Rejected(("the answer is too long",))
    value = _json_of(text)
    if isinstance(value, str):
        return Rejected((value,))
    problems = _map_labels(value)
    validator = jsonschema.Draft202012Validator(answer_schema(request, reply_style))
    problems += [_reason(error) for error in itertools.islice(validator.iter_errors(value), 50)]
    if problems:
        return Rejected(tuple(sorted(set(problems))))
    return _script_of(value, request, max_words, reply_style)


def _script_of(value: dict[str, Any], request: ScriptRequest, max_words: int, reply_style: str) -> Script | Rejected:
    problems = []

    def line(text: str, speaker: str) -> str:
        spoken, problem = tidy(text, speaker)
        problems.extend([problem] if problem else [])
        return spoken

    history = tuple(
        Line(turn["speaker"], line(turn["text"], turn["speaker"]), _style(turn)) for turn in value["history"]
    )
    current = line(value["current"], "A")
    if names_emotion(current):
        problems.append("the current turn names an emotion")
    by_number = {reply["variant"]: reply for reply in value["replies"]}
    if len(by_number) != len(request.styles):
        return Rejected(("replies do not answer each style once",))
    variants = []
    for number, heard in enumerate(request.styles, start=1):
        reply = by_number[number]
        style = _style(reply) if reply_style == "chosen" else heard
        variants.append(Variant(heard, Line("B", line(reply["text"], "B"), style)))
    topic = request.topic or plain(value["topic"])[:80] or NO_TOPIC
    script = Script(topic, request.scenario, history, current, tuple(variants), request.sound)
    problems += script_problems(script, request, max_words)
    return Rejected(tuple(sorted(set(problems)))) if problems else script


def _style(labels: dict[str, Any]) -> Style:
    return Style(labels["pitch"], labels["speed"], labels["emotion"])


def _map_labels(value: Any) -> list[str]:
    """Replace the labels of an answer by those of the schema, in place; the reasons where there is none."""
    problems = []
    for name in ("history", "replies"):
        for entry in value.get(name) if isinstance(value.get(name), list) else []:
            if not isinstance(entry, dict):
                continue
            if isinstance(entry.get("variant"), str) and entry["variant"].strip().isdecimal():
                entry["variant"] = int(entry["variant"].strip()[:9])
            for kind in ("speaker", *_STYLE_FIELDS):
                if kind in entry and (label := map_label(kind, entry[kind])) is not None:
                    entry[kind] = label
                elif isinstance(entry.get(kind), str):
                    problems.append(f"a label of {kind} that is not known")
    return problems


def _reason(error: jsonschema.ValidationError) -> str:
    """A countable reason: where (without places in lists) and which rule, nothing of the content."""
    where = ".".join(str(part) for part in error.absolute_path if isinstance(part, str)) or "the answer"
    if error.validator in ("minItems", "maxItems"):
        return f"{where} has another number of entries than asked"
    if error.validator == "enum" and where.rpartition(".")[2] in ("speaker", *_STYLE_FIELDS):
        return f"a label of {where.rpartition('.')[2]} that is not known"
    rules = {"required": "lacks a field", "additionalProperties": "has a field too many", "type": "has another type"}
    return f"{where} {rules.get(str(error.validator), 'breaks the schema')}"


def _json_of(text: str) -> dict[str, Any] | str:
    """The one JSON object of an answer, repaired if no word is lost by that; or the reason why there is none."""
    text = _THOUGHTS.sub(" ", text).strip()
    candidates = [text, *(match[1].strip() for match in _FENCE.finditer(text))]
    reasons: list[str] = []
    for read in (_read_whole, _read_first_object, _read_repaired):
        for candidate in candidates:
            found = _guarded(read, candidate, reasons)
            if isinstance(found, list) and len(found) == 1:
                found = found[0]
            if isinstance(found, dict) and list(found) == ["script"]:
                found = found["script"]
            if isinstance(found, dict):
                return found
    return reasons[0] if reasons else "the answer is not a JSON object"


def _guarded(read: Callable[[str], Any], text: str, reasons: list[str]) -> Any:
    try:
        return read(text)
    except _TwiceError:
        reasons.append("a field is given twice")
    except (ValueError, RecursionError):  # not JSON, numbers of thousands of digits, brackets nested without end
        return None
    return None


class _TwiceError(Exception):
    """A key that occurs twice in an object: which of the two is meant cannot be known."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _TwiceError
    return found


def _read_whole(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_once)


def _read_first_object(text: str) -> Any:
    """The first thing in a text that is a JSON object of more than one field."""
    decoder = json.JSONDecoder(object_pairs_hook=_once)
    for match in itertools.islice(re.finditer(r"\{", text), _OBJECT_STARTS):
        found = _guarded(lambda part: decoder.raw_decode(part)[0], text[match.start() :], [])
        if isinstance(found, dict) and "replies" in found:
            return found
    return None


def _read_repaired(text: str) -> Any:
    """Mend commas, quotes and comments; None unless the outcome has exactly the words that stood there.

    What follows the last closing brace is left out: a sentence that was cut off must not be completed by guessing.
    """
    start, end = text.find("{"), text.rfind("}")
    if start < 0 or end < start:
        return None
    broken = text[start : end + 1]
    mended = json_repair.loads(broken)
    if not isinstance(mended, dict) or list(_words(json.dumps(mended, ensure_ascii=False))) != list(_words(broken)):
        return None
    return mended


def _words(text: str) -> Iterator[str]:
    return (match[0] for match in re.finditer(r"\w+", re.sub(r"\\.", " ", text)))


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _array(items: dict[str, Any], count: int) -> dict[str, Any]:
    return {"type": "array", "items": items, "minItems": count, "maxItems": count}


def _places(items: list[dict[str, Any]]) -> dict[str, Any]:
    count = {"minItems": len(items), "maxItems": len(items)}
    return {"type": "array", **({"prefixItems": items} if items else {}), "items": False, **count}
