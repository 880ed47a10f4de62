"""Front-ends against the libraries that define them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from whisper.audio import log_mel_spectrogram, pad_or_trim

from omnichat.audio.frontends import beats_fbank, whisper_log_mel, whisper_tokens

torch.set_num_threads(1)


def _noise(samples: int, gain: float) -> torch.Tensor:
    return gain * torch.randn(samples, generator=torch.Generator().manual_seed(samples))


@settings(max_examples=25, deadline=None)
@given(
    samples=st.one_of(st.integers(1, 2000), st.integers(478_500, 480_000), st.integers(2000, 478_500)),
    gain=st.sampled_from([1e-4, 0.1, 1.0]),
    mels=st.sampled_from([80, 128]),
)
def test_log_mel_is_whispers_on_thirty_padded_seconds(samples: int, gain: float, mels: int) -> None:
    wave = _noise(samples, gain)
    whole = log_mel_spectrogram(pad_or_trim(wave), mels)
    ours = whisper_log_mel(wave, mels)
    assert ours.shape == (mels, 2 * whisper_tokens(samples) + 3)
    kept = min(ours.shape[1], 3000)
    torch.testing.assert_close(ours[:, :kept], whole[:, :kept], rtol=0, atol=1e-6)
    # All later frames equal our last one: this is what lets the encoder fill them in.
    rest = whole[:, kept:]
    torch.testing.assert_close(ours[:, -1:].expand_as(rest), rest, rtol=0, atol=1e-6)


def test_log_mel_of_silence_and_of_too_much() -> None:
    assert whisper_log_mel(torch.zeros(1600), 80).eq(-1.5).all()
    with pytest.raises(ValueError, match="480000"):
        whisper_log_mel(torch.zeros(480_001), 80)


def test_fbank_of_silence_and_of_speech_level_noise() -> None:
    silence = beats_fbank(torch.zeros(16000))
    assert silence.shape == (98, 128)
    torch.testing.assert_close(silence, torch.full_like(silence, -2.3917), rtol=0, atol=1e-4)
    # Forgetting the 16-bit scale would lower every value by 2 ln(2^15) / (2 * 6.55582) = 1.586.
    low, high = beats_fbank(_noise(16000, 0.1) / 2**15), beats_fbank(_noise(16000, 0.1))
    torch.testing.assert_close((high - low).median(), torch.tensor(1.586), rtol=0, atol=0.01)


@pytest.mark.parametrize(("samples", "frames"), [(1, 16), (2800, 16), (2959, 16), (2960, 17), (16000, 98)])
def test_fbank_length_and_least_clip(samples: int, frames: int) -> None:
    assert beats_fbank(_noise(samples, 0.1)).shape == (frames, 128)


def test_fbank_ignores_autocast() -> None:
    wave = _noise(8000, 0.5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(beats_fbank(wave), beats_fbank(wave.clone()))
        inside = beats_fbank(wave)
    assert torch.equal(inside, beats_fbank(wave))
