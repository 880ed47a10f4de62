"""Requests to a server of the model, and the recordings that they carry."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import soundfile

from omnichat.model.pretrained.conversation import Sound


def file_bytes(wave: np.ndarray | Sound, rate: int = 16_000, container: str = "WAV", subtype: str = "FLOAT") -> bytes:
    """A recording as a file, in memory."""
    samples = wave.wave_N.numpy() if isinstance(wave, Sound) else wave
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, wave.sample_rate if isinstance(wave, Sound) else rate, subtype, format=container)
    return buffer.getvalue()


def audio_part(data: bytes | Sound, form: str = "wav") -> dict[str, Any]:
    """The part of a message that holds a recording."""
    data = file_bytes(data) if isinstance(data, Sound) else data
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data).decode(), "format": form}}


def user(*parts: str | Sound | dict[str, Any]) -> dict[str, Any]:
    """A message of the user."""
    if len(parts) == 1 and isinstance(parts[0], str):
        return {"role": "user", "content": parts[0]}
    content = [
        {"type": "text", "text": part}
        if isinstance(part, str)
        else audio_part(part)
        if isinstance(part, Sound)
        else part
        for part in parts
    ]
    return {"role": "user", "content": content}


def events_of(text: str) -> list[Any]:
    """The values of a stream's events; the last is "[DONE]" where it came."""
    lines = [line for line in text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines)
    return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]
