"""SALMONN's window Q-Former behaves as SALMONN's, flaws included."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from omnichat.encoders.base import EncodedClip, StreamSpec, collate_clips
from omnichat.fusion.budget import count_parameters, fit_budget
from omnichat.fusion.mix_former import MixFormer
from omnichat.fusion.salmonn import WindowQFormer
from omnichat.schema import EncodedAudio
from omnichat.utils.errors import UserError

torch.set_num_threads(1)
SPECS = {"whisper": StreamSpec(24, 1, 50.0), "beats": StreamSpec(16, 1, 50.0)}
SMALL = {"width": 24, "heads": 12, "hidden": 32}


def _model(**settings: int) -> WindowQFormer:
    """With no weight at its start: as after some training, the norms have biases."""
    torch.manual_seed(0)
    model = WindowQFormer(SPECS, 20, **{**SMALL, **settings}).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def _streams(whisper_TD: Tensor, beats_TD: Tensor) -> dict[str, EncodedAudio]:
    bands = torch.arange(len(beats_TD)) // 8
    return {
        "whisper": collate_clips([EncodedClip(whisper_TD, (torch.arange(len(whisper_TD)) + 0.5) / 50)]),
        "beats": collate_clips([EncodedClip(beats_TD, bands * 0.16 + 0.0875)]),
    }


def _seconds(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize(("seconds", "windows"), [(0.05, 88), (1.0, 88), (29.0, 88), (30.0, 88), (31.0, 91), (60, 176)])
def test_every_clip_up_to_half_a_minute_is_88_windows(seconds: float, windows: int) -> None:
    model = _model()
    assert model.slots(seconds) == windows
    assert _model(queries=2).slots(seconds) == 2 * windows
    frames = round(50 * seconds)
    fused = model(_streams(torch.randn(max(1, frames), 24), torch.randn(8, 16)), _seconds(seconds))
    assert fused.x_BSD.shape == (1, windows, 20) and fused.mask_BS.all()


def test_it_is_salmonns_formula() -> None:
    """Norm each, fill the shorter with zeros, side by side, unfold by 17, one query, project; nothing is masked."""
    model = _model()
    whisper, beats = torch.randn(1500, 24), torch.randn(1496, 16)
    norms = model.norms
    both = torch.cat([norms["whisper"](whisper), F.pad(norms["beats"](beats), (0, 0, 0, 4))], dim=-1)
    unfolded = F.unfold(both.T[None, :, None], kernel_size=(1, 17), stride=(1, 17))  # [1, 40 * 17, 88]
    windows = unfolded.view(40, 17, 88).permute(2, 1, 0)
    heard = model.former(query_embeds=model.query.expand(88, -1, -1), encoder_hidden_states=windows)
    expected = model.out(heard.last_hidden_state[:, 0])
    found = model(_streams(whisper, beats), _seconds(30.0))
    torch.testing.assert_close(found.x_BSD[0], expected)
    assert found.attention_BWE is None


def test_the_tail_is_dropped() -> None:
    model = _model()
    whisper, beats = torch.randn(1500, 24), torch.randn(1496, 16)
    before = model(_streams(whisper, beats), _seconds(30.0)).x_BSD
    whisper[1496:] = 9.0
    assert torch.equal(model(_streams(whisper, beats), _seconds(30.0)).x_BSD, before)
    whisper[1495] = 9.0
    assert not torch.equal(model(_streams(whisper, beats), _seconds(30.0)).x_BSD, before)


def test_zeros_are_heard_and_silent_windows_are_all_alike() -> None:
    """One second is 50 frames: the third window is 16 frames and one zero, all from the fourth on are zeros."""
    model = _model()
    whisper, beats = torch.randn(50, 24), torch.randn(48, 16)
    fused = model(_streams(whisper, beats), _seconds(1.0)).x_BSD[0]
    torch.testing.assert_close(fused[3:], fused[3:4].expand(85, -1))
    assert (fused[:3] - fused[3]).abs().amax(1).min() > 1e-4
    cut = model(_streams(whisper[:34], beats), _seconds(1.0)).x_BSD[0]
    assert not torch.allclose(cut[2], fused[2])


def test_order_inside_a_window_changes_nothing_here_and_something_in_mix_former() -> None:
    model = _model()
    torch.manual_seed(0)
    ours = MixFormer(SPECS, 20, width=24, heads=4).eval()
    whisper, beats = torch.randn(51, 24), torch.randn(51, 16)
    order = torch.cat([torch.arange(17), 17 + torch.randperm(17), torch.arange(34, 51)])
    plain, mixed = _streams(whisper, beats), _streams(whisper[order], beats[order])
    found = [model(streams, _seconds(1.02)).x_BSD for streams in (plain, mixed)]
    torch.testing.assert_close(found[1], found[0])
    theirs = [ours({"whisper": s["whisper"], "beats": plain["beats"]}, _seconds(1.02)).x_BSD for s in (plain, mixed)]
    assert (theirs[1] - theirs[0])[0, 1].abs().max() > 1e-4


def test_bands_are_taken_for_time() -> None:
    """The third BEATs patch is at 0.41 s, in the second window; but its first band is frame 16, the first window's."""
    model = _model()
    whisper, beats = torch.randn(100, 24), torch.randn(96, 16)
    before = model(_streams(whisper, beats), _seconds(2.0)).x_BSD[0]
    streams = _streams(whisper, beats)
    assert 0.34 < streams["beats"].time_sec[0, 16] < 0.68
    streams["beats"].x_BTD[0, 16] = torch.randn(16)
    change = (model(streams, _seconds(2.0)).x_BSD[0] - before).abs().amax(1)
    assert change[0] > 1e-4 and change[1:].max() == 0


