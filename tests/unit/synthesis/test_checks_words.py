"""The word check hears in the full window what it must before it rejects, and no more."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from omnichat.encoders.whisper_asr import WINDOW_SEC
from omnichat.synthesis.base import Style
from omnichat.synthesis.checks.base import Clip, Finding
from omnichat.synthesis.checks.suite import CheckSuite
from omnichat.synthesis.checks.words import WordErrorCheck

_WORDS = ["ripe", "apples", "grow", "near", "our", "old", "stone", "house"]
_SLIPS = st.integers(0, 4)


class Scripted(WordErrorCheck):
    """A turn's first sample is its number; what is heard of it in either window is written down."""

    def __init__(self, own: Sequence[int], full: Sequence[int]) -> None:
        super().__init__("none", 0.1, 0.4, 1.0, "float32", 40)
        self.slips = {False: own, True: full}
        self.heard_in_full: list[list[int]] = []

    def transcribe(self, waves: Sequence[np.ndarray], window_sec: float) -> list[str]:
        turns = [round(float(wave[0]) * 1000) for wave in waves]
        if window_sec == WINDOW_SEC:
            self.heard_in_full.append(turns)
        return [" ".join(["wrong"] * n + _WORDS[n:]) for n in (self.slips[window_sec == WINDOW_SEC][t] for t in turns)]

    def last_word(self, clips: list[Clip]) -> Finding:
        """As the suite asks it."""
        return CheckSuite({"words": self}).examine(clips)["words"]


def turns(count: int) -> list[Clip]:
    """Clips that say all the words."""
    return [Clip(np.full(16000, i / 1000, np.float32), 16000, " ".join(_WORDS), "a", Style()) for i in range(count)]


@given(st.lists(st.tuples(_SLIPS, _SLIPS), min_size=1, max_size=8))
def test_the_verdict_is_as_if_every_turn_with_an_error_was_heard_in_full(slips: list[tuple[int, int]]) -> None:
    own, full = [one for one, _ in slips], [other for _, other in slips]
    check = Scripted(own, full)
    found = check.last_word(turns(len(slips)))
    words = 8 * len(slips)

    def bad(errors: Sequence[int]) -> bool:
        return sum(errors) / words > 0.1 or max(errors) / 8 > 0.4

    heard = [turn for batch in check.heard_in_full for turn in batch]
    assert bool(found.reasons) == (bad(own) and bad([other if one else 0 for one, other in slips]))
    assert len(set(heard)) == len(heard) and all(own[turn] for turn in heard), "each once, and only with errors"
    assert [clip["full_window"] for clip in found.clips] == [turn in heard for turn in range(len(slips))]
    assert [clip["errors"] for clip in found.clips] == [full[t] if t in heard else own[t] for t in range(len(slips))]
    if not bad(own):
        assert not heard


def test_hearing_stops_once_what_was_heard_is_too_much() -> None:
    check = Scripted([1, 3, 0, 3, 1, 1], [1, 3, 0, 3, 1, 1])
    assert check.last_word(turns(6)).reasons == ["word error rate of the dialogue above max_dialogue_wer"]
    assert check.heard_in_full == [[1, 3]], "the worst ones: 6 of 48 words"


def test_hearing_goes_on_where_the_full_window_hears_better() -> None:
    check = Scripted([1, 3, 0, 3, 1, 1], [1, 0, 0, 1, 1, 1])
    assert not check.last_word(turns(6)).reasons
    assert check.heard_in_full == [[1, 3], [0, 4, 5]]


def test_a_turn_that_was_heard_in_full_is_not_heard_so_again() -> None:
    check = Scripted([0, 3, 1, 3, 0], [0, 3, 1, 3, 0])
    before = check.last_word(turns(5))
    assert check.heard_in_full == [[1, 3]]
    check.slips[False] = [0, 3, 1, 0, 0]  # turn 3 is spoken again, rightly
    again = check.examine_again(turns(5), before, [3])
    assert not again.reasons and [clip["full_window"] for clip in again.clips] == [False, True, False, False, False]
    check.slips[False] = check.slips[True] = [0, 3, 1, 1, 0]
    again = check.confirm(turns(5), check.examine_again(turns(5), before, [3]))
    assert again.reasons and check.heard_in_full == [[1, 3], [2, 3]]


def test_the_full_window_is_left_for_the_last_word() -> None:
    check = Scripted([0, 3, 0, 1, 0, 3], [0, 3, 0, 1, 0, 0])
    found = check.examine(turns(6))
    assert found.reasons and check.suspects(found) == {1: 1.0, 3: 1.0, 5: 1.0} and not check.heard_in_full
    assert not check.confirm(turns(6), found).reasons and check.heard_in_full == [[1, 5], [3]]
    silent = [Clip(np.zeros(0, np.float32), 16000, "no", "a", Style())]
    found = check.examine(silent)
    assert found.reasons and check.confirm(silent, found) == found
