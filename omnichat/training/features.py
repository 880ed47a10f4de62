"""What the experts heard in a clip: from the feature cache, or encoded on the spot; the same values either way."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from omnichat.data.cache_fill import (
    Done,
    OnBadAudio,
    Work,
    encode_chunks,
    heard_by,
    joint_bar,
    make_chunks,
    missing_work,
    one_thread,
    refuse_bad,
    why_bad,
)
from omnichat.data.cache_plan import Estimate, check_space, estimate, free_bytes, table
from omnichat.data.cache_workers import Build, Job, fill_with_workers, worker_device
from omnichat.data.collate import ClipKey
from omnichat.data.feature_cache import EncodedClip, FeatureCache
from omnichat.data.quarantine import Quarantine
from omnichat.encoders.base import COMPUTE_DTYPES, AudioEncoder
from omnichat.text.chat import ChatConfig
from omnichat.training.data import Source
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.log import get_logger, rank
from omnichat.utils.packed import Recording
from omnichat.utils.progress import progress
from omnichat.utils.waiting import Patience

log = get_logger(__name__)
MODES = ("auto", "online")
ON_BAD_AUDIO = ("raise", "skip")
_TIMED_FROM_SEC = 600.0  # audio from which on it is worth a pass to say beforehand how long the fill will take


@dataclass(kw_only=True, slots=True)
class CacheConfig:
    """Features of the frozen experts."""

    dir: str = "cache/features"  # folder of the cache; all runs share it
    mode: str = "auto"  # auto (fill what is missing, then read) | online (encode in every step, keep nothing)
    dtype: str = "bfloat16"  # of the features, stored or not: bfloat16 | float32
    batch_size: int = 64  # clips that a thread reads, transforms and encodes at a time
    processes: int = 0  # that fill the cache; 0 or 1 = this one
    threads: int | None = None  # of each of them; null = this machine's, divided among the processes
    on_bad_audio: str = "raise"  # raise | skip (leave out the dialogues that need a recording that cannot be used)
    max_bad: float = 0.01  # share of the recordings that may be skipped; with more the run stops

    def __post_init__(self) -> None:
        self.dir = str(Path(self.dir).expanduser())
        if self.mode not in MODES:
            raise one_of("cache.mode", self.mode, MODES)
        if self.dtype not in COMPUTE_DTYPES:
            raise one_of("cache.dtype", self.dtype, COMPUTE_DTYPES)
        if self.on_bad_audio not in ON_BAD_AUDIO:
            raise one_of("cache.on_bad_audio", self.on_bad_audio, ON_BAD_AUDIO)
        if not 0 <= self.max_bad <= 1:
            raise UserError(f"cache.max_bad must lie in [0, 1], got {self.max_bad}")
        for name, least in (("batch_size", 1), ("processes", 0), ("threads", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise UserError(f"cache.{name} must be at least {least}, got {value}")

    def threads_each(self) -> int:
        """Threads of each process."""
        return self.threads or max(1, torch.get_num_threads() // max(1, self.processes))

    def quarantine(self) -> Quarantine | None:
        """An empty quarantine; None where a bad recording is an error."""
        return Quarantine(Path(self.dir) / "quarantine.jsonl", self.max_bad) if self.on_bad_audio == "skip" else None

    def lanes(self) -> int:
        """Passes that run side by side."""
        return self.threads_each() * max(1, self.processes)


class ExpertFeatures:
    """Callable: clips -> expert -> features of each clip, in the cache's storage dtype.

    With a cache it holds no expert and can be sent to a data worker; without one it encodes.
    """

    def __init__(
        self, experts: Mapping[str, AudioEncoder], caches: Mapping[str, FeatureCache], config: CacheConfig
    ) -> None:
        self.caches = dict(caches)
        self.experts = {} if caches else dict(experts)
        self.dtype = COMPUTE_DTYPES[config.dtype]

    def __call__(self, keys: Sequence[ClipKey]) -> dict[str, list[EncodedClip]]:
        if self.caches:
            return {name: [cache.get(key.sha256) for key in keys] for name, cache in self.caches.items()}
        heard = {}
        for name, expert in self.experts.items():
            with one_thread():
                encoded = expert.encode_clips([heard_by(expert, key.path, key.sha256) for key in keys])
            heard[name] = [EncodedClip(clip.x_TD.to(self.dtype), clip.time_sec) for clip in encoded]
        return heard


def open_caches(experts: Mapping[str, AudioEncoder], config: CacheConfig) -> dict[str, FeatureCache]:
    """One cache an expert; none where `config.mode` is online."""
    if config.mode == "online":
        return {}
    return {name: FeatureCache.of(Path(config.dir), name, expert, config.dtype) for name, expert in experts.items()}


@dataclass(frozen=True, slots=True)
class Plan:
    """A fill that has not begun: what each expert must encode, and what that will take."""

    work: dict[str, list[Work]]
    estimates: list[Estimate]
    free_bytes: int

    @property
    def bytes(self) -> int:
        """That all features together will take."""
        return sum(item.bytes for item in self.estimates)

    def table(self) -> str:
        """For a terminal."""
        return table(self.estimates, self.free_bytes)


def plan_fill(
    experts: Mapping[str, AudioEncoder],
    caches: Mapping[str, FeatureCache],
    clips: Mapping[str, Recording],
    config: CacheConfig,
    timed: bool | None = None,
    on_bad_audio: OnBadAudio | None = None,
) -> Plan:
    """Look at what is missing and estimate what it takes; writes nothing.

    Args:
        timed: run a pass of each expert to estimate the time; None: where there is enough audio to make it worth while.
        on_bad_audio: told of recordings whose header cannot be read; None: they are errors.
    """
    work = {name: missing_work(cache, clips.items(), on_bad_audio) for name, cache in caches.items()}
    estimates = []
    for name, todo in work.items():
        ask = timed if timed is not None else sum(item.seconds for item in todo) >= _TIMED_FROM_SEC
        estimates.append(estimate(name, experts[name], len(clips), todo, config.dtype, config.lanes(), ask))
    return Plan(work, estimates, free_bytes(Path(config.dir)))


def fill_missing(
    experts: Mapping[str, AudioEncoder],
    caches: Mapping[str, FeatureCache],
    sources: Sequence[Source],
    chat: ChatConfig,
    config: CacheConfig,
    builders: Mapping[str, Build] | None = None,
) -> list[Source]:
    """Encode every recording that the model may hear and a cache lacks; under a launcher rank 0 does, the others wait.

    Args:
        builders: expert -> picklable function that builds it again: worker processes need it (`cache.processes` > 1).

    Returns:
        The sources, without the dialogues that need a recording that cannot be used (`cache.on_bad_audio=skip`).

    Raises:
        UserError: features do not fit on the disk, a recording cannot be read, or a worker died.
    """
    clips = heard_clips(sources, chat)
    quarantine = config.quarantine()
    on_bad = _noting(quarantine, clips)
    if not caches:
        if quarantine is not None:
            _try_all(experts, clips, quarantine)
    elif rank() != 0:
        wait_for_others(caches, clips, experts, quarantine)
    else:
        plan = plan_fill(experts, caches, clips, config, on_bad_audio=on_bad)
        fill(experts, caches, plan, config, builders, on_bad)
    kept = leave_out_bad(sources, quarantine, clips.values())
    if rank() == 0:
        there, seconds = heard_clips(kept, chat), heard_seconds(kept, chat)
        for cache in caches.values():
            cache.mark_complete(there, seconds)
            cache.touch()
    return kept


def leave_out_bad(
    sources: Sequence[Source], quarantine: Quarantine | None, tried: Collection[Recording]
) -> list[Source]:
    """The sources without the dialogues that need a bad recording; the list of these is brought up to date.

    Args:
        tried: the recordings that were looked at.

    Raises:
        UserError: more than `cache.max_bad` of them are bad, or no dialogue of a source remains.
    """
    if quarantine is None:
        return list(sources)
    if rank() == 0:
        quarantine.write(tried)
    quarantine.check(len(tried))
    return [replace(source, corpus=quarantine.without_bad(source.corpus)) for source in sources]


def _noting(quarantine: Quarantine | None, clips: Mapping[str, Recording]) -> OnBadAudio | None:
    """What the filling of a cache tells of bad recordings."""
    if quarantine is None:
        return None
    hashes = {str(path): sha for sha, path in clips.items()}
    return lambda path, error: quarantine.take(path, hashes[str(path)], error)


def _try_all(experts: Mapping[str, AudioEncoder], clips: Mapping[str, Recording], quarantine: Quarantine) -> None:
    """Read and transform every recording once, for an online run would meet the bad ones in the midst of a step."""
    with progress(len(clips), "look at recordings", unit="clip") as bar:
        for sha, path in clips.items():
            for expert in experts.values():
                try:
                    heard_by(expert, path, sha)
                except UserError as error:
                    quarantine.take(path, sha, error)
            bar.update(1)


def fill(
    experts: Mapping[str, AudioEncoder],
    caches: Mapping[str, FeatureCache],
    plan: Plan,
    config: CacheConfig,
    builders: Mapping[str, Build] | None = None,
    on_bad_audio: OnBadAudio | None = None,
) -> None:
    """Carry out a plan, with one progress bar over all experts and processes.

    Args:
        on_bad_audio: told of recordings that cannot be used, which are left out; None: they are errors.
    """
    names = [name for name, todo in plan.work.items() if todo]
    for name in set(caches) - set(names):
        log.info("cache %s: all clips are there (%.0f MB)", name, caches[name].size_bytes() / 1e6)
    if not names:
        return
    check_space(Path(config.dir), plan.bytes)
    log.info("cache %s: to fill\n%s", config.dir, plan.table())
    lanes, threads = config.lanes(), config.threads_each()
    chunks = {name: make_chunks(experts[name], plan.work[name], config.batch_size, lanes) for name in names}
    seconds = dict.fromkeys(names, 0.0)
    start = time.perf_counter()
    with joint_bar(names, sum(item.seconds for name in names for item in plan.work[name])) as advance:

        def on_done(name: str, _: int, more: float) -> None:
            seconds[name] += more
            advance(more)

        if config.processes > 1 and builders is not None:
            root = Path(config.dir)
            jobs = [Job(builders[n], root, n, config.dtype, caches[n].fingerprint, chunks[n]) for n in names]
            fill_with_workers(jobs, config.processes, threads, on_done, lambda bad: refuse_bad(bad, on_bad_audio))
        else:
            for name in names:
                _fill_here(name, experts[name], caches[name], chunks[name], threads, on_done, on_bad_audio)
    took = max(1e-9, time.perf_counter() - start)
    for name in names:
        caches[name].refresh()
        log.info(
            "cache %s: %d clips and %.0f s of audio added, %.0f MB in %s",
            name, len(plan.work[name]), seconds[name], caches[name].size_bytes() / 1e6, caches[name].folder,
        )  # fmt: skip
    heard = sum(seconds.values())
    log.info("cache: %.0f s of audio encoded in %.1f s, %.0f times real time", heard, took, heard / took)


def _fill_here(
    name: str,
    expert: AudioEncoder,
    cache: FeatureCache,
    chunks: Sequence[Sequence[Work]],
    threads: int,
    on_done: Callable[[str, int, float], None],
    on_bad_audio: OnBadAudio | None,
) -> None:
    """Fill one cache in this process, on the first accelerator where there is one."""

    def report(done: Done) -> None:
        refuse_bad(done.bad, on_bad_audio)
        on_done(name, len(done.clips), done.seconds)

    home = expert.device
    try:
        encode_chunks(expert.to(worker_device(0)), cache, chunks, threads, report)
    finally:
        expert.to(home)


def wait_for_others(
    caches: Mapping[str, FeatureCache],
    clips: Mapping[str, Recording],
    experts: Mapping[str, AudioEncoder] | None = None,
    quarantine: Quarantine | None = None,
) -> None:
    """Return once another process has stored all clips in all caches.

    Args:
        experts, quarantine: a recording that the list of bad ones names is tried here too, for the list may be of an
            earlier run; if it is bad it is noted, and no longer waited for.

    Raises:
        UserError: no new shard has come for half an hour: the folder is not shared, or the writer hangs.
    """
    advice = "every node must see the same folder; or fill the cache first with `omnichat cache`"
    patience = Patience("to cache.dir", advice)
    while missing := {sha for cache in caches.values() for sha in cache.missing(clips)}:
        if quarantine is not None:
            listed = {bad.sha256 for bad in quarantine.listed() if bad.sha256 is not None} & missing
            for sha in listed - quarantine.hashes():
                for expert in (experts or {}).values():
                    if (error := why_bad(expert, clips[sha], sha)) is not None:
                        quarantine.take(clips[sha], sha, error)
            if not missing - quarantine.hashes():
                return
        patience.sleep(sum(cache.size_bytes() for cache in caches.values()))
        for cache in caches.values():
            cache.refresh()


def recordings(sources: Sequence[Source]) -> list[Recording]:
    """Every recording of every turn, once."""
    found = {
        str(path): path
        for source in sources
        for dialogue in source.corpus.iterate()
        for turn in dialogue.turns
        if turn.audio is not None
        for path in (source.corpus.path_of(turn),)
    }
    return list(found.values())


def heard_clips(sources: Sequence[Source], chat: ChatConfig) -> dict[str, Recording]:
    """Hash -> file of every recording that can stand in a sequence: the turns of the speaker who is not played."""
    return {sha: path for sha, (path, _) in _heard(sources, chat).items()}


def heard_seconds(sources: Sequence[Source], chat: ChatConfig) -> float:
    """Seconds of all these recordings, each counted once."""
    return sum(seconds for _, seconds in _heard(sources, chat).values())


def _heard(sources: Sequence[Source], chat: ChatConfig) -> dict[str, tuple[Recording, float]]:
    listeners = {"A": ("B",), "B": ("A",), "both": ("A", "B")}[chat.target]
    clips: dict[str, tuple[Recording, float]] = {}
    for source in sources:
        for dialogue in source.corpus.iterate():
            for turn in dialogue.turns:
                if turn.audio is not None and turn.sha256 is not None and turn.speaker in listeners:
                    clips.setdefault(turn.sha256, (source.corpus.path_of(turn), turn.seconds or 0.0))
    return clips
