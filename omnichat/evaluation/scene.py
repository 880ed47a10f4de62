"""Scene hit rate: does the reply name the sound or the mood that was heard behind the words?"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from nltk.stem.porter import PorterStemmer

from omnichat.evaluation.bootstrap import Floats
from omnichat.evaluation.predictions import Prediction
from omnichat.utils.seeding import numpy_rng

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
    return [float(names_keyword(predictions[row].hypothesis.text, _keywords(predictions[row]))) for row in rows]


def scene_chance(
    predictions: Sequence[Prediction], rows: Sequence[int], permutations: int, seed: int
) -> tuple[float, Floats]:
    """Return (expected hit rate, hit rates [permutations]) of the replies when scenes are shuffled in each scenario.

    It is what a model earns that always names the commonest sounds without listening. Scenarios are kept apart, for
    the words often tell a question about music from one about a noise. The first number is the exact expectation.
    """
    rng = numpy_rng(seed, "scene chance")
    by_scenario: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        by_scenario[predictions[row].scenario].append(row)
    expected, shuffled = 0.0, np.zeros(permutations)
    for members in by_scenario.values():
        scenes = [tuple(sorted(_keywords(predictions[row]))) for row in members]
        kinds = {keywords: index for index, keywords in enumerate(dict.fromkeys(scenes))}
        keyed = [[stems(keyword) for keyword in keywords] for keywords in kinds]
        replies = [stems(predictions[row].hypothesis.text) for row in members]
        hits = np.array([[_holds(reply, keywords) for keywords in keyed] for reply in replies], dtype=np.float64)
        target = np.array([kinds[keywords] for keywords in scenes])
        expected += float(hits[:, target].sum()) / len(members)
        place = np.arange(len(members))
        shuffled += [float(hits[place, rng.permutation(target)].sum()) for _ in range(permutations)]
    return expected / len(rows), shuffled / len(rows)


def _keywords(prediction: Prediction) -> tuple[str, ...]:
    assert prediction.heard.scene is not None
    return prediction.heard.scene.keywords


def _holds(reply: tuple[str, ...], keywords: Sequence[tuple[str, ...]]) -> bool:
    for keyword in keywords:
        size = len(keyword)
        if size and any(reply[start : start + size] == keyword for start in range(len(reply) - size + 1)):
            return True
    return False
