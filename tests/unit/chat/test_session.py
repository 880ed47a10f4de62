"""A session: streamed == batch, kept cache == read again, stopped and edited dialogues."""

from __future__ import annotations

from typing import Any

import pytest

from omnichat.chat.base import DecodingConfig, Talker
from omnichat.chat.session import Session
from omnichat.model.pretrained.conversation import Said
from omnichat.utils.errors import UserError
from tests.helpers.talkers import small_talker, tone

GREEDY = DecodingConfig(max_new_tokens=10)
TURNS = [
    Said("user", tone(0.8, 300.0)),
    Said("user", None, "Tell me more."),
    Said("user", tone(1.7, 120.0)),
    Said("user", tone(0.8, 300.0)),  # heard before
]


@pytest.fixture(scope="module")
def talker() -> Talker:
    return small_talker()


def test_streamed_text_is_the_answers_and_that_of_generate(talker: Talker) -> None:
    session = Session(talker, GREEDY)
    for said in TURNS[:2]:
        inputs = talker.processor.batch([talker.processor.prompt([*session.turns, said])])
        expected = talker.processor.batch_decode(talker.model.generate(**inputs, max_new_tokens=10))[0]
        pieces = list(session.stream(said))
        assert "".join(pieces) == session.answers[-1].text == expected
    assert [turn.role for turn in session.turns] == ["user", "assistant"] * 2


@pytest.mark.parametrize("fusion", ["mix_former", "cross_attention", "salmonn"])
def test_a_kept_cache_gives_the_replies_of_reading_all_again(fusion: str) -> None:
    talker = small_talker(fusion=fusion)
    kept, again = Session(talker, GREEDY), Session(talker, GREEDY, keep_cache=False)
    for number, said in enumerate(TURNS):
        one, other = kept.answer(said), again.answer(said)
        assert one.text == other.text and one.tokens == other.tokens and one.heard == other.heard
        assert one.prompt_tokens == other.prompt_tokens and other.kept_tokens == 0
        if number:
            before = kept.answers[number - 1]
            assert one.kept_tokens >= before.prompt_tokens  # a turn costs its own tokens only
    assert len({answer.text for answer in kept.answers}) > 1


def test_an_edited_dialogue_keeps_what_is_still_the_same(talker: Talker) -> None:
    session = Session(talker, GREEDY)
    for said in TURNS[:3]:
        session.answer(said)
    begun = session.turns[:2]
    for other in (Said("user", tone(1.7, 121.0)), TURNS[1]):
        fresh = Session(talker, GREEDY, keep_cache=False)
        fresh.say(begun)
        session.say(begun)
        answer = session.answer(other)
        assert answer.text == fresh.answer(other).text and answer.kept_tokens > 0
    session.say([])
    swapped = session.answer(Said("user", tone(0.8, 301.0)))  # as long as the first recording, and another
    fresh = Session(talker, GREEDY)
    assert swapped.text == fresh.answer(Said("user", tone(0.8, 301.0))).text
    assert swapped.kept_tokens < swapped.prompt_tokens - 3


def test_ctrl_c_ends_a_reply_where_it_is(talker: Talker) -> None:
    session = Session(talker, DecodingConfig(max_new_tokens=400))
    stream: Any = session.stream(TURNS[0])
    next(stream)
    with pytest.raises(KeyboardInterrupt):
        stream.throw(KeyboardInterrupt)
    assert not session.answers[0].complete and session.answers[0].tokens < 400


def test_a_stopped_reply_counts_as_far_as_it_came(talker: Talker) -> None:
    long = DecodingConfig(max_new_tokens=400)
    session = Session(talker, long)
    stream = session.stream(TURNS[0])
    next(stream)
    stream.close()
    assert not session.answers[0].complete and session.answers[0].tokens < 400
    fresh = Session(talker, GREEDY, keep_cache=False)
    fresh.say(session.turns)
    session.decoding = GREEDY
    assert session.answer(TURNS[1]).text == fresh.answer(TURNS[1]).text


def test_sampling_is_set_by_its_seed_and_beams_come_whole(talker: Talker) -> None:
    def sampled(seed: int) -> str:
        return Session(talker, DecodingConfig(max_new_tokens=10, temperature=1.5, seed=seed)).answer(TURNS[0]).text

    assert sampled(1) == sampled(1) != sampled(2)
    beams = Session(talker, DecodingConfig(max_new_tokens=6, beams=3))
    assert list(beams.stream(TURNS[0])) == [beams.answers[0].text]
    assert beams.answer(TURNS[1]).text


def test_windows_are_told(talker: Talker) -> None:
    session = Session(talker, GREEDY)
    heard = session.answer(TURNS[0]).heard
    assert heard is not None and heard.experts == ("beats", "mert") and len(heard.attention) == 3
    assert all(abs(sum(window) - 1) < 1e-3 for window in heard.attention)
    assert session.answer(TURNS[1]).heard is None


def test_a_turn_that_cannot_be_answered_changes_nothing() -> None:
    session = Session(small_talker("text"), GREEDY)
    with pytest.raises(UserError, match="reads words"):
        session.answer(Said("user", tone()))
    assert session.turns == [] and session.answer(Said("user", tone(), "hello")).text


def test_a_recording_that_no_expert_takes_leaves_the_dialogue_as_it_was(talker: Talker) -> None:
    session, fresh = Session(talker, GREEDY), Session(talker, GREEDY, keep_cache=False)
    for said in TURNS[:2]:
        session.answer(said)
        fresh.answer(said)
    session.say(session.turns[:2])  # so that the next turn cuts the cache
    with pytest.raises(UserError, match="60 s"):
        session.answer(Said("user", tone(61.0)))
    session.say(fresh.turns)
    assert session.answer(TURNS[2]).text == fresh.answer(TURNS[2]).text


def test_another_system_prompt_is_read(talker: Talker) -> None:
    plain, other = Session(talker, GREEDY), Session(talker, GREEDY, system="Answer like a pirate, loudly.")
    first, second = plain.answer(TURNS[0]), other.answer(TURNS[0])
    assert second.prompt_tokens != first.prompt_tokens


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"max_new_tokens": 0}, "max_new_tokens"),
        ({"temperature": -1.0}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"beams": 2, "temperature": 1.0}, "beams"),
        ({"max_sec": 0.0}, "max_sec"),
    ],
)
def test_wrong_decoding_is_refused(settings: dict[str, float], key: str) -> None:
    with pytest.raises(UserError, match=f"decoding.{key}"):
        DecodingConfig(**settings)  # type: ignore[arg-type]
