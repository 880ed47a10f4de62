"""Is a test set held out? Which of its replies rest on words, topics or recordings that training has met.

The test side, which is small, is held in hash tables; the training side is passed by once and may be of any size.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from omnichat.schema import Dialogue, Turn

LEAST_WORDS = 4  # of a sentence that can tell anything: "Thank you." is said in every split of every corpus
KINDS = {
    "heard": "its question's words",
    "reply": "its answer's words",
    "topic": "its topic",
    "recording": "its recording",
}
_SIGNS = re.compile(r"[\W_]+")


@dataclass(frozen=True, slots=True)
class Leak:
    """What of a test reply training has met: which reply, what (a key of KINDS), the words, and where first."""

    row: int
    kind: str
    text: str
    where: str


def find_leaks(tested: Sequence[tuple[Dialogue, int]], training: Iterable[tuple[str, Dialogue]]) -> list[Leak]:
    """Return what training has met of each tested reply, each kind once a reply, in the order of the replies.

    Sentences are compared without case and punctuation, those of the turn that is heard and of the reference, if they
    have `LEAST_WORDS` words; by whom they are said does not count. Topics count where both dialogues are synthetic: in
    real corpora they are broad classes that all splits share.

    Args:
        tested: (dialogue, index of the turn that is the reply).
        training: (name of the source, dialogue of its train split); read once.
    """
    wanted: dict[tuple[str, str], list[tuple[int, str]]] = {}  # (words | topic | recording, key) -> (row, kind)
    for row, (dialogue, turn) in enumerate(tested):
        for kind, said in (("heard", dialogue.turns[turn - 1]), ("reply", dialogue.turns[turn])):
            plain = plain_words(said.text)
            if plain.count(" ") + 1 >= LEAST_WORDS:
                wanted.setdefault(("words", plain), []).append((row, kind))
        sha256 = dialogue.turns[turn - 1].sha256
        if sha256 is not None:
            wanted.setdefault(("recording", sha256), []).append((row, "recording"))
        if dialogue.topic is not None and dialogue.kind == "synthetic":
            wanted.setdefault(("topic", plain_words(dialogue.topic)), []).append((row, "topic"))
    found: dict[tuple[int, str], Leak] = {}
    for source, dialogue in training:
        keys = [(key, turn.text) for turn in dialogue.turns for key in _keys(turn) if key in wanted]
        if dialogue.topic is not None and dialogue.kind == "synthetic":
            keys.append((("topic", plain_words(dialogue.topic)), dialogue.topic))
        for key, text in keys:
            for row, kind in wanted.pop(key, ()):  # the first place is enough
                found.setdefault((row, kind), Leak(row, kind, text, f"{source}/{dialogue.id}"))
    order = list(KINDS)
    return sorted(found.values(), key=lambda leak: (leak.row, order.index(leak.kind)))


def plain_words(text: str) -> str:
    """A sentence without case and punctuation."""
    return _SIGNS.sub(" ", text.lower()).strip()


def describe_leaks(leaks: Sequence[Leak], tested: Sequence[tuple[Dialogue, int]], shown: int = 3) -> str:
    """One line: how many replies, of what kinds, and a few of them; empty where there is no leak."""
    rows = list(dict.fromkeys(leak.row for leak in leaks))
    if not rows:
        return ""
    kinds = Counter(leak.kind for leak in leaks)
    parts = ", ".join(f"{KINDS[kind]} {kinds[kind]}" for kind in KINDS if kinds[kind])
    examples = []
    for row in rows[:shown]:
        leak = next(leak for leak in leaks if leak.row == row)
        dialogue, turn = tested[row]
        examples.append(f"{dialogue.id}#{turn} {leak.text[:60]!r} as {leak.where}")
    more = f" and {len(rows) - shown} more" if len(rows) > shown else ""
    return f"leak: {len(rows)} of {len(tested)} replies were met in training ({parts}): {'; '.join(examples)}{more}"


def _keys(turn: Turn) -> list[tuple[str, str]]:
    keys = [("words", plain_words(turn.text))]
    return keys if turn.sha256 is None else [*keys, ("recording", turn.sha256)]
