"""From a script writer's words to labels and speakable text: a table of synonyms, and what may be tidied safely."""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from omnichat.schema import EMOTIONS, PITCHES, SPEAKERS, SPEEDS

LABELS: dict[str, tuple[str, ...]] = {"emotion": EMOTIONS, "pitch": PITCHES, "speed": SPEEDS, "speaker": SPEAKERS}
_TABLE = Path(__file__).with_name("labels.yaml")
_STRAIGHT = str.maketrans(
    {"‘": "'", "’": "'", "‚": "'", "“": '"', "”": '"', "„": '"', "…": "...", "—": " - ", "–": "-"}
)
_QUOTES = {'"': '"', "'": "'", "«": "»", "`": "`"}
_ASIDE = re.compile(r"\(([^()]{1,40})\)|\[([^\[\]]{1,40})\]|\*([^*]{1,40})\*")
_PREFIX = re.compile(r"^([A-Za-z][A-Za-z ]{0,10}\d?|[12])\s*:\s+")
_SPOKEN_CATEGORIES = "LMNPZ"  # letters, marks, numbers, punctuation, spaces
_SPOKEN_SYMBOLS = "$€£¥%+=°&@#"


@functools.cache
def _table() -> dict[str, Any]:
    """labels.yaml; per kind of label, every word in lower case -> its label."""
    raw = yaml.safe_load(_TABLE.read_text(encoding="utf-8"))
    table: dict[str, Any] = {"nouns": tuple(raw["nouns"]), "stage_directions": tuple(raw["stage_directions"])}
    for kind, labels in LABELS.items():
        assert set(raw[kind]) == set(labels), f"{_TABLE}: {kind} must list the labels of the schema"
        words = {label.lower(): label for label in labels}
        for label, synonyms in raw[kind].items():
            for word in synonyms:
                assert words.setdefault(word, label) == label, f"{_TABLE}: {kind}: {word!r} stands for two labels"
        table[kind] = words
    return table


def map_label(kind: str, word: object) -> str | None:
    """Return the label of `kind` (emotion, pitch, speed, speaker) that a writer's word means; None = no label known."""
    if not isinstance(word, str) or len(word) > 40:
        return None
    table = _table()
    text = " ".join(word.replace("_", " ").lower().split()).strip(" .,;:()<>'\"")
    words: Mapping[str, str] = table[kind]
    if text not in words:
        head, _, noun = text.rpartition(" ")
        text = head if noun in table["nouns"] else text
    return words.get(text)


def names_emotion(text: str) -> bool:
    """Whether a sentence names one of the emotions other than neutral, by label or synonym, as a whole word."""
    words: Mapping[str, str] = _table()["emotion"]
    named = {word for word, label in words.items() if label != "neutral"}
    return any(word in named for word in re.findall(r"[a-z'-]+", text.lower()))


def tidy(text: str, speaker: str | None) -> tuple[str, str | None]:
    """Return (a writer's line as it is to be spoken, what is wrong with it or None).

    Takes out what surely is not speech: quotes around the line, the speaker's own name before it, stage directions,
    typographic signs, doubled spaces. Brackets that it does not understand stay, for the script's check to reject.

    Args:
        speaker: "A" or "B": whose line it is; None = no name may precede it.
    """
    text = unicodedata.normalize("NFKC", text.translate(_STRAIGHT)).translate(_STRAIGHT)
    text = "".join(char for char in text if unicodedata.category(char) != "Cf")  # zero-width and direction marks
    text = _ASIDE.sub(_without_stage_direction, text)
    text = _unquoted(" ".join(text.split()))
    if (match := _PREFIX.match(text)) and (named := map_label("speaker", match[1])) is not None:
        if named != speaker:
            return text, "a line begins with another speaker's name"
        text = _unquoted(text[match.end() :])
    if any(unicodedata.category(c)[0] not in _SPOKEN_CATEGORIES and c not in _SPOKEN_SYMBOLS + "<>|`^~" for c in text):
        return text, "a character that cannot be spoken"
    if text and not any(char.isalnum() for char in text):
        return text, "a line without words"
    return text, None


def plain(text: str) -> str:
    """A topic or caption fit for a prompt: one line, no signs that could pass for a model's control tokens."""
    kept = "".join(" " if char in "<>{}[]|`" or unicodedata.category(char)[0] == "C" else char for char in text)
    return " ".join(unicodedata.normalize("NFKC", kept).translate(str.maketrans("<>{}[]|`", " " * 8)).split())[:300]


def _without_stage_direction(match: re.Match[str]) -> str:
    inside = next(group for group in match.groups() if group is not None).strip().lower()
    return " " if inside.startswith(_table()["stage_directions"]) else match[0]


def _unquoted(text: str) -> str:
    """Without one pair of quotes around the whole line; quotes that end inside it stay."""
    text = text.strip()
    if len(text) > 1 and _QUOTES.get(text[0]) == text[-1] and text[0] not in text[1:-1].replace("n't", ""):
        return text[1:-1].strip()
    return text
