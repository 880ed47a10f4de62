"""Is a feature cache what was once written? Checksums, contents, completeness; and, on request, the encoder's word."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from omnichat.data.cache_fill import heard_by, made_on, one_thread
from omnichat.data.feature_cache import SHARD_NAME, FeatureCache, read_made, shard_files
from omnichat.encoders.base import COMPUTE_DTYPES, AudioEncoder, EncodedClip, StreamSpec
from omnichat.utils.errors import UserError
from omnichat.utils.files import sha256_file
from omnichat.utils.packed import Recording

_ROUNDING = 0.02  # largest relative L2 difference that another device or library may make


@dataclass(slots=True)
class Checked:
    """What a check of one cache's shards found.

    Attributes:
        shards: number of shards read.
        clips: SHA-256 of the clips in sound shards.
        damaged: shard -> what is wrong with it.
    """

    shards: int = 0
    clips: set[str] = field(default_factory=set)
    damaged: dict[Path, str] = field(default_factory=dict)


def check_shards(folder: Path, spec: StreamSpec, dtype: str) -> Checked:
    """Read every byte of every shard of a cache: checksum, header, dtypes, shapes, finite values, times in order."""
    found = Checked()
    for name in sorted(shard_files(folder)):
        found.shards += 1
        try:
            hashes = _check_shard(folder / name, spec, COMPUTE_DTYPES[dtype])
        except (SafetensorError, OSError) as error:
            found.damaged[folder / name] = f"not readable: {error}"
        except _Wrong as wrong:
            found.damaged[folder / name] = str(wrong)
        else:
            found.clips |= hashes
    return found


class _Wrong(Exception):
    """A shard is not what it should be."""


def _check_shard(path: Path, spec: StreamSpec, dtype: torch.dtype) -> set[str]:
    stated = SHARD_NAME.fullmatch(path.name)
    assert stated is not None, f"{path} is no shard"
    if not sha256_file(path).startswith(stated[1]):
        raise _Wrong("its checksum is not the one in its name")
    with safe_open(str(path), framework="pt") as handle:
        names = set(handle.keys())
        hashes = {name.removesuffix("/x") for name in names if name.endswith("/x")}
        if names != {f"{sha}/{part}" for sha in hashes for part in ("x", "time")}:
            raise _Wrong("it does not hold an x and a time for every clip")
        for sha in sorted(hashes):
            _check_clip(sha, handle.get_tensor(f"{sha}/x"), handle.get_tensor(f"{sha}/time"), spec, dtype)
    return hashes


def _check_clip(sha: str, x: Tensor, time_sec: Tensor, spec: StreamSpec, dtype: torch.dtype) -> None:
    frames = time_sec.shape[0] if time_sec.dim() == 1 else 0
    shape = (spec.layers, frames, spec.width) if spec.layers > 1 else (frames, spec.width)
    if x.dtype != dtype or time_sec.dtype != torch.float32:
        raise _Wrong(f"clip {sha[:12]} has the dtypes {x.dtype} and {time_sec.dtype}")
    if frames < 1 or tuple(x.shape) != shape:
        raise _Wrong(f"clip {sha[:12]} has the shape {tuple(x.shape)}, not {shape}")
    if not (bool(x.isfinite().all()) and bool(time_sec.isfinite().all())):
        raise _Wrong(f"clip {sha[:12]} holds values that are not finite")
    if bool((time_sec.diff() < 0).any()):
        raise _Wrong(f"clip {sha[:12]} has times that fall")


def move_aside(shards: Iterable[Path]) -> list[Path]:
    """Rename damaged shards to `*.damaged`, and drop what vouched for them, so that the next fill makes them anew."""
    moved = []
    for path in shards:
        target = path.with_name(f"{path.name}.damaged")
        path.replace(target)
        moved.append(target)
        for marker in path.parent.glob("complete-*.json"):
            if path.name in marker.read_text(encoding="utf-8", errors="replace"):
                marker.unlink()
    return moved


def recheck(
    encoder: AudioEncoder, cache: FeatureCache, clips: Mapping[str, Recording], count: int, seed: int
) -> tuple[int, dict[Path, str]]:
    """Encode `count` stored clips, drawn by `seed`, anew and compare them bit for bit.

    On another device or release of torch than the shard was made with, a difference of rounding is let pass.

    Returns:
        How many were compared, and shard -> what is wrong with it.
    """
    stored = sorted(sha for sha in clips if cache.has(sha))
    chosen = sorted(random.Random(seed).sample(stored, min(count, len(stored))))
    faults: dict[Path, str] = {}
    for sha in chosen:
        with one_thread():
            now = encoder.encode_clips([heard_by(encoder, clips[sha], sha)])[0]
        path = cache.shard_of(sha)
        if wrong := _compare(cache.get(sha), now, read_made(path), made_on(encoder)):
            faults[path] = f"clip {sha[:12]} ({clips[sha].name}) {wrong}"
    return len(chosen), faults


def _compare(stored: EncodedClip, now: EncodedClip, made: Mapping[str, str], here: Mapping[str, str]) -> str | None:
    fresh = now.x_TD.to("cpu", stored.x_TD.dtype)
    if stored.x_TD.shape == fresh.shape and torch.equal(stored.time_sec, now.time_sec.cpu()):
        if torch.equal(stored.x_TD, fresh):
            return None
        apart = float((stored.x_TD.float() - fresh.float()).norm() / fresh.float().norm().clamp_min(1e-30))
        if apart <= _ROUNDING and any(made.get(key) != value for key, value in here.items()):
            return None
        return f"differs from what its encoder gives now (relative L2 {apart:.2g})"
    return "has other frames than its encoder gives now"


def raise_if_damaged(damaged: Mapping[Path, str], shown: Sequence[Path] = ()) -> None:
    """Raise UserError naming the damaged shards that remain, if there are any."""
    if damaged:
        named = ", ".join(str(path) for path in shown or list(damaged)[:4])
        more = f" and {len(damaged) - 4} more" if len(damaged) > 4 else ""
        raise UserError(
            f"{len(damaged)} damaged shards remain: {named}{more}; move them aside with `omnichat cache verify "
            "repair=true` and the same overrides"
        )
