"""Where evaluation puts the model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from omnichat.evaluate import to_accelerator


class Part:
    """Notes where it is sent."""

    def __init__(self) -> None:
        self.sent: list[object] = []

    def to(self, device: object) -> None:
        self.sent.append(device)


@pytest.mark.parametrize(
    ("gpu", "quantize", "cpu", "model_to", "fusion_to"),
    [
        (False, None, False, [], []),
        (True, None, False, ["cuda"], []),
        (True, None, True, [], []),
        (True, "nf4", False, [], ["cuda:1"]),
        (False, "int8", False, [], ["cuda:1"]),
    ],
)
def test_the_model_goes_to_the_gpu_and_the_fusion_to_a_quantised_llm(
    monkeypatch: pytest.MonkeyPatch, gpu: bool, quantize: str | None, cpu: bool, model_to: Any, fusion_to: Any
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    model: Any = Part()
    model.fusion, model.device = Part(), "cuda:1"
    trained: Any = SimpleNamespace(llm=SimpleNamespace(quantize=quantize), launch=SimpleNamespace(cpu=cpu))
    to_accelerator(model, trained)
    assert (model.sent, model.fusion.sent) == (model_to, fusion_to)
