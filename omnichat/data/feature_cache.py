"""Features of the frozen experts on disk: encode once, train many epochs, many mixtures, many fusions.

Layout, below a folder of the user's:

    <expert>-<fingerprint[:16]>-<dtype>/meta.json              all that set the values: what the fingerprint is made of
    <expert>-<fingerprint[:16]>-<dtype>/shard-<id>.safetensors  per clip "<sha256>/x" and "<sha256>/time"

A clip's key is the SHA-256 of its audio file, so a renamed file is found and a changed one is not. A shard appears by
one rename and is its own index: a killed writer loses the shard it was filling and nothing else, and several
writers may fill one cache. Shards are read memory-mapped.
"""

from __future__ import annotations

import os
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from omnichat.audio.io import audio_info, load_audio
from omnichat.encoders.base import COMPUTE_DTYPES, AudioEncoder, EncodedClip, collate_clips
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.files import fsync_folder, read_json, write_json_atomic
from omnichat.utils.log import get_logger
from omnichat.utils.progress import progress

__all__ = ["EncodedClip", "FeatureCache", "collate_clips", "estimate_bytes", "fill_cache"]

log = get_logger(__name__)

_OPEN_SHARDS = 64
_SHARD_BYTES = 64 * 1024**2


class FeatureCache:
    """One expert's features in one storage dtype; safe to send to DataLoader workers (files are reopened there).

    Args:
        folder: root of all caches.
        encoder_name: the expert's name in config.
        fingerprint: `AudioEncoder.fingerprint()`.
        dtype: storage, "bfloat16" or "float32".
        described: `AudioEncoder.describe()`: written beside the shards, and compared with the neighbours' to say
            why a cache that exists does not serve.
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
        self.described = described or {}
        self._shard_of: dict[str, str] = {}
        self._known: set[str] = set()
        self._handles: OrderedDict[str, Any] = OrderedDict()
        self._check_meta()
        self.refresh()

    @classmethod
    def of(cls, folder: Path, encoder_name: str, encoder: AudioEncoder, dtype: str = "bfloat16") -> FeatureCache:
        """The cache of an encoder that is at hand."""
        return cls(folder, encoder_name, encoder.fingerprint(), dtype, encoder.describe())

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
        try:
            handle = self._handle(name)
            return EncodedClip(handle.get_tensor(f"{sha256}/x"), handle.get_tensor(f"{sha256}/time"))
        except (SafetensorError, OSError) as error:
            raise _damaged(self.folder / name, error) from None

    def write(self, clips: Sequence[tuple[str, EncodedClip]]) -> None:
        """Store clips as one shard, cast to the storage dtype. The shard appears whole or not at all."""
        if not clips:
            return
        tensors: dict[str, Tensor] = {}
        for sha, clip in clips:
            if not bool(clip.x_TD.isfinite().all()):
                raise UserError(f"expert {self.encoder_name!r} gave features that are not finite for audio {sha}")
            tensors[f"{sha}/x"] = clip.x_TD.detach().to("cpu", self.dtype).contiguous()
            tensors[f"{sha}/time"] = clip.time_sec.detach().to("cpu", torch.float32).contiguous()
        self._write_meta()
        name = f"shard-{uuid.uuid4().hex[:12]}.safetensors"
        temporary = self.folder / f".{name}.tmp"
        try:
            save_file(tensors, str(temporary))
            with open(temporary, "rb") as handle:
                os.fsync(handle.fileno())
            os.rename(temporary, self.folder / name)
        finally:
            temporary.unlink(missing_ok=True)
        fsync_folder(self.folder)
        self._known.add(name)
        self._shard_of.update({sha: name for sha, _ in clips})

    def refresh(self) -> None:
        """Take in the shards that other writers have finished since."""
        for path in sorted(self.folder.glob("shard-*.safetensors")):
            if path.name in self._known:
                continue
            try:
                with safe_open(str(path), framework="pt") as handle:
                    names = list(handle.keys())
            except (SafetensorError, OSError) as error:
                raise _damaged(path, error) from None
            self._shard_of.update({name[:-2]: path.name for name in names if name.endswith("/x")})
            self._known.add(path.name)

    def size_bytes(self) -> int:
        """Bytes on disk of this expert's shards."""
        return sum(path.stat().st_size for path in self.folder.glob("shard-*.safetensors"))

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
        return {**self.__dict__, "_handles": OrderedDict()}

    def _meta(self) -> dict[str, Any]:
        return {"fingerprint": self.fingerprint, "storage_dtype": self.dtype_name, "encoder": self.described}

    def _write_meta(self) -> None:
        path = self.folder / "meta.json"
        if not path.is_file():
            write_json_atomic(path, self._meta())

    def _check_meta(self) -> None:
        """Refuse a folder of another fingerprint; say why neighbours of the same expert do not serve."""
        path = self.folder / "meta.json"
        if path.is_file():
            stored = read_json(path).get("fingerprint")
            if stored != self.fingerprint:
                raise UserError(f"{path}: belongs to the fingerprint {stored}, not to {self.fingerprint}")
            return
        for other in sorted(self.root.glob(f"{self.encoder_name}-*/meta.json")):
            changed = _differences(read_json(other), self._meta())
            changed.pop("fingerprint", None)
            said = "; ".join(f"{key}: {old} there, {new} now" for key, (old, new) in sorted(changed.items()))
            log.info("%s holds other features of %s (%s)", other.parent, self.encoder_name, said or "unknown cause")


