"""Recordings that somebody sends: the same samples as from a file, and headers that claim what is not there."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omnichat.audio.io import decode_audio, load_audio
from omnichat.utils.errors import UserError
from tests.helpers.serving import file_bytes

RATE = 16_000
WAVE = (0.3 * np.sin(np.arange(RATE // 2) / 20)).astype(np.float32)


@pytest.mark.parametrize(
    ("container", "subtype"),
    [("WAV", "PCM_16"), ("FLAC", "PCM_16"), ("OGG", "OPUS"), ("OGG", "VORBIS"), ("AIFF", "FLOAT")],
)
def test_bytes_give_what_their_file_gives(container: str, subtype: str, tmp_path: Path) -> None:
    data = file_bytes(np.stack([WAVE, 0.5 * WAVE, 0 * WAVE]).T, RATE, container, subtype)
    path = tmp_path / "sound"
    path.write_bytes(data)
    wave, rate = decode_audio(data, "it")
    assert rate in (RATE, 48_000) and torch.equal(wave, load_audio(path, rate))


def test_mp3_is_read() -> None:
    wave, rate = decode_audio(file_bytes(WAVE, RATE, "MP3", "MPEG_LAYER_III"), "it")
    assert rate == RATE and abs(len(wave) / rate - 0.5) < 0.2


def test_a_header_takes_no_memory() -> None:
    """STREAMINFO of a FLAC: 20 bits of rate, 3 of channels, 5 of depth, 36 of samples."""
    data = bytearray(file_bytes(WAVE, RATE, "FLAC", "PCM_16"))
    samples = 500 * RATE
    data[18:26] = struct.pack(">Q", RATE << 44 | 0 << 41 | 15 << 36 | samples)
    tracemalloc.start()
    try:
        wave, _ = decode_audio(bytes(data), "it")
        assert len(wave) <= RATE
    except UserError as error:
        assert "it: " in str(error)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6
    with pytest.raises(UserError, match="it: header claims 500 s of audio, the limit is 60 s"):
        decode_audio(bytes(data), "it", 60.0)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "not readable as audio"),
        (b"RIFF" + bytes(100), "not readable as audio"),
        (file_bytes(WAVE[:0]), "holds no samples"),
        (file_bytes(np.array([0.0, np.nan, 0.0], np.float32)), "not finite"),
        (file_bytes(np.array([0.0, np.inf, 0.0], np.float32)), "not finite"),
        (file_bytes(WAVE, RATE, "AU", "PCM_16"), "audio as AU; choose one of: WAV"),
        (file_bytes(WAVE, 2_000_000, "WAV", "PCM_16"), "2000000 samples a second"),
        (
            file_bytes(np.zeros(11 * RATE, np.float32), RATE, "FLAC", "PCM_16"),
            "claims 11 s of audio, the limit is 10 s",
        ),
    ],
)
def test_what_is_no_recording_is_refused_by_its_name(data: bytes, told: str) -> None:
    with pytest.raises(UserError, match=told) as raised:
        decode_audio(data, "it", 10.0)
    assert str(raised.value).startswith("it: ") and "BytesIO" not in str(raised.value)


@settings(max_examples=60, deadline=None)
@given(
    at=st.integers(0, 300), junk=st.binary(min_size=1, max_size=12), container=st.sampled_from(["WAV", "FLAC", "OGG"])
)
def test_damaged_bytes_are_read_or_refused(at: int, junk: bytes, container: str) -> None:
    data = bytearray(file_bytes(WAVE[:2000], RATE, container, "VORBIS" if container == "OGG" else "PCM_16"))
    data[at : at + len(junk)] = junk
    try:
        wave, rate = decode_audio(bytes(data), "it", 10.0)
        assert 1 <= len(wave) <= 10 * rate and torch.isfinite(wave).all()
    except UserError as error:
        assert "\n" not in str(error)
