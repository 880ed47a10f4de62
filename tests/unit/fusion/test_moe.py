"""What only the mixture of experts promises: sparse routes, their weights, their gradient, and the noise."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omnichat.fusion.moe import MixtureOfExperts, route
from omnichat.schema import EncodedAudio
from omnichat.utils.errors import UserError
from tests.helpers.fusions import OUT, SPECS, silent, streams_of

torch.set_num_threads(1)


def _moe(**settings: float) -> MixtureOfExperts:
    torch.manual_seed(0)
    return MixtureOfExperts(SPECS, OUT, **{"width": 16, "hidden": 32, **settings}).eval()  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), experts=st.integers(1, 5), top_k=st.integers(1, 6))
def test_routes(seed: int, experts: int, top_k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = 20 * torch.randn(3, 7, experts, generator=generator)
    there = torch.rand(3, experts, generator=generator) < 0.6
    there[torch.arange(3), torch.randint(experts, (3,), generator=generator)] = True
    picked, weights = route(scores, there, top_k)
    assert torch.equal(picked, weights) and not picked.requires_grad
    torch.testing.assert_close(picked.sum(-1), torch.ones(3, 7))
    for clip in range(3):
        present = there[clip].nonzero()[:, 0].tolist()
        for window in range(7):
            ranked = sorted(present, key=lambda e: -scores[clip, window, e].item())[:top_k]
            expected = torch.zeros(experts)
            expected[ranked] = scores[clip, window, ranked].softmax(0)
            torch.testing.assert_close(picked[clip, window], expected, rtol=1e-4, atol=1e-6)


def test_an_expert_that_was_not_picked_is_not_heard() -> None:
    model = _moe(top_k=1)
    with torch.no_grad():
        model.router.weight.zero_()
        model.router.bias.copy_(torch.tensor([0.0, 0.0, 9.0]))
    streams, seconds = streams_of([2.0])
    before = model(streams, seconds)
    assert before.attention_BWE[0].tolist() == [[0.0, 0.0, 1.0]] * 6
    for name in ("content", "sounds"):
        stream = streams[name]
        streams[name] = EncodedAudio(torch.randn_like(stream.x_BTD), stream.mask_BT, stream.time_sec)
    assert torch.equal(model(streams, seconds).x_BSD, before.x_BSD)
    streams["music"] = silent(streams["music"])
    assert model(streams, seconds).attention_BWE[0, :, 2].max() == 0, "an absent expert is never picked"


@pytest.mark.parametrize("top_k", [1, 2])
def test_the_router_hears_what_the_others_would_have_been_worth(top_k: int) -> None:
    model = _moe(top_k=top_k)
    fused = model(*streams_of([2.0]))
    (fused.x_BSD * torch.randn(OUT)).sum().backward()
    assert (fused.attention_BWE == 0).any() and (model.router.weight.grad.abs().amax(1) > 0).all()


def test_the_gradient_is_exact_where_all_are_picked() -> None:
    scores = torch.randn(1, 4, 3, dtype=torch.float64, requires_grad=True)
    there, value = torch.ones(1, 3, dtype=torch.bool), torch.randn(1, 4, 3, dtype=torch.float64)
    (got,) = torch.autograd.grad((route(scores, there, 3)[1] * value).sum(), scores)
    (expected,) = torch.autograd.grad((scores.softmax(-1) * value).sum(), scores)
    torch.testing.assert_close(got, expected)


def test_windows_of_one_clip_may_choose_differently() -> None:
    mass = _moe(top_k=1)(*streams_of([10.0])).attention_BWE[0]
    assert (mass.sum(0) > 0).all(), "30 windows of noise are not all alike"


def test_noise_moves_the_routes_in_training_only() -> None:
    streams, seconds = streams_of([3.0])
    noisy, still = _moe(top_k=1, dropout=0.0, router_noise=5.0), _moe(top_k=1, dropout=0.0)
    assert torch.equal(noisy(streams, seconds).x_BSD, still(streams, seconds).x_BSD)
    noisy.train()
    routes = {tuple(noisy(streams, seconds).attention_BWE[0].argmax(-1).tolist()) for _ in range(5)}
    assert len(routes) > 1
    still.train()
    assert torch.equal(still(streams, seconds).x_BSD, still(streams, seconds).x_BSD)


@pytest.mark.parametrize("wrong", [{"router_noise": -0.1}, {"router_noise": float("nan")}, {"top_k": 0}, {"hidden": 0}])
def test_wrong_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        _moe(**wrong)
