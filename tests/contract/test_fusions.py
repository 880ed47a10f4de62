"""One suite over every fusion: slots, masks, batch invariance, gradients, scale, and what must change the output."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from omnichat.encoders.base import EncodedClip, StreamSpec, collate_clips
from omnichat.fusion.base import Fusion, window_count
from omnichat.fusion.mix_former import MixFormer
from omnichat.fusion.stack import Stack
from omnichat.schema import EncodedAudio
from omnichat.utils.errors import UserError

torch.set_num_threads(1)

SPECS = {"content": StreamSpec(24, 1, 50.0), "sounds": StreamSpec(16, 3, 50.0), "music": StreamSpec(12, 1, 75.0)}
OUT = 20
FUSIONS: dict[str, Callable[..., Fusion]] = {
    "mix_former": lambda **kw: MixFormer(SPECS, OUT, width=32, heads=4, **kw),
    "mix_former_k3": lambda **kw: MixFormer(SPECS, OUT, width=32, heads=4, **{"queries": 3, **kw}),
    "stack": lambda **kw: Stack(SPECS, OUT, width=16, hidden=48, **kw),
    "stack_k2": lambda **kw: Stack(SPECS, OUT, width=16, hidden=48, **{"queries": 2, **kw}),
}


@pytest.fixture(params=list(FUSIONS))
def fusion(request: pytest.FixtureRequest) -> Fusion:
    torch.manual_seed(0)
    return FUSIONS[request.param]().eval()


def _clips(seconds: float, seed: int) -> dict[str, EncodedClip]:
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    content = max(1, math.ceil(seconds * 50))
    patches = max(1, int(seconds / 0.16))
    music = max(1, int(seconds * 75))
    return {
        "content": EncodedClip(randn(content, 24), (torch.arange(content) + 0.5) / 50),
        "sounds": EncodedClip(randn(3, 8 * patches, 16), (torch.arange(8 * patches) // 8) * 0.16 + 0.0875),
        "music": EncodedClip(5 * randn(music, 12), (torch.arange(music) * 320 + 200) / 24000),
    }


def _streams(lengths: list[float], seed: int = 0) -> tuple[dict[str, EncodedAudio], Tensor]:
    clips = [_clips(seconds, seed + number) for number, seconds in enumerate(lengths)]
    streams = {name: collate_clips([clip[name] for clip in clips]) for name in SPECS}
    return streams, torch.tensor(lengths, dtype=torch.float64)


def test_slots_mask_and_shape(fusion: Fusion) -> None:
    lengths = [3.0, 0.05, 0.34, 0.35, 10.01]
    fused = fusion(*_streams(lengths))
    counts = [math.ceil(seconds / 0.34 - 1e-6) * fusion.queries for seconds in lengths]
    assert [fusion.slots(seconds) for seconds in lengths] == counts
    assert counts[0] == 9 * fusion.queries and counts[2] == fusion.queries
    assert fused.mask_BS.sum(1).tolist() == counts
    assert fused.x_BSD.shape == (5, max(counts), OUT) and fused.x_BSD.isfinite().all()
    assert not fused.x_BSD[~fused.mask_BS].any()
    for row, count in enumerate(counts):
        assert fused.mask_BS[row, :count].all()


@settings(max_examples=200, deadline=None)
@given(seconds=st.floats(0.001, 600), window=st.floats(0.02, 5))
def test_slots_agree_between_one_clip_and_a_batch(seconds: float, window: float) -> None:
    fusion = Stack(SPECS, OUT, window_sec=window, width=1, hidden=1)
    assert fusion.windows(torch.tensor([seconds], dtype=torch.float64)).item() == window_count(seconds, window)


def test_whole_windows_open_no_further_one() -> None:
    fusion = Stack(SPECS, OUT, width=1, hidden=1)
    counts = list(range(1, 400))
    seconds = torch.tensor([0.34 * count for count in counts], dtype=torch.float64)  # some lie an ulp above
    assert fusion.windows(seconds).tolist() == counts
    assert [window_count(value, 0.34) for value in seconds.tolist()] == counts


def test_padded_batch_equals_single(fusion: Fusion) -> None:
    lengths = [2.9, 0.07, 5.3, 1.0]
    streams, seconds = _streams(lengths)
    batch = fusion(streams, seconds)
    for row, length in enumerate(lengths):
        clip = _clips(length, row)
        alone = fusion({name: collate_clips([clip[name]]) for name in SPECS}, seconds[row : row + 1])
        slots = fusion.slots(length)
        torch.testing.assert_close(batch.x_BSD[row, :slots], alone.x_BSD[0], rtol=1e-5, atol=1e-6)
        if batch.attention_BWE is not None:
            windows = slots // fusion.queries
            torch.testing.assert_close(batch.attention_BWE[row, :windows], alone.attention_BWE[0])


def test_padding_never_matters(fusion: Fusion) -> None:
    streams, seconds = _streams([1.0, 4.0])
    expected = fusion(streams, seconds).x_BSD
    for stream in streams.values():
        invalid = ~stream.mask_BT
        stream.time_sec[invalid] = float("nan")
        shape = (slice(None),) if stream.x_BTD.dim() == 3 else (slice(None), slice(None))
        stream.x_BTD.masked_fill_((invalid[:, None] if len(shape) == 2 else invalid)[..., None], 1e4)
    torch.testing.assert_close(fusion(streams, seconds).x_BSD, expected, rtol=0, atol=0)


def test_every_parameter_learns(fusion: Fusion) -> None:
    fusion.train()
    streams, seconds = _streams([1.3, 3.1])
    fused = fusion(streams, seconds)
    (fused.x_BSD * torch.randn(fused.x_BSD.shape)).sum().backward()
    for name, parameter in fusion.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        # A key bias adds one constant to all scores: softmax cancels it, in exact arithmetic.
        assert parameter.grad.abs().max() > 0 or name.endswith("key.bias"), name


@pytest.mark.parametrize("expert", list(SPECS))
def test_every_expert_is_heard_and_only_in_its_windows(fusion: Fusion, expert: str) -> None:
    streams, seconds = _streams([3.4])
    before = fusion(streams, seconds).x_BSD[0].clone()
    stream = streams[expert]
    inside = (stream.time_sec[0] > 1.37) & (stream.time_sec[0] < 1.69)  # strictly inside window 4: 1.36 to 1.70
    changed = stream.x_BTD.clone()
    changed[0, ..., inside, :] += torch.randn(changed[0, ..., inside, :].shape)
    streams[expert] = EncodedAudio(changed, stream.mask_BT, stream.time_sec)
    change = (fusion(streams, seconds).x_BSD[0] - before).abs().amax(1).view(-1, fusion.queries)
    assert (change[4] > 1e-5).all()
    # A part of a neighbouring window in which Stack finds no frame may borrow one from here.
    others = [0, 1, 2, 6, 7, 8, 9] if isinstance(fusion, Stack) else [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert change[others].max() == 0


def test_order_of_frames_inside_a_window_matters(fusion: Fusion) -> None:
    streams, seconds = _streams([1.02])
    before = fusion(streams, seconds).x_BSD
    stream = streams["content"]
    flipped = stream.x_BTD.clone()
    flipped[0, 17:34] = stream.x_BTD[0, 17:34].flip(0)
    streams["content"] = EncodedAudio(flipped, stream.mask_BT, stream.time_sec)
    change = (fusion(streams, seconds).x_BSD - before).abs().amax(2)[0].view(-1, fusion.queries)
    assert (change[1] > 1e-6).all() and change[[0, 2]].max() == 0


def test_a_window_without_frames_takes_the_nearest(fusion: Fusion) -> None:
    fusion.window_sec = 0.005  # four windows to a frame of 50 Hz
    streams, seconds = _streams([0.4])
    fused = fusion(streams, seconds)
    assert fused.mask_BS.sum() == 80 * fusion.queries
    assert fused.x_BSD.isfinite().all() and fused.x_BSD.abs().amax(2).min() > 0


def test_frames_after_the_end_join_the_last_window(fusion: Fusion) -> None:
    """A header may say a little less than the frames cover: those frames are heard, in the last window."""
    streams, _ = _streams([1.5])
    seconds = torch.tensor([1.02], dtype=torch.float64)
    before = fusion(streams, seconds).x_BSD
    assert before.shape[1] == 3 * fusion.queries
    streams["content"].x_BTD[0, -1] = torch.randn(24)
    change = (fusion(streams, seconds).x_BSD - before).abs().amax(2)[0].view(-1, fusion.queries)
    assert (change[2] > 1e-6).all() and change[:2].max() == 0


@pytest.mark.parametrize("out_rms", [0.02, 0.1, 1.0])
@pytest.mark.parametrize("name", list(FUSIONS))
def test_output_starts_at_the_scale_asked_for(name: str, out_rms: float) -> None:
    fusion = FUSIONS[name](out_rms=out_rms).eval()
    fused = fusion(*_streams([5.0, 8.0]))
    rms = fused.x_BSD[fused.mask_BS].square().mean().sqrt()
    assert 0.6 * out_rms < rms < 1.6 * out_rms


def test_bfloat16_autocast_is_close(fusion: Fusion) -> None:
    streams, seconds = _streams([2.0, 1.0])
    exact = fusion(streams, seconds)
    short = {n: EncodedAudio(s.x_BTD.bfloat16(), s.mask_BT, s.time_sec) for n, s in streams.items()}
    with torch.autocast("cpu", torch.bfloat16):
        fused = fusion(short, seconds)
    assert torch.equal(fused.mask_BS, exact.mask_BS)
    assert (fused.x_BSD.float() - exact.x_BSD).norm() < 0.05 * exact.x_BSD.norm()


def test_wrong_streams_are_refused(fusion: Fusion) -> None:
    streams, seconds = _streams([1.0])
    for wrong in ({}, {**streams, "smells": streams["music"]}):
        with pytest.raises(ValueError, match="music"):
            fusion(wrong, seconds)
    with pytest.raises(ValueError, match="sounds"):
        fusion({**streams, "sounds": streams["content"]}, seconds)


@pytest.mark.parametrize("wrong", [{"window_sec": 0.0}, {"queries": 0}, {"width": 30, "heads": 4}, {"dropout": 1.0}])
def test_wrong_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        MixFormer(SPECS, OUT, **wrong)  # type: ignore[arg-type]
