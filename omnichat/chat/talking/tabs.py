"""Who talks: one tab of a browser has one dialogue for each model it asks, and nobody else's."""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from omnichat.chat.base import Answer, DecodingConfig, Talker
from omnichat.chat.session import Session
from omnichat.model.pretrained.conversation import Said
from omnichat.utils.errors import UserError

COLUMNS = 2  # models side by side
MAX_KEY = 100  # letters of a tab's name
_LOST = 1000  # names of forgotten tabs that are remembered, to be told so
FORGOTTEN = "what was said before is forgotten: the page was idle for long, lost its connection, or had to make room"


@dataclass(slots=True)
class Exchange:
    """A turn and its reply.

    Attributes:
        round: number of the question; the replies of two models to one question have the same.
        run: name of the model. said: the turn, with the words that a recogniser heard.
        answer: the reply. sound, reply: names of the recordings in the store, None where there is none.
        note: what went wrong after the reply, "" where nothing did.
    """

    round: int
    run: str
    said: Said
    answer: Answer
    sound: str | None = None
    reply: str | None = None
    note: str = ""


class Column:
    """One model's dialogue."""

    def __init__(self, history: Sequence[Said] = ()) -> None:
        self.restart(history)

    def restart(self, history: Sequence[Said]) -> None:
        """Begin anew after turns that were held elsewhere: an example's, or the other column's."""
        self.history = tuple(history)
        self.notice = ""  # said above the dialogue
        self.exchanges: list[Exchange] = []
        self.round = 0  # of the newest exchange, also of one that was taken back
        self.tries = 0  # how often the newest turn was answered anew
        self._turns = list(history)
        self._session: Session | None = None

    @property
    def turns(self) -> list[Said]:
        """All turns so far, the history's included."""
        return list(self._turns if self._session is None else self._session.turns)

    def session_with(self, talker: Talker, decoding: DecodingConfig) -> Session:
        """The dialogue as a session with a model; a model that comes new to it takes all turns over.

        Raises:
            UserError: a recording's words are wanted, and the recogniser fails.
        """
        if self._session is None or self._session.talker is not talker:
            session = Session(talker, decoding)
            session.say([talker.completed(said) if said.role == "user" else said for said in self.turns])
            self._session = session
        self._session.decoding = replace(decoding, seed=decoding.seed + self.tries)
        return self._session

    def let_go(self, talker: Talker) -> None:
        """Forget a model, not what was said with it."""
        if self._session is not None and self._session.talker is talker:
            self._turns, self._session = self.turns, None

    def take_back(self) -> None:
        """Unsay the newest turn and its reply."""
        self.exchanges.pop()
        turns = self.turns[:-2]
        if self._session is not None:
            self._session.say(turns)
        self._turns = turns
        self.tries += 1


@dataclass(slots=True)
class Tab:
    """One tab: its columns, the newest question and its number, and the flag that ends the reply at hand."""

    columns: tuple[Column, ...] = field(default_factory=lambda: tuple(Column() for _ in range(COLUMNS)))
    stop: threading.Event = field(default_factory=threading.Event)
    asked: Said | None = None
    round: int = 0
    used_at: float = 0.0
    users: int = 0

    def begin(self, history: Sequence[Said] = ()) -> None:
        """Put a new dialogue in place of the old; a reply that is still under way goes nowhere."""
        self.stop.set()
        self.asked = None
        self.columns = tuple(Column(history) for _ in range(COLUMNS))


class TabStore:
    """The tabs, by the names that their browsers gave themselves; forgotten when they are idle for long.

    Args:
        most: tabs; one more takes the place of the one that was idle longest.
        idle_sec: after which a tab is forgotten.
        clock: seconds, for tests.
    """

    def __init__(self, most: int, idle_sec: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.most, self.idle_sec, self._clock = most, idle_sec, clock
        self._tabs: OrderedDict[str, Tab] = OrderedDict()  # the one that was used last, last
        self._lost: OrderedDict[str, None] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._tabs)

    def __contains__(self, key: str) -> bool:
        with self._lock:
            self._forget_idle()
            return key in self._tabs

    @contextlib.contextmanager
    def hold(self, key: str | None) -> Iterator[Tab]:
        """A tab, which is not forgotten meanwhile; made anew where it is not known.

        Raises:
            UserError: no name, or too long a one; every tab that may be kept is busy.
        """
        if not key or len(key) > MAX_KEY:
            raise UserError("the page lost its connection; load it again")
        with self._lock:
            self._forget_idle()
            tab = self._tabs.get(key)
            if tab is None:
                self._make_room()
                tab = self._tabs[key] = Tab()
                if key in self._lost:
                    del self._lost[key]
                    for column in tab.columns:
                        column.notice = FORGOTTEN
            tab.users += 1
        try:
            yield tab
        finally:
            with self._lock:
                tab.users -= 1
                tab.used_at = self._clock()
                if key in self._tabs:
                    self._tabs.move_to_end(key)

    def drop(self, key: str | None) -> None:
        """Forget a tab, which was closed; a reply under way ends."""
        with self._lock:
            tab = self._tabs.get(key) if key else None
            if key and tab is not None:
                tab.stop.set()
                self._forget(key)

    def let_go(self, talker: Talker) -> None:
        """Have no dialogue hold on to a model."""
        with self._lock:
            tabs = list(self._tabs.values())
        for tab in tabs:
            for column in tab.columns:
                column.let_go(talker)

    def _forget_idle(self) -> None:
        before = self._clock() - self.idle_sec
        for key in [key for key, tab in self._tabs.items() if tab.users == 0 and tab.used_at < before]:
            self._forget(key)

    def _make_room(self) -> None:
        while len(self._tabs) >= self.most:
            idle = next((key for key, tab in self._tabs.items() if tab.users == 0), None)
            if idle is None:
                raise UserError(f"{self.most} tabs are talking already; try again in a moment")
            self._forget(idle)

    def _forget(self, key: str) -> None:
        if self._tabs.pop(key).round:
            self._lost[key] = None
            while len(self._lost) > _LOST:
                self._lost.popitem(last=False)
