"""Text metrics of a reply's words against the reference: BLEU, ROUGE-L, METEOR, BERTScore, each by its own library."""

from __future__ import annotations

import functools
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nltk.corpus import wordnet
from nltk.stem.porter import PorterStemmer
from nltk.tokenize import wordpunct_tokenize
from nltk.translate.meteor_score import single_meteor_score
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU

from omnichat.evaluation.bootstrap import Floats
from omnichat.utils.assets import resolve_path
from omnichat.utils.errors import UserError

_NGRAMS = 4


def bleu_stats(hypotheses: Sequence[str], references: Sequence[str]) -> Floats:
    """Return float [N, 10], sacrebleu's statistics of each reply: matches and totals of 1- to 4-grams, both lengths."""
    scorer = BLEU()
    rows = []
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        score = scorer.corpus_score([hypothesis], [[reference]])
        rows.append([*score.counts, *score.totals, score.sys_len, score.ref_len])
    return np.array(rows, dtype=np.float64).reshape(len(rows), 2 * _NGRAMS + 2)


def bleu_from_stats(sums: Floats) -> Floats:
    """Return corpus BLEU (0 to 100) [S] of summed statistics [S, 10], by sacrebleu's own formula (Papineni 2002)."""
    values = []
    for row in sums:
        whole = [round(number) for number in row]
        score = BLEU.compute_bleu(
            correct=whole[:_NGRAMS],
            total=whole[_NGRAMS : 2 * _NGRAMS],
            sys_len=whole[-2],
            ref_len=whole[-1],
            smooth_method="exp",
        )
        values.append(score.score)
    return np.array(values)


def bleu_signature() -> str:
    """Return sacrebleu's signature, which says how the figure was computed."""
    scorer = BLEU()
    scorer.corpus_score(["a"], [["a"]])  # the signature learns the number of references from a first score
    return str(scorer.get_signature())


def rouge_l(hypotheses: Sequence[str], references: Sequence[str]) -> list[float]:
    """Return the ROUGE-L F measure of each reply, with Porter stems (Lin 2004, package rouge-score)."""
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    pairs = zip(references, hypotheses, strict=True)
    return [float(scorer.score(reference, hypothesis)["rougeL"].fmeasure) for reference, hypothesis in pairs]


class _NoSynonyms:
    """Stands where NLTK's METEOR expects WordNet: knows no synonym, so only exact and stem matches count."""

    def synsets(self, word: str) -> list[Any]:
        return []


@functools.cache
def wordnet_present() -> bool:
    """True where NLTK finds its WordNet files."""
    try:
        wordnet.ensure_loaded()
    except LookupError:
        return False
    return True


def meteor(hypotheses: Sequence[str], references: Sequence[str]) -> list[float]:
    """Return the METEOR score of each reply (Lavie and Agarwal 2007, package nltk, `wordpunct_tokenize`).

    Without WordNet's files only exact and stem matches count; `meteor_note` says which of the two was computed.
    """
    synonyms = wordnet if wordnet_present() else _NoSynonyms()
    stemmer = PorterStemmer()
    scores = []
    for hypothesis, reference in zip(hypotheses, references, strict=True):
        words = wordpunct_tokenize(reference), wordpunct_tokenize(hypothesis)
        scores.append(float(single_meteor_score(*words, stemmer=stemmer, wordnet=synonyms)))
    return scores


def meteor_note() -> str:
    """Return the label of a METEOR figure: its library, version, and which matches count."""
    matches = "exact + stem + WordNet synonyms" if wordnet_present() else "exact + stem only, no WordNet files"
    return f"nltk {importlib.metadata.version('nltk')}, {matches}"


class BertScore:
    """BERTScore F1 (Zhang et al. 2020, package bert-score), without baseline rescaling.

    Args:
        model: `asset:NAME`, a folder, or the name of a model that bert-score knows.
        layers: the layer whose embeddings count; None takes bert-score's own choice for a model that it knows.
        batch_size: pairs a batch.
        device: torch device, such as "cpu" or "cuda:0".

    Raises:
        UserError: the model cannot be loaded, or has fewer layers.
    """

    def __init__(self, model: str, layers: int | None = None, batch_size: int = 32, device: str = "cpu") -> None:
        from bert_score import BERTScorer  # slow to import, and not every score needs it
        from bert_score.utils import model2layers

        path = resolve_path(model)
        name = str(path) if path.is_dir() else model
        if layers is None and name not in model2layers:
            raise UserError(f"bertscore_layers must be set for bertscore_model={model!r}")
        try:
            self._scorer = BERTScorer(
                model_type=name, num_layers=layers, batch_size=batch_size, device=device, rescale_with_baseline=False
            )
        except (OSError, ValueError, AssertionError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(f"bertscore_model={model!r} cannot be loaded: {reason}") from None
        # some tokenizers state no limit (1e30), which truncation cannot use
        positions = getattr(self._scorer._model.config, "max_position_embeddings", 512)
        tokenizer = self._scorer._tokenizer
        tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
        label = model if model.startswith("asset:") else Path(name).name
        version = importlib.metadata.version("bert-score")
        self.note = f"bert-score {version}, {label}, layer {self._scorer.num_layers}, not rescaled"

    def __call__(self, hypotheses: Sequence[str], references: Sequence[str]) -> list[float]:
        """Return the F1 of each reply; an empty reply or reference scores 0 (there is nothing to embed)."""
        pairs = list(zip(hypotheses, references, strict=True))
        filled = [
            index for index, (hypothesis, reference) in enumerate(pairs) if hypothesis.strip() and reference.strip()
        ]
        scores = [0.0] * len(pairs)
        if filled:
            _, _, f1 = self._scorer.score([pairs[i][0] for i in filled], [pairs[i][1] for i in filled])
            for index, score in zip(filled, f1.tolist(), strict=True):
                scores[index] = float(score)
        return scores
