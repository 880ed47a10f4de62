"""Builders of predictions for the evaluation tests."""

from __future__ import annotations

from typing import Any

from omnichat.evaluation.predictions import Heard, Line, Prediction, Reply
from omnichat.schema import Scene, Style


def build(
    dialogue: str = "d1",
    turn: int = 1,
    *,
    heard: str = "Guess what.",
    voice: str = "neutral",
    reference: str = "What is it?",
    wanted: str | None = "happy",
    hypothesis: str = "What is it?",
    got: str | None = "happy",
    keywords: tuple[str, ...] | None = None,
    **rest: Any,
) -> Prediction:
    """One reply; `got` None stands for a style that could not be parsed."""
    scene = None if keywords is None else Scene("a sound", keywords=keywords)
    values: dict[str, Any] = {"source": "toy", "kind": "synthetic", "scenario": "emotion", "split": "test"}
    values |= {"history": (Line("A", "Hi."), Line("B", "Hello.")), "input": "speech", "raw": hypothesis}
    return Prediction(
        id=f"{dialogue}#{turn}",
        dialogue=dialogue,
        turn=turn,
        heard=Heard(heard, Style("normal", "normal", voice), scene),
        reference=Reply(reference, Style("normal", "normal", wanted) if wanted else Style()),
        hypothesis=Reply(hypothesis, Style("normal", "normal", got) if got else None),
        **(values | rest),
    )
