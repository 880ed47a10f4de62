"""What filling the feature caches will take: clips, seconds of audio, disk, time. Asked before anything is written."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from omnichat.data.cache_fill import Work, estimate_bytes, one_thread
from omnichat.data.cache_workers import worker_device
from omnichat.encoders.base import AudioEncoder
from omnichat.utils.errors import UserError

_MARGIN = 1.05  # room asked for beyond the estimate: shard headers, the index


@dataclass(frozen=True, slots=True)
class Estimate:
    """One expert's share of a fill.

    Attributes:
        name: the expert.
        clips: recordings that the corpora hold.
        missing: those that are not in the cache yet.
        seconds: of audio in the missing ones.
        bytes: that their features take.
        encode_sec: that encoding them takes, by one timed pass; None where it was not timed.
    """

    name: str
    clips: int
    missing: int
    seconds: float
    bytes: int
    encode_sec: float | None


def estimate(
    name: str, encoder: AudioEncoder, clips: int, work: Sequence[Work], dtype: str, lanes: int, timed: bool
) -> Estimate:
    """Estimate one expert's fill.

    Args:
        clips: recordings in the corpora.
        work: those to encode, longest first.
        dtype: storage dtype.
        lanes: passes that run side by side (threads times processes).
        timed: run one pass on noise to learn the speed.
    """
    seconds = sum(item.seconds for item in work)
    encode_sec = None
    if timed and work:
        home, device = encoder.device, worker_device(0)
        side_by_side = max(1, lanes) if device.type == "cpu" else 1  # an accelerator takes one pass at a time
        encode_sec = _seconds_a_clip(encoder.to(device), work[len(work) // 2].seconds) * len(work) / side_by_side
        encoder.to(home)
    return Estimate(name, clips, len(work), seconds, estimate_bytes(encoder, seconds, dtype), encode_sec)


def _seconds_a_clip(encoder: AudioEncoder, clip_sec: float) -> float:
    """Time of one full pass over noise of `clip_sec`, front-end included, divided by its clips."""
    noise = 0.1 * torch.randn(max(1, round(clip_sec * encoder.sample_rate)), generator=torch.Generator().manual_seed(0))
    with one_thread():
        encoder.encode_clips([encoder.frontend(noise[: encoder.sample_rate])])  # the first pass sets things up
        start = time.perf_counter()
        first = encoder.frontend(noise)
        front = time.perf_counter() - start
        rows = encoder.rows(encoder.padded_length(first))
        encoder.encode_clips([first] * rows)
        return front + (time.perf_counter() - start - front) / rows


def check_space(root: Path, needed: int, key: str = "cache.dir") -> None:
    """Raise UserError where `needed` bytes of features do not fit on the disk of `root`, which need not exist yet."""
    free = free_bytes(root)
    lacking = needed * _MARGIN - free
    if lacking > 0:
        raise UserError(
            f"{key}={root}: the features take about {needed / 1e6:.0f} MB and {free / 1e6:.0f} MB are free, so "
            f"{lacking / 1e6:.0f} MB are lacking: free them, name another {key}, or store less (cache.dtype=bfloat16, "
            "layers=last instead of mix, fewer experts)"
        )


def table(estimates: Sequence[Estimate], free_bytes: int) -> str:
    """The estimates as a table for a terminal, with a line for their sum."""
    rows = [("expert", "clips", "to encode", "audio", "disk", "time")]
    for item in estimates:
        timed = "-" if item.encode_sec is None else f"about {_duration(item.encode_sec)}"
        disk, audio = f"{item.bytes / 1e6:.1f} MB", _duration(item.seconds)
        rows.append((item.name, str(item.clips), str(item.missing), audio, disk, timed))
    total = sum(item.bytes for item in estimates)
    spent = sum(item.encode_sec or 0.0 for item in estimates)
    rows.append(("all", "", "", "", f"{total / 1e6:.1f} MB", f"about {_duration(spent)}" if spent else "-"))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, f"free on that disk: {free_bytes / 1e6:.0f} MB"])


def free_bytes(root: Path) -> int:
    """Free bytes on the disk of a folder that need not exist yet."""
    root = root.expanduser().absolute()
    return shutil.disk_usage(next(path for path in (root, *root.parents) if path.exists())).free


def _duration(seconds: float) -> str:
    """1.2 s, 3 min 05 s, 2 h 10 min."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60):02d} s"
    return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
