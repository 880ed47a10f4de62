"""Filling the cache: the same bits whatever the order, batch, threads and processes; and whoever dies of it."""

from __future__ import annotations

import json
import random
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omnichat.data import cache_fill, cache_plan, cache_workers
from omnichat.data.cache_fill import fill_cache, make_chunks, missing_work, one_thread
from omnichat.data.cache_workers import Job, fill_with_workers, worker_device
from omnichat.data.collate import ClipKey
from omnichat.data.feature_cache import FeatureCache
from omnichat.encoders.base import AudioEncoder
from omnichat.training.features import CacheConfig, ExpertFeatures, fill, open_caches, plan_fill
from omnichat.utils.errors import UserError
from tests.helpers import cached

LENGTHS = [9000, 30000, 2000, 16000, 24000, 47000, 15999, 16001, 33000, 5000, 12000, 9001]
Clips = list[tuple[str, Path]]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Clips:
    return cached.recordings(tmp_path_factory.mktemp("audio"), LENGTHS)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def encoder(request: pytest.FixtureRequest) -> AudioEncoder:
    """BEATs, whose sums are known to move with the number of threads."""
    return cached.beats(dtype=request.param, width=64, ffn=128)


def same_bits(one: FeatureCache, other: FeatureCache, clips: Clips) -> None:
    for sha, _ in clips:
        mine, theirs = one.get(sha), other.get(sha)
        assert torch.equal(mine.x_TD, theirs.x_TD) and torch.equal(mine.time_sec, theirs.time_sec)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 10**6), batch=st.integers(1, 14), threads=st.integers(1, 3), around=st.integers(1, 2))
def test_cached_is_online_to_the_bit(
    tmp_path: Path, clips: Clips, encoder: AudioEncoder, seed: int, batch: int, threads: int, around: int
) -> None:
    """Any order, any batch, any number of threads, whatever torch is set to outside."""
    folder = tmp_path / "cache"
    shutil.rmtree(folder, ignore_errors=True)
    order = random.Random(seed).sample(clips, len(clips))
    config = CacheConfig(dir=str(folder), dtype="float32" if seed % 2 else "bfloat16")
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(around)
        caches = open_caches({"beats": encoder}, config)
        part = order[: seed % len(order)]  # some in an earlier fill
        for some in (part, order):
            fill_cache(encoder, some, caches["beats"], batch_size=batch, threads=threads, show_progress=False)
        assert torch.get_num_threads() == around
        torch.set_num_threads(3 - around)
        online = ExpertFeatures({"beats": encoder}, {}, config)
        keys = [ClipKey(*clip) for clip in order]
        cut = 1 + seed % len(keys)
        heard = [online(some)["beats"] for some in (keys[:cut], keys[cut:]) if some]
        stored = ExpertFeatures({}, open_caches({"beats": encoder}, config), config)(keys)["beats"]
    finally:
        torch.set_num_threads(before)
    for mine, theirs in zip([clip for some in heard for clip in some], stored, strict=True):
        assert mine.x_TD.dtype == theirs.x_TD.dtype and torch.equal(mine.x_TD, theirs.x_TD)
        assert torch.equal(mine.time_sec, theirs.time_sec)


def test_a_pass_is_one_threads_work(encoder: AudioEncoder, clips: Clips) -> None:
    """The reason for `one_thread`: within it nothing changes with the threads of the machine."""
    waves = [cache_fill.load_audio(path, 16000) for _, path in clips]
    found = []
    for count in (1, 2):
        torch.set_num_threads(count)
        with one_thread():
            assert torch.get_num_threads() == 1
            found.append(encoder.encode_waves(waves).x_BTD)
        assert torch.get_num_threads() == count
    torch.set_num_threads(1)
    assert torch.equal(*found)


@pytest.mark.slow
def test_several_processes_give_one_processs_bytes(tmp_path: Path, clips: Clips) -> None:
    experts = {"beats": cached.beats(), "mert": cached.mert()}
    builders = {"beats": cached.beats, "mert": cached.mert}
    held = {}
    for name, processes in (("one", 0), ("three", 3)):
        config = CacheConfig(dir=str(tmp_path / name), processes=processes, threads=2, batch_size=2)
        held[name] = open_caches(experts, config)
        fill(experts, held[name], plan_fill(experts, held[name], dict(clips), config), config, builders)
    for expert in experts:
        assert not held["three"][expert].missing(sha for sha, _ in clips)
        same_bits(held["one"][expert], held["three"][expert], clips)


