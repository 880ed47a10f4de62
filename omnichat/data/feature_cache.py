"""Features of the frozen experts on disk: encode once, train many epochs, many mixtures, many fusions.

Layout, below a folder of the user's:

    <expert>-<key[:16]>-<dtype>/meta.json                  all that set the values: what the key is the hash of
    <expert>-<key[:16]>-<dtype>/shard-<hash>.safetensors   per clip "<sha256>/x" and "<sha256>/time"
    <expert>-<key[:16]>-<dtype>/index.json                 which clips are in which shard: one file to read
    <expert>-<key[:16]>-<dtype>/complete-<set>.json        written last: these clips are all there, in these shards

A clip's key is the SHA-256 of its audio file, so a renamed file is found and a changed one is not. A shard is named by
the SHA-256 of its content, so damage shows; it appears by one rename, so a killed writer loses the shard it was filling
and nothing else, and several processes may fill one cache. The index can be thrown away: shards say what they hold.
Shards are read memory-mapped, also while others are being written.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
import uuid
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from omnichat.data.cache_changes import key_of, nearest_neighbour
from omnichat.encoders.base import COMPUTE_DTYPES, AudioEncoder, EncodedClip, collate_clips
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.files import fsync_folder, read_json, write_json_atomic
from omnichat.utils.log import get_logger

__all__ = [
    "EncodedClip",
    "FeatureCache",
    "cache_described",
    "collate_clips",
    "folder_of",
    "read_header",
    "read_made",
    "shard_files",
]

log = get_logger(__name__)

SHARD_NAME = re.compile(r"shard-([0-9a-f]{32})\.safetensors")  # half of the content's SHA-256
REPAIR = "move it aside with `omnichat cache verify repair=true` and the same overrides, then fill the cache again"
_OPEN_SHARDS = 64
_TOUCH_SEC = 600.0  # between notes that the cache is in use


class FeatureCache:
    """One expert's features in one storage dtype; safe to send to DataLoader workers (files are reopened there).

    Args:
        folder: root of all caches.
        encoder_name: the expert's name in config.
        fingerprint: hex SHA-256 of `described`, see `cache_described`.
        dtype: storage, "bfloat16" or "float32".
        described: all that sets the values: written beside the shards, and compared with the neighbours' to say why
            a cache that exists does not serve.

    Raises:
        UserError: an unknown dtype, a folder of another fingerprint, or a shard that cannot be read.
    """

    def __init__(
        self,
        folder: Path,
        encoder_name: str,
        fingerprint: str,
        dtype: str = "bfloat16",
        described: dict[str, Any] | None = None,
    ) -> None:
        if dtype not in COMPUTE_DTYPES:
            raise one_of("cache dtype", dtype, COMPUTE_DTYPES)
        self.root, self.encoder_name = Path(folder), encoder_name
        self.fingerprint, self.dtype_name, self.dtype = fingerprint, dtype, COMPUTE_DTYPES[dtype]
        self.folder = self.root / f"{encoder_name}-{fingerprint[:16]}-{dtype}"
        self.described = json.loads(json.dumps(described or {}))  # as it is read back: tuples are lists
        self._shard_of: dict[str, str] = {}
        self._shards: dict[str, int] = {}  # name -> bytes
        self._handles: OrderedDict[str, Any] = OrderedDict()
        self._touched = time.monotonic()
        self._check_meta()
        self.refresh()

    @classmethod
    def of(cls, folder: Path, encoder_name: str, encoder: AudioEncoder, dtype: str = "bfloat16") -> FeatureCache:
        """The cache of an encoder that is at hand."""
        described = cache_described(encoder)
        return cls(folder, encoder_name, key_of(described), dtype, described)

    def __len__(self) -> int:
        return len(self._shard_of)

    def has(self, sha256: str) -> bool:
        """Whether the clip whose file has this hash is stored."""
        return sha256 in self._shard_of

    def missing(self, hashes: Iterable[str]) -> list[str]:
        """The hashes that are not stored, each once, in their order."""
        return [sha for sha in dict.fromkeys(hashes) if sha not in self._shard_of]

    def get(self, sha256: str) -> EncodedClip:
        """Read a clip's features, in the storage dtype.

        Raises:
            UserError: the clip is not stored, or its shard is damaged.
        """
        name = self._shard_of.get(sha256)
        if name is None:
            raise UserError(
                f"{self.folder}: holds no features of the audio with SHA-256 {sha256}; fill the cache first"
            )
        if time.monotonic() - self._touched > _TOUCH_SEC:  # a run of days is not to look abandoned
            self._touched = time.monotonic()
            self.touch()
        try:
            return self._read(name, sha256)
        except FileNotFoundError:
            self.refresh()  # `prune` has moved this clip to another shard
        except (SafetensorError, OSError) as error:
            raise damaged(self.folder / name, str(error)) from None
        if (moved := self._shard_of.get(sha256)) is None:
            raise UserError(f"{self.folder / name}: is gone, deleted since this run began; fill the cache again")
        return self._read(moved, sha256)

    def _read(self, name: str, sha256: str) -> EncodedClip:
        handle = self._handle(name)
        return EncodedClip(handle.get_tensor(f"{sha256}/x"), handle.get_tensor(f"{sha256}/time"))

    def write(self, clips: Sequence[tuple[str, EncodedClip]], made: dict[str, str] | None = None) -> None:
        """Store clips as one shard, cast to the storage dtype. The shard appears whole or not at all.

        Args:
            clips: (SHA-256 of the audio file, features).
            made: where the features were made (device, library), kept in the shard for `verify`.
        """
        if not clips:
            return
        tensors: dict[str, Tensor] = {}
        for sha, clip in clips:
            if not bool(clip.x_TD.isfinite().all()):
                raise UserError(f"expert {self.encoder_name!r} gave features that are not finite for audio {sha}")
            tensors[f"{sha}/x"] = clip.x_TD.detach().to("cpu", self.dtype).contiguous()
            tensors[f"{sha}/time"] = clip.time_sec.detach().to("cpu", torch.float32).contiguous()
        self._write_meta()
        # one entry: safetensors writes several in any order, and the same clips shall give the same bytes
        content = save(tensors, {"made": json.dumps(made or {}, sort_keys=True)})
        name = f"shard-{hashlib.sha256(content).hexdigest()[:32]}.safetensors"
        temporary = self.folder / f".{name}.{uuid.uuid4().hex[:8]}.tmp"
        try:
            with open(temporary, "wb") as handle:
                handle.write(content)
                handle.flush()
                os.fsync(handle.fileno())
            os.rename(temporary, self.folder / name)
        finally:
            temporary.unlink(missing_ok=True)
        fsync_folder(self.folder)
        self._shards[name] = len(content)
        self._shard_of.update({sha: name for sha, _ in clips})

    def refresh(self) -> None:
        """Take in what other writers have finished since, and let go of shards that have gone.

        Raises:
            UserError: a shard that is not in the index, or not of the size stated there, cannot be read.
        """
        there = shard_files(self.folder)
        if gone := set(self._shards) - set(there):
            self._shards = {name: size for name, size in self._shards.items() if name not in gone}
            self._shard_of = {sha: name for sha, name in self._shard_of.items() if name not in gone}
        if not (new := sorted(set(there) - set(self._shards))):
            return
        index = self._read_index()
        for name in new:
            entry = index.get(name)
            if entry is not None and entry["bytes"] == there[name]:
                hashes = entry["clips"]
            else:
                try:
                    hashes = read_header(self.folder / name)
                except (SafetensorError, OSError) as error:
                    raise damaged(self.folder / name, str(error)) from None
            self._shard_of.update(dict.fromkeys(hashes, name))
            self._shards[name] = there[name]

    def write_index(self) -> None:
        """Write index.json: what is known of every shard. Opening the cache then reads no shard's header."""
        index = {path.name: {"bytes": self._shards[path.name], "clips": clips} for path, clips in self.shards()}
        write_json_atomic(self.folder / "index.json", index)

    def mark_complete(self, hashes: Iterable[str], seconds: float) -> Path | None:
        """Write the index and, last, the marker that says that all of a set of clips is there.

        Returns:
            The marker's path, or None where clips are missing and nothing was written.
        """
        wanted = sorted(set(hashes))
        if not wanted or self.missing(wanted):
            return None
        path = self.marker(wanted)
        shards = {name: self._shards[name] for name in sorted({self._shard_of[sha] for sha in wanted})}
        fact = {"clips": len(wanted), "seconds": round(seconds, 3), "bytes": sum(shards.values()), "shards": shards}
        if not path.is_file() or read_json(path) != fact:
            self.write_index()
            write_json_atomic(path, fact)
        return path

    def marker(self, hashes: Iterable[str]) -> Path:
        """Where the completion marker of a set of clips stands once all of them are stored."""
        digest = hashlib.sha256("\n".join(sorted(set(hashes))).encode()).hexdigest()
        return self.folder / f"complete-{digest[:16]}.json"

    def shard_of(self, sha256: str) -> Path:
        """The shard that a stored clip is read from."""
        return self.folder / self._shard_of[sha256]

    def shards(self) -> list[tuple[Path, list[str]]]:
        """Every shard with the clips that are read from it (none where all of them are in other shards too)."""
        clips: dict[str, list[str]] = {name: [] for name in self._shards}
        for sha, name in self._shard_of.items():
            clips[name].append(sha)
        return [(self.folder / name, sorted(clips[name])) for name in sorted(clips)]

    def touch(self) -> None:
        """Note that the cache is in use: `prune` says when that last was."""
        path = self.folder / "meta.json"
        with contextlib.suppress(OSError):  # a folder that may only be read serves as well
            os.utime(path)

    def size_bytes(self) -> int:
        """Bytes on disk of this expert's shards."""
        return sum(shard_files(self.folder).values())

    def _handle(self, name: str) -> Any:
        if name in self._handles:
            self._handles.move_to_end(name)
            return self._handles[name]
        handle = safe_open(str(self.folder / name), framework="pt")
        self._handles[name] = handle
        if len(self._handles) > _OPEN_SHARDS:
            self._handles.popitem(last=False)
        return handle

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handles": OrderedDict(), "_touched": time.monotonic()}

    def meta(self) -> dict[str, Any]:
        """What meta.json holds: the fingerprint, and everything that it is made of."""
        return {"fingerprint": self.fingerprint, "storage_dtype": self.dtype_name, "encoder": self.described}

    def _write_meta(self) -> None:
        path = self.folder / "meta.json"
        if not path.is_file():
            write_json_atomic(path, self.meta())

    def _read_index(self) -> dict[str, Any]:
        """index.json, or nothing where it is absent or not as it should be: the shards themselves know."""
        path = self.folder / "index.json"
        if not path.is_file():
            return {}
        try:
            index = json.loads(path.read_text(encoding="utf-8"))
            return {str(name): {"bytes": int(x["bytes"]), "clips": list(x["clips"])} for name, x in index.items()}
        except (ValueError, TypeError, KeyError, AttributeError, OSError) as error:
            log.warning("%s: not readable (%s); the shards are read instead", path, error)
            return {}

    def _check_meta(self) -> None:
        """Refuse a folder of another fingerprint; say why neighbours of the same expert do not serve."""
        path = self.folder / "meta.json"
        if path.is_file():
            content = read_json(path)
            stored = content.get("fingerprint") if isinstance(content, dict) else None
            if stored != self.fingerprint:
                raise UserError(f"{path}: belongs to the fingerprint {stored}, not to {self.fingerprint}")
            return
        neighbours = sorted(self.root.glob(f"{self.encoder_name}-*/meta.json"))
        metas = {other.parent: _read_meta(other) for other in neighbours if _is_cache_of(self.encoder_name, other)}
        metas = {folder: meta for folder, meta in metas.items() if meta}
        if said := nearest_neighbour(metas, self.meta()):
            log.info("%s is new: %s", self.folder.name, said)


