"""From what a judge wrote to a score of 1 to 5, or to the reason why there is none.

What is meant is one JSON object with a whole number `score`. Taken as well is what can be meant in one way only: talk
around the object, JSON with a slip in it, a score as a string, a bare number, "score: 4" or "4 out of 5". Two different
scores in one answer, halves, and numbers beyond the scale are none.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterator
from typing import Any

LOWEST, HIGHEST = 1, 5
EMPTY = "the answer is empty"
WITHHELD = "the answer was withheld"
CUT_OFF = "the answer was cut off"
NO_SCORE = "the answer states no score"
TWO_SCORES = "the answer states two different scores"
OFF_SCALE = f"the score is not a whole number from {LOWEST} to {HIGHEST}"
TOO_LONG = "the answer is too long"
REASONS = (EMPTY, WITHHELD, CUT_OFF, NO_SCORE, TWO_SCORES, OFF_SCALE, TOO_LONG)

_MAX_CHARS = 100_000
_OBJECT_STARTS = 50  # braces tried as the beginning of the answer
_THOUGHTS = re.compile(r"<think>.*?(</think>|\Z)", re.DOTALL)
_NUMBER = r"(\d{1,9}(?:\.\d{1,9})?)(?![\d.]*\d)"
_OUT_OF = rf"(?:\s*(?:/|out\s+of)\s*{HIGHEST}\b(?!\.\d))"
_FIELD = re.compile(rf'"score"\s*:\s*"?(-?){_NUMBER}')
_BARE = re.compile(rf"[\s*\"'`]*{_NUMBER}{_OUT_OF}?[\s*\"'`.!]*")
_SCALE = re.compile(rf"\(?\b{LOWEST}\s*(?:-|–|to)\s*{HIGHEST}\b\)?")  # "on a scale of 1 to 5" is no score
_SAID = re.compile(rf"\b(?:score|rating|grade)\b(?:\s+(?:is|of|it))?[\s:=*\"'`]{{1,6}}{_NUMBER}", re.IGNORECASE)
_OF_FIVE = re.compile(rf"(?<![\d.-]){_NUMBER}{_OUT_OF}", re.IGNORECASE)


def answer_schema() -> dict[str, Any]:
    """JSON schema (draft 2020-12) of a judge's answer."""
    properties = {
        "reason": {"type": "string"},  # first: a model that has said why grades better than one that says so afterwards
        "score": {"type": "integer", "enum": list(range(LOWEST, HIGHEST + 1))},
    }
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def read_score(text: str, finish: str = "stop") -> int | str:
    """Return the score in an answer, or one of REASONS. Never raises for anything that `text` may hold.

    Args:
        finish: why the model stopped; of one that was cut off ("length") only a whole JSON object counts.
    """
    if finish == "content_filter":
        return WITHHELD
    if len(text) > _MAX_CHARS:
        return TOO_LONG
    text = _THOUGHTS.sub(" ", text).strip()
    if not text:
        return CUT_OFF if finish == "length" else EMPTY
    scores = [_number(value) for stated in _objects(text) for value in stated]
    if not scores and finish == "length":
        return CUT_OFF
    return _one(scores or _said(text))


def _one(scores: list[float]) -> int | str:
    """The score that was stated, if it is one: NaN stands for what is no number."""
    if not scores:
        return NO_SCORE
    if any(not (LOWEST <= score <= HIGHEST and score.is_integer()) for score in scores):
        return OFF_SCALE
    return int(scores[0]) if len(set(scores)) == 1 else TWO_SCORES


def _objects(text: str) -> Iterator[list[Any]]:
    """The values of `score` in every JSON object that has it, none inside another; several where it is repeated."""
    decoder = json.JSONDecoder(object_pairs_hook=_all_scores)
    end = 0
    for match in itertools.islice(re.finditer(r"\{", text), _OBJECT_STARTS):
        if match.start() < end:
            continue
        try:
            found, stop = decoder.raw_decode(text, match.start())
        except (ValueError, RecursionError):  # not JSON, numbers of thousands of digits, braces nested without end
            continue
        if "score" in found:
            end = stop
            yield found["score"]


def _all_scores(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object whose `score` is the list of all that it states under that name."""
    found = dict(pairs)
    if "score" in found:
        found["score"] = [value for key, value in pairs if key == "score"]
    return found


def _number(value: Any) -> float:
    if isinstance(value, str) and (bare := _BARE.fullmatch(value)):
        return float(bare[1])
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    return float(value) if abs(value) < 1e9 else math.nan


def _said(text: str) -> list[float]:
    """Scores in an answer that is no JSON, or JSON with a slip in it."""
    if fields := _FIELD.findall(text):
        return [math.nan if minus else float(number) for minus, number in fields]
    if bare := _BARE.fullmatch(text):
        return [float(bare[1])]
    text = _SCALE.sub(" ", text)
    return [float(number) for pattern in (_SAID, _OF_FIVE) for number in pattern.findall(text)]
