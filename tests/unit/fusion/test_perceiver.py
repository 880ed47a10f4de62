"""What only the Perceiver promises: it hears the whole clip, starts near home, and never holds all weights at once."""

from __future__ import annotations

import torch
from torch import Tensor

from omnichat.encoders.base import EncodedClip, StreamSpec, collate_clips
from omnichat.fusion.perceiver import Perceiver
from omnichat.schema import EncodedAudio
from tests.helpers.fusions import OUT, SPECS, streams_of

torch.set_num_threads(1)


def _perceiver(**settings: float) -> Perceiver:
    torch.manual_seed(0)
    return Perceiver(SPECS, OUT, **{"width": 32, "heads": 4, **settings}).eval()  # type: ignore[arg-type]


def test_a_latent_starts_by_listening_around_its_own_time() -> None:
    """One expert has the frames within a window of a latent's place, its twin all others of 20 s, 29 times as many."""
    specs = {"near": StreamSpec(96, 1, 50.0), "far": StreamSpec(96, 1, 50.0)}
    torch.manual_seed(0)
    model = Perceiver(specs, OUT).eval()
    time, x = (torch.arange(1000) + 0.5) / 50, torch.randn(1000, 96)
    for window in (2, 29, 55):
        near = (time - (window + 0.5) * 0.34).abs() < 0.34
        kept = {"near": near, "far": ~near}
        streams = {name: collate_clips([EncodedClip(x[keep], time[keep])]) for name, keep in kept.items()}
        mass_E = model(streams, torch.tensor([20.0], dtype=torch.float64)).attention_BWE[0, window]
        assert mass_E[0] > 0.4


def test_the_mass_is_the_weights_that_it_listens_with() -> None:
    """Let an expert's values say its number: what the cross-attention hears is then its mass."""
    model = _perceiver(queries=2)
    streams, seconds = streams_of([2.0, 0.9])
    numbers = torch.cat([torch.full((streams[name].mask_BT.shape[1],), e) for e, name in enumerate(SPECS)])
    one_hot_MD = torch.nn.functional.one_hot(numbers, 8).float().repeat(1, 4)  # 4 heads of 8 dimensions
    attention = model.cross.attention
    attention.value.register_forward_hook(lambda *_: one_hot_MD.expand(2, -1, -1))
    heard: list[Tensor] = []
    attention.out.register_forward_pre_hook(lambda _module, inputs: heard.append(inputs[0]))
    mass_BWE = model(streams, seconds).attention_BWE
    expected_BSE = heard[0].unflatten(-1, (4, 8)).mean(2)[..., :3]
    expected_BWE = expected_BSE.unflatten(1, (-1, 2)).mean(2)
    torch.testing.assert_close(mass_BWE[0], expected_BWE[0])
    torch.testing.assert_close(mass_BWE[1, :3], expected_BWE[1, :3])
    assert (mass_BWE[1, 3:] == 0).all(), "windows beyond the clip have none"


def test_half_a_minute_is_heard_without_keeping_every_weight() -> None:
    """Saved for the backward pass: per frame and per latent, never frames x latents (x heads)."""
    model = _perceiver().train()
    streams, seconds = streams_of([30.0, 3.0])
    frames = sum(stream.mask_BT.shape[1] for stream in streams.values())
    latents = model.slots(30.0)
    assert frames > 5000 and latents == 89
    saved: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        fused = model(streams, seconds)
    assert fused.x_BSD.isfinite().all()
    assert max(saved) <= 2 * frames * 48 < 2 * frames * latents, "48: sines and cosines of the time"


def test_far_frames_and_padding_of_latents() -> None:
    """A frame at the end reaches the first window, in a clip of its own; a longer neighbour changes nothing."""
    model = _perceiver()
    streams, seconds = streams_of([3.0, 30.0])
    before = model(streams, seconds).x_BSD
    content = streams["content"]
    x = content.x_BTD.clone()
    x[0, 149] += 5 * torch.randn(24)
    after = model({**streams, "content": EncodedAudio(x, content.mask_BT, content.time_sec)}, seconds).x_BSD
    assert (after[0, 0] - before[0, 0]).abs().max() > 1e-6
    assert torch.equal(after[1], before[1])


def test_places_are_told_apart() -> None:
    """Latents of different windows differ from the start, at every distance, for windows of any length."""
    for window_sec in (0.005, 0.34, 5.0, 200.0):
        model = _perceiver(window_sec=window_sec)
        place = torch.arange(1, 200) * window_sec
        told = model._time(place)
        gaps = torch.cdist(told, told) + 1e9 * torch.eye(len(told))
        assert told.isfinite().all()
        if window_sec < 1:
            assert gaps.min() > 0.3
