"""Resampling between any two rates: the same sound, and memory that no header can blow up."""

from __future__ import annotations

import math
import tracemalloc

import pytest
import torch
import torchaudio.functional

from omnichat.audio.io import resample

torch.set_num_threads(1)


def tone(rate: int, seconds: float = 0.5) -> torch.Tensor:
    return torch.sin(2 * torch.pi * 440.0 * torch.arange(round(seconds * rate)) / rate)


@pytest.mark.parametrize(("from_hz", "to_hz"), [(44100, 16000), (22050, 16000), (11025, 24000), (8000, 16000)])
def test_common_rates_are_torchaudio_s(from_hz: int, to_hz: int) -> None:
    wave = tone(from_hz)
    assert torch.equal(resample(wave, from_hz, to_hz), torchaudio.functional.resample(wave, from_hz, to_hz))


@pytest.mark.parametrize("from_hz", [44101, 15999, 47999])
def test_a_rate_that_no_recording_has_is_resampled_all_the_same(from_hz: int) -> None:
    tracemalloc.start()
    found = resample(tone(from_hz), from_hz, 16000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 200e6, "torchaudio's kernel for such rates takes gigabytes"
    assert found.dtype == torch.float32 and len(found) == math.ceil(len(tone(from_hz)) * 16000 / from_hz)
    inner = slice(200, 7800)  # the ends are each method's own
    assert (found[inner] - tone(16000)[inner]).abs().max() < 2e-3
