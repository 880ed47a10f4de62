"""Asking models for a page: replies are a session's, tabs and columns do not touch each other, faults stay small."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omnichat.chat.base import DecodingConfig, Talker
from omnichat.chat.session import Session
from omnichat.chat.talking.desk import Desk, Update
from omnichat.chat.talking.examples import Examples
from omnichat.chat.talking.settings import TalkConfig
from omnichat.chat.talking.shelf import Choice
from omnichat.chat.talking.speech import Speech
from omnichat.model.pretrained.conversation import Said
from omnichat.schema import Style
from omnichat.synthesis.base import ClipFailed, Voice, Wave
from omnichat.utils.errors import UserError
from tests.helpers.corpora import synthetic_corpus
from tests.helpers.talkers import small_talker, tone

GREEDY = DecodingConfig(max_new_tokens=6)
TURNS = [Said("user", tone(0.8, 300.0)), Said("user", None, "Tell me more."), Said("user", tone(1.1, 120.0))]


class Beep(Voice):
    """Half a second of tone for anything; the speaker `hoarse` fails."""

    @property
    def speakers(self) -> dict[str, str | None]:
        return {"ann": "female", "hoarse": None}

    @property
    def sample_rate(self) -> int:
        return 8_000

    def speak(self, text: str, speaker: str, style: Style, seed: int) -> tuple[Wave, int]:
        if speaker == "hoarse":
            raise ClipFailed("the voice gave silence")
        return np.full(4_000, 0.25, dtype=np.float32), 8_000

    def describe(self) -> dict[str, Any]:
        return {"name": "beep"}


@pytest.fixture(scope="module")
def talkers() -> dict[str, Talker]:
    return {"hears": small_talker(), "crosses": small_talker(fusion="cross_attention"), "reads": small_talker("text")}


def desk_of(talkers: dict[str, Talker], voice: bool = False, **settings: Any) -> Desk:
    choices = [Choice(name, lambda talker=talker: talker) for name, talker in talkers.items()]  # type: ignore[misc]
    config = TalkConfig(decoding=settings.pop("decoding", GREEDY), **settings)
    return Desk(choices, config, Speech(Beep(), 0) if voice else None)


def last(updates: Iterable[Update], number: int = 0) -> Any:
    """The newest exchange of a column after its replies have come."""
    seen = [update for update in updates if update.number == number]
    assert seen and seen[-1].pending is None, [update.pending and update.pending.problem for update in seen]
    return seen[-1].column.exchanges[-1]


def expected(talker: Talker, turns: list[Said]) -> list[str]:
    session = Session(talker, GREEDY)
    return [session.answer(said).text for said in turns]


def test_two_tabs_by_turns_get_the_replies_of_one_alone(talkers: dict[str, Talker]) -> None:
    desk = desk_of(talkers)
    heard: dict[str, list[str]] = {"one": [], "two": []}
    for first, second in zip(TURNS, reversed(TURNS), strict=True):
        for key, said in (("one", first), ("two", second)):
            heard[key].append(last(desk.ask(key, ["hears"], said)).answer.text)
    assert heard["one"] == expected(talkers["hears"], TURNS)
    assert heard["two"] == expected(talkers["hears"], TURNS[::-1])
    assert heard["one"] != heard["two"]


def test_words_stream_and_the_recording_can_be_played(talkers: dict[str, Talker], monkeypatch: Any) -> None:
    monkeypatch.setattr("omnichat.chat.talking.desk.TELL_SEC", 0.0)
    desk = desk_of(talkers, decoding=DecodingConfig(max_new_tokens=24))
    updates = list(desk.ask("a", ["hears"], TURNS[0]))
    texts = [update.pending.text for update in updates if update.pending is not None]
    exchange = last(updates)
    assert len(texts) > 2 and texts[-1] == exchange.answer.text
    assert all(late.startswith(early) for early, late in itertools.pairwise(texts))
    content = desk.sounds.get(exchange.sound)
    assert content is not None and content[:4] == b"RIFF"
    assert exchange.answer.heard is not None and exchange.reply is None


def test_two_models_hear_the_same_and_keep_their_own_dialogues(talkers: dict[str, Talker]) -> None:
    desk = desk_of(talkers)
    answers: dict[int, list[str]] = {0: [], 1: []}
    for said in TURNS:
        updates = list(desk.ask("a", ["hears", "crosses"], said))
        for number in answers:
            answers[number].append(last(updates, number).answer.text)
    assert answers[0] == expected(talkers["hears"], TURNS) and answers[1] == expected(talkers["crosses"], TURNS)


def test_a_model_that_comes_later_takes_the_dialogue_over(talkers: dict[str, Talker]) -> None:
    desk = desk_of(talkers)
    last(desk.ask("a", ["hears"], TURNS[0]))
    updates = list(desk.ask("a", ["hears", "crosses"], TURNS[1]))
    with desk.tabs.hold("a") as tab:
        left, right = tab.columns
    assert right.history == tuple(left.turns[:2]) and len(right.exchanges) == 1
    session = Session(talkers["crosses"], GREEDY)
    session.say(left.turns[:2])
    assert last(updates, 1).answer.text == session.answer(TURNS[1]).text
    # In the same column, too.
    last(desk.ask("a", ["crosses"], TURNS[2]))
    session = Session(talkers["crosses"], GREEDY)
    session.say(left.turns[:4])
    assert left.exchanges[-1].answer.text == session.answer(TURNS[2]).text


def test_a_turn_is_answered_again_in_its_place(talkers: dict[str, Talker]) -> None:
    sampled = DecodingConfig(max_new_tokens=6, temperature=5.0)
    desk = desk_of(talkers, decoding=sampled)
    with pytest.raises(UserError, match="no turn yet"):
        list(desk.again("a", ["hears"]))
    last(desk.ask("a", ["hears"], TURNS[0]))
    texts = [last(desk.ask("a", ["hears"], TURNS[1])).answer.text]
    for _ in range(3):
        texts.append(last(desk.again("a", ["hears"])).answer.text)
    with desk.tabs.hold("a") as tab:
        assert len(tab.columns[0].exchanges) == 2 and len(tab.columns[0].turns) == 4
    assert len(set(texts)) > 1, "another seed each time"
    greedy = desk_of(talkers)
    first = last(greedy.ask("a", ["hears"], TURNS[0])).answer
    again = last(greedy.again("a", ["hears"])).answer
    assert again.text == first.text
    beside = list(greedy.again("a", ["hears", "crosses"]))
    assert last(beside, 1).answer.text == expected(talkers["crosses"], TURNS[:1])[0]


def test_a_model_that_gave_way_goes_on_where_it_was(talkers: dict[str, Talker]) -> None:
    desk = desk_of(talkers, models=1)
    texts = []
    for said in TURNS:
        texts.append(last(desk.ask("a", ["hears"], said)).answer.text)
        last(desk.ask("b", ["crosses"], said))
        assert not desk.shelf.holds("hears")
    assert texts == expected(talkers["hears"], TURNS)


def test_what_goes_wrong_in_one_column_stays_there(talkers: dict[str, Talker]) -> None:
    def broken() -> Talker:
        raise RuntimeError("a bug\nof two lines")

    desk = desk_of(talkers)
    desk.shelf.choices["broken"] = Choice("broken", broken)
    updates = list(desk.ask("a", ["reads", "hears"], TURNS[0]))
    refused = [update.pending for update in updates if update.number == 0][-1]
    assert refused is not None and "reads words" in refused.problem and "\n" not in refused.problem
    assert last(updates, 1).answer.text == expected(talkers["hears"], TURNS[:1])[0]
    final = list(desk.ask("b", ["broken"], TURNS[0]))[-1].pending
    assert final is not None and "log" in final.problem
    assert last(desk.again("b", ["hears"])).answer.text == expected(talkers["hears"], TURNS[:1])[0]


def test_a_stop_ends_the_reply_and_a_new_dialogue_leaves_it_behind(talkers: dict[str, Talker]) -> None:
    desk = desk_of(talkers, decoding=DecodingConfig(max_new_tokens=400, temperature=5.0))
    asking = desk.ask("a", ["hears", "crosses"], TURNS[0])
    for update in asking:
        if update.pending is not None and update.pending.text:
            desk.stop("a")
            break
    rest = list(asking)
    assert not last(rest).answer.complete and {update.number for update in rest} == {0}
    asking = desk.ask("a", ["hears"], TURNS[0])
    next(asking)
    columns = desk.begin("a")
    assert list(asking) == [], "what comes late is not shown in the new dialogue"
    assert not any(column.exchanges for column in columns)
    with desk.tabs.hold("a") as tab:
        assert tab.columns == columns
    desk.stop("nobody")
    assert len(desk.tabs) == 1


def test_a_page_that_is_closed_leaves_model_and_tab_free(talkers: dict[str, Talker]) -> None:
    desk = desk_of(talkers)
    asking: Any = desk.ask("a", ["hears"], TURNS[0])
    for update in asking:
        if update.pending is not None and update.pending.text:
            break
    asking.close()
    desk.leave("a")
    assert len(desk.tabs) == 0
    assert last(desk.ask("b", ["hears"], TURNS[0])).answer.text == expected(talkers["hears"], TURNS[:1])[0]


def test_replies_are_spoken_and_a_voice_that_fails_leaves_the_words(talkers: dict[str, Talker]) -> None:
    desk = desk_of(talkers, voice=True)
    spoken = last(desk.ask("a", ["hears"], TURNS[0], "ann"))
    silent = last(desk.ask("a", ["hears"], TURNS[0], None))
    assert silent.reply is None and silent.note == ""
    for speaker, note in (("hoarse", "not spoken: the voice gave silence"), ("nobody", "not spoken: voice='nobody'")):
        found = last(desk.ask("a", ["hears"], TURNS[0], speaker))
        assert found.reply is None and (found.note.startswith(note) or "no words" in found.note)
    if any(letter.isalnum() for letter in spoken.answer.words):
        assert desk.sounds.get(spoken.reply)[:4] == b"RIFF"


def test_a_dialogue_has_its_turns(talkers: dict[str, Talker]) -> None:
    desk = desk_of(talkers, turns=1)
    last(desk.ask("a", ["hears"], TURNS[0]))
    with pytest.raises(UserError, match="has its 1 turns; begin a new one"):
        list(desk.ask("a", ["hears"], TURNS[1]))
    desk.begin("a")
    last(desk.ask("a", ["hears"], TURNS[1]))


def test_an_example_is_had_with_its_history(talkers: dict[str, Talker], tmp_path: Path) -> None:
    example = Examples(str(synthetic_corpus(tmp_path / "made")), 2).get(0)
    desk = desk_of(talkers)
    last(desk.ask("a", ["hears"], TURNS[0]))
    updates = list(desk.ask_example("a", ["hears", "reads"], example))
    for number, name in enumerate(("hears", "reads")):
        session = Session(talkers[name], GREEDY)
        session.say(example.history)
        assert last(updates, number).answer.text == session.answer(example.said).text
        assert updates[-1].column.history == example.history