def cache_described(encoder: AudioEncoder) -> dict[str, Any]:
    """All that sets the bits that a cache of this encoder holds: its own account, and the shape of its passes.

    Matrix products are summed in an order that depends on the shape of a pass; in bfloat16 that moves a last bit here
    and there. Threads would do the same, and are therefore always one (see `cache_fill.one_thread`).
    """
    passes = {"batch_sec": encoder.batch_sec, "bucket_sec": encoder.bucket_sec}
    return {**encoder.describe(), "passes": passes}


def folder_of(root: Path, encoder_name: str, encoder: AudioEncoder, dtype: str) -> Path:
    """Where an encoder's cache is, or would be; nothing of it is opened."""
    return root / f"{encoder_name}-{key_of(cache_described(encoder))[:16]}-{dtype}"


def shard_files(folder: Path) -> dict[str, int]:
    """Name -> bytes of the shards in a cache's folder; none where there is no such folder."""
    if not folder.is_dir():
        return {}
    with os.scandir(folder) as entries:
        return {entry.name: entry.stat().st_size for entry in entries if SHARD_NAME.fullmatch(entry.name)}


def read_header(path: Path) -> list[str]:
    """SHA-256 of every clip that a shard holds. Raises SafetensorError or OSError where it is damaged or gone."""
    with safe_open(str(path), framework="pt") as handle:
        return [name.removesuffix("/x") for name in handle.keys() if name.endswith("/x")]  # noqa: SIM118


def read_made(path: Path) -> dict[str, str]:
    """Where a shard's features were made (device, release of torch)."""
    with safe_open(str(path), framework="pt") as handle:
        return dict(json.loads((handle.metadata() or {}).get("made", "{}")))


def damaged(path: Path, reason: str) -> UserError:
    """The error for a shard that cannot be read or is not what was written."""
    return UserError(f"{path}: damaged shard ({reason}); {REPAIR}")


def _read_meta(path: Path) -> dict[str, Any]:
    """A neighbour's meta.json; nothing, with a warning, where it is broken: this cache can do without."""
    try:
        content = read_json(path)
    except UserError as error:
        log.warning("%s", error)
        return {}
    return content if isinstance(content, dict) else {}


def _is_cache_of(encoder_name: str, meta: Path) -> bool:
    """Whether a meta.json's folder is named as this expert's: `whisper-large-...` is not one of `whisper`'s."""
    return re.fullmatch(rf"{re.escape(encoder_name)}-[0-9a-f]{{16}}-\w+", meta.parent.name) is not None
