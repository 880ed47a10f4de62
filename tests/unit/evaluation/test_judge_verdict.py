"""Reading a judge's answer: what can be meant in one way is a score, everything else a reason that can be counted."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnichat.evaluation.judge.verdict import (
    CUT_OFF,
    EMPTY,
    NO_SCORE,
    OFF_SCALE,
    REASONS,
    TOO_LONG,
    TWO_SCORES,
    WITHHELD,
    answer_schema,
    read_score,
)
from omnichat.remote.answers import strict_json

READ = [
    ('{"reason": "fits", "score": 4}', 4),
    ('Sure! Here it is:\n```json\n{"reason": "fits", "score": 3}\n```\nAnything else?', 3),
    ('{"reason": "B says "hi" twice", "score": 2}', 2),
    ('{"reason": "I first thought \\"score\\": 1", "score": 5}', 5),
    ('{"score": "4"}', 4),
    ('{"score": "4/5"}', 4),
    ('{"score": 4.0}', 4),
    ('{"result": {"score": 2}}', 2),
    ('{"score": 2} as I said: {"score": 2}', 2),
    ("<think>{'score': 1}, perhaps score: 2</think>{\"score\": 5}", 5),
    ("4", 4),
    ("**4**", 4),
    ("4.", 4),
    ("4/5", 4),
    ("Score: 4", 4),
    ("Score (1-5): 4", 4),
    ("The rating is 5.", 5),
    ("I would give this reply a score of 3 out of 5.", 3),
    ("On a scale of 1 to 5, this is 2/5.", 2),
    ('{"score": 7}', OFF_SCALE),
    ('{"score": 0}', OFF_SCALE),
    ('{"score": -3}', OFF_SCALE),
    ('{"score": 3.5}', OFF_SCALE),
    ('{"score": true}', OFF_SCALE),
    ('{"score": [4]}', OFF_SCALE),
    ('{"score": null}', OFF_SCALE),
    ('{"score": NaN}', OFF_SCALE),
    ('{"score": N}', NO_SCORE),
    ("Score: 10", OFF_SCALE),
    ("score: 4.5", OFF_SCALE),
    ("3 out of 5.5", NO_SCORE),
    ('{"score": 4} or {"score": 2}', TWO_SCORES),
    ('{"score": 4, "score": 2}', TWO_SCORES),
    ("Score: 4. On second thought, score: 2.", TWO_SCORES),
    ("The reply fits well.", NO_SCORE),
    ("On a scale of 1 to 5 it is good.", NO_SCORE),
    ("A waited 4 hours.", NO_SCORE),
    ('{"grade": 4}', 4),
    ("  ", EMPTY),
    ("x" * 200_000, TOO_LONG),
    ('{"a":' * 5000, NO_SCORE),
    ('{"score": 1' + "0" * 5000 + "}", NO_SCORE),
]


@pytest.mark.parametrize(("text", "expected"), READ, ids=[text[:30] for text, _ in READ])
def test_what_an_answer_means(text: str, expected: int | str) -> None:
    assert read_score(text) == expected


def test_an_answer_that_was_cut_off_counts_only_where_its_json_is_whole() -> None:
    assert read_score('{"score": 3} And furthermore', "length") == 3
    for text in ('{"reason": "fits", "sco', "Score: 4", "4", "", "<think>let me see", '{"reason": "x", "score": 1'):
        assert read_score(text, "length") == CUT_OFF
    assert read_score('{"score": 3}', "content_filter") == WITHHELD


@given(
    st.one_of(st.text(), st.text(alphabet='{}[]":,.-/ \n`*scoreSCOREnull12345670outf')),
    st.sampled_from(["stop", "length"]),
)
def test_whatever_comes_a_score_or_a_reason_goes_out(text: str, finish: str) -> None:
    got = read_score(text, finish)
    assert (isinstance(got, int) and not isinstance(got, bool) and 1 <= got <= 5) or got in REASONS


@given(st.integers(-20, 20), st.text(), st.text(alphabet=st.characters(exclude_characters="{}<")))
def test_a_score_survives_its_reason_and_the_talk_around_it(score: int, reason: str, talk: str) -> None:
    text = json.dumps({"reason": reason, "score": score})
    assert strict_json(text, answer_schema()) == (1 <= score <= 5)
    assert read_score(f"{talk}\n{text}") == (score if 1 <= score <= 5 else OFF_SCALE)
