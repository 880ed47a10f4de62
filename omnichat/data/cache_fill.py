"""Fill feature caches in this process: what is missing, in which chunks, and the threads that encode them.

A pass of an encoder always runs on one thread of the CPU, and several passes run side by side: the number of threads
that share one matrix product decides the order of its sums, and so the last bits of the features (measured: BEATs and
MERT, one thread against two). So a clip's features are the same however many threads or processes filled the cache.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from omnichat.audio.io import audio_info, load_audio
from omnichat.data.feature_cache import FeatureCache
from omnichat.encoders.base import COMPUTE_DTYPES, AudioEncoder, EncodedClip
from omnichat.utils.errors import UserError
from omnichat.utils.files import sha256_file
from omnichat.utils.packed import Recording
from omnichat.utils.progress import progress

SHARD_BYTES = 64 * 1024**2
SHARD_SEC = 60.0  # a shard is written at least this often: what a kill may cost
_AHEAD_BYTES = 512 * 1024**2  # features that the threads of a process make at a time

OnBadAudio = Callable[[Recording, UserError], None]


@dataclass(frozen=True, slots=True)
class Work:
    """One recording to encode: length in seconds, SHA-256 of the file, the file."""

    seconds: float
    sha256: str
    path: Recording


@dataclass(frozen=True, slots=True)
class Done:
    """A chunk's features, and the recordings of it that could not be read (path, reason)."""

    clips: list[tuple[str, EncodedClip]]
    seconds: float
    bad: list[tuple[Recording, str]]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Compute on one thread, as every pass of a frozen expert must, so that its bits never depend on the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def made_on(encoder: AudioEncoder) -> dict[str, str]:
    """What a shard remembers of its making, besides the key: another device or library rounds otherwise."""
    return {"device": encoder.device.type, "torch": torch.__version__.split("+")[0]}


def estimate_bytes(encoder: AudioEncoder, seconds: float, dtype: str = "bfloat16") -> int:
    """About how many bytes the features of `seconds` of audio take."""
    spec = encoder.spec
    return int(seconds * spec.rate_hz * (spec.width * spec.layers * COMPUTE_DTYPES[dtype].itemsize + 4))


def missing_work(
    cache: FeatureCache, clips: Iterable[tuple[str, Recording]], on_bad_audio: OnBadAudio | None = None
) -> list[Work]:
    """What the cache lacks, longest first: similar lengths share a pass, and too little memory shows at once.

    Raises:
        UserError: a file is absent or unreadable, and `on_bad_audio` is None.
    """
    paths = dict(clips)
    work = []
    for sha in cache.missing(paths):
        try:
            work.append(Work(audio_info(paths[sha])[1], sha, paths[sha]))
        except UserError as error:
            if on_bad_audio is None:
                raise
            on_bad_audio(paths[sha], error)
    return sorted(work, key=lambda item: (-item.seconds, item.sha256))


def make_chunks(encoder: AudioEncoder, work: Sequence[Work], batch_size: int, lanes: int) -> list[list[Work]]:
    """Cut `work` into what a thread takes at a time.

    A chunk ends at `batch_size` clips, but fills a pass of the encoder; sooner where the features would need too much
    memory, or where there is so little work that some of the `lanes` (threads times processes) would stand idle.
    """
    per_second = estimate_bytes(encoder, 1.0, str(encoder.compute_dtype).removeprefix("torch."))
    unit = round(encoder.bucket_sec * encoder.input_rate_hz)
    pass_sec = encoder.rows(unit) * encoder.bucket_sec
    share = math.ceil(len(work) / (2 * lanes))
    chunks: list[list[Work]] = []
    current: list[Work] = []
    seconds = 0.0
    for item in work:
        full = len(current) >= batch_size and seconds >= pass_sec
        too_large = (seconds + item.seconds) * per_second * lanes > _AHEAD_BYTES
        if current and (full or too_large or len(current) >= share):
            chunks.append(current)
            current, seconds = [], 0.0
        current.append(item)
        seconds += item.seconds
    return [*chunks, current] if current else chunks


class ShardBuffer:
    """Collects features and writes a shard whenever there is enough of them, or the last one is long ago."""

    def __init__(self, cache: FeatureCache, made: dict[str, str]) -> None:
        self.cache, self.made = cache, made
        self._clips: list[tuple[str, EncodedClip]] = []
        self._bytes = 0
        self._since = time.monotonic()

    def add(self, clips: Sequence[tuple[str, EncodedClip]]) -> None:
        """Take features in; write those of before and these where it is time."""
        self._clips += clips
        self._bytes += sum(clip.x_TD.numel() * self.cache.dtype.itemsize for _, clip in clips)
        if self._bytes >= SHARD_BYTES or time.monotonic() - self._since >= SHARD_SEC:
            self.flush()

    def flush(self) -> None:
        """Write what is there."""
        clips, self._clips, self._bytes = self._clips, [], 0
        self.cache.write(clips, self.made)
        self._since = time.monotonic()


