"""A model behind a chat server: how it is sampled, and many questions put to it at once, answered in their order."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections import deque
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from omnichat.remote.answers import Answer, AnswerStore, strict_json
from omnichat.remote.chat_client import RESPONSE_FORMATS, ChatClient, Limits, check_url, read_key
from omnichat.utils.errors import UserError, one_of

TOKEN_FIELDS = ("max_tokens", "max_completion_tokens")
_SEEDS = 2**31  # llama.cpp's seeds have 32 bits
_AHEAD = 4  # questions put ahead of the one that is waited for, a slot


class Asked(Protocol):
    """A question: its messages, the JSON schema of its answer, the seed of its sampling, and the key of its answer.

    `facts` are all that decides the answer (JSON values); `key` is `answers.answer_key(facts)`.
    """

    @property
    def key(self) -> str:
        """Name of the answer in a store."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """All that decides the answer."""

    @property
    def messages(self) -> Sequence[Mapping[str, str]]:
        """Role and content of each."""

    @property
    def schema(self) -> dict[str, Any]:
        """JSON schema of the answer."""

    @property
    def seed(self) -> int:
        """Of the sampling."""


Q = TypeVar("Q", bound=Asked)


class ChatEndpoint:
    """Where a model is asked, and how it samples; the settings that `configs/writer/openai.yaml` explains.

    Args:
        key: of the part in the config, for messages: "writer", "judge".
        base_url, api_key_env, response_format, concurrency, limits: see ChatClient.
        model: as the server names it.
        temperature, top_p: None = the server's default. max_tokens: of an answer; a longer one is cut off.
        max_tokens_field: how the server calls that limit: max_tokens, or max_completion_tokens.
        send_seed: send each question's seed; some vendors do not take one.
        extra_body: more fields of the request.
    """

    def __init__(
        self,
        key: str,
        *,
        base_url: str,
        api_key_env: str | None,
        model: str,
        response_format: str,
        temperature: float | None,
        top_p: float | None,
        max_tokens: int,
        max_tokens_field: str,
        send_seed: bool,
        extra_body: Mapping[str, Any],
        concurrency: int,
        limits: Limits,
    ) -> None:
        if not model.strip():
            raise UserError(f"{key}.model must name a model")
        for name, choice, choices in (
            ("response_format", response_format, RESPONSE_FORMATS),
            ("max_tokens_field", max_tokens_field, TOKEN_FIELDS),
        ):
            if choice not in choices:
                raise one_of(f"{key}.{name}", choice, choices)
        for name, number in (("max_tokens", max_tokens), ("concurrency", concurrency)):
            if number < 1:
                raise UserError(f"{key}.{name} must be >= 1, got {number}")
        sampling: dict[str, Any] = {
            name: value for name, value in (("temperature", temperature), ("top_p", top_p)) if value is not None
        }
        sampling |= {max_tokens_field: max_tokens}
        if taken := sorted(
            set(extra_body) & {"model", "messages", "seed", "stream", "n", "response_format", *sampling}
        ):
            raise UserError(f"{key}.extra_body must not hold {taken[0]!r}, which the {key} sets")
        self.key, self.model, self.concurrency = key, model, concurrency
        self._sampling, self._send_seed, self._extra_body = sampling, send_seed, dict(extra_body)
        self._limits, self._response_format = limits, response_format
        self._base_url, self._api_key_env = check_url(key, base_url), api_key_env

    def facts(self) -> dict[str, Any]:
        """What decides an answer besides the question and the model: never where the server is."""
        settings = {"seed": self._send_seed, "extra_body": self._extra_body, "response_format": self._response_format}
        return {**self._sampling, **settings}

    def check_key(self) -> None:
        """Raise UserError for a key that is not in the environment, before anything is asked."""
        read_key(self.key, self._api_key_env)

    def answer_all(self, questions: Iterator[Q], answers: AnswerStore) -> Iterator[tuple[Q, Answer]]:
        """Yield the questions in their order, each with its answer: the kept one, or one that is kept now.

        Raises:
            UserError: the server cannot be asked at all; what was answered by then is kept.
        """
        waiting: deque[tuple[Q, concurrent.futures.Future[Answer]]] = deque()
        client: ChatClient | None = None
        with _Loop() as loop:
            try:
                for question in questions:
                    if (kept := answers.get(question.key)) is not None:
                        waiting.append((question, _done(kept)))
                    else:  # whoever has all answers needs neither server nor key
                        client = client or loop.run(self._client())
                        waiting.append((question, loop.start(self._ask(client, question, answers))))
                    if len(waiting) >= _AHEAD * self.concurrency:
                        first, answer = waiting.popleft()
                        yield first, answer.result()
                while waiting:
                    first, answer = waiting.popleft()
                    yield first, answer.result()
            finally:
                for _, answer in waiting:
                    answer.cancel()
                if client is not None:
                    loop.run(client.close())

    async def _ask(self, client: ChatClient, question: Asked, answers: AnswerStore) -> Answer:
        answer, mode = await client.ask(
            self._body(question), question.schema, question.seed, lambda said: answers.paid(question.key, said)
        )
        if answer.finish == "stop" and mode == "json_schema" and not strict_json(answer.text, question.schema):
            client.ignored(mode)
        answers.put(question.key, answer, question.facts)
        return answer

    def _body(self, question: Asked) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.model, "messages": question.messages, **self._sampling}
        if self._send_seed:
            body["seed"] = question.seed % _SEEDS
        return {**body, "extra_body": self._extra_body} if self._extra_body else body

    async def _client(self) -> ChatClient:
        return ChatClient(
            self.key, self._base_url, self._api_key_env, self._response_format, self.concurrency, self._limits
        )


def _done(answer: Answer) -> concurrent.futures.Future[Answer]:
    future: concurrent.futures.Future[Answer] = concurrent.futures.Future()
    future.set_result(answer)
    return future


class _Loop:
    """An event loop in a thread of its own: answers arrive while the caller works on earlier ones."""

    def __enter__(self) -> _Loop:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="chat client", daemon=True)
        self._thread.start()
        return self

    def start(self, coroutine: Coroutine[Any, Any, Any]) -> concurrent.futures.Future[Any]:
        """Run a coroutine in the loop; the future's cancellation and errors are the coroutine's."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop)

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine to its end and return what it returns."""
        return self.start(coroutine).result()

    def __exit__(self, *_: object) -> None:
        self.run(_cancel_others())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


async def _cancel_others() -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
