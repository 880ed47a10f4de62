"""Judges as tests need them, and chat servers that grade."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from tests.helpers.fault_proxy import asking, completion


def openai_judge(url: str, **changed: Any) -> Any:
    """The judge of configs/judge/openai.yaml with short waits, at an address."""
    from omnichat.evaluation.judge.openai import OpenAIJudge

    own: dict[str, Any] = {"model": "grader", "samples": 3, "seed": 0, "temperature": 0.7, "max_tokens": 100}
    return OpenAIJudge(**asking(url, **own | changed))


def graded(grade: Callable[[str, int], Any]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """What a `ChatServer` replies: `grade(user prompt, seed)` as the JSON of the contract, or the text that it is."""

    def reply(body: dict[str, Any]) -> dict[str, Any]:
        made = grade(body["messages"][-1]["content"], body["seed"])
        return completion(made if isinstance(made, str) else json.dumps({"reason": "so", "score": made}))

    return reply


def by_content(prompt: str, seed: int) -> int:
    """A grade that is set by what is asked, whenever it is asked."""
    return 1 + (sum(map(ord, prompt)) + seed) % 5
