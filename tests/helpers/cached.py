"""Recordings of noise and small experts for the tests of the feature cache; importable by worker processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import torch

from omnichat.audio.io import save_audio
from omnichat.encoders.base import EncodedClip
from omnichat.encoders.beats import BeatsEncoder
from omnichat.encoders.mert import MertEncoder
from omnichat.utils.files import sha256_file

SIZES = {"depth": 1, "width": 32, "heads": 2, "ffn": 64}


def recordings(folder: Path, lengths: list[int]) -> list[tuple[str, Path]]:
    """(SHA-256, path) of one FLAC file of noise for each length in samples at 16 kHz."""
    found = []
    for number, samples in enumerate(lengths):
        path = folder / f"{number}.flac"
        wave = 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(number))
        save_audio(path, wave.clamp(-1, 1), 16000)
        found.append((sha256_file(path), path))
    return found


def beats(**changed: Any) -> BeatsEncoder:
    """A tiny BEATs that returns all layers."""
    settings: dict[str, Any] = {"layers": "mix", "dtype": "float32", "patch_width": 16, "conv_pos": 16, **SIZES}
    return BeatsEncoder(**{**settings, **changed})


def mert(**changed: Any) -> MertEncoder:
    """A tiny MERT."""
    return MertEncoder(**{"layers": "last", "dtype": "float32", "conv_width": 16, **SIZES, **changed})


def drifting_beats() -> BeatsEncoder:
    """An expert that nothing seeds: another one in every process."""
    return beats(seed=os.getpid())


class SlowBeats(BeatsEncoder):
    """Takes its time, and notes every clip that it encodes in the file that OMNICHAT_TEST_LOG names."""

    def encode_clips(self, inputs: Any) -> list[EncodedClip]:
        time.sleep(0.05)
        clips = super().encode_clips(inputs)
        if name := os.environ.get("OMNICHAT_TEST_LOG"):
            with open(name, "a", encoding="utf-8") as log:
                log.write(f"{len(clips)}\n")
        return clips


class DyingBeats(BeatsEncoder):
    """Kills its process at the third batch, where the file that OMNICHAT_TEST_DIES names can be taken away."""

    batches = 0

    def encode_clips(self, inputs: Any) -> list[EncodedClip]:
        self.batches += 1
        if self.batches == 3:
            try:
                os.unlink(os.environ["OMNICHAT_TEST_DIES"])
            except FileNotFoundError:  # another worker has died of it
                return super().encode_clips(inputs)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode_clips(inputs)


def slow_beats() -> SlowBeats:
    """See SlowBeats."""
    return SlowBeats(batch_sec=1.0, layers="mix", dtype="float32", patch_width=16, conv_pos=16, **SIZES)


def dying_beats() -> DyingBeats:
    """See DyingBeats."""
    return DyingBeats(layers="mix", dtype="float32", patch_width=16, conv_pos=16, **SIZES)
