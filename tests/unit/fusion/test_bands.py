"""Frames that share one time, as BEATs' eight bands do: no fusion may take one of them for all."""

from __future__ import annotations

import torch

from omnichat.encoders.base import EncodedClip, collate_clips
from omnichat.encoders.beats import BANDS, BeatsEncoder
from omnichat.fusion.base import mean_at_time, pool_parts, window_frames


def test_beats_gives_its_bands_at_one_time_each_160_ms() -> None:
    times = BeatsEncoder(dtype="float32").encode_waves([torch.zeros(32_000)]).time_sec[0].unflatten(0, (-1, BANDS))
    assert (times == times[:, :1]).all()
    torch.testing.assert_close(times[:, 0].diff(), torch.full((len(times) - 1,), 0.16))


def test_a_part_without_a_frame_takes_all_bands_of_the_nearest_time() -> None:
    """Parts are shorter than a patch, so about half of them are empty."""
    level_T = torch.arange(4 * BANDS, dtype=torch.float32)
    patch_T = level_T.div(BANDS).floor()
    clip = EncodedClip(level_T[:, None], patch_T * 0.16 + 0.0875)
    none = EncodedClip(torch.full((1, 1), 9.0), torch.zeros(1))
    stream = collate_clips([clip, none])
    stream.mask_BT[1] = False
    pooled = pool_parts(stream.x_BTD, stream, torch.tensor([2, 2]), window_sec=0.34, parts=4)[..., 0]
    means = {3.5, 11.5, 19.5, 27.5}  # of the four patches
    assert set(pooled[0].tolist()) == means and not pooled[1].any()


def test_the_mean_at_a_time_is_the_frame_itself_where_it_stands_alone() -> None:
    stream = collate_clips(
        [EncodedClip(torch.randn(6, 3), torch.arange(6) / 50), EncodedClip(torch.ones(2, 3), torch.zeros(2))]
    )
    nearest_BW = window_frames(stream, torch.tensor([3, 3]), 0.04).nearest_BW
    found = mean_at_time(stream.x_BTD, stream, nearest_BW)
    assert torch.equal(found[0], stream.x_BTD[0, nearest_BW[0]])
    torch.testing.assert_close(found[1], torch.ones(3, 3))
