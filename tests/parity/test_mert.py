"""MERT against transformers' HubertModel at real size; the small graphs are compared in the unit tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from omnichat.encoders.mert import MertEncoder
from tests.helpers.official_mert import LARGE, REAL, publish

# A campaign besides: nothing here can be absent, so nothing skips, and `make test` should not wait for these sizes.
pytestmark = [pytest.mark.parity, pytest.mark.campaign]

LENGTHS = (400, 24_000, 72_123, 120_000)  # up to the 5 s of its pre-training


@pytest.mark.parametrize("size", ["95M", "330M"])
@torch.no_grad()
def test_every_layer_equals_hubert(tmp_path: Path, compare: Any, noise: Any, size: str) -> None:
    model = publish(tmp_path, REAL if size == "95M" else LARGE)
    ours = MertEncoder(str(tmp_path), layers="mix", dtype="float32")
    waves = [noise(samples) for samples in (LENGTHS if size == "95M" else LENGTHS[:3])]
    encoded = ours.encode_waves(waves)
    for row, wave in enumerate(waves):
        theirs = model(wave[None], output_hidden_states=True)
        frames = theirs.last_hidden_state.shape[1]
        assert encoded.mask_BT[row].sum() == frames
        # For a pre-norm model the library's tuple ends before the final norm, and ours after it.
        hidden = [*theirs.hidden_states[:-1], theirs.last_hidden_state]
        assert len(hidden) == encoded.x_BTD.shape[1]
        for layer, x in enumerate(hidden):
            which = "last layer" if layer == len(hidden) - 1 else "other layers"
            compare(f"MERT {size}, {which}", encoded.x_BTD[row, layer, :frames], x[0])
