"""Scripts that say what another has said: word for word, nearly so, or across splits.

Nearly the same is a Jaccard similarity of the sets of word n-grams above a threshold. MinHash signatures in a table of
locality-sensitive hashing (Broder 1997; Indyk and Motwani 1998) find the candidates without comparing all pairs; what
counts is then the exact similarity.
"""

from __future__ import annotations

import hashlib
import re

import numpy as np
from datasketch import MinHash, MinHashLSH

from omnichat.synthesis.base import NO_TOPIC, Script
from omnichat.synthesis.topics.base import same_topic
from omnichat.utils.errors import UserError

_PERMUTATIONS = 128
_SEED = 20250103  # of the permutations
# Weights of false positives, which the exact similarity sorts out, and of misses, which nothing does.
_FIND = (0.1, 0.9)


class SeenScripts:
    """The scripts of a corpus so far. The outcome depends on their order and on nothing else.

    Args:
        threshold: similarity, above 0 and at most 1, from which two scripts are nearly the same; None = only scripts of
            the same words are refused.
        ngram: words in an n-gram.

    Raises:
        UserError: a threshold or ngram out of range.
    """

    def __init__(self, threshold: float | None, ngram: int) -> None:
        if threshold is not None and not 0 < threshold <= 1:
            raise UserError(f"duplicates.threshold must lie in (0, 1], or be null, got {threshold}")
        if ngram < 1:
            raise UserError(f"duplicates.ngram must be >= 1, got {ngram}")
        self.threshold, self.ngram = threshold, ngram
        self._exact: set[bytes] = set()
        self._split_of: dict[bytes, str] = {}
        self._topic_of: dict[str, str] = {}
        self._grams: list[np.ndarray] = []
        self._table = None
        if threshold is not None:
            self._table = MinHashLSH(threshold=min(threshold, 0.99), num_perm=_PERMUTATIONS, weights=_FIND)

    def reason(self, script: Script, split: str) -> str | None:
        """Why a script may not join those seen so far, in words that a card can count; None = it may."""
        sentences = [_digest(words(sentence)) for sentence in script.sentences()]
        if _digest(sentences) in self._exact:
            return "duplicate script"
        if any(self._split_of.get(sentence, split) != split for sentence in sentences):
            return "a sentence of another split"
        if script.topic != NO_TOPIC and self._topic_of.get(same_topic(script.topic), split) != split:
            return "a topic of another split"
        if self.threshold is not None and self.nearest(script) >= self.threshold:
            return "near-duplicate script"
        return None

    def add(self, script: Script, split: str) -> None:
        """Count a script, which is kept, among those seen."""
        sentences = [_digest(words(sentence)) for sentence in script.sentences()]
        self._exact.add(_digest(sentences))
        for sentence in sentences:
            self._split_of.setdefault(sentence, split)
        self._topic_of.setdefault(same_topic(script.topic), split)
        if self._table is not None:
            grams = ngrams(script, self.ngram)
            self._table.insert(len(self._grams), _signature(grams))
            self._grams.append(grams)

    def nearest(self, script: Script) -> float:
        """The largest similarity to a script seen, among those that the table finds; 0 where it finds none."""
        if self._table is None or not self._grams:
            return 0.0
        grams = ngrams(script, self.ngram)
        return max((jaccard(grams, self._grams[index]) for index in self._table.query(_signature(grams))), default=0.0)


def words(sentence: str) -> list[str]:
    """The words of a sentence in lower case, without punctuation."""
    return re.findall(r"\w+(?:'\w+)*", sentence.lower())


def ngrams(script: Script, size: int) -> np.ndarray:
    """Sorted 64-bit hashes, uint64 [N], of the word n-grams of all sentences; none reaches over a sentence's end.

    A sentence shorter than `size` counts as one gram.
    """
    found = set()
    for sentence in script.sentences():
        said = words(sentence)
        for start in range(max(1, len(said) - size + 1)):
            found.add(int.from_bytes(_digest(said[start : start + size])[:8], "big"))
    return np.array(sorted(found), dtype=np.uint64)


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Shared over all of two sorted sets of hashes, in [0, 1]."""
    shared = len(np.intersect1d(one, other, assume_unique=True))
    return shared / max(1, len(one) + len(other) - shared)


def _signature(grams: np.ndarray) -> MinHash:
    signature = MinHash(num_perm=_PERMUTATIONS, seed=_SEED, hashfunc=_low_bits)
    signature.update_batch(grams.tolist())
    return signature


def _low_bits(gram: int) -> int:
    return gram & 0xFFFFFFFF


def _digest(parts: list[str] | list[bytes]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update((part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part) + b"\x1f")
    return digest.digest()
