"""Scripts that say what another has said: found whatever the order of comparing, and nothing else is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnichat.schema import Style
from omnichat.synthesis.base import NO_TOPIC, Line, Script, Variant
from omnichat.synthesis.writers.duplicates import SeenScripts, jaccard, ngrams, words
from omnichat.utils.errors import UserError
from tests.helpers.scripts import grammar, request

STYLE = Style("normal", "normal", "neutral")


def script(*sentences: str) -> Script:
    """History of all but the last two sentences, current turn, one reply."""
    *history, current, reply = sentences
    lines = tuple(Line("AB"[n % 2], text, STYLE) for n, text in enumerate(history))
    return Script("topic", "emotion", lines, current, (Variant(STYLE, Line("B", reply, STYLE)),))


ONE = script(
    "We went to the lake on Sunday.", "Was it cold?", "The water has risen by a metre.", "Then the path is gone."
)


def test_the_same_words_are_refused_whatever_their_marks_and_case() -> None:
    seen = SeenScripts(None, 3)
    assert seen.reason(ONE, "train") is None
    seen.add(ONE, "train")
    assert seen.reason(ONE, "train") == "duplicate script"
    shout = script(*(sentence.upper().replace(".", "!") for sentence in ONE.sentences()))
    assert seen.reason(shout, "train") == "duplicate script"


def test_a_sentence_of_another_split_is_refused() -> None:
    seen = SeenScripts(None, 3)
    seen.add(ONE, "test")
    other = script("Nobody was there.", "was it cold", "I left early.", "And then?")
    assert seen.reason(other, "train") == "a sentence of another split"
    assert seen.reason(other, "test") is None


def test_nearly_the_same_is_what_shares_enough_word_ngrams() -> None:
    near = script(*ONE.sentences()[:-1], "Then the path is under water.")
    similarity = jaccard(ngrams(ONE, 3), ngrams(near, 3))
    assert 0.5 < similarity < 1
    for threshold, reason in ((similarity - 0.05, "near-duplicate script"), (similarity + 0.05, None)):
        seen = SeenScripts(threshold, 3)
        seen.add(ONE, "train")
        assert seen.reason(near, "train") == reason
    assert SeenScripts(None, 3).reason(near, "train") is None


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=6).map(" ".join), min_size=2, max_size=6),
    st.lists(st.lists(st.sampled_from("abcdefg"), min_size=1, max_size=6).map(" ".join), min_size=2, max_size=6),
    st.integers(1, 4),
)
def test_similarity_is_that_of_the_sets(one: list[str], other: list[str], size: int) -> None:
    def grams(sentences: list[str]) -> set[tuple[str, ...]]:
        said = [words(sentence) for sentence in sentences]
        return {tuple(line[i : i + size]) for line in said for i in range(max(1, len(line) - size + 1))}

    left, right = grams(one), grams(other)
    hashes = ngrams(script(*one), size), ngrams(script(*other), size)
    assert (len(hashes[0]), len(hashes[1])) == (len(left), len(right))
    assert jaccard(*hashes) == pytest.approx(len(left & right) / len(left | right))


def test_no_near_duplicate_is_missed_among_many() -> None:
    """The table must find whatever comparing with every script would find, near the threshold also."""
    scripts = [grammar().write(request(seed, turns=4)) for seed in range(300)]
    grams = [ngrams(one, 3) for one in scripts]
    for threshold in (0.3, 0.6):
        seen, kept, missed, found = SeenScripts(threshold, 3), [], 0, 0
        for number, one in enumerate(scripts):
            nearest = max((jaccard(grams[number], grams[other]) for other in kept), default=0.0)
            reason = seen.reason(one, "train")
            assert reason is None or nearest >= threshold, "what is refused is near, by exact similarity"
            found += reason is not None
            missed += reason is None and nearest >= threshold
            if reason is None:
                seen.add(one, "train")
                kept.append(number)
        assert missed <= 0.02 * (found + missed) + 1


def test_the_outcome_depends_on_the_order_alone() -> None:
    scripts = [grammar().write(request(seed)) for seed in range(120)]

    def run() -> list[str | None]:
        seen, reasons = SeenScripts(0.4, 3), []
        for one in scripts:
            reasons.append(seen.reason(one, "train"))
            if reasons[-1] is None:
                seen.add(one, "train")
        return reasons

    assert run() == run()
    assert len(set(run())) == 2, "some are refused and some are not, or this test shows nothing"


def test_hashes_are_sorted_and_distinct() -> None:
    found = ngrams(replace(ONE, history=ONE.history * 2), 2)
    assert found.dtype == np.uint64 and np.array_equal(found, np.unique(found))
    assert np.array_equal(found, ngrams(ONE, 2))


@pytest.mark.parametrize(("threshold", "ngram"), [(0.0, 3), (1.5, 3), (-1.0, 3), (0.5, 0)])
def test_settings_out_of_range_are_refused(threshold: float, ngram: int) -> None:
    with pytest.raises(UserError, match=r"duplicates\.(threshold|ngram)"):
        SeenScripts(threshold, ngram)


def test_a_topic_of_another_split_is_refused_and_no_topic_is_none() -> None:
    seen = SeenScripts(None, 3)
    seen.add(ONE, "test")
    other = script("Nobody was there.", "Why not?", "I left early.", "And then?")
    assert seen.reason(replace(other, topic="  TOPIC "), "train") == "a topic of another split"
    assert seen.reason(replace(other, topic="another"), "train") is None
    seen.add(replace(other, topic=NO_TOPIC), "test")
    assert seen.reason(replace(script("One.", "Two.", "Three.", "Four."), topic=NO_TOPIC), "train") is None
