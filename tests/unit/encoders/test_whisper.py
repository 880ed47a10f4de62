"""The Whisper expert against openai-whisper's own encoder, on random weights of a small size."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from torch import Tensor
from whisper.audio import log_mel_spectrogram, pad_or_trim
from whisper.model import ModelDimensions, Whisper

from omnichat.encoders.whisper import WhisperEncoder
from omnichat.utils.errors import UserError

torch.set_num_threads(1)


@pytest.fixture(scope="module", params=[80, 128])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Whisper]:
    torch.manual_seed(0)
    dims = ModelDimensions(request.param, 1500, 32, 2, 2, 51866, 8, 32, 2, 1)
    model = Whisper(dims).eval()
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            if parameter.dim() == 1:  # norms and biases away from 1 and 0, so that a skipped one is seen
                parameter.add_(0.3 * torch.randn_like(parameter))
    path = tmp_path_factory.mktemp("whisper") / f"small{request.param}.pt"
    torch.save({"dims": asdict(dims), "model_state_dict": model.state_dict()}, path)
    return path, model


def noise(samples: int, gain: float = 0.1) -> Tensor:
    return gain * torch.randn(samples, generator=torch.Generator().manual_seed(samples))


@torch.no_grad()
def test_equals_the_library_on_thirty_padded_seconds(small: tuple[Path, Whisper]) -> None:
    path, model = small
    encoder = WhisperEncoder(str(path), dtype="float32")
    waves = [noise(30_001, 0.9), noise(333, 0.001), noise(480_000)]  # loud, quiet and full: no clip sees another
    ours = encoder.encode_waves(waves)
    for row, wave in enumerate(waves):
        expected = model.encoder(log_mel_spectrogram(pad_or_trim(wave), model.dims.n_mels)[None])[0]
        length = -(-len(wave) // 320)
        torch.testing.assert_close(ours.x_BTD[row, :length], expected[:length], rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_long_clip_is_its_chunks_one_after_the_other(small: tuple[Path, Whisper]) -> None:
    path, _ = small
    encoder = WhisperEncoder(str(path), layers="mix", dtype="float32")
    wave = noise(960_000 + 8_000)
    whole = encoder.encode_waves([wave, noise(500)])
    parts = [encoder.encode_waves([chunk]).x_BTD[0] for chunk in wave.split(480_000)]
    assert [part.shape[1] for part in parts] == [1500, 1500, 25]
    torch.testing.assert_close(whole.x_BTD[0], torch.cat(parts, dim=1), rtol=1e-5, atol=1e-5)
    assert whole.mask_BT.sum(1).tolist() == [3025, 2]
    assert whole.time_sec[0, [0, 1500, 3024]].tolist() == pytest.approx([0.01, 30.01, 60.49])


def test_shorter_padding_is_cheaper_near_and_said_in_the_fingerprint(small: tuple[Path, Whisper]) -> None:
    path, _ = small
    exact, short = WhisperEncoder(str(path), dtype="float32"), WhisperEncoder(str(path), pad_sec=2.0, dtype="float32")
    waves = [noise(16_000), noise(40_000), noise(100)]
    assert [exact.padded_length(exact.frontend(w)) for w in waves] == [100, 300, 100]
    assert [exact.reach(length) for length in (100, 300, 3000)] == [3000, 3000, 3000]
    assert [short.reach(length) for length in (100, 300, 2900)] == [300, 500, 3000]
    one, two = exact.encode_waves(waves), short.encode_waves(waves)
    assert torch.equal(one.mask_BT, two.mask_BT)
    assert 0 < (one.x_BTD - two.x_BTD).norm() < 0.5 * one.x_BTD.norm()
    assert exact.fingerprint() != short.fingerprint()
    with pytest.raises(UserError, match="pad_sec"):
        WhisperEncoder(str(path), pad_sec=31)


def test_the_decoder_is_dropped(small: tuple[Path, Whisper]) -> None:
    path, model = small
    encoder = WhisperEncoder(str(path))
    assert sum(p.numel() for p in encoder.parameters()) == sum(p.numel() for p in model.encoder.parameters())
    assert "random" not in encoder.description
