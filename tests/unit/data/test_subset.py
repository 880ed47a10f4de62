"""Nested subsets of a corpus: what is in the smaller one is in the larger one, and style variants stay together."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnichat.data.corpus import Corpus
from omnichat.data.subset import SubsetCorpus, limited, nested_order, whole_fingerprint
from omnichat.schema import Dialogue, Turn
from omnichat.utils.errors import UserError


def corpus(sizes: list[int], order: list[int] | None = None, prefix: str = "d") -> Corpus:
    """One group of variants a size (1 = a dialogue without variants), and a dialogue of dev and test each."""
    dialogues = []
    for group, size in enumerate(sizes):
        for number in range(size):
            stem = f"{prefix}{group}" if size > 1 else None
            turns = (Turn("A", f"words of {group}", variant_of=stem), Turn("B", f"reply {number}"))
            dialogues.append(Dialogue(f"{prefix}{group}-{number}", "made", "synthetic", "emotion", "train", turns))
    if order is not None:
        dialogues = [dialogues[place] for place in order]
    for split in ("dev", "test"):
        dialogues.append(Dialogue(split, "made", "synthetic", "emotion", split, (Turn("A", "a"), Turn("B", split))))
    return Corpus("made", Path("nowhere"), tuple(dialogues))


def said(subset: object) -> set[tuple[str, str]]:
    return {(d.turns[0].text, d.turns[1].text) for d in subset.iterate("train")}  # type: ignore[attr-defined]


SIZES = st.lists(st.integers(1, 4), min_size=1, max_size=12)


@given(SIZES, st.integers(4, 30), st.integers(0, 20))
def test_the_smaller_lies_in_the_larger_and_variants_stay_together(sizes: list[int], limit: int, more: int) -> None:
    whole = corpus(sizes)
    small, large = limited(whole, limit, "limit"), limited(whole, limit + more, "limit")
    assert said(small) <= said(large) <= said(whole)
    assert small.count("train") == len(said(small)) <= limit
    counts: dict[str, int] = {}
    for words, _ in said(small):
        counts[words] = counts.get(words, 0) + 1
    assert all(count == sizes[int(words.rpartition(" ")[2])] for words, count in counts.items())
    if limit < whole.count("train"):
        assert limit - small.count("train") < max(sizes), "no more is left out than one group that does not fit"


@given(SIZES, st.randoms(), st.integers(4, 30))
def test_neither_the_manifests_order_nor_names_matter(sizes: list[int], random: object, limit: int) -> None:
    order = list(range(sum(sizes)))
    random.shuffle(order)  # type: ignore[attr-defined]
    assert said(limited(corpus(sizes), limit, "limit")) == said(limited(corpus(sizes, order, "x"), limit, "limit"))


def test_access_by_number_agrees_with_iteration_and_other_splits_are_whole() -> None:
    whole = corpus([3, 1, 3, 2, 1])
    subset = limited(whole, 6, "limit")
    assert isinstance(subset, SubsetCorpus)
    for split in ("train", "dev", "test"):
        got = [subset.get(split, number) for number in range(subset.count(split))]
        assert got == list(subset.iterate(split))
        assert split == "train" or got == list(whole.iterate(split))
    assert len(list(subset.iterate())) == subset.count("train") + 2
    assert subset.summary("train")["dialogues"] == subset.count("train") < whole.count("train")
    assert subset.summary()["dialogues"] == subset.count("train") + 2
    with pytest.raises(IndexError):
        subset.get("train", subset.count("train"))


def test_no_limit_or_a_large_one_is_the_corpus_itself() -> None:
    whole = corpus([3, 2])
    assert limited(whole, None, "limit") is whole and limited(whole, 5, "limit") is whole


def test_a_limit_that_takes_nothing_is_an_error_that_names_the_key() -> None:
    with pytest.raises(UserError, match=r"mixture\.sources\.mine\.limit=1"):
        limited(corpus([4, 4]), 1, "mixture.sources.mine.limit")


def test_groups_cover_every_training_dialogue_once() -> None:
    numbers = [number for group in nested_order(corpus([3, 1, 2])) for number in group]
    assert sorted(numbers) == list(range(6))


@pytest.fixture
def on_disk(tmp_path: Path) -> Path:
    from tests.helpers.corpora import synthetic_corpus

    return synthetic_corpus(tmp_path / "made")


def test_subsets_have_fingerprints_of_their_own_and_one_of_the_whole(on_disk: Path) -> None:
    whole = Corpus.load(on_disk)
    two, four = limited(whole, 2, "limit"), limited(whole, 4, "limit")
    assert len({whole.fingerprint(), two.fingerprint(), four.fingerprint()}) == 3
    assert whole_fingerprint(two) == whole_fingerprint(four) == whole_fingerprint(whole) == whole.fingerprint()