def _job(cache: FeatureCache, encoder: AudioEncoder, clips: Clips, build: object, batch: int = 2) -> Job:
    chunks = make_chunks(encoder, missing_work(cache, clips), batch, 1)
    chunks = [chunk[i : i + batch] for chunk in chunks for i in range(0, len(chunk), batch)]
    return Job(build, cache.root, "beats", cache.dtype_name, cache.fingerprint, chunks)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_dead_worker_is_named_and_the_rest_is_kept(
    tmp_path: Path, clips: Clips, monkeypatch: pytest.MonkeyPatch
) -> None:
    trigger = tmp_path / "dies"
    trigger.touch()
    monkeypatch.setenv("OMNICHAT_TEST_DIES", str(trigger))
    encoder = cached.dying_beats()
    cache = FeatureCache.of(tmp_path / "cache", "beats", encoder, "float32")
    heard = []
    with pytest.raises(UserError, match=r"worker [01] .*killed by SIGKILL.*memory.*run again"):
        job = _job(cache, encoder, clips, cached.dying_beats, 1)
        fill_with_workers([job], 2, 1, lambda *told: heard.append(told), lambda _: None)
    assert heard and not trigger.exists()
    cache.refresh()
    lost = cache.missing(sha for sha, _ in clips)
    assert 0 < len(lost) < len(clips), "the other worker has gone on, and what it wrote is there"
    calm = cached.beats()
    again = FeatureCache(cache.root, "beats", cache.fingerprint, "float32")
    assert fill_cache(calm, clips, again, show_progress=False)["clips"] == len(lost)


@pytest.mark.slow
def test_what_fails_in_a_worker_is_said_in_one_line(tmp_path: Path, clips: Clips) -> None:
    encoder = cached.beats()
    cache = FeatureCache.of(tmp_path, "beats", encoder)
    with pytest.raises(UserError, match="built a second time it is another"):
        fill_with_workers([_job(cache, encoder, clips, cached.drifting_beats)], 1, 1, lambda *_: None, lambda _: None)
    with pytest.raises(RuntimeError, match="sha256_file"):  # a bug keeps its traceback
        fill_with_workers([_job(cache, encoder, clips, cached.sha256_file)], 1, 1, lambda *_: None, lambda _: None)
    broken = tmp_path / "broken.flac"
    broken.write_bytes(clips[0][1].read_bytes()[:600])
    config = CacheConfig(dir=str(tmp_path), processes=2, threads=1)
    experts = {"beats": encoder}
    plan = plan_fill(experts, {"beats": cache}, {**dict(clips), "b" * 64: broken}, config)
    with pytest.raises(UserError, match=r"broken\.flac"):
        fill(experts, {"beats": cache}, plan, config, {"beats": cached.beats})


def test_chunks_hold_every_clip_once_and_stay_small(clips: Clips, tmp_path: Path) -> None:
    encoder = cached.beats()
    work = missing_work(FeatureCache.of(tmp_path, "beats", encoder), clips)
    assert [item.seconds for item in work] == sorted((item.seconds for item in work), reverse=True)
    for batch, lanes in ((1, 1), (3, 1), (64, 1), (64, 4)):
        chunks = make_chunks(encoder, work, batch, lanes)
        assert [item for chunk in chunks for item in chunk] == work
        assert len(chunks) >= min(len(work), lanes), "no lane stands idle"
    assert make_chunks(encoder, [], 8, 1) == []


def test_chunks_keep_memory_in_bounds(monkeypatch: pytest.MonkeyPatch, clips: Clips, tmp_path: Path) -> None:
    encoder = cached.beats()
    work = missing_work(FeatureCache.of(tmp_path, "beats", encoder), clips)
    monkeypatch.setattr(cache_fill, "_AHEAD_BYTES", 2 * cache_fill.estimate_bytes(encoder, 3.0, "float32"))
    for chunk in make_chunks(encoder, work, 64, 2):
        assert len(chunk) == 1 or sum(item.seconds for item in chunk) <= 3.0


