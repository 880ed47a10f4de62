"""A recording in a cell of a table: bytes as `datasets` stores Audio, or a path."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import soundfile

from omnichat.audio.io import audio_info
from omnichat.data.audit import check_header
from omnichat.data.corpus import check_inside
from omnichat.utils.errors import UserError


def sound_of(value: Any, root: Path, folder: str, cell: str, place: str) -> dict[str, Any]:
    """The fields audio, sample_rate and seconds of a turn; {} where the cell is empty.

    Args:
        value: {"bytes", "path"}, bytes, a path, or None.
        root: the corpus's folder.
        folder: "" or "<folder below root>/", which paths are relative to.
        cell: how the turn refers to bytes in this cell.
        place: names the cell in messages.

    Raises:
        UserError: no readable recording, or a path that leaves the folder.
    """
    if isinstance(value, dict):
        value = value.get("bytes") if value.get("bytes") is not None else value.get("path")
    if value is None or value == "":
        return {}
    if isinstance(value, bytes):
        check_inside(cell)
        rate, seconds = _info(value, place)
        return {"audio": cell, "sample_rate": rate, "seconds": seconds}
    if not isinstance(value, str):
        raise UserError(f"{place}: a recording must be bytes or a path, got {type(value).__name__}")
    relative = f"{folder}{value}"
    check_inside(value)
    check_inside(relative)
    if "#row=" in relative:
        raise UserError(f"{place}: a recording's path must not hold '#row='")
    rate, seconds = audio_info(root / relative)
    if seconds <= 0:
        raise UserError(f"{place}: its recording holds no samples")
    return {"audio": relative, "sample_rate": rate, "seconds": seconds}


def _info(content: bytes, place: str) -> tuple[int, float]:
    try:
        info = soundfile.info(io.BytesIO(content))
    except (soundfile.LibsndfileError, OSError, RuntimeError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{place}: its recording is not readable ({reason})") from None
    check_header(info.samplerate, info.frames, info.channels, place)
    if info.frames <= 0:
        raise UserError(f"{place}: its recording holds no samples")
    return int(info.samplerate), info.frames / info.samplerate
