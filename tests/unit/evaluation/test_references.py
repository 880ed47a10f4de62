"""Through `score()`, every metric is what its reference library says, on one fixed file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import sacrebleu
import torch
from nltk.corpus import wordnet
from nltk.stem.porter import PorterStemmer
from nltk.tokenize import wordpunct_tokenize
from nltk.translate.meteor_score import single_meteor_score
from rouge_score.rouge_scorer import RougeScorer
from sklearn.metrics import accuracy_score, f1_score

from omnichat.evaluation import text
from omnichat.evaluation.predictions import Prediction, Reply
from omnichat.evaluation.score import ScoreConfig, score
from omnichat.schema import EMOTIONS, PITCHES, SPEEDS, Style
from omnichat.utils.assets import asset_folder
from omnichat.utils.errors import UserError
from tests.unit.evaluation.builders import build

PLAIN = ScoreConfig(bertscore_model=None, bootstrap_samples=100, permutations=20)
TEXTS = [  # (reply, reference)
    ("That sounds lovely! What kind of paintings do you like to create?", "What kinds of paintings do you create?"),
    ("I am so sorry to hear that.", "Oh no, I'm sorry to hear that happened."),
    ("", "What happened?"),
    ("It has stickers. You can stick stickers on the things.", "It's a sticker that you can stick on your clothes."),
    ("Yes, the birds seem to be enjoying each other’s company.", "Yeah, it sounds like they are eating together."),
    ("the cat sat on the mat", "the cat sat on the mat"),
    ("Ünïcode, “quotes” & 3.5 % of it – all…", 'Unicode, "quotes" and 3.5% of it: all.'),
    ("no no no no no", "No."),
]


def fixed() -> list[Prediction]:
    """Forty replies: every text with five pairs of styles, some unparsed and some with attributes left open."""
    rng = np.random.default_rng(0)
    rows = []
    for number in range(40):
        hypothesis, reference = TEXTS[number % len(TEXTS)]
        wanted, got = (
            Style(PITCHES[rng.integers(3)], SPEEDS[rng.integers(3)], EMOTIONS[min(6, rng.poisson(1.5))]) for _ in "ab"
        )
        got = replace(got, emotion=wanted.emotion if rng.random() < 0.5 else got.emotion)
        row = build(f"d{number // 2}", 2 * (number % 2) + 1, hypothesis=hypothesis, reference=reference)
        if number % 9 == 4:
            got = replace(got, emotion=None)
        style = None if number % 7 == 3 else got
        wanted = Style(emotion=wanted.emotion) if number % 5 == 1 else wanted
        rows.append(replace(row, reference=Reply(reference, wanted), hypothesis=Reply(hypothesis, style)))
    return rows


ROWS = fixed()
HYPOTHESES, REFERENCES = [p.hypothesis.text for p in ROWS], [p.reference.text for p in ROWS]


def values(rows: Sequence[Prediction], config: ScoreConfig = PLAIN) -> dict[str, float]:
    return {row["metric"]: row["value"] for row in score(rows, config) if row["scenario"] == "all"}


@pytest.fixture(scope="module")
def found() -> dict[str, float]:
    return values(ROWS)


def exactly(value: float) -> object:
    return pytest.approx(value, abs=1e-9, rel=0)


def test_bleu_is_sacrebleu_s(found: dict[str, float]) -> None:
    assert found["bleu"] == exactly(sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES]).score)


def test_rouge_l_is_rouge_score_s(found: dict[str, float]) -> None:
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    each = [scorer.score(r, h)["rougeL"].fmeasure for h, r in zip(HYPOTHESES, REFERENCES, strict=True)]
    assert found["rouge_l"] == exactly(float(np.mean(each)))


class NoSynonyms:
    def synsets(self, word: str) -> list[object]:
        return []


def test_meteor_is_nltk_s(found: dict[str, float]) -> None:
    known = wordnet if text.wordnet_present() else NoSynonyms()
    each = [
        single_meteor_score(wordpunct_tokenize(r), wordpunct_tokenize(h), stemmer=PorterStemmer(), wordnet=known)
        for h, r in zip(HYPOTHESES, REFERENCES, strict=True)
    ]
    assert found["meteor"] == exactly(float(np.mean(each)))


def test_style_is_scikit_learn_s_with_unparsed_as_a_wrong_label(found: dict[str, float]) -> None:
    def labels(attribute: str) -> tuple[list[str], list[str]]:
        pairs = [
            (getattr(p.reference.style, attribute), getattr(p.hypothesis.style, attribute, None) or "unparsed")
            for p in ROWS
            if getattr(p.reference.style, attribute) is not None
        ]
        return [a for a, _ in pairs], [b for _, b in pairs]

    wanted, got = labels("emotion")
    assert "unparsed" in got and len(set(wanted)) > 3
    f1 = f1_score(wanted, got, labels=list(EMOTIONS), average="weighted", zero_division=0)
    assert found["emotion_f1"] == exactly(float(f1))
    for attribute in ("emotion", "pitch", "speed"):
        assert found[f"{attribute}_accuracy"] == exactly(float(accuracy_score(*labels(attribute)))), attribute
    assert found["style_parse_failure"] == exactly(sum(p.hypothesis.style is None for p in ROWS) / len(ROWS))


def test_bertscore_is_bert_score_s() -> None:
    try:
        folder = asset_folder("minilm")
    except UserError as error:
        pytest.skip(str(error))
    from bert_score import BERTScorer

    torch.set_num_threads(1)
    rows = ROWS[: len(TEXTS)]
    scorer = BERTScorer(model_type=str(folder), num_layers=6, batch_size=32, device="cpu")
    scorer._tokenizer.model_max_length = 512  # the files state no limit
    kept = [p for p in rows if p.hypothesis.text]  # bert-score has nothing to say of an empty reply: it counts 0
    f1 = scorer.score([p.hypothesis.text for p in kept], [p.reference.text for p in kept])[2]
    config = ScoreConfig(bootstrap_samples=100, permutations=20)
    expected = sum(float(x) for x in f1) / len(rows)
    assert values(rows, config)["bertscore_f1"] == exactly(expected)
