"""One suite over every fusion: slots, masks, batch invariance, gradients, scale, and what must change the output."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from omnichat.encoders.base import collate_clips
from omnichat.fusion.base import FusedAudio, Fusion, window_count
from omnichat.fusion.mix_former import MixFormer
from omnichat.fusion.stack import Stack
from omnichat.schema import EncodedAudio
from omnichat.utils.errors import UserError
from tests.helpers.fusions import MEMBERS, OUT, SPECS, build, clip, context_of, names, streams_of

torch.set_num_threads(1)
every_member = pytest.mark.parametrize("name", list(MEMBERS))
in_time = pytest.mark.parametrize("name", names(spans=True))


def run(fusion: Fusion, streams: dict[str, EncodedAudio], seconds: Tensor) -> FusedAudio:
    """The fusion on these streams, with a dialogue before each clip where it wants one."""
    return fusion(streams, seconds, context_of(fusion, len(seconds)))


@every_member
def test_slots_mask_and_shape(name: str) -> None:
    fusion, lengths = build(name), [3.0, 0.05, 0.34, 0.35, 10.01]
    fused = run(fusion, *streams_of(lengths))
    counts = [fusion.slots(seconds) for seconds in lengths]
    assert fused.mask_BS.sum(1).tolist() == counts
    assert fused.x_BSD.shape == (5, max(counts), OUT) and fused.x_BSD.isfinite().all()
    assert not fused.x_BSD[~fused.mask_BS].any()
    for row, count in enumerate(counts):
        assert fused.mask_BS[row, :count].all()


@in_time
def test_slots_are_those_of_the_windows_of_time(name: str) -> None:
    fusion, lengths = build(name), [3.0, 0.05, 0.34, 0.35, 10.01]
    counts = [math.ceil(seconds / 0.34 - 1e-6) * fusion.queries for seconds in lengths]
    assert [fusion.slots(seconds) for seconds in lengths] == counts
    assert counts[0] == 9 * fusion.queries and counts[2] == fusion.queries


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


@every_member
def test_padded_batch_equals_single(name: str) -> None:
    fusion, lengths = build(name), [2.9, 0.07, 5.3, 1.0]
    streams, seconds = streams_of(lengths)
    context = context_of(fusion, len(lengths))
    batch = fusion(streams, seconds, context)
    for row, length in enumerate(lengths):
        heard = clip(length, row)
        before = None if context is None else context[row : row + 1]
        alone = fusion({name: collate_clips([heard[name]]) for name in SPECS}, seconds[row : row + 1], before)
        slots = fusion.slots(length)
        torch.testing.assert_close(batch.x_BSD[row, :slots], alone.x_BSD[0], rtol=1e-5, atol=1e-6)
        if batch.attention_BWE is not None:
            windows = slots // fusion.queries
            torch.testing.assert_close(batch.attention_BWE[row, :windows], alone.attention_BWE[0])


@in_time
def test_padding_never_matters(name: str) -> None:
    fusion = build(name)
    streams, seconds = streams_of([1.0, 4.0])
    expected = run(fusion, streams, seconds).x_BSD
    for stream in streams.values():
        invalid = ~stream.mask_BT
        stream.time_sec[invalid] = float("nan")
        stream.x_BTD.masked_fill_((invalid[:, None] if stream.x_BTD.dim() == 4 else invalid)[..., None], 1e4)
    torch.testing.assert_close(run(fusion, streams, seconds).x_BSD, expected, rtol=0, atol=0)


@every_member
def test_every_parameter_learns(name: str) -> None:
    fusion = build(name).train()
    with torch.no_grad():
        for parameter in fusion.parameters():  # a layer that starts at zero passes no gradient on
            parameter.add_(0.01 * torch.randn(parameter.shape))
    fused = run(fusion, *streams_of([1.3, 3.1]))
    (fused.x_BSD * torch.randn(fused.x_BSD.shape)).sum().backward()
    for weight, parameter in fusion.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), weight
        assert parameter.grad.abs().max() > 0 or any(part in weight for part in MEMBERS[name].still), weight


@pytest.mark.parametrize(("name", "expert"), [(name, e) for name in names(spans=True) for e in MEMBERS[name].hears])
def test_every_expert_is_heard_and_only_in_its_windows(name: str, expert: str) -> None:
    fusion = build(name)
    streams, seconds = streams_of([3.4])
    before = run(fusion, streams, seconds).x_BSD[0].clone()
    stream = streams[expert]
    inside = (stream.time_sec[0] > 1.37) & (stream.time_sec[0] < 1.69)  # strictly inside window 4: 1.36 to 1.70
    changed = stream.x_BTD.clone()
    changed[0, ..., inside, :] += torch.randn(changed[0, ..., inside, :].shape)
    streams[expert] = EncodedAudio(changed, stream.mask_BT, stream.time_sec)
    change = (run(fusion, streams, seconds).x_BSD[0] - before).abs().amax(1).view(-1, fusion.queries)
    assert (change[4] > 1e-5).all()
    if not fusion.local:
        assert (change > 0).all(), "a fusion that says it hears the whole clip does"
        return
    # A part of a neighbouring window in which a member finds no frame may borrow one from here.
    others = [0, 1, 2, 6, 7, 8, 9] if MEMBERS[name].borrows else [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert change[others].max() == 0


@pytest.mark.parametrize("name", names(spans=True, orders=True))
def test_order_of_frames_inside_a_window_matters(name: str) -> None:
    fusion = build(name)
    streams, seconds = streams_of([1.02])
    before = run(fusion, streams, seconds).x_BSD
    stream = streams["content"]
    flipped = stream.x_BTD.clone()
    flipped[0, 17:34] = stream.x_BTD[0, 17:34].flip(0)
    streams["content"] = EncodedAudio(flipped, stream.mask_BT, stream.time_sec)
    change = (run(fusion, streams, seconds).x_BSD - before).abs().amax(2)[0].view(-1, fusion.queries)
    assert (change[1] > 1e-6).all()
    assert not fusion.local or change[[0, 2]].max() == 0


@in_time
def test_a_window_without_frames_takes_the_nearest(name: str) -> None:
    fusion = build(name)
    fusion.window_sec = 0.005  # four windows to a frame of 50 Hz
    fused = run(fusion, *streams_of([0.4]))
    assert fused.mask_BS.sum() == 80 * fusion.queries
    assert fused.x_BSD.isfinite().all() and fused.x_BSD.abs().amax(2).min() > 0


@pytest.mark.parametrize("name", names(spans=True, joins=True))
def test_frames_after_the_end_join_the_last_window(name: str) -> None:
    """A header may say a little less than the frames cover: those frames are heard, in the last window."""
    fusion = build(name)
    streams, _ = streams_of([1.5])
    seconds = torch.tensor([1.02], dtype=torch.float64)
    before = run(fusion, streams, seconds).x_BSD
    assert before.shape[1] == 3 * fusion.queries
    streams["content"].x_BTD[0, -1] = torch.randn(24)
    change = (run(fusion, streams, seconds).x_BSD - before).abs().amax(2)[0].view(-1, fusion.queries)
    assert (change[2] > 1e-6).all()
    assert not fusion.local or change[:2].max() == 0


@pytest.mark.parametrize("out_rms", [0.02, 0.1, 1.0])
@every_member
def test_output_starts_at_the_scale_asked_for(name: str, out_rms: float) -> None:
    fusion = build(name, out_rms=out_rms)
    streams, seconds = streams_of([5.0, 8.0])
    if not MEMBERS[name].scales:
        fusion.calibrate([streams])
    fused = run(fusion, streams, seconds)
    rms = fused.x_BSD[fused.mask_BS].square().mean().sqrt()
    assert 0.6 * out_rms < rms < 1.6 * out_rms


@every_member
def test_bfloat16_autocast_is_close(name: str) -> None:
    fusion = build(name)
    streams, seconds = streams_of([2.0, 1.0])
    exact = run(fusion, streams, seconds)
    short = {n: EncodedAudio(s.x_BTD.bfloat16(), s.mask_BT, s.time_sec) for n, s in streams.items()}
    with torch.autocast("cpu", torch.bfloat16):
        fused = run(fusion, short, seconds)
    assert torch.equal(fused.mask_BS, exact.mask_BS)
    assert (fused.x_BSD.float() - exact.x_BSD).norm() < 0.05 * exact.x_BSD.norm()


@every_member
def test_its_state_makes_another_one_equal(name: str) -> None:
    fusion = build(name)
    streams, seconds = streams_of([2.0, 1.0])
    fusion.calibrate([streams])
    with torch.no_grad():
        for parameter in fusion.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    torch.manual_seed(1)
    other = MEMBERS[name].build().eval()
    assert not torch.equal(run(other, streams, seconds).x_BSD, run(fusion, streams, seconds).x_BSD)
    other.load_state_dict(copy.deepcopy(fusion.state_dict()), strict=True)
    assert torch.equal(run(other, streams, seconds).x_BSD, run(fusion, streams, seconds).x_BSD)


@pytest.mark.parametrize("name", [name for name, member in MEMBERS.items() if len(member.hears) > 1])
def test_wrong_streams_are_refused(name: str) -> None:
    fusion = build(name)
    streams, seconds = streams_of([1.0])
    for wrong in ({}, {**streams, "smells": streams["music"]}):
        with pytest.raises(ValueError, match="music"):
            fusion(wrong, seconds)
    with pytest.raises(ValueError, match="sounds"):
        fusion({**streams, "sounds": streams["content"]}, seconds)


@pytest.mark.parametrize("wrong", [{"window_sec": 0.0}, {"queries": 0}, {"width": 30, "heads": 4}, {"dropout": 1.0}])
def test_wrong_settings_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        MixFormer(SPECS, OUT, **wrong)  # type: ignore[arg-type]