def _damaged(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: damaged shard ({error}); delete it and fill the cache again")


def _differences(old: Any, new: Any, prefix: str = "") -> dict[str, tuple[Any, Any]]:
    """Leaves that differ between two JSON objects, by dotted name."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return {} if old == new else {prefix.rstrip("."): (old, new)}
    found: dict[str, tuple[Any, Any]] = {}
    for key in sorted(set(old) | set(new)):
        found |= _differences(old.get(key), new.get(key), f"{prefix}{key}.")
    return found


def estimate_bytes(encoder: AudioEncoder, seconds: float, dtype: str = "bfloat16") -> int:
    """About how many bytes the features of `seconds` of audio take."""
    spec = encoder.spec
    return int(seconds * spec.rate_hz * (spec.width * spec.layers * COMPUTE_DTYPES[dtype].itemsize + 4))


def fill_cache(
    encoder: AudioEncoder,
    clips: Iterable[tuple[str, Path]],
    cache: FeatureCache,
    batch_size: int = 16,
    show_progress: bool = True,
    threads: int = 2,
    on_bad_audio: Callable[[Path, UserError], None] | None = None,
) -> dict[str, float]:
    """Encode and store every clip that the cache lacks.

    Args:
        clips: (SHA-256 of the file, path) pairs; repeated hashes are encoded once.
        batch_size: clips whose front-ends run ahead and that are encoded together, sorted by length.
        threads: front-end threads (reading, resampling, spectrograms).
        on_bad_audio: what to do with a clip that cannot be read (None: raise). It is then left out.

    Returns:
        {"clips", "audio_seconds", "seconds", "bytes"} of what was added.

    Raises:
        UserError: an unreadable clip where `on_bad_audio` is None.
    """
    if batch_size < 1 or threads < 1:
        raise UserError(f"cache: batch_size and threads must be >= 1, got {batch_size} and {threads}")
    todo = _to_encode(dict(clips), cache, on_bad_audio)
    total = sum(seconds for seconds, _, _ in todo)
    size = estimate_bytes(encoder, total, cache.dtype_name)
    log.info("%s: %d clips (%.0f s) to encode, about %.1f MB", cache.encoder_name, len(todo), total, size / 1e6)
    before = cache.size_bytes()
    bar = progress(len(todo), f"encode {cache.encoder_name}", "clip") if show_progress else None
    done = heard = 0.0
    pending: list[tuple[str, EncodedClip]] = []
    waiting = 0
    start = time.perf_counter()
    for batch in _front_ends(encoder, todo, batch_size, threads, on_bad_audio):
        encoded = encoder.encode_clips([x for _, _, x in batch])
        for (seconds, sha, _), clip in zip(batch, encoded, strict=True):
            pending.append((sha, clip))
            waiting += clip.x_TD.numel() * cache.dtype.itemsize
            heard += seconds
        if waiting >= _SHARD_BYTES:
            cache.write(pending)
            pending, waiting = [], 0
        done += len(batch)
        if bar is not None:
            bar.update(len(batch))
            bar.set_postfix_str(f"{heard / max(1e-9, time.perf_counter() - start):.0f} audio-s/s", refresh=False)
    cache.write(pending)
    if bar is not None:
        bar.close()
    elapsed = time.perf_counter() - start
    return {"clips": done, "audio_seconds": heard, "seconds": elapsed, "bytes": float(cache.size_bytes() - before)}


def _to_encode(
    clips: dict[str, Path], cache: FeatureCache, on_bad_audio: Callable[[Path, UserError], None] | None
) -> list[tuple[float, str, Path]]:
    """(seconds, hash, path) of what the cache lacks, longest first: similar lengths share a pass, and memory that does
    not suffice fails at once."""
    todo = []
    for sha in cache.missing(clips):
        try:
            todo.append((audio_info(clips[sha])[1], sha, clips[sha]))
        except UserError as error:
            if on_bad_audio is None:
                raise
            on_bad_audio(clips[sha], error)
    return sorted(todo, reverse=True)


def _front_ends(
    encoder: AudioEncoder,
    todo: Sequence[tuple[float, str, Path]],
    batch_size: int,
    threads: int,
    on_bad_audio: Callable[[Path, UserError], None] | None,
) -> Iterator[list[tuple[float, str, Tensor]]]:
    """Yield batches of (seconds, hash, front-end output), one batch ahead of the encoder."""

    def prepare(item: tuple[float, str, Path]) -> Tensor:
        return encoder.frontend(load_audio(item[2], encoder.sample_rate))

    groups = [todo[i : i + batch_size] for i in range(0, len(todo), batch_size)]
    with ThreadPoolExecutor(threads) as pool:
        ahead = [pool.submit(prepare, item) for item in groups[0]] if groups else []
        for number, group in enumerate(groups):
            futures = ahead
            following = groups[number + 1] if number + 1 < len(groups) else []
            ahead = [pool.submit(prepare, item) for item in following]
            ready = []
            for (seconds, sha, path), future in zip(group, futures, strict=True):
                try:
                    ready.append((seconds, sha, future.result()))
                except UserError as error:
                    if on_bad_audio is None:
                        raise
                    on_bad_audio(path, error)
            if ready:
                yield ready
