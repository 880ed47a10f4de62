"""What training has met of a test set: words, topics and recordings, and nothing that only looks like it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnichat.evaluation.held_out import LEAST_WORDS, describe_leaks, find_leaks, plain_words
from omnichat.schema import Dialogue, Turn


def talk(name: str, *lines: str, kind: str = "synthetic", split: str = "test", **more: Any) -> Dialogue:
    turns = tuple(Turn("AB"[number % 2], line) for number, line in enumerate(lines))
    return Dialogue(name, "made", kind, "emotion", split, turns, **more)


TESTED = [
    (talk("t0", "I lost my blue umbrella today.", "That is a real pity, friend."), 1),
    (talk("t1", "Thank you!", "You are welcome."), 1),
    (talk("t2", "Where is the old mill?", "Down by the river, I think.", topic="The old  mill"), 1),
]


def found(*training: Dialogue, tested: Any = TESTED) -> list[tuple[int, str, str]]:
    return [(leak.row, leak.kind, leak.where) for leak in find_leaks(tested, (("src", d) for d in training))]


@pytest.mark.parametrize(
    ("training", "leaks"),
    [
        (talk("a", "I lost my BLUE umbrella, today?!", "Well."), [(0, "heard", "src/a")]),
        (talk("a", "Well.", "i lost my blue umbrella today"), [(0, "heard", "src/a")]),
        (talk("a", "Hm.", "That is a real pity -- friend"), [(0, "reply", "src/a")]),
        (talk("a", "I lost my blue umbrella.", "Hm."), []),
        (talk("a", "Thank you!", "You are welcome."), []),
        (talk("a", "Hm.", "Well.", topic="the OLD mill"), [(2, "topic", "src/a")]),
        (talk("a", "Hm.", "Well.", topic="the old mill", kind="real"), []),
    ],
    ids=["case", "speaker", "reply", "part", "short", "topic", "topic of a real corpus"],
)
def test_each_kind_is_found_and_no_more(training: Dialogue, leaks: list[tuple[int, str, str]]) -> None:
    assert found(training) == leaks


def test_a_recording_is_known_by_its_hash() -> None:
    def sounding(dialogue: Dialogue, sha256: str) -> Dialogue:
        turn = replace(dialogue.turns[0], audio="a.flac", sample_rate=8000, seconds=1.0, sha256=sha256)
        return replace(dialogue, turns=(turn, *dialogue.turns[1:]))

    tested = [(sounding(TESTED[1][0], "ab"), 1)]
    assert found(sounding(talk("a", "Hm.", "Well."), "ab"), tested=tested) == [(0, "recording", "src/a")]
    assert found(sounding(talk("a", "Hm.", "Well."), "cd"), tested=tested) == []


def test_the_first_place_is_told_and_every_reply_that_asks_the_same() -> None:
    twice = [TESTED[0], (replace(TESTED[0][0], id="t9"), 1)]
    places = [talk(name, "I lost my blue umbrella today.", "Hm.") for name in ("a", "b")]
    assert found(*places, tested=twice) == [(0, "heard", "src/a"), (1, "heard", "src/a")]


def test_the_line_counts_replies_once_and_shows_a_few() -> None:
    leaks = find_leaks(TESTED, [("src", TESTED[0][0]), ("src", TESTED[2][0])])
    line = describe_leaks(leaks, TESTED, shown=1)
    assert line.startswith("leak: 2 of 3 replies")
    assert "its question's words 2" in line and "its answer's words 2" in line and "its topic 1" in line
    assert "t0#1 'I lost my blue umbrella today.' as src/t0 and 1 more" in line
    assert describe_leaks([], TESTED) == ""


@given(st.lists(st.text("ab ,.'É", min_size=1, max_size=20).filter(str.strip), min_size=1, max_size=6), st.data())
def test_it_agrees_with_comparing_every_pair(lines: list[str], data: st.DataObject) -> None:
    asked = data.draw(st.sampled_from(lines)) if data.draw(st.booleans()) else "b a b a b"
    tested = [(talk("t", asked, "Hm."), 1)]
    plain = plain_words(asked)
    long = len(plain.split()) >= LEAST_WORDS
    met = long and any(plain_words(line) == plain for line in lines)
    assert bool(found(*(talk(str(n), line, "Well.") for n, line in enumerate(lines)), tested=tested)) == met
