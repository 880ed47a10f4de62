"""Scripts from any OpenAI-compatible chat server: vLLM, llama.cpp, `transformers serve`, a vendor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from omnichat.remote.answers import Answer, AnswerStore, Prices
from omnichat.remote.chat_client import Limits
from omnichat.remote.endpoint import ChatEndpoint
from omnichat.synthesis.writers.language_model import LanguageModelWriter, Question
from omnichat.synthesis.writers.prompting import Prompts


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
        self._endpoint = ChatEndpoint(
            "writer",
            base_url=base_url,
            api_key_env=api_key_env,
            model=model,
            response_format=response_format,
            temperature=temperature,
            top_p=top_p,
            max_tokens=max_tokens,
            max_tokens_field=max_tokens_field,
            send_seed=send_seed,
            extra_body=extra_body,
            concurrency=concurrency,
            limits=limits,
        )
        filled = Prompts(prompts, examples, max_words, reply_style)
        facts = self._endpoint.facts()
        super().__init__("language model behind a chat server", model, filled, licence, prices, facts)
        self._endpoint.check_key()

    def answer_all(self, questions: Iterator[Question], answers: AnswerStore) -> Iterator[tuple[Question, Answer]]:
        """See `LanguageModelWriter.answer_all`."""
        return self._endpoint.answer_all(questions, answers)
