"""What writers that ask a language model share: prompts in, kept answers, scripts or reasons out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omnichat.remote.answers import Answer, AnswerStore, Prices, answer_key
from omnichat.synthesis.base import Rejected, Script, ScriptRequest, ScriptWriter
from omnichat.synthesis.writers.contract import answer_schema, parse_script
from omnichat.synthesis.writers.prompting import Message, Prompts
from omnichat.utils.errors import UserError
from omnichat.utils.progress import progress

_FINISH_REASONS = {"length": "the answer was cut off", "content_filter": "the answer was withheld"}


class Question:
    """A request, ready to be asked: its messages, its schema, the key of its answer and all that the key covers."""

    __slots__ = ("facts", "key", "messages", "request", "schema")

    def __init__(
        self, request: ScriptRequest, messages: list[Message], schema: dict[str, Any], facts: Mapping[str, Any]
    ) -> None:
        self.request, self.messages, self.schema = request, messages, schema
        self.facts = {**facts, "messages": messages, "schema": schema, "request": asdict(request)}
        self.key = answer_key(self.facts)

    @property
    def seed(self) -> int:
        """The request's."""
        return self.request.seed


class LanguageModelWriter(ScriptWriter):
    """Asks a language model for each script and keeps every answer in the store.

    Args:
        name: of the kind of writer. model: name of the model; part of what an answer is kept under.
        prompts: how it is asked; see prompting.py.
        licence: of the texts, as the model's terms have it; for the data card.
        prices: per million tokens.
        sampling: settings that change an answer; part of what it is kept under.
    """

    def __init__(
        self,
        name: str,
        model: str,
        prompts: Prompts,
        licence: str,
        prices: Prices,
        sampling: Mapping[str, Any],
    ) -> None:
        if not model.strip():
            raise UserError("writer.model must name a model")
        self.name, self.model, self.licence = name, model, licence
        self.prompts, self.prices, self.sampling = prompts, prices, dict(sampling)
        self.reply_style = prompts.reply_style
        self._stores: dict[Path | None, AnswerStore] = {}

    def write(self, request: ScriptRequest) -> Script:
        """See `ScriptWriter.write`; UserError also where the answer is no valid script."""
        question, answer = next(iter(self.answer_all(iter([self._question(request, self.facts())]), self._store(None))))
        script = self._script(question, answer)
        if isinstance(script, Rejected):
            raise UserError(f"{self.name} {self.model!r} gave no valid script: {script.reasons[0]}")
        return script

    def write_batch(self, requests: Sequence[ScriptRequest], store: Path | None) -> Iterator[Script | Rejected]:
        """See `ScriptWriter.write_batch`: in the order of the requests; each answer is kept as soon as it is there."""
        answers = self._store(store)
        facts = self.facts()
        questions = (self._question(request, facts) for request in requests)
        try:
            with progress(len(requests), "scripts", unit="script") as bar:
                for question, answer in self.answer_all(questions, answers):
                    bar.set_postfix(tokens=answers.paid_tokens, refresh=False)
                    bar.update()
                    yield self._script(question, answer)
        finally:
            answers.write_usage()

    def usage(self, store: Path | None) -> dict[str, Any]:
        """What the answers took, as `AnswerStore.usage` has it: for the data card use "kept"."""
        return self._store(store).usage()

    def facts(self) -> dict[str, Any]:
        """What decides an answer besides the request."""
        return {
            "model": self.model,
            "prompts": self.prompts.describe(),
            "sampling": self.sampling,
            "reply_style": self.reply_style,
            "max_words": self.prompts.max_words,
        }

    def describe(self) -> dict[str, Any]:
        """See `ScriptWriter.describe`."""
        rule = "the model's choice" if self.reply_style == "chosen" else "as heard"
        return {"name": self.name, **self.facts(), "reply_style": rule, "licence": self.licence}

    def schema(self, request: ScriptRequest) -> dict[str, Any]:
        """JSON schema that an answer is held to while it is written, where that can be."""
        return answer_schema(request, self.reply_style)

    @abstractmethod
    def answer_all(self, questions: Iterator[Question], answers: AnswerStore) -> Iterator[tuple[Question, Answer]]:
        """Yield the questions in their order, each with its answer: the kept one, or one that is kept now."""

    def _question(self, request: ScriptRequest, facts: Mapping[str, Any]) -> Question:
        return Question(request, self.prompts.messages(request), self.schema(request), facts)

    def _script(self, question: Question, answer: Answer) -> Script | Rejected:
        if reason := _FINISH_REASONS.get(answer.finish):
            return Rejected((reason,))
        return parse_script(answer.text, question.request, self.prompts.max_words, self.reply_style)

    def _store(self, folder: Path | None) -> AnswerStore:
        if folder not in self._stores:
            self._stores[folder] = AnswerStore(folder, self.prices)
        return self._stores[folder]
