"""The models that can be talked to: loaded when they are first asked, a few kept, each used by one thread at a time."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from omnichat.chat.base import Talker
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.log import get_logger

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Choice:
    """A model that can be chosen.

    Attributes:
        name: unique among the choices. load: makes it; raises UserError where it cannot.
        input: speech | text | asr | speech_text. alpha: share of real dialogues it was trained on.
        emotion_f1: of its replies to the test dialogues. Each is None where unknown.
    """

    name: str
    load: Callable[[], Talker] = field(compare=False)
    input: str | None = None
    alpha: float | None = None
    emotion_f1: float | None = None

    @property
    def facts(self) -> tuple[tuple[str, str], ...]:
        """What is known of it, as names and values."""
        found = [("input", self.input)] if self.input is not None else []
        found += [("alpha", f"{self.alpha:g}")] if self.alpha is not None else []
        found += [("emotion F1", f"{self.emotion_f1:.3f}")] if self.emotion_f1 is not None else []
        return tuple((name, str(value)) for name, value in found)

    @property
    def title(self) -> str:
        """Name and facts on one line."""
        return ", ".join([self.name, *(f"{name} {value}" for name, value in self.facts)])


@dataclass(slots=True)
class _Kept:
    talker: Talker
    users: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)


class ModelShelf:
    """Loads models by name and keeps the few that were used last.

    Args:
        choices: at least one.
        most: models that are kept.
        dropped: told of a model that gives way, so that whoever holds on to it lets go.
    """

    def __init__(
        self, choices: Sequence[Choice], most: int, dropped: Callable[[Talker], None] = lambda talker: None
    ) -> None:
        if not choices:
            raise UserError("there is no model to talk to")
        self.choices = {choice.name: choice for choice in choices}
        assert len(self.choices) == len(choices)
        self.most, self.dropped = most, dropped
        self._kept: OrderedDict[str, _Kept] = OrderedDict()
        self._lock = threading.Lock()  # of the table
        self._loading = threading.Lock()  # one at a time: two would need twice the memory

    def holds(self, name: str) -> bool:
        """Whether a model is loaded."""
        return name in self._kept

    @contextlib.contextmanager
    def use(self, name: str) -> Iterator[Talker]:
        """A model, for the caller alone; loaded first where it is not.

        Raises:
            UserError: no such choice, it cannot be loaded, or all that are kept are busy.
        """
        kept = self._take(name)
        try:
            with kept.lock:
                yield kept.talker
        finally:
            with self._lock:
                kept.users -= 1

    def _take(self, name: str) -> _Kept:
        if name not in self.choices:
            raise one_of("model", name, self.choices)
        with self._loading:
            with self._lock:
                kept = self._kept.get(name)
                surplus = self._surplus() if kept is None else []
            if kept is None:
                for talker in surplus:
                    self.dropped(talker)
                if surplus:
                    del talker, surplus  # their memory is wanted for the one that comes
                    gc.collect()
                    if torch.cuda.is_available():
                        torch.cuda.empty_cache()
                log.info("loading %s", name)
                kept = _Kept(self.choices[name].load())
            with self._lock:
                self._kept[name] = kept
                self._kept.move_to_end(name)
                kept.users += 1
        return kept

    def _surplus(self) -> list[Talker]:
        """Models taken off the shelf so that one more has a place."""
        found = []
        while len(self._kept) >= self.most:
            idle = next((name for name, kept in self._kept.items() if kept.users == 0), None)
            if idle is None:
                raise UserError("every model that may be kept is answering someone; ask again in a moment")
            found.append(self._kept.pop(idle).talker)
        return found