def test_clips_of_other_lengths_in_a_batch() -> None:
    model = _model()
    lengths = [1.0, 31.0, 12.0]
    clips = [[torch.randn(round(50 * s), 24), torch.randn(8 * int(s / 0.16), 16)] for s in lengths]
    alone = [model(_streams(*clip), _seconds(s)).x_BSD[0] for clip, s in zip(clips, lengths, strict=True)]
    streams = {
        name: collate_clips([EncodedClip(clip[i], torch.arange(len(clip[i])) / 50) for clip in clips])
        for i, name in enumerate(SPECS)
    }
    streams["whisper"].x_BTD[~streams["whisper"].mask_BT] = float("nan")
    fused = model(streams, _seconds(*lengths))
    assert fused.mask_BS.sum(1).tolist() == [88, 91, 88]
    for row, own in enumerate(alone):
        torch.testing.assert_close(fused.x_BSD[row, : len(own)], own)
    assert not fused.x_BSD[~fused.mask_BS].any()
    fused.x_BSD.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_frames_of_a_faster_expert_beyond_the_last_window_are_not_heard() -> None:
    specs = {"music": StreamSpec(12, 1, 75.0)}
    model = WindowQFormer(specs, 20, **SMALL).eval()
    x_TD = torch.randn(2249, 12)
    stream = {"music": collate_clips([EncodedClip(x_TD, torch.arange(2249) / 75)])}
    cut = {"music": collate_clips([EncodedClip(x_TD[:1496], torch.arange(1496) / 75)])}
    assert torch.equal(model(stream, _seconds(30.0)).x_BSD, model(cut, _seconds(30.0)).x_BSD)


def test_its_one_query_cannot_learn_to_look_at_itself() -> None:
    """With one query the self-attention has one key: its query and key weights never get a gradient."""
    model = _model().train()
    model(_streams(torch.randn(50, 24), torch.randn(48, 16)), _seconds(1.0)).x_BSD.square().sum().backward()
    still = {name for name, p in model.named_parameters() if p.grad is not None and not p.grad.any()}
    own = {n for n in still if ".attention.attention.query." in n or ".attention.attention.key." in n}
    assert len(own) == 8 and all(name.endswith("key.bias") for name in still - own)


def test_the_budget_keeps_the_width_a_multiple_of_the_heads() -> None:
    for budget, target in (("500K", 5e5), ("2M", 2e6), ("4M", 4e6)):
        fitted = fit_budget(WindowQFormer, {"specs": SPECS, "out_width": 576}, budget)
        assert fitted["width"] % 12 == 0
        assert abs(count_parameters(WindowQFormer, fitted) - target) <= 0.02 * target


@pytest.mark.parametrize("wrong", [{"width": 30}, {"frames": 0}, {"pad_frames": 0}, {"layers": 0}, {"queries": 0}])
def test_wrong_settings_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match=f"fusion.{next(iter(wrong))}"):
        _model(**wrong)
