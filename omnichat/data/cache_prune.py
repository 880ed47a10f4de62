"""What in a folder of feature caches the given experts and corpora no longer reach, and its removal."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Mapping, Set
from dataclasses import dataclass
from pathlib import Path

from omnichat.data.cache_changes import changes
from omnichat.data.feature_cache import SHARD_NAME, FeatureCache, read_made
from omnichat.utils.errors import UserError
from omnichat.utils.files import read_json

KINDS = ("leftovers", "fingerprints", "recent", "clips")
_RUNNING_SEC = 3600.0  # what was touched within this may belong to a fill or a run that is under way
_LEFTOVER = re.compile(r"\..*\.tmp|.*\.damaged|shard-.*\.safetensors")


@dataclass(frozen=True, slots=True)
class Unreached:
    """Something that may go.

    Attributes:
        kind: leftovers (temporary files of killed writers, shards moved aside) | fingerprints (the same experts with
            other settings or weights) | recent (the same, but used within the last hour, perhaps by a run that is under
            way) | clips (recordings of none of the corpora).
        path: a file, or a folder with all in it.
        bytes: on disk.
        why: for people.
        keep: clips of a shard that are still reached; they are written to a new shard before it goes.
    """

    kind: str
    path: Path
    bytes: int
    why: str
    keep: tuple[str, ...] = ()


def unreached(caches: Mapping[str, FeatureCache], clips: Set[str]) -> list[Unreached]:
    """All that these caches and these clips do not reach; folders of other experts are not looked at."""
    found: list[Unreached] = []
    for name, cache in caches.items():
        for folder in sorted(cache.root.glob(f"{name}-*")):
            if not folder.is_dir() or not re.fullmatch(rf"{re.escape(name)}-[0-9a-f]{{16}}-\w+", folder.name):
                continue
            if folder != cache.folder:
                found.append(_other(folder, cache))
            else:
                found += _leftovers(folder)
                found += _strangers(cache, clips)
    return found


def _other(folder: Path, cache: FeatureCache) -> Unreached:
    meta = folder / "meta.json"
    try:
        stated = read_json(meta)
    except UserError:
        stated = None
    said = "its meta.json cannot be read"
    if isinstance(stated, dict):
        said = "; ".join(changes(stated, cache.meta()))
    last = max((path.stat().st_mtime for path in folder.iterdir()), default=folder.stat().st_mtime)
    idle_sec = time.time() - last
    size = sum(path.stat().st_size for path in folder.iterdir() if path.is_file())
    recent = idle_sec < _RUNNING_SEC
    used = f"{idle_sec / 60:.0f} minutes" if recent else f"{idle_sec / 86400:.1f} days"
    kind = "recent" if recent else "fingerprints"
    return Unreached(kind, folder, size, f"{said or 'the same settings'}; last used {used} ago")


def _leftovers(folder: Path) -> list[Unreached]:
    found = []
    for path in sorted(folder.iterdir()):
        if SHARD_NAME.fullmatch(path.name) or not _LEFTOVER.fullmatch(path.name):
            continue
        status = path.stat()
        if not path.name.endswith(".tmp") or time.time() - status.st_mtime > _RUNNING_SEC:
            what = "moved aside by verify" if path.name.endswith(".damaged") else "left by a writer that was killed"
            found.append(Unreached("leftovers", path, status.st_size, what))
    return found


def _strangers(cache: FeatureCache, clips: Set[str]) -> list[Unreached]:
    found = []
    for path, hashes in cache.shards():
        if not hashes:
            found.append(Unreached("leftovers", path, path.stat().st_size, "its clips are in other shards too"))
        keep = tuple(sha for sha in hashes if sha in clips)
        if len(keep) < len(hashes):
            share = 1 - len(keep) / len(hashes)
            why = f"{len(hashes) - len(keep)} of its {len(hashes)} clips are in none of the corpora"
            found.append(Unreached("clips", path, round(path.stat().st_size * share), why, keep))
    return found


def remove(items: list[Unreached], caches: Mapping[str, FeatureCache]) -> int:
    """Delete; a shard's clips that are still reached go to a new shard first. Returns the bytes that were freed."""
    by_folder = {cache.folder: cache for cache in caches.values()}
    freed = 0
    for item in items:
        if item.kind == "clips":
            cache = by_folder[item.path.parent]
            cache.write([(sha, cache.get(sha)) for sha in item.keep], read_made(item.path))
        if item.path.is_dir():
            shutil.rmtree(item.path)
        else:
            item.path.unlink()
        freed += item.bytes
    for cache in caches.values():
        if any(item.kind == "clips" and item.path.parent == cache.folder for item in items):
            for marker in cache.folder.glob("complete-*.json"):
                marker.unlink()
            cache.refresh()
            cache.write_index()
    return freed
