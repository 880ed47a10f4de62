"""The style prefix of a reply: `[pitch, speed, emotion] words`, read and written."""

from __future__ import annotations

import re

from omnichat.schema import EMOTIONS, PITCHES, SPEEDS, Style

_PREFIX = re.compile(r"^\s*\[([^\[\]]*)\]\s*")
# "normal" and nothing else is shared by two attributes, so order decides there: pitch before speed.
_ATTRIBUTES = (("pitch", PITCHES), ("speed", SPEEDS), ("emotion", EMOTIONS))


def format_style(style: Style) -> str:
    """Return `[normal, slow, sad]`; attributes that are None are left out; an empty style gives ''."""
    values = [v for v in (style.pitch, style.speed, style.emotion) if v is not None]
    return f"[{', '.join(values)}]" if values else ""


def format_reply(style: Style, words: str) -> tuple[str, str]:
    """Return (style part, words part) whose concatenation is the reply as the model writes it."""
    prefix = format_style(style)
    return prefix, f" {words}" if prefix else words


def parse_reply(text: str) -> tuple[Style | None, str]:
    """Split a generated reply into (style, words); style is None if the text has no valid prefix.

    Each value must be a label of an attribute that has not had one yet, in the order pitch, speed, emotion.
    """
    match = _PREFIX.match(text)
    if match is None:
        return None, text.strip()
    style = _parse_values([part.strip().lower() for part in match.group(1).split(",")])
    return style, text[match.end() :].strip()


def _parse_values(values: list[str]) -> Style | None:
    found: dict[str, str] = {}
    remaining = list(_ATTRIBUTES)
    if len(values) == 2 and values[0] == "normal" and values[1] in EMOTIONS:
        return None  # pitch or speed? a writer never leaves out exactly one of the two
    for value in values:
        while remaining and value not in remaining[0][1]:
            remaining.pop(0)
        if not remaining:
            return None
        found[remaining.pop(0)[0]] = value
    return Style(**found) if found else None
