"""BEATs against speechbrain's class, whose graph is the official one, at real size."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from omnichat.encoders.beats import BeatsEncoder
from tests.helpers.official_beats import PRETRAINED, REAL, random_checkpoint

pytestmark = pytest.mark.parity

LENGTHS = (2_800, 16_000, 48_123, 160_000)  # one patch, whole and broken seconds, and past the bias table's exact part


@pytest.mark.parametrize("kind", ["fine-tuned", "pre-trained"])
@torch.no_grad()
def test_every_layer_equals_speechbrain(tmp_path: Path, reference: Any, compare: Any, noise: Any, kind: str) -> None:
    theirs = reference("speechbrain.lobes.models.beats", "BEATs")
    path = str(tmp_path / "BEATs.pt")
    torch.save(random_checkpoint(**REAL, **(PRETRAINED if kind == "pre-trained" else {})), path)
    official = theirs(ckp_path=path, output_all_hiddens=True)
    ours = BeatsEncoder(path, layers="mix", dtype="float32")
    waves = [noise(samples) for samples in LENGTHS]
    encoded = ours.encode_waves(waves)
    for row, wave in enumerate(waves):
        hidden = official(wave[None], wav_lens=torch.ones(1))[0]  # [13, T, 1, 768]
        frames = hidden.shape[1]
        assert encoded.mask_BT[row].sum() == frames
        for layer in range(13):
            name = "last layer" if layer == 12 else "other layers"
            compare(f"BEATs {kind}, {name}", encoded.x_BTD[row, layer, :frames], hidden[layer, :, 0])
