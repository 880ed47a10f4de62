"""Baselines around a language model that reads: gold words, a recogniser's words, and those with style tags."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

from omnichat.model.systems.base import USER, Answerer, Conversation, Instructions, ReadTurn, Request, SeenTurn, System
from omnichat.model.systems.recogniser import Recogniser
from omnichat.model.systems.style_probe import StyleProbe
from omnichat.text.chat import NOTHING_HEARD
from omnichat.utils.errors import one_of

STYLE_TAGS = ("measured", "gold")


class TextLLM(System):
    """A language model that reads the words as they stand in the corpus: it knows what was said, and not how.

    Args:
        llm: the language model.
    """

    name = "text_llm"
    input: ClassVar[str] = "text"
    sees: tuple[str, ...] = ("words",)

    def __init__(self, llm: Answerer) -> None:
        self.llm = llm

    def load(self) -> None:
        """See `System.load`."""
        self.llm.load()

    def instruct(self, instructions: Instructions) -> None:
        """See `System.instruct`."""
        self.instructions = instructions
        self._examples: tuple[tuple[ReadTurn, str], ...] | None = None

    def reply(self, requests: Sequence[Request], max_new_tokens: int) -> list[str]:
        """See `System.reply`."""
        if self._examples is None:
            heard = self.read([example.heard for example in self.instructions.examples])
            replies = [example.reply for example in self.instructions.examples]
            self._examples = tuple(zip(heard, replies, strict=True))
        turns = self.read([turn for request in requests for turn in request.turns])
        conversations, start = [], 0
        for request in requests:
            own = tuple(turns[start : start + len(request.turns)])
            start += len(request.turns)
            conversations.append(Conversation(own, self.instructions.system, self._examples))
        return self.llm.answer(conversations, max_new_tokens)

    def read(self, turns: Sequence[SeenTurn]) -> list[ReadTurn]:
        """What the language model reads of each turn."""
        return [ReadTurn(turn.speaker, turn.text or NOTHING_HEARD, turn.style) for turn in turns]

    def describe(self) -> dict[str, Any]:
        """See `System.describe`."""
        return {"system": self.name, "llm": self.llm.describe()}


class Cascade(TextLLM):
    """A recogniser's transcripts of the user's turns, then a language model: what was said, as well as it was heard.

    Args:
        llm: the language model.
        asr: the recogniser.
    """

    name = "cascade"
    input: ClassVar[str] = "asr"
    sees: tuple[str, ...] = ("audio",)

    def __init__(self, llm: Answerer, asr: Recogniser) -> None:
        super().__init__(llm)
        self.asr = asr

    def load(self) -> None:
        """See `System.load`."""
        self.asr.load()
        self.llm.load()

    def prepare(self, requests: Sequence[Request]) -> None:
        """Transcribe all recordings at once."""
        turns = [turn for request in requests for turn in request.turns]
        self.asr.transcripts([*turns, *(example.heard for example in self.instructions.examples)])

    def read(self, turns: Sequence[SeenTurn]) -> list[ReadTurn]:
        """The transcripts; a turn without recording is read as it stands."""
        heard = self.asr.transcripts(turns)
        return super().read([replace(turn, text=heard.get(str(turn.sha256), turn.text)) for turn in turns])

    def describe(self) -> dict[str, Any]:
        """See `System.describe`."""
        return super().describe() | {"asr": self.asr.describe() | {"path": self.asr.path}}


class CascadeStyle(Cascade):
    """A cascade whose language model also reads how each of the user's turns was spoken, as tags before the words.

    Args:
        llm, asr: as in a cascade.
        style_tags: measured (by `probe`, on the recording) | gold (the corpus's own labels: an oracle).
        probe: what measures; unused with gold.
    """

    name = "cascade_style"
    tagged = True

    def __init__(self, llm: Answerer, asr: Recogniser, style_tags: str, probe: StyleProbe) -> None:
        super().__init__(llm, asr)
        if style_tags not in STYLE_TAGS:
            raise one_of("system.style_tags", style_tags, STYLE_TAGS)
        self.style_tags, self.probe = style_tags, probe
        self.name = f"cascade_style_{style_tags}"
        self.learns = style_tags == "measured"
        self.sees = ("audio",) if self.learns else ("audio", "style")

    def load(self) -> None:
        """See `System.load`."""
        super().load()
        if self.learns:
            self.probe.load()

    def study(self, turns: Iterable[SeenTurn]) -> None:
        """Fit the probe."""
        self.probe.fit(turns)

    def read(self, turns: Sequence[SeenTurn]) -> list[ReadTurn]:
        """Transcripts with tags."""
        read = super().read(turns)
        if not self.learns:
            return read
        recorded = [turn for turn in turns if turn.speaker == USER and turn.audio is not None]
        styles = dict(zip([turn.sha256 for turn in recorded], self.probe.styles(recorded), strict=True))
        return [
            replace(line, style=styles.get(turn.sha256, line.style)) if turn.speaker == USER else line
            for line, turn in zip(read, turns, strict=True)
        ]

    def describe(self) -> dict[str, Any]:
        """See `System.describe`."""
        tags = self.probe.describe() if self.learns else {"tags": "gold"}
        return super().describe() | {"style_tags": tags}

    def warnings(self) -> list[str]:
        """See `System.warnings`."""
        if self.learns:
            return [f"its style tags are measured: {self.probe.summary()}"]
        return ["its style tags are the corpus's own labels (an oracle): an upper bound, which no system can reach"]