def encode_chunks(
    encoder: AudioEncoder,
    cache: FeatureCache,
    chunks: Iterable[Sequence[Work]],
    threads: int,
    on_done: Callable[[Done], None],
) -> None:
    """Encode and store chunks with `threads` threads; what is done is stored also where this ends early.

    Args:
        on_done: told of every chunk, in the order of `chunks`; an exception of its own ends the work.
    """
    buffer = ShardBuffer(cache, made_on(encoder))
    alone = threading.Lock() if encoder.device.type != "cpu" else None  # an accelerator takes one pass at a time
    before = torch.get_num_threads()
    ahead: deque[Future[Done]] = deque()

    def take() -> None:
        done = ahead.popleft().result()
        buffer.add(done.clips)
        on_done(done)

    try:
        with ThreadPoolExecutor(threads, "encode", torch.set_num_threads, (1,)) as pool:
            try:
                for chunk in chunks:
                    ahead.append(pool.submit(_encode_chunk, encoder, chunk, cache.dtype, alone))
                    if len(ahead) > threads:
                        take()
                while ahead:
                    take()
            finally:
                for future in ahead:
                    future.cancel()
    finally:
        torch.set_num_threads(before)  # the pool's threads also set what threads to come begin with
        buffer.flush()


def _encode_chunk(
    encoder: AudioEncoder, chunk: Sequence[Work], dtype: torch.dtype, alone: threading.Lock | None
) -> Done:
    """Read, transform and encode; runs in a thread of the pool."""
    ready, inputs, bad = [], [], []
    for item in chunk:
        try:
            inputs.append(heard_by(encoder, item.path, item.sha256))
            ready.append(item)
        except UserError as error:
            bad.append((item.path, str(error)))
    with alone or contextlib.nullcontext():
        encoded = encoder.encode_clips(inputs)
    stored = [EncodedClip(clip.x_TD.to("cpu", dtype), clip.time_sec.cpu()) for clip in encoded]
    pairs = []
    for item, clip in zip(ready, stored, strict=True):
        if bool(clip.x_TD.isfinite().all()):
            pairs.append((item.sha256, clip))
        else:
            bad.append((item.path, f"{item.path}: {encoder.description} gives features of it that are not finite"))
    return Done(pairs, sum(item.seconds for item in ready), bad)


def heard_by(encoder: AudioEncoder, path: Recording, sha256: str) -> Tensor:
    """The front-end's output for a recording, whose file must be the one that the manifest names.

    Raises:
        UserError: not readable, too long for this expert, or changed since the manifest was written: its features would
            be stored under the hash of another recording.
    """
    if sha256_file(path) != sha256:
        raise UserError(
            f"{path}: is not the file whose SHA-256 its manifest states ({sha256[:12]}...); prepare it anew"
        )
    wave = load_audio(path, encoder.sample_rate)
    try:
        x = encoder.frontend(wave)
        encoder.check_length(x)
        return x
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def why_bad(encoder: AudioEncoder, path: Recording, sha256: str) -> UserError | None:
    """Encode one recording and keep nothing: the reason why it cannot be used, or None."""
    with one_thread():
        done = _encode_chunk(encoder, [Work(0.0, sha256, path)], encoder.compute_dtype, None)
    return UserError(done.bad[0][1]) if done.bad else None


def fill_cache(
    encoder: AudioEncoder,
    clips: Iterable[tuple[str, Recording]],
    cache: FeatureCache,
    batch_size: int = 64,
    show_progress: bool = True,
    threads: int = 2,
    on_bad_audio: OnBadAudio | None = None,
) -> dict[str, float]:
    """Encode and store every clip that the cache lacks, in this process.

    Args:
        clips: (SHA-256 of the file, path) pairs; repeated hashes are encoded once.
        batch_size: clips that a thread takes at a time, sorted by length.
        threads: that read, transform and encode, each a chunk of its own.
        on_bad_audio: what to do with a clip that cannot be read (None: raise). It is then left out.

    Returns:
        {"clips", "audio_seconds", "seconds", "bytes"} of what was added.

    Raises:
        UserError: an unreadable clip where `on_bad_audio` is None.
    """
    if batch_size < 1 or threads < 1:
        raise UserError(f"cache: batch_size and threads must be >= 1, got {batch_size} and {threads}")
    work = missing_work(cache, clips, on_bad_audio)
    before = cache.size_bytes()
    start = time.perf_counter()
    done = {"clips": 0.0, "audio_seconds": 0.0}
    with joint_bar([cache.encoder_name], sum(item.seconds for item in work), show_progress) as advance:

        def on_done(chunk: Done) -> None:
            refuse_bad(chunk.bad, on_bad_audio)
            done["clips"] += len(chunk.clips)
            done["audio_seconds"] += chunk.seconds
            advance(chunk.seconds)

        encode_chunks(encoder, cache, make_chunks(encoder, work, batch_size, threads), threads, on_done)
    seconds = time.perf_counter() - start
    return {**done, "seconds": seconds, "bytes": float(cache.size_bytes() - before)}


def refuse_bad(bad: Sequence[tuple[Recording, str]], on_bad_audio: OnBadAudio | None) -> None:
    """Hand unreadable recordings to `on_bad_audio`; UserError where it is None."""
    for path, reason in bad:
        if on_bad_audio is None:
            raise UserError(reason)
        on_bad_audio(path, UserError(reason))


@contextlib.contextmanager
def joint_bar(names: Sequence[str], seconds: float, show: bool = True) -> Iterator[Callable[[float], None]]:
    """A bar over seconds of audio: done, rate (audio seconds a second), time left. Yields what moves it on."""
    if not show or seconds <= 0:
        yield lambda _: None
        return
    bar = progress(round(seconds), f"encode {', '.join(names)}", " audio-s")
    exact = 0.0

    def advance(more: float) -> None:
        nonlocal exact
        exact += more
        bar.update(round(exact) - bar.n)

    try:
        yield advance
    finally:
        bar.close()
