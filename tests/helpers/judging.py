"""Judges as tests need them, and chat servers that grade."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.helpers.fault_proxy import completion


def openai_judge(url: str, **changed: Any) -> Any:
    """The judge of configs/judge/openai.yaml with short waits, at an address."""
    from omnichat.evaluation.judge.openai import OpenAIJudge
    from omnichat.remote.answers import Prices
    from omnichat.remote.chat_client import Limits

    limits = {"timeout_sec": 30.0, "wait_sec": 0.0, "max_wait_sec": 0.0, "tries": 4, "breaker": 6}
    limits |= changed.pop("limits", {})
    settings: dict[str, Any] = {
        "base_url": url,
        "api_key_env": None,
        "model": "grader",
        "prompts": "v1",
        "samples": 3,
        "seed": 0,
        "response_format": "auto",
        "temperature": 0.7,
        "top_p": None,
        "max_tokens": 100,
        "max_tokens_field": "max_tokens",
        "send_seed": True,
        "extra_body": {},
        "concurrency": 3,
        "prices": Prices(prompt=1.0, completion=2.0),
    }
    return OpenAIJudge(**{**settings, **changed}, limits=Limits(**limits))


def graded(grade: Callable[[str, int], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What a `ChatServer` replies: `grade(user prompt, seed)` as the JSON of the contract, or the text that it is."""

    def reply(body: dict[str, Any]) -> dict[str, Any]:
        made = grade(body["messages"][-1]["content"], body["seed"])
        return completion(made if isinstance(made, str) else json.dumps({"reason": "so", "score": made}))

    return reply


def by_content(prompt: str, seed: int) -> int:
    """A grade that is set by what is asked, whenever it is asked."""
    return 1 + (sum(map(ord, prompt)) + seed) % 5
