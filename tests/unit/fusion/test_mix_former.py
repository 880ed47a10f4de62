"""What only Mix-Former promises: the attention picture. And the windows of time below every fusion."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omnichat.encoders.base import EncodedClip, StreamSpec, collate_clips
from omnichat.fusion.base import LayerMix, gather_frames, window_frames
from omnichat.fusion.mix_former import MixFormer
from omnichat.schema import EncodedAudio

torch.set_num_threads(1)


def _stream(*times: list[float], width: int = 8) -> EncodedAudio:
    generator = torch.Generator().manual_seed(0)
    clips = [EncodedClip(torch.randn(len(t), width, generator=generator), torch.tensor(t)) for t in times]
    return collate_clips(clips)


@settings(max_examples=60, deadline=None)
@given(
    clips=st.lists(st.lists(st.floats(0, 5, width=32), min_size=1, max_size=30), min_size=1, max_size=3),
    counts=st.lists(st.integers(1, 12), min_size=3, max_size=3),
    window=st.floats(0.05, 1.0),
)
def test_every_frame_lies_in_exactly_one_window_its_own(
    clips: list[list[float]], counts: list[int], window: float
) -> None:
    stream = _stream(*[sorted(times) for times in clips])
    windows = torch.tensor(counts[: len(clips)])
    places = window_frames(stream, windows, window)
    for row, times in enumerate(clips):
        held = places.index_BWM[row][places.valid_BWM[row]]
        assert held.tolist() == list(range(len(times))), "each once, in order"
        for number in range(int(windows.max())):
            last = min(int(windows[row]) - 1, number)
            for index in places.index_BWM[row, number][places.valid_BWM[row, number]].tolist():
                home = int(stream.time_sec[row, index].double() / window)
                assert number == min(home, int(windows[row]) - 1) == last
            centre = (number + 0.5) * window
            gaps = (stream.time_sec[row, : len(times)].double() - centre).abs()
            torch.testing.assert_close(places.distance_BW[row, number], gaps.min())
            torch.testing.assert_close(gaps[places.nearest_BW[row, number]], gaps.min())


def test_gather_takes_each_clips_own_frames() -> None:
    stream = _stream([0.1, 0.2, 0.3], [0.1])
    index = torch.tensor([[[2, 0]], [[0, 0]]])
    picked = gather_frames(stream.x_BTD, index)
    assert torch.equal(picked[0, 0, 0], stream.x_BTD[0, 2]) and torch.equal(picked[1, 0, 1], stream.x_BTD[1, 0])


def _mix_former() -> MixFormer:
    torch.manual_seed(0)
    specs = {"one": StreamSpec(8, 1, 10.0), "two": StreamSpec(8, 1, 10.0)}
    return MixFormer(specs, 6, window_sec=0.5, width=16, heads=2).eval()


def test_attention_sums_to_one_and_is_zero_where_an_expert_is_absent() -> None:
    model = _mix_former()
    streams = {"one": _stream([0.1, 0.2, 0.6]), "two": _stream([0.7, 1.2])}
    fused = model(streams, torch.tensor([1.5], dtype=torch.float64))
    attention = fused.attention_BWE
    assert attention is not None and attention.shape == (1, 3, 2) and not attention.requires_grad
    torch.testing.assert_close(attention.sum(-1), torch.ones(1, 3))
    assert attention[0, 0].tolist() == [1.0, 0.0] and attention[0, 2].tolist() == [0.0, 1.0]
    assert 0 < attention[0, 1, 0] < 1


def test_attention_follows_the_expert_that_the_keys_favour() -> None:
    """Make one expert's keys the queries' own direction: the mass must move to it."""
    model = _mix_former()
    streams = {"one": _stream([0.1, 0.2]), "two": _stream([0.1, 0.2])}
    seconds = torch.tensor([0.5], dtype=torch.float64)
    before = model(streams, seconds).attention_BWE
    with torch.no_grad():
        for block in model.blocks:
            attention = block.cross_attention
            attention.query.weight.zero_()
            attention.query.bias.fill_(1.0)
            attention.key.weight.copy_(torch.ones(16, 16) @ torch.diag(torch.eye(16)[3] * 4))
        model.expert["two"][3] += 5.0
    after = model(streams, seconds).attention_BWE
    assert after[0, 0, 1] > 0.9 > before[0, 0, 1]


def test_layer_mix_is_an_average_of_normalised_layers() -> None:
    mix = LayerMix(3)
    x = torch.randn(2, 3, 5, 8) * torch.tensor([1.0, 100.0, 0.01])[None, :, None, None]
    expected = torch.nn.functional.layer_norm(x, (8,)).mean(1)
    torch.testing.assert_close(mix(x), expected)
    with torch.no_grad():
        mix.logits[1] = 50.0
    torch.testing.assert_close(mix(x), torch.nn.functional.layer_norm(x[:, 1], (8,)))
