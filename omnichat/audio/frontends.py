"""Front-ends of the experts: from one clip's samples to what its encoder reads. CPU, per clip, float32.

Nothing here looks at a neighbour in the batch: a clip's features are its own.
"""

from __future__ import annotations

import torch
import torchaudio.compliance.kaldi
from torch import Tensor
from whisper.audio import mel_filters

WHISPER_RATE_HZ = 16_000
WHISPER_HOP = 160
WHISPER_FFT = 400
WHISPER_CHUNK = 480_000  # samples: Whisper reads 30 s at a time
WHISPER_CHUNK_FRAMES = WHISPER_CHUNK // WHISPER_HOP

BEATS_RATE_HZ = 16_000
BEATS_MEAN, BEATS_STD = 15.41663, 6.55582
BEATS_MELS = 128
BEATS_PATCH = 16  # fbank frames (and mel bands) a patch
BEATS_LEAST = 2_800  # samples that make one patch: 400 + 15 hops of 160


def whisper_tokens(samples: int) -> int:
    """Encoder frames that hold `samples` samples of one chunk: ceil(N / 320)."""
    return -(-samples // (2 * WHISPER_HOP))


def whisper_log_mel(wave_N: Tensor, mels: int) -> Tensor:
    """Log-mel of a clip of at most 30 s, as if it had been padded with silence to 30 s.

    Returns:
        float32 [mels, 2 * ceil(N / 320) + 3]. Every later frame of the padded 30 s equals the last one, which is
        silent (but for a clip whose frames already reach 30 s), so it need not be computed, kept or sent.

    n_fft 400, hop 160, periodic Hann, centred, power 2, Slaney mel 0-8 kHz (80 or 128); log10
    floored 8 below the clip's own maximum (never the batch's); (x + 4) / 4.
    """
    if len(wave_N) > WHISPER_CHUNK:
        raise ValueError(f"a chunk has at most {WHISPER_CHUNK} samples, got {len(wave_N)}")
    frames = 2 * whisper_tokens(len(wave_N)) + 3
    # Two more hops of zeros than frames, so that the reflected edge is silence too, as it is at 30 s.
    padded = torch.nn.functional.pad(wave_N.float(), (0, max(0, (frames + 2) * WHISPER_HOP - len(wave_N))))
    window = torch.hann_window(WHISPER_FFT)
    if len(wave_N) + WHISPER_FFT > WHISPER_CHUNK:  # the edge of the 30 s is near: reflect what the original reflects
        padded = padded[:WHISPER_CHUNK]
    stft = torch.stft(padded, WHISPER_FFT, WHISPER_HOP, window=window, return_complex=True)
    power = stft[:, :-1].abs() ** 2
    log_mel = (mel_filters(power.device, mels) @ power).clamp(min=1e-10).log10()
    log_mel = torch.maximum(log_mel, log_mel.max() - 8.0)
    log_mel = ((log_mel + 4.0) / 4.0)[:, :frames]
    return torch.nn.functional.pad(log_mel, (0, frames - log_mel.shape[1]))


def beats_fbank(wave_N: Tensor) -> Tensor:
    """Kaldi log-mel filter bank as BEATs was trained on: float32 [m, 128], m = 1 + (N - 400) // 160, at least 16.

    25/10 ms Povey frames of the waveform scaled to 16-bit range, pre-emphasis .97, no dither; shorter clips are
    padded with silence to 0.175 s.
    """
    padded = torch.nn.functional.pad(wave_N.float(), (0, max(0, BEATS_LEAST - len(wave_N))))
    with torch.autocast("cpu", enabled=False):
        fbank = torchaudio.compliance.kaldi.fbank(
            (padded * 2.0**15)[None],
            num_mel_bins=BEATS_MELS,
            sample_frequency=float(BEATS_RATE_HZ),
            frame_length=25.0,
            frame_shift=10.0,
        )
    return (fbank - BEATS_MEAN) / (2 * BEATS_STD)
