"""Scene hit rate: does the reply name the sound or the mood that was heard behind the words?"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence

from nltk.stem.porter import PorterStemmer

from omnichat.evaluation.predictions import Prediction

_WORD = re.compile(r"[^\W_]+")
_STEMMER = PorterStemmer()


@functools.lru_cache(maxsize=50_000)
def _stem(word: str) -> str:
    return str(_STEMMER.stem(word))


def stems(text: str) -> tuple[str, ...]:
    """Return the Porter stems of a text's words: lower case, no accents, no punctuation, possessives cut."""
    plain = unicodedata.normalize("NFKD", text.casefold())
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    plain = re.sub(r"['’]s?\b", "", plain)
    return tuple(_stem(word) for word in _WORD.findall(plain))


def names_keyword(reply: str, keywords: Sequence[str]) -> bool:
    """True where the reply holds one of the keywords as whole words, whatever the plural or the ending.

    A keyword of several words must appear in one piece.
    """
    return _holds(stems(reply), [stems(keyword) for keyword in keywords])


def scene_rows(predictions: Sequence[Prediction]) -> list[int]:
    """Return the rows whose heard turn has a background sound with keywords."""
    return [row for row, p in enumerate(predictions) if p.heard.scene is not None and any(p.heard.scene.keywords)]


def scene_hits(predictions: Sequence[Prediction], rows: Sequence[int]) -> list[float]:
    """Return 1.0 for each of `rows` whose reply names its scene."""
    hits = []
    for row in rows:
        scene = predictions[row].heard.scene
        assert scene is not None
        hits.append(float(names_keyword(predictions[row].hypothesis.text, scene.keywords)))
    return hits


def scene_chance(predictions: Sequence[Prediction], rows: Sequence[int]) -> float:
    """Return the hit rate that the same replies reach when each meets the keywords of every row of its scenario.

    It is what a model earns that always names the commonest sounds without listening. Scenarios are kept apart, for
    the words often tell a question about music from one about a noise.
    """
    by_scenario: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        by_scenario[predictions[row].scenario].append(row)
    expected = 0.0
    for members in by_scenario.values():
        targets: Counter[tuple[str, ...]] = Counter()
        for row in members:
            scene = predictions[row].heard.scene
            assert scene is not None
            targets[tuple(sorted(scene.keywords))] += 1
        keyed = [([stems(keyword) for keyword in keywords], count) for keywords, count in targets.items()]
        for row in members:
            reply = stems(predictions[row].hypothesis.text)
            expected += sum(count for keywords, count in keyed if _holds(reply, keywords)) / len(members)
    return expected / len(rows)


def _holds(reply: tuple[str, ...], keywords: Sequence[tuple[str, ...]]) -> bool:
    for keyword in keywords:
        size = len(keyword)
        if size and any(reply[start : start + size] == keyword for start in range(len(reply) - size + 1)):
            return True
    return False
