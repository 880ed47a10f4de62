"""Fill feature caches with several processes.

This process deals chunks of clips, longest first, to whoever asks; workers encode and write shards of their own. Each
has its own pipe: a worker that is killed holds no lock that the others wait for. Whatever ends a worker early (an
error, Ctrl-C, the death of this process), it first writes what it has, except if it is killed outright.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch

from omnichat.data.cache_fill import Done, Work, encode_chunks
from omnichat.data.feature_cache import FeatureCache
from omnichat.encoders.base import AudioEncoder
from omnichat.utils.errors import UserError
from omnichat.utils.log import get_logger

log = get_logger(__name__)

Build = Callable[[], AudioEncoder]  # must be picklable: a worker is a fresh interpreter
_GRACE_SEC = 60.0  # for a worker to write its last shard


@dataclass(frozen=True, slots=True)
class Job:
    """One expert's share of the work: how to build it, the cache it fills (root, name, storage dtype), the cache's key,
    and the chunks to encode."""

    build: Build
    root: Path
    name: str
    dtype: str
    fingerprint: str
    chunks: Sequence[Sequence[Work]]


@dataclass(slots=True)
class _Worker:
    number: int
    process: Any
    doing: str = "starting"
    finished: bool = False


@dataclass(slots=True)
class _Failures:
    wrong: list[str] = field(default_factory=list)  # a user's mistake, or a worker that died
    bugs: list[str] = field(default_factory=list)  # tracebacks


def worker_device(number: int) -> torch.device:
    """Where worker `number` (from 0) computes: the GPUs in turn, or the CPU where there is none."""
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return torch.device("cuda", number % gpus) if gpus else torch.device("cpu")


def fill_with_workers(
    jobs: Sequence[Job], processes: int, threads: int, on_done: Callable[[str, int, float], None], on_bad: Any
) -> None:
    """Encode all chunks of all jobs with `processes` processes of `threads` threads each.

    Args:
        on_done: told (expert, clips, seconds of audio) of every chunk.
        on_bad: told [(path, reason), ...] of recordings that cannot be read; may raise.

    Raises:
        UserError: a recording, an expert or a worker failed; everything written stays, and a rerun continues.
        RuntimeError: a fault in the program, with the worker's traceback.
    """
    context = multiprocessing.get_context("spawn")  # fork is not safe once torch has threads or a GPU is in use
    orders = [(job.build, job.root, job.name, job.dtype, job.fingerprint) for job in jobs]
    waiting = {job.name: deque(job.chunks) for job in jobs}
    pipes: dict[Connection, _Worker] = {}
    failures = _Failures()
    try:
        for number in range(min(processes, sum(len(job.chunks) for job in jobs))):
            ours, theirs = context.Pipe()
            process = context.Process(
                target=_work, args=(theirs, number, orders, threads), name=f"cache-worker-{number}", daemon=True
            )
            process.start()
            theirs.close()  # else its end would not show when the worker ends
            pipes[ours] = _Worker(number, process)
        _serve(pipes, waiting, failures, on_done, on_bad)
    finally:
        for pipe in pipes:
            pipe.close()  # a worker that still asks sees the end, writes what it has, and goes
        for worker in pipes.values():
            worker.process.join(_GRACE_SEC)
            if worker.process.is_alive():
                worker.process.terminate()
                worker.process.join()
    if failures.bugs:
        raise RuntimeError(f"a worker of the feature cache failed:\n{failures.bugs[0]}")
    if failures.wrong:
        raise UserError(f"{'; '.join(dict.fromkeys(failures.wrong))}; what was written stays: run again to continue")


def _serve(
    pipes: Mapping[Connection, _Worker],
    waiting: Mapping[str, deque[Sequence[Work]]],
    failures: _Failures,
    on_done: Callable[[str, int, float], None],
    on_bad: Any,
) -> None:
    """Answer the workers until all have ended. A failure of one stops the dealing only if another would meet it too."""
    open_pipes = dict(pipes)
    while open_pipes:
        for pipe in wait(list(open_pipes)):
            assert isinstance(pipe, Connection)
            worker = open_pipes[pipe]
            try:
                kind, *content = pipe.recv()
                if kind == "next":
                    queue = waiting[content[0]]
                    worker.doing = content[0]
                    pipe.send(queue.popleft() if queue else None)
                    continue
            except (EOFError, OSError):
                del open_pipes[pipe]
                if not worker.finished:
                    failures.wrong.append(_obituary(worker))
                    log.warning("%s; the others go on", failures.wrong[-1])
                continue
            if kind == "done":
                on_bad(content[3])
                on_done(*content[:3])
            else:  # ended, wrong, bug
                worker.finished = True
                if kind != "ended":
                    getattr(failures, "wrong" if kind == "wrong" else "bugs").append(content[0])
                    for queue in waiting.values():
                        queue.clear()


def _obituary(worker: _Worker) -> str:
    worker.process.join(_GRACE_SEC)
    code = worker.process.exitcode
    how = f"was killed by {signal.Signals(-code).name}" if code is not None and code < 0 else f"ended with code {code}"
    hint = " (out of memory? try fewer cache.processes)" if code == -signal.SIGKILL else ""
    return f"worker {worker.number} ({worker.process.name}, on {worker.doing}) {how}{hint}"


def _work(pipe: Connection, number: int, orders: Sequence[Any], threads: int) -> None:
    """Body of a worker process: expert after expert, as long as there are chunks of it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent answers it for all
    torch.set_num_threads(1)
    try:
        for build, root, name, dtype, fingerprint in orders:
            chunks = _asked_for(pipe, name)
            if (first := next(chunks, None)) is not None:
                encoder = build().to(worker_device(number))
                cache = FeatureCache.of(root, name, encoder, dtype)
                if cache.fingerprint != fingerprint:
                    raise UserError(f"experts.{name}: built a second time it is another (weights that no seed sets?)")
                encode_chunks(encoder, cache, _with_first(first, chunks), threads, _reporter(pipe, name))
        _tell(pipe, "ended")
    except UserError as error:
        _tell(pipe, "wrong", str(error))
    except Exception:
        _tell(pipe, "bug", f"worker {number}: {traceback.format_exc()}")
        raise SystemExit(1) from None


def _asked_for(pipe: Connection, name: str) -> Iterator[Sequence[Work]]:
    """Chunks of an expert from the parent, until it has no more or is gone."""
    while True:
        try:
            pipe.send(("next", name))
            chunk = pipe.recv()
        except (EOFError, OSError):
            return
        if chunk is None:
            return
        yield chunk


def _with_first(first: Sequence[Work], others: Iterator[Sequence[Work]]) -> Iterator[Sequence[Work]]:
    yield first
    yield from others


def _reporter(pipe: Connection, name: str) -> Callable[[Done], None]:
    def report(done: Done) -> None:
        _tell(pipe, "done", name, len(done.clips), done.seconds, done.bad)

    return report


def _tell(pipe: Connection, *message: Any) -> None:
    with contextlib.suppress(OSError):  # the parent is gone: what is to be kept goes to disk, not to it
        pipe.send(message)
