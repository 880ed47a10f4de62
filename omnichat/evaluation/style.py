"""Style metrics: does the reply carry the right style, and does it change when only the user's voice changes?"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics import CHRF

from omnichat.evaluation.bootstrap import Floats
from omnichat.evaluation.predictions import Prediction
from omnichat.schema import EMOTIONS
from omnichat.utils.seeding import numpy_rng

UNPARSED = "unparsed"
_CLASSES = len(EMOTIONS)
_CODE = {name: index for index, name in enumerate(EMOTIONS)}


def attribute_hits(predictions: Sequence[Prediction], attribute: str) -> tuple[list[int], list[float]]:
    """Return (rows, hits): the predictions whose reference states `attribute` and 1.0 where the reply has the same.

    A style that could not be parsed, or lacks the attribute, is a miss.
    """
    rows, hits = [], []
    for row, p in enumerate(predictions):
        wanted = getattr(p.reference.style, attribute)
        if wanted is not None:
            rows.append(row)
            got = getattr(p.hypothesis.style, attribute) if p.hypothesis.style is not None else None
            hits.append(float(got == wanted))
    return rows, hits


def predicted_emotion(prediction: Prediction) -> str:
    """Return the emotion of the reply's style, or "unparsed"."""
    style = prediction.hypothesis.style
    return style.emotion if style is not None and style.emotion is not None else UNPARSED


def emotion_codes(predictions: Sequence[Prediction]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return int [N] rows, reference classes and predicted classes of the predictions whose reference has an emotion.

    Classes follow `schema.EMOTIONS`; the predicted class 7 is "unparsed" and never right.
    """
    rows, wanted, got = [], [], []
    for row, p in enumerate(predictions):
        if p.reference.style is not None and p.reference.style.emotion is not None:
            rows.append(row)
            wanted.append(_CODE[p.reference.style.emotion])
            got.append(_CODE.get(predicted_emotion(p), _CLASSES))
    return np.array(rows, dtype=np.int64), np.array(wanted, dtype=np.int64), np.array(got, dtype=np.int64)


def confusion_stats(wanted: NDArray[np.int64], got: NDArray[np.int64]) -> Floats:
    """Return float [N, 7 * 8]: one-hot cells of the confusion matrix (reference x predicted or unparsed)."""
    stats = np.zeros((len(wanted), _CLASSES * (_CLASSES + 1)))
    stats[np.arange(len(wanted)), wanted * (_CLASSES + 1) + got] = 1.0
    return stats


def weighted_f1(sums: Floats) -> Floats:
    """Return the support-weighted F1 [S] of confusion cells [S, 56], as scikit-learn's average="weighted"."""
    cells = sums.reshape(len(sums), _CLASSES, _CLASSES + 1)
    right = np.diagonal(cells, axis1=1, axis2=2)
    support = cells.sum(axis=2)
    predicted = cells.sum(axis=1)[:, :_CLASSES]
    f1 = 2 * right / np.maximum(support + predicted, 1.0)
    total = support.sum(axis=1)
    return np.where(total == 0, np.nan, (support * f1).sum(axis=1) / np.maximum(total, 1.0))


def chance_f1(
    wanted: NDArray[np.int64], got: NDArray[np.int64], strata: NDArray[np.int64], permutations: int, seed: int
) -> Floats:
    """Return weighted F1 [permutations] after the predicted labels are shuffled over the replies of each stratum.

    This is what the same habit of labels earns without listening: it keeps how often each label is given in each
    stratum (`strata` int [N], a scenario each), for which scenario it is can often be read from the words.
    """
    rng = numpy_rng(seed, "chance")
    cells = _CLASSES * (_CLASSES + 1)
    by_stratum = np.argsort(strata, kind="stable")
    sums = []
    for _ in range(permutations):
        shuffled = np.empty_like(got)
        shuffled[by_stratum] = got[np.lexsort((rng.random(len(got)), strata))]
        sums.append(np.bincount(wanted * (_CLASSES + 1) + shuffled, minlength=cells))
    return weighted_f1(np.array(sums, dtype=np.float64))


def variant_groups(predictions: Sequence[Prediction]) -> list[list[int]]:
    """Return the rows of each group of same words in several styles (two styles of the heard turn at least)."""
    groups: dict[tuple[str, str, str], list[int]] = defaultdict(list)
    for row, p in enumerate(predictions):
        if p.variant_of is not None:
            groups[p.split, p.source, p.variant_of].append(row)
    return [rows for rows in groups.values() if len({predictions[row].heard.style for row in rows}) > 1]


def style_pairs(predictions: Sequence[Prediction]) -> tuple[list[tuple[int, int]], list[float]]:
    """Return (pairs of rows, hits) over pairs of variants whose references differ in emotion.

    A hit: both replies have the emotion of their own reference, so they also differ. A model that does not hear the
    user's voice gives both the same reply under greedy decoding and scores 0.
    """
    pairs, hits = [], []
    for a, b in _pairs(predictions):
        first, second = predictions[a].reference.style, predictions[b].reference.style
        assert first is not None and second is not None
        if first.emotion and second.emotion and first.emotion != second.emotion:
            pairs.append((a, b))
            got = predicted_emotion(predictions[a]), predicted_emotion(predictions[b])
            hits.append(float(got == (first.emotion, second.emotion)))
    return pairs, hits


def reply_pairs(predictions: Sequence[Prediction]) -> tuple[list[tuple[int, int]], list[float]]:
    """Return (pairs of rows, hits) over pairs of variants whose reference replies differ in words.

    A hit: each reply is strictly closer (sentence chrF, sacrebleu) to its own reference than to its sibling's. Two
    equal replies cannot both be; two replies drawn without regard to the voice both are about one time in four.
    """
    scorer = CHRF()

    def near(row: int, reference: int) -> float:
        return scorer.sentence_score(predictions[row].hypothesis.text, [predictions[reference].reference.text]).score

    pairs, hits = [], []
    for a, b in _pairs(predictions):
        if predictions[a].reference.text != predictions[b].reference.text:
            pairs.append((a, b))
            hits.append(float(near(a, a) > near(a, b) and near(b, b) > near(b, a)))
    return pairs, hits


def _pairs(predictions: Sequence[Prediction]) -> list[tuple[int, int]]:
    """Pairs of variants heard in different styles; two voices of one style are no pair."""
    return [
        (a, b)
        for rows in variant_groups(predictions)
        for a, b in itertools.combinations(rows, 2)
        if predictions[a].heard.style != predictions[b].heard.style
    ]
