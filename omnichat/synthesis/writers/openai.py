"""Scripts from any OpenAI-compatible chat server: vLLM, llama.cpp, `transformers serve`, a vendor."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections import deque
from collections.abc import Coroutine, Iterator, Mapping
from typing import Any

from omnichat.synthesis.writers.answers import Answer, AnswerStore, Prices
from omnichat.synthesis.writers.chat_client import ChatClient, Limits, check_url
from omnichat.synthesis.writers.contract import strict_json
from omnichat.synthesis.writers.language_model import LanguageModelWriter, Question
from omnichat.synthesis.writers.prompting import Prompts
from omnichat.utils.errors import UserError, one_of

TOKEN_FIELDS = ("max_tokens", "max_completion_tokens")
_SEEDS = 2**31  # llama.cpp's seeds have 32 bits
_AHEAD = 4  # questions put ahead of the one that is waited for, a slot


class OpenAIWriter(LanguageModelWriter):
    """Asks a server, several questions at a time; yields scripts in the order of the requests.

    Args:
        base_url: up to and with /v1. api_key_env: environment variable with the key; None = the server wants none.
        model: as the server names it.
        licence: of the texts, as the model's terms have it.
        prompts: packaged version or folder. examples: how many precede a request.
        reply_style: "chosen": the model gives each reply a style; "heard": replies have the style that they answer.
        max_words: longest sentence.
        response_format: json_schema | json_object | none | auto.
        temperature, top_p: None = the server's default. max_tokens: of an answer; a longer one is cut off and rejected.
        max_tokens_field: how the server calls that limit: max_tokens, or max_completion_tokens.
        send_seed: send each request's seed, so that asking again gives other words; some vendors do not take one.
        extra_body: more fields of the request, e.g. {chat_template_kwargs: {enable_thinking: false}}.
        concurrency: questions under way at a time.
        limits, prices: see Limits and Prices.
    """

    def __init__(
        self,
        base_url: str,
        api_key_env: str | None,
        model: str,
        licence: str,
        prompts: str,
        examples: int,
        reply_style: str,
        max_words: int,
        response_format: str,
        temperature: float | None,
        top_p: float | None,
        max_tokens: int,
        max_tokens_field: str,
        send_seed: bool,
        extra_body: Mapping[str, Any],
        concurrency: int,
        limits: Limits,
        prices: Prices,
    ) -> None:
        if max_tokens_field not in TOKEN_FIELDS:
            raise one_of("writer.max_tokens_field", max_tokens_field, TOKEN_FIELDS)
        for key, number in (("max_tokens", max_tokens), ("concurrency", concurrency)):
            if number < 1:
                raise UserError(f"writer.{key} must be >= 1, got {number}")
        sampling = {
            name: value for name, value in (("temperature", temperature), ("top_p", top_p)) if value is not None
        }
        sampling |= {max_tokens_field: max_tokens}
        if taken := sorted(
            set(extra_body) & {"model", "messages", "seed", "stream", "n", "response_format", *sampling}
        ):
            raise UserError(f"writer.extra_body must not hold {taken[0]!r}, which the writer sets")
        self._send_seed, self._extra_body = send_seed, dict(extra_body)
        self._concurrency, self._limits, self._response_format = concurrency, limits, response_format
        self._base_url, self._api_key_env = check_url(base_url), api_key_env
        facts = {**sampling, "seed": send_seed, "extra_body": self._extra_body, "response_format": response_format}
        filled = Prompts(prompts, examples, max_words, reply_style)
        super().__init__("language model behind a chat server", model, filled, licence, prices, facts)
        self._sampling = sampling
        asyncio.run(self._client().close())  # a wrong setting or a key that is not there is told now

    def answer_all(self, questions: Iterator[Question], answers: AnswerStore) -> Iterator[tuple[Question, Answer]]:
        """See `LanguageModelWriter.answer_all`."""
        waiting: deque[tuple[Question, concurrent.futures.Future[Answer]]] = deque()
        with _Loop() as loop:
            client = loop.run(self._made_client())
            try:
                for question in questions:
                    waiting.append((question, loop.start(self._answer(client, question, answers))))
                    if len(waiting) >= _AHEAD * self._concurrency:
                        first, answer = waiting.popleft()
                        yield first, answer.result()
                while waiting:
                    first, answer = waiting.popleft()
                    yield first, answer.result()
            finally:
                for _, answer in waiting:
                    answer.cancel()
                loop.run(client.close())

    async def _answer(self, client: ChatClient, question: Question, answers: AnswerStore) -> Answer:
        if (kept := answers.get(question.key)) is not None:
            return kept
        answer, mode = await client.ask(
            self._body(question), question.schema, question.request.seed, lambda said: answers.paid(question.key, said)
        )
        if answer.finish == "stop" and mode == "json_schema" and not strict_json(answer.text, question.schema):
            client.ignored(mode)
        answers.put(question.key, answer, question.facts)
        return answer

    def _body(self, question: Question) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.model, "messages": question.messages, **self._sampling}
        if self._send_seed:
            body["seed"] = question.request.seed % _SEEDS
        return {**body, "extra_body": self._extra_body} if self._extra_body else body

    def _client(self) -> ChatClient:
        return ChatClient(self._base_url, self._api_key_env, self._response_format, self._concurrency, self._limits)

    async def _made_client(self) -> ChatClient:
        return self._client()


class _Loop:
    """An event loop in a thread of its own: answers arrive while the caller works on earlier ones."""

    def __enter__(self) -> _Loop:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="script writer", daemon=True)
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
