"""The first n training dialogues of a corpus, nested: whatever is in the smaller subset is in the larger one.

The order is that of a hash of what the dialogues hold, so it depends neither on the manifest's order nor on a seed.
Dialogues with the same words in other styles (`variant_of`) come together or not at all; dev and test stay whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from omnichat.data.card import summarise
from omnichat.data.corpus import AnyCorpus
from omnichat.schema import Dialogue, Turn, dialogue_to_json
from omnichat.utils.errors import UserError
from omnichat.utils.packed import Recording

_PLACES = ("id", "split", "source")  # of a dialogue, not what it holds
_TURN_PLACES = ("audio", "variant_of")


def nested_order(corpus: AnyCorpus) -> list[list[int]]:
    """Numbers of the training dialogues in the order in which subsets take them, variants as a group."""
    groups: dict[str, list[int]] = {}
    hashes: dict[str, list[str]] = {}
    for number, dialogue in enumerate(corpus.iterate("train")):
        content = _content_hash(dialogue)
        key = next((f"variants {turn.variant_of}" for turn in dialogue.turns if turn.variant_of), f"{number} {content}")
        groups.setdefault(key, []).append(number)
        hashes.setdefault(key, []).append(content)
    ranks = {key: hashlib.sha256("\n".join(sorted(found)).encode()).hexdigest() for key, found in hashes.items()}
    return [groups[key] for key in sorted(groups, key=lambda key: (ranks[key], groups[key]))]


def limited(corpus: AnyCorpus, limit: int | None, key: str) -> AnyCorpus:
    """The corpus with at most `limit` training dialogues; None = all.

    Args:
        corpus: the whole one.
        limit: of training dialogues; a group that would not fit whole is left out with all that come after it.
        key: of the config, for messages.

    Raises:
        UserError: not even the first group fits.
    """
    if limit is None or limit >= corpus.count("train"):
        return corpus
    kept: list[int] = []
    for group in nested_order(corpus):
        if len(kept) + len(group) > limit:
            break
        kept += group
    if not kept:
        raise UserError(f"{key}={limit}: the first dialogue of {corpus.root} has more style variants; take more")
    return SubsetCorpus(corpus, sorted(kept), limit)


class SubsetCorpus:
    """An AnyCorpus with some of the training dialogues of another; its other splits are whole.

    Args:
        inner: the whole corpus.
        kept: numbers of its training dialogues, ascending.
        limit: that was asked for.
    """

    def __init__(self, inner: AnyCorpus, kept: list[int], limit: int) -> None:
        self.inner, self.kept, self.limit = inner, kept, limit
        self.streamed, self.name, self.root = inner.streamed, inner.name, inner.root
        self.kind, self.stand_in = inner.kind, inner.stand_in

    def fingerprint(self) -> str:
        """Of the whole corpus and of what was kept."""
        return hashlib.sha256(f"{self.inner.fingerprint()}\n{self.kept}".encode()).hexdigest()

    def count(self, split: str) -> int:
        """Number of dialogues of a split."""
        return len(self.kept) if split == "train" else self.inner.count(split)

    def get(self, split: str, number: int) -> Dialogue:
        """One dialogue of a split, by its number among those kept."""
        if split != "train":
            return self.inner.get(split, number)
        if not 0 <= number < len(self.kept):
            raise IndexError(f"{self.root}: {len(self.kept)} training dialogues are kept, not {number + 1}")
        return self.inner.get(split, self.kept[number])

    def iterate(self, split: str | None = None) -> Iterator[Dialogue]:
        """Every dialogue kept, in the order of the whole corpus."""
        if split is not None and split != "train":
            yield from self.inner.iterate(split)
            return
        kept, number = set(self.kept), 0
        for dialogue in self.inner.iterate(split):
            if dialogue.split != "train":
                yield dialogue
                continue
            if number in kept:
                yield dialogue
            number += 1

    def path_of(self, turn: Turn) -> Recording:
        """Where the recording of `turn` is."""
        return self.inner.path_of(turn)

    def summary(self, split: str | None = None) -> dict[str, Any]:
        """Counts of what is kept; see `Corpus.summary`."""
        if split is not None and split != "train":
            return self.inner.summary(split)
        return summarise(list(self.iterate(split))) | {"kind": self.kind, "stand_in": self.stand_in}


def whole_fingerprint(corpus: AnyCorpus) -> str:
    """Fingerprint of a corpus before a limit: the same for all subsets of one corpus."""
    return corpus.inner.fingerprint() if isinstance(corpus, SubsetCorpus) else corpus.fingerprint()


def _content_hash(dialogue: Dialogue) -> str:
    """SHA-256 of all that a dialogue holds, wherever its files lie and however it is called."""
    value = {key: part for key, part in dialogue_to_json(dialogue).items() if key not in _PLACES}
    value["turns"] = [{k: v for k, v in turn.items() if k not in _TURN_PLACES} for turn in value["turns"]]
    if "scene" in value:
        value["scene"] = {k: v for k, v in value["scene"].items() if k != "audio"}
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
