"""Which dialogue a request goes on with; no model is needed to see that."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from omnichat.chat.base import Answer, DecodingConfig
from omnichat.chat.server.dialogues import Dialogues
from omnichat.chat.session import Session
from omnichat.model.pretrained.conversation import Said, sound_of

DECODING = DecodingConfig()
ONE, TWO, THREE = (Said("user", None, words) for words in ("one", "two", "three"))
HEARD = Said("user", sound_of(np.full(9, 0.1, np.float32), 16_000))


def dialogues(limit: int) -> tuple[Dialogues, list[Said]]:
    """With a recogniser that hears "heard" and notes of what it was asked."""
    asked: list[Said] = []

    def completed(said: Said) -> Said:
        if said.sound is None or said.words:
            return said
        asked.append(said)
        return Said("user", said.sound, "heard")

    talker: Any = SimpleNamespace(completed=completed)
    return Dialogues(talker, limit), asked


def reply(words: str) -> Said:
    return Said("assistant", None, words)


def answer(
    kept: Dialogues, *turns: Said, says: str = "yes", system: str | None = None
) -> tuple[Session, Answer | None]:
    """Take a session, let it answer, put it back."""
    session, said, before = kept.take(turns, system, DECODING)
    assert [turn.role for turn in session.turns] == [turn.role for turn in turns[:-1]] and said.role == "user"
    session.turns += [said, reply(says)]
    session.answers.append(Answer(says, None, says, 1, 1, 0, 0.0, 0.0, None, True))
    kept.put(session)
    return session, before


def test_a_dialogue_goes_on_where_it_was() -> None:
    kept, _ = dialogues(4)
    first, _ = answer(kept, ONE)
    other, _ = answer(kept, TWO)
    assert answer(kept, ONE, reply("yes"), TWO)[0] is first is not other
    assert answer(kept, TWO, reply("an edited reply"), THREE)[0] is other
    assert len(kept) == 2 and all(len(session.answers) == 1 for session in (first, other))


def test_a_turn_asked_again_is_known_with_its_answer() -> None:
    kept, _ = dialogues(4)
    first, before = answer(kept, ONE, reply("yes"), TWO, says="well")
    assert before is None
    again, before = answer(kept, ONE, reply("yes"), TWO)
    assert again is first and before is not None and before.text == "well"


def test_a_dialogue_that_only_began_alike_or_has_another_system_prompt_is_somebody_else_s() -> None:
    kept, _ = dialogues(4)
    first, _ = answer(kept, ONE, reply("yes"), TWO)
    assert answer(kept, ONE, reply("yes"), THREE)[0] is not first
    assert answer(kept, ONE, reply("no"), TWO)[0] is not first
    assert answer(kept, ONE, reply("yes"), TWO, reply("yes"), THREE, system="Shout.")[0] is not first
    assert answer(kept, ONE, reply("yes"), TWO, reply("yes"), THREE)[0] is first


def test_the_longest_unused_is_given_up_before_another_grows() -> None:
    kept, _ = dialogues(2)
    first, second = answer(kept, ONE)[0], answer(kept, TWO)[0]
    assert answer(kept, ONE, reply("yes"), TWO)[0] is first
    session, _, _ = kept.take([THREE], None, DECODING)
    assert len(kept) == 1 and session not in (first, second), "with the new one there are two"
    assert answer(kept, TWO, reply("yes"), THREE)[0] is not second
    none, _ = dialogues(0)
    assert answer(none, ONE)[0] is not answer(none, ONE)[0] and len(none) == 0


def test_one_that_failed_is_not_put_back() -> None:
    kept, _ = dialogues(2)
    first, _ = answer(kept, ONE)
    kept.take([ONE, reply("yes"), TWO], None, DECODING)
    assert len(kept) == 0 and answer(kept, ONE)[0] is not first


def test_a_recording_is_transcribed_once_a_dialogue() -> None:
    kept, asked = dialogues(2)
    first, _ = answer(kept, HEARD)
    assert answer(kept, HEARD, reply("yes"), ONE)[0] is first and len(asked) == 1
    assert first.turns[0].words == "heard"
    corrected = Said("user", HEARD.sound, "corrected")
    assert answer(kept, corrected, reply("yes"), ONE)[0] is not first
    louder = Said("user", sound_of(np.full(9, 0.2, np.float32), 16_000))
    assert answer(kept, louder, reply("yes"), ONE)[0] is not first and len(asked) == 2
