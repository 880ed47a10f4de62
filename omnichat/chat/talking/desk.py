"""Questions in, replies out: what the page's buttons do, without the page."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from omnichat.chat.talking.examples import Example
from omnichat.chat.talking.settings import TalkConfig
from omnichat.chat.talking.shelf import Choice, ModelShelf
from omnichat.chat.talking.sounds import SoundStore, wav_of
from omnichat.chat.talking.speech import Speech
from omnichat.chat.talking.tabs import COLUMNS, Column, Exchange, Tab, TabStore
from omnichat.model.pretrained.conversation import Said
from omnichat.utils.errors import UserError
from omnichat.utils.log import get_logger

log = get_logger(__name__)

TELL_SEC = 0.1  # between two looks at a reply that is coming


@dataclass(frozen=True, slots=True)
class Pending:
    """A reply that is under way, or that failed.

    Attributes:
        run: name of the model. said: the turn. sound: name of its recording in the store.
        text: what has come so far. state: what is being done. problem: why there will be no reply, "" where there will.
    """

    run: str
    said: Said
    sound: str | None
    text: str = ""
    state: str = ""
    problem: str = ""


@dataclass(frozen=True, slots=True)
class Update:
    """A column has changed; `pending` is None where its newest reply is now among its exchanges."""

    number: int
    column: Column
    pending: Pending | None


@dataclass(frozen=True, slots=True)
class _Question:
    """What is asked of one model."""

    number: int
    column: Column
    pending: Pending
    speaker: str | None
    stop: threading.Event


class Desk:
    """Answers for many tabs; each has its own dialogues.

    Args:
        choices: models that can be chosen.
        config: the settings.
        speech: speaks replies; None = they are written only.
    """

    def __init__(self, choices: Sequence[Choice], config: TalkConfig, speech: Speech | None = None) -> None:
        self.config, self.speech = config, speech
        self.tabs = TabStore(config.tabs, config.idle_sec)
        self.shelf = ModelShelf(choices, config.models, self.tabs.let_go)
        self.sounds = SoundStore(round(config.sounds_mb * 1e6))

    def ask(self, key: str | None, runs: Sequence[str], said: Said, speaker: str | None = None) -> Iterator[Update]:
        """The replies of one or two models to a turn, as they come; turn and reply join each model's dialogue.

        Args:
            key: of the tab. runs: names of models, a column each. said: the user's turn.
            speaker: who speaks the replies; None = nobody.

        Raises:
            UserError: nothing has changed. What goes wrong with one model is said in its column instead.
        """
        with self.tabs.hold(key) as tab:
            yield from self._round(tab, runs, said, speaker)

    def ask_example(
        self, key: str | None, runs: Sequence[str], example: Example, speaker: str | None = None
    ) -> Iterator[Update]:
        """Begin a new dialogue with an example's history and ask its turn; else as `ask`."""
        with self.tabs.hold(key) as tab:
            tab.begin(example.history)
            yield from self._round(tab, runs, example.said, speaker)

    def again(self, key: str | None, runs: Sequence[str], speaker: str | None = None) -> Iterator[Update]:
        """Answer the newest turn anew, with the models that are chosen now; a sampled reply gets another seed.

        Raises:
            UserError: there is no turn yet.
        """
        with self.tabs.hold(key) as tab:
            if (said := tab.asked) is None:
                raise UserError("there is no turn yet that could be answered again")
            for column in tab.columns:
                if column.exchanges and column.exchanges[-1].round == tab.round:
                    column.take_back()
            yield from self._round(tab, runs, said, speaker, anew=True)

    def begin(self, key: str | None) -> tuple[Column, ...]:
        """Begin a new dialogue; returns the empty columns. A reply that is under way is ended."""
        with self.tabs.hold(key) as tab:
            tab.begin()
            return tab.columns

    def stop(self, key: str | None) -> None:
        """End the reply that is under way where it is; what was said by then counts."""
        if key and key in self.tabs:
            with self.tabs.hold(key) as tab:
                tab.stop.set()

    def leave(self, key: str | None) -> None:
        """A tab was closed."""
        self.tabs.drop(key)

    def _round(
        self, tab: Tab, runs: Sequence[str], said: Said, speaker: str | None, anew: bool = False
    ) -> Iterator[Update]:
        if not (runs := runs[:COLUMNS]):
            raise UserError("choose a model")
        first, columns, stop = tab.columns[0], tab.columns, threading.Event()
        if len(first.exchanges) >= self.config.turns:
            raise UserError(f"this dialogue has its {self.config.turns} turns; begin a new one")
        tab.stop, tab.asked = stop, said
        tab.round += 0 if anew else 1
        sound = None
        if said.sound is not None:
            sound = self.sounds.put(wav_of(said.sound.wave_N, said.sound.sample_rate))
        for column in columns[1 : len(runs)]:
            if column.round != first.round:  # it did not hear all: it comes to the dialogue as it stands
                column.restart(first.turns)
        for number, run in enumerate(runs):
            if stop.is_set() or tab.columns is not columns:
                break
            column = columns[number]
            column.tries = column.tries if anew else 0
            question = _Question(number, column, Pending(run, said, sound), speaker, stop)
            for update in self._told(question, tab.round):
                if tab.columns is not columns:
                    return  # a new dialogue was begun meanwhile
                yield update

    def _told(self, question: _Question, round_: int) -> Iterator[Update]:
        """`_answer`, with what goes wrong said in the column."""
        try:
            yield from self._answer(question, round_)
        except UserError as error:
            yield _update(question, problem=str(error).splitlines()[0])
        except Exception:  # of one model; the page and everybody else go on
            log.exception("%s failed", question.pending.run)
            yield _update(question, problem="the model failed; the log of omnichat web says how")

    def _answer(self, question: _Question, round_: int) -> Iterator[Update]:
        column, pending = question.column, question.pending
        yield _update(question, state="listening" if self.shelf.holds(pending.run) else "loading the model")
        text, told = "", 0.0
        with self.shelf.use(pending.run) as talker:
            session = column.session_with(talker, self.config.decoding)
            before = len(session.answers)
            stream: Any = session.stream(pending.said, question.stop)
            try:
                for piece in stream:
                    text += piece
                    if time.monotonic() - told >= TELL_SEC:
                        yield _update(question, text=text, state="answering")
                        told = time.monotonic()
            finally:
                stream.close()  # where nobody listens any more, the reply ends here, and counts
                if len(session.answers) > before:
                    said, answer = session.turns[-2], session.answers[-1]
                    exchange = Exchange(round_, pending.run, said, answer, pending.sound)
                    column.exchanges.append(exchange)
                    column.round = round_
        if self.speech is not None and question.speaker is not None:
            yield _update(question, text=text, state="speaking")
            self._speak(exchange, question.speaker)
        yield Update(question.number, column, None)

    def _speak(self, exchange: Exchange, speaker: str) -> None:
        assert self.speech is not None
        try:
            exchange.reply = self.sounds.put(self.speech.speak(exchange.answer, speaker))
        except UserError as error:
            exchange.note = f"not spoken: {str(error).splitlines()[0]}"
        except Exception:  # the words are there, and stay
            log.exception("the voice failed")
            exchange.note = "not spoken: the voice failed; the log of omnichat web says how"


def _update(question: _Question, text: str = "", state: str = "", problem: str = "") -> Update:
    given = question.pending
    pending = Pending(given.run, given.said, given.sound, text, state, problem)
    return Update(question.number, question.column, pending)
