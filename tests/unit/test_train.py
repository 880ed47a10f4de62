"""What a checkpoint must agree on with the run that continues it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from omnichat.config import TrainRun
from omnichat.train import identity
from omnichat.training.identity import changes


class _Tokenizer:
    chat_template = "{{ x }}"

    def __init__(self, words: str = "a b") -> None:
        self.backend_tokenizer = SimpleNamespace(to_str=lambda: words)


def found(experts: dict[str, str], where: str = "here", words: str = "a b") -> dict[str, Any]:
    config = TrainRun(experts={name: {"_target_": name, "path": f"{where}/{name}.pt"} for name in experts})
    config.llm.path = f"{where}/llm"
    chat = SimpleNamespace(tokenizer=_Tokenizer(words))
    parts: Any = SimpleNamespace(sources=[], expert_fingerprints=experts, llm_fingerprint="l", chat=chat)
    return identity(config, parts)


def test_the_order_of_the_experts_counts_and_where_weights_lie_does_not() -> None:
    one = found({"a": "f1", "b": "f2"})
    assert changes(one, found({"a": "f1", "b": "f2"}, where="there")) == []
    [change] = changes(one, found({"b": "f2", "a": "f1"}))
    assert (change.key, change.family) == ("experts_order", "experts")
    [change] = changes(one, found({"a": "f1", "b": "f2"}, words="a c"))
    assert (change.key, change.family) == ("tokenizer", "llm")
