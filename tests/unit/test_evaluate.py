"""Where evaluation puts the model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from omnichat.evaluate import outside_row, to_accelerator


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


@pytest.mark.parametrize(("local", "device"), [("0", "cuda:0"), ("1", "cuda:1"), ("3", "cuda:1")])
def test_each_process_takes_its_own_gpu(monkeypatch: pytest.MonkeyPatch, local: str, device: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", local)
    trained: Any = SimpleNamespace(llm=SimpleNamespace(quantize=None), launch=SimpleNamespace(cpu=False))
    model: Any = Part()
    to_accelerator(model, trained)
    assert model.sent == [device]
    to_accelerator(model, trained, cpu=True)
    assert model.sent == [device], "launch.cpu of the evaluation counts, too"


def test_rows_of_a_set_from_outside_are_no_rows_of_the_own_test_set() -> None:
    row = {"split": "test", "scenario": "all", "metric": "bleu", "value": 1.0}
    assert outside_row(row, "vox") == {**row, "scenario": "source:vox", "set": "vox"}
    assert outside_row({**row, "scenario": "music"}, "vox")["scenario"] == "source:vox/music"
