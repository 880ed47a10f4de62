"""The Whisper expert against openai-whisper's own encoder, on random weights of a small size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from whisper.audio import log_mel_spectrogram, pad_or_trim
from whisper.model import Whisper

from omnichat.encoders.whisper import WhisperEncoder
from omnichat.utils.errors import UserError
from tests.helpers.official_whisper import small_whisper, write_openai

torch.set_num_threads(1)


@pytest.fixture(scope="module", params=[80, 128])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Whisper]:
    model = small_whisper(request.param)
    path = write_openai(tmp_path_factory.mktemp("whisper") / f"small{request.param}.pt", model)
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


@torch.no_grad()
@pytest.mark.parametrize("pad_sec", [None, 0.0, 0.03, 1.5])
def test_what_is_left_out_changes_nothing(small: tuple[Path, Whisper], pad_sec: float | None) -> None:
    """The shortened stem and last block against openai-whisper's modules on the whole padded mel."""
    path, model = small
    ours = WhisperEncoder(str(path), layers="mix", pad_sec=pad_sec, dtype="float32")
    for wave in (noise(30_001, 0.9), noise(7), noise(16_000), noise(470_000)):
        mel = ours.frontend(wave)
        reach = ours.reach(ours.padded_length(mel))
        whole = torch.cat([mel, mel[:, -1:].expand(-1, 3000)], dim=1)[None, :, :reach]
        x = torch.nn.functional.gelu(model.encoder.conv2(torch.nn.functional.gelu(model.encoder.conv1(whole))))
        x = x.transpose(1, 2) + model.encoder.positional_embedding[: reach // 2]
        expected = [x]
        for block in model.encoder.blocks:
            expected.append(block(expected[-1]))
        expected[-1] = model.encoder.ln_post(expected[-1])
        found = ours.encode_waves([wave]).x_BTD[0]
        for layer, reference in zip(found, expected, strict=True):
            assert (layer - reference[0, : layer.shape[0]]).norm() <= 1e-5 * reference[0, : layer.shape[0]].norm()


@torch.no_grad()
def test_kept_padding_is_all_that_salmonn_reads(small: tuple[Path, Whisper]) -> None:
    path, model = small
    encoder = WhisperEncoder(str(path), keep_padding=True, dtype="float32")
    waves = [noise(30_001), noise(480_000 + 5_000)]
    encoded = encoder.encode_waves(waves)
    assert encoded.mask_BT.sum(1).tolist() == [1500, 3000]
    expected = model.encoder(log_mel_spectrogram(pad_or_trim(waves[0]), model.dims.n_mels)[None])[0]
    torch.testing.assert_close(encoded.x_BTD[0, :1500], expected, rtol=1e-5, atol=1e-5)
    assert encoded.time_sec[0, 1499].item() == pytest.approx(29.99)
    cropped = WhisperEncoder(str(path), dtype="float32")
    torch.testing.assert_close(cropped.encode_waves(waves).x_BTD[1, :1516], encoded.x_BTD[1, :1516])
    assert cropped.fingerprint() != encoder.fingerprint()
    short = WhisperEncoder(str(path), keep_padding=True, pad_sec=1.0, dtype="float32")
    assert short.encode_waves(waves[:1]).mask_BT.sum() == 150


def test_blocks_above_the_chosen_layer_are_not_run(small: tuple[Path, Whisper]) -> None:
    path, model = small
    mix = WhisperEncoder(str(path), layers="mix", dtype="float32").encode_waves([noise(9000)]).x_BTD
    for index in (0, 1, 2, -1, -2, -3):
        encoder = WhisperEncoder(str(path), layers=index, dtype="float32")
        ran: list[object] = []
        for block in encoder.encoder.blocks:
            block.mlp.register_forward_hook(lambda module, *_, ran=ran: ran.append(module))
        torch.testing.assert_close(encoder.encode_waves([noise(9000)]).x_BTD, mix[:, index], rtol=1e-5, atol=1e-5)
        assert len(ran) == index % (model.dims.n_audio_layer + 1)


def test_the_number_of_heads_is_part_of_the_fingerprint(tmp_path: Path) -> None:
    """The same tensors read with other heads give other features, and no shape tells them apart."""
    model = small_whisper()
    one = WhisperEncoder(str(write_openai(tmp_path / "one.pt", model)), dtype="float32")
    model.dims.n_audio_head *= 2
    other = WhisperEncoder(str(write_openai(tmp_path / "other.pt", model)), dtype="float32")
    assert not torch.equal(one.encode_waves([noise(16_000)]).x_BTD, other.encode_waves([noise(16_000)]).x_BTD)
    assert one.fingerprint() != other.fingerprint()
