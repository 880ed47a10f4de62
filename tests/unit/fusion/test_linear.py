"""SLAM-LLM's projector: equal to its plain formula where that applies, and what is ours around it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from omnichat.encoders.base import EncodedClip, StreamSpec, collate_clips
from omnichat.fusion.budget import count_parameters, fit_budget
from omnichat.fusion.linear import LinearDownsample
from omnichat.schema import EncodedAudio
from omnichat.utils.errors import UserError

torch.set_num_threads(1)
ONE = {"content": StreamSpec(24, 1, 50.0)}
TWO = {**ONE, "sounds": StreamSpec(16, 3, 50.0)}


def _stream(x: Tensor, rate_hz: float = 50.0) -> EncodedAudio:
    return collate_clips([EncodedClip(x, (torch.arange(x.shape[-2]) + 0.5) / rate_hz)])


def _seconds(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("frames", [5, 10, 60, 1500])
def test_one_expert_is_slam_llms_formula(frames: int) -> None:
    """k = 5 frames of 50 Hz: neighbours concatenated on the width axis, Linear, ReLU, Linear; same weights."""
    torch.manual_seed(0)
    model = LinearDownsample(ONE, 12, hidden=32).eval()
    x_TD = torch.randn(frames, 24)
    side_by_side = torch.stack([x_TD[5 * n : 5 * n + 5].reshape(-1) for n in range(frames // 5)])
    hidden = (side_by_side @ model.first.weight.T + model.first.bias).clamp(min=0)
    expected = hidden @ model.second.weight.T + model.second.bias
    found = model({"content": _stream(x_TD)}, _seconds(frames / 50))
    assert found.mask_BS.all() and found.attention_BWE is None
    torch.testing.assert_close(found.x_BSD[0], expected)


def test_a_tail_is_filled_with_its_last_frame_and_not_dropped() -> None:
    model = LinearDownsample(ONE, 12, hidden=32).eval()
    x_TD = torch.randn(7, 24)
    found = model({"content": _stream(x_TD)}, _seconds(7 / 50))
    filled = torch.cat([x_TD, x_TD[-1:].expand(3, -1)])
    assert torch.equal(found.x_BSD, model({"content": _stream(filled)}, _seconds(0.2)).x_BSD)


def test_an_absent_expert_is_zero() -> None:
    model = LinearDownsample(TWO, 12, hidden=32).eval()
    x_TD = torch.randn(20, 24)
    found = model({"content": _stream(x_TD)}, _seconds(0.4))
    steps = torch.cat([x_TD, torch.zeros(20, 16)], dim=-1).view(4, 5 * 40)
    torch.testing.assert_close(found.x_BSD[0], model.second(model.first(steps).relu()))


def test_bands_of_one_time_are_averaged() -> None:
    """BEATs: eight frames at one time. Taking one of them would throw seven bands of the spectrum away."""
    model = LinearDownsample({"bands": StreamSpec(6, 1, 50.0)}, 12, window_sec=0.16, frames=1, hidden=32).eval()
    x_TD = torch.randn(24, 6)
    time_T = (torch.arange(24) // 8) * 0.16 + 0.08
    found = model({"bands": collate_clips([EncodedClip(x_TD, time_T)])}, _seconds(0.48))
    means = x_TD.view(3, 8, 6).mean(1)
    torch.testing.assert_close(found.x_BSD[0], model.second(model.first(means).relu()))


def test_experts_of_two_rates_are_aligned_by_time() -> None:
    specs = {"fast": StreamSpec(1, 1, 100.0), "slow": StreamSpec(1, 1, 50.0)}
    model = LinearDownsample(specs, 4, window_sec=0.1, frames=5, hidden=8).eval()
    fast, slow = torch.arange(40.0)[:, None], torch.arange(20.0)[:, None]
    streams = {"fast": _stream(fast, 100.0), "slow": _stream(slow)}
    windows_B = model.windows(_seconds(0.4))
    at_slow = model._at_steps("slow", streams["slow"], windows_B).flatten()
    at_fast = model._at_steps("fast", streams["fast"], windows_B).flatten()
    assert at_slow.tolist() == list(range(20))
    # A step at 0.01 s lies between the fast frames at 0.005 and 0.015 s.
    assert all(abs(fast_index - (2 * step + 0.5)) <= 0.5 for step, fast_index in enumerate(at_fast.tolist()))


def test_output_starts_at_its_scale_once_the_frames_are_standardised() -> None:
    torch.manual_seed(0)
    model = LinearDownsample(TWO, 64, hidden=256, out_rms=0.05).eval()
    streams = {"content": _stream(7 + 30 * torch.randn(400, 24)), "sounds": _stream(torch.randn(3, 400, 16))}
    model.calibrate([streams])
    rms = model(streams, _seconds(8.0)).x_BSD.square().mean().sqrt()
    assert 0.035 < rms < 0.065


@pytest.mark.parametrize(("budget", "settings"), [("100K", {}), ("2M", {"window_sec": 0.34, "frames": 17})])
def test_the_budget_is_met_by_the_hidden_width(budget: str, settings: dict[str, float]) -> None:
    target = {"100K": 100_000, "2M": 2_000_000}[budget]
    fitted = fit_budget(LinearDownsample, {"specs": TWO, "out_width": 12, **settings}, budget)
    assert abs(count_parameters(LinearDownsample, fitted) - target) <= 0.02 * target


@pytest.mark.parametrize("wrong", [{"frames": 0}, {"hidden": 0}, {"window_sec": 0.0}])
def test_wrong_settings_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match=f"fusion.{next(iter(wrong))}"):
        LinearDownsample(ONE, 12, **wrong)  # type: ignore[arg-type]
