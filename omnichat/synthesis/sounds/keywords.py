"""The words by which a reply shows that it heard a sound."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

MAX_KEYWORDS = 6
MAX_CAPTION_CHARS = 1000  # a longer caption is a file that lost a quotation mark
_MAX_PHRASE = 3  # words of a keyword; a reply does not repeat a longer phrase
_WORD = re.compile(r"[^\W\d_]{3,}")
_QUOTED = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"")

# What captions of sounds say whatever is heard: grammar, places in time and space, and words for sounding.
STOP_WORDS = frozenset(Path(__file__).with_name("stop_words.txt").read_text(encoding="utf-8").split())


def content_words(caption: str, limit: int = MAX_KEYWORDS) -> tuple[str, ...]:
    """The first few words of a caption that say what is heard, in lower case and as the caption spells them."""
    words = dict.fromkeys(word.lower() for word in _WORD.findall(caption))
    return tuple(word for word in words if word not in STOP_WORDS)[:limit]


def listed_keywords(text: str, ignore: Iterable[str] = (), limit: int = MAX_KEYWORDS) -> tuple[str, ...]:
    """The keywords of a column's text, single words first, for a reply is likelier to say one than a phrase.

    The text is a list in brackets ("['sad', 'soft piano']", as in MusicCaps) or separated by semicolons (as in Clotho)
    or commas. Keywords of more than three words and those in `ignore` are passed over.
    """
    if text.strip().startswith("["):
        parts = [single or double for single, double in _QUOTED.findall(text)]
    else:
        parts = text.split(";") if ";" in text else text.split(",")
    left_out = {" ".join(word.lower().split()) for word in ignore}
    found = dict.fromkeys(" ".join(part.lower().split()) for part in parts)
    kept = [word for word in found if _WORD.search(word) and word not in left_out and caption_fault(word) is None]
    kept = [word for word in kept if len(word.split()) <= _MAX_PHRASE]
    return tuple(sorted(kept, key=lambda word: len(word.split()) > 1))[:limit]


def caption_fault(caption: str) -> str | None:
    """What is wrong with a caption, or None: it becomes part of sentences, prompts and pages.

    Signs that control tokens and markup are made of are refused as in sentences (`script_problems`): nobody says them.
    """
    text = " ".join(caption.split())
    if not text:
        return "an empty caption"
    if len(text) > MAX_CAPTION_CHARS:
        return f"a caption of {len(text)} characters, at most {MAX_CAPTION_CHARS} are believed"
    if not text.isprintable():
        return f"a caption with characters that are no text: {text[:40]!r}"
    if marks := [sign for sign in text if sign in "{}[]<>|"]:
        return f"a caption with {marks[0]!r}, which no one says: {text[:40]!r}"
    return None if any(sign.isalnum() for sign in text) else f"a caption without a word: {text[:40]!r}"
