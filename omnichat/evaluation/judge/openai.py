"""A judge behind any OpenAI-compatible chat server: a vendor, vLLM, llama.cpp, `transformers serve`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from omnichat.evaluation.judge.base import Judge, JudgeQuestion
from omnichat.remote.answers import Answer, AnswerStore, Prices
from omnichat.remote.chat_client import Limits
from omnichat.remote.endpoint import ChatEndpoint


class OpenAIJudge(Judge):
    """Asks a server, several questions at a time.

    Args:
        base_url: up to and with /v1. api_key_env: environment variable with the key; None = the server wants none.
        model: as the server names it.
        prompts: packaged version or folder.
        samples: grades a reply, of which the mean is its score. seed: of the samples; another seed asks anew.
        response_format: json_schema | json_object | none | auto.
        temperature, top_p: None = the server's default. max_tokens: of an answer; a longer one is cut off.
        max_tokens_field: how the server calls that limit: max_tokens, or max_completion_tokens.
        send_seed: send each sample's seed; some vendors do not take one.
        extra_body: more fields of the request, e.g. {chat_template_kwargs: {enable_thinking: false}}.
        concurrency: questions under way at a time.
        limits, prices: see Limits and Prices.
    """

    def __init__(
        self,
        base_url: str,
        api_key_env: str | None,
        model: str,
        prompts: str,
        samples: int,
        seed: int,
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
            "judge",
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
        super().__init__(model, prompts, samples, seed, max_tokens, prices, self._endpoint.facts())

    def answer_all(
        self, questions: Iterator[JudgeQuestion], answers: AnswerStore
    ) -> Iterator[tuple[JudgeQuestion, Answer]]:
        """See `Judge.answer_all`."""
        return self._endpoint.answer_all(questions, answers)