def test_shards_are_written_by_size_and_by_time(tmp_path: Path, clips: Clips, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = cached.beats()
    for name, setting, value, expected in (("a", "SHARD_SEC", 0.0, 12), ("b", "SHARD_BYTES", 1, 12), ("c", "", 0, 1)):
        with monkeypatch.context() as patch:
            if setting:
                patch.setattr(cache_fill, setting, value)
            cache = FeatureCache.of(tmp_path / name, "beats", encoder)
            monkeypatch.setattr(cache_fill, "make_chunks", lambda _, work, *__: [[item] for item in work])
            fill_cache(encoder, clips, cache, show_progress=False)
        assert len(list(cache.folder.glob("shard-*"))) == expected


def test_what_is_done_is_kept_when_a_later_clip_fails(tmp_path: Path, clips: Clips) -> None:
    encoder = cached.beats()
    broken = tmp_path / "broken.flac"
    broken.write_bytes(clips[2][1].read_bytes()[:600])
    cache = FeatureCache.of(tmp_path / "cache", "beats", encoder)
    with pytest.raises(UserError, match="broken"):
        fill_cache(encoder, [*clips, ("b" * 64, broken)], cache, batch_size=1, threads=1, show_progress=False)
    assert len(cache) > 0


def test_a_disk_that_is_too_small_is_said_before_the_start(
    tmp_path: Path, clips: Clips, monkeypatch: pytest.MonkeyPatch
) -> None:
    experts = {"beats": cached.beats()}
    config = CacheConfig(dir=str(tmp_path / "not" / "yet"))
    caches = open_caches(experts, config)
    plan = plan_fill(experts, caches, dict(clips), config, timed=True)
    assert plan.estimates[0].missing == len(clips) and plan.estimates[0].encode_sec > 0  # type: ignore[operator]
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(cache_plan.shutil, "disk_usage", lambda _: usage(10, 0, plan.bytes))  # the margin is lacking
    with pytest.raises(UserError, match=r"cache\.dir=.*MB are lacking.*cache\.dtype=bfloat16"):
        fill(experts, caches, plan, config)
    assert not (tmp_path / "not").exists()
    monkeypatch.setattr(cache_plan.shutil, "disk_usage", lambda _: usage(10, 0, plan.bytes * 2))
    fill(experts, caches, plan, config)
    assert len(caches["beats"]) == len(clips)


def test_workers_take_the_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_workers.torch.cuda, "is_available", lambda: False)
    assert worker_device(3) == torch.device("cpu")
    monkeypatch.setattr(cache_workers.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cache_workers.torch.cuda, "device_count", lambda: 2)
    assert [worker_device(number).index for number in range(4)] == [0, 1, 0, 1]


def test_the_marker_comes_last_and_names_the_set(tmp_path: Path, clips: Clips) -> None:
    encoder = cached.beats()
    cache = FeatureCache.of(tmp_path, "beats", encoder)
    hashes = [sha for sha, _ in clips]
    fill_cache(encoder, clips[:5], cache, show_progress=False)
    assert cache.mark_complete(hashes, 1.0) is None and not list(cache.folder.glob("complete-*"))
    fill_cache(encoder, clips, cache, show_progress=False)
    path = cache.mark_complete(reversed(hashes), 12.5)
    assert path == cache.marker(hashes) != cache.marker(hashes[1:])
    fact = json.loads(path.read_text())
    sizes = {shard.name: shard.stat().st_size for shard in cache.folder.glob("shard-*")}
    assert fact == {"clips": len(hashes), "seconds": 12.5, "bytes": sum(sizes.values()), "shards": sizes}


def test_opening_with_an_index_reads_no_shard(tmp_path: Path, clips: Clips, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = cached.beats()
    cache = FeatureCache.of(tmp_path, "beats", encoder)
    fill_cache(encoder, clips, cache, show_progress=False)
    cache.write_index()
    read: list[Path] = []
    header = "omnichat.data.feature_cache.read_header"
    with monkeypatch.context() as patch:
        patch.setattr(header, lambda path: read.append(path) or [])
        assert len(FeatureCache.of(tmp_path, "beats", encoder)) == len(clips) and not read
    shard = next(cache.folder.glob("shard-*"))
    shard.write_bytes(shard.read_bytes()[:-1])  # of another size than the index says: looked at, and found out
    with pytest.raises(UserError, match=f"{shard.name}.*verify repair=true"):
        FeatureCache.of(tmp_path, "beats", encoder)
    shard.unlink()
    (cache.folder / "index.json").write_text('{"x": 3}')
    assert len(FeatureCache.of(tmp_path, "beats", encoder)) == 0
