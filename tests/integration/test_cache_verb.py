"""`omnichat cache`: dry run, several processes, verify, prune; kills at any moment; ranks that wait."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from omnichat.data.cache_fill import fill_cache
from omnichat.data.feature_cache import FeatureCache, read_header
from omnichat.training import features
from omnichat.training.features import CacheConfig, fill_missing, open_caches, wait_for_others
from omnichat.utils import waiting as patience
from omnichat.utils.errors import UserError
from tests.helpers import cached
from tests.integration.conftest import Corpora

Cli = Callable[..., Any]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def base(corpora: Corpora, tmp_path: Path) -> list[str]:
    return [*corpora.overrides(tmp_path / "runs"), f"cache.dir={tmp_path / 'features'}"]


def test_dry_run_prints_a_table_and_writes_nothing(base: list[str], tmp_path: Path, omnichat: Cli) -> None:
    for how in ("--dry-run", "dry_run=true"):
        told = omnichat("cache", *base, how)
        assert told.code == 0 and not (tmp_path / "features").exists()
        lines = {line.split()[0]: line for line in told.out.splitlines()}
        assert "30" in lines["beats"] and "MB" in lines["mert"] and "about" in lines["all"] and "next:" in told.out


def test_verify_and_repair(base: list[str], tmp_path: Path, omnichat: Cli) -> None:
    empty = omnichat("cache", "verify", *base)
    assert empty.code == 2 and "60 features are missing" in empty.err and "0 of 30 clips sound" in empty.out
    assert omnichat("cache", *base).code == 0
    sound = omnichat("cache", *base, "verify", "recheck=3")
    assert sound.code == 0 and "30 of 30 clips sound, 0 missing, 3 encoded anew" in sound.out
    shard = next((tmp_path / "features").glob("mert-*/shard-*"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 4
    shard.write_bytes(content)
    found = omnichat("cache", "verify", *base)
    assert found.code == 2 and shard.name in found.err and len(found.err.strip().splitlines()) == 1
    assert "checksum" in found.out
    repaired = omnichat("cache", "verify", *base, "repair=true")
    assert repaired.code == 0 and "moved aside" in repaired.out and "next: omnichat cache" in repaired.out
    assert not shard.exists() and shard.with_name(f"{shard.name}.damaged").exists()
    assert omnichat("cache", *base).code == 0 and omnichat("cache", "verify", *base).code == 0
    assert shard.exists(), "the same clips give the same bytes, and so the same name"


def test_damage_met_in_training_names_shard_and_command(base: list[str], tmp_path: Path, omnichat: Cli) -> None:
    assert omnichat("cache", *base).code == 0
    shard = next((tmp_path / "features").glob("beats-*/shard-*"))
    shard.write_bytes(shard.read_bytes()[:-100])
    told = omnichat("train", *base, "trainer.steps=1")
    assert told.code == 2 and shard.name in told.err and "omnichat cache verify repair=true" in told.err


def test_prune_deletes_only_with_yes(base: list[str], corpora: Corpora, tmp_path: Path, omnichat: Cli) -> None:
    root = tmp_path / "features"
    for more in ([], ["experts.beats.seed=5"], [f"cache.dir={root}", "cache.dtype=float32"]):
        assert omnichat("cache", *base, *more).code == 0
    kept = {path.name for path in root.iterdir()}
    assert "deleted 0 of 3" in omnichat("cache", "prune", *base, "yes=true").out, (
        "a run may be reading what is this young"
    )
    for path in root.glob("*/*"):
        os.utime(path, (time.time() - 7200,) * 2)
    listed = omnichat("cache", "prune", *base)
    assert listed.code == 0 and "other weights" in listed.out and "nothing was deleted" in listed.out
    assert {path.name for path in root.iterdir()} == kept and len(kept) == 5
    assert "nothing was deleted" in omnichat("cache", "prune", *base, "yes=true", "--dry-run").out
    assert "deleted 3 of 3" in omnichat("cache", "prune", *base, "yes=true").out
    assert len(list(root.iterdir())) == 2
    assert "nothing to prune" in omnichat("cache", "prune", *base).out
    fewer = [*base, "~mixture.sources.dailytalk"]
    spared = omnichat("cache", "prune", *fewer, "yes=true")
    assert "deleted 0 of 2" in spared.out and "kept: add clips to drop" in spared.out
    asked = omnichat("cache", "prune", *fewer, "yes=true", "drop=[clips]")
    assert "deleted 2 of 2" in asked.out
    assert omnichat("cache", "verify", *fewer).code == 0
    assert omnichat("cache", "verify", *base).code == 2


BAD = {
    ("verfy",): ("action", "verify"),
    ("drop=[everything]",): ("drop", "leftovers"),
    ("recheck=-1", "action=verify"): ("recheck", "at least 0"),
    ("yes=true",): ("yes", "prune"),
    ("repair=true", "prune"): ("repair", "verify"),
    ("cache.processes=-1",): ("cache.processes", "at least 0"),
    ("cache.threads=0",): ("cache.threads", "at least 1"),
    ("cache.mode=online",): ("cache.mode", "auto"),
}


@pytest.mark.parametrize("words", BAD)
def test_bad_values_are_one_line(base: list[str], omnichat: Cli, words: tuple[str, ...]) -> None:
    told = omnichat("cache", *base, *words)
    assert told.code == 2 and len(told.err.strip().splitlines()) == 1
    assert all(word in told.err for word in BAD[words])


FILLER = """
import sys
from pathlib import Path
from omnichat.training.features import CacheConfig, fill, open_caches, plan_fill
from omnichat.data import cache_fill
from tests.helpers import cached
cache_fill.SHARD_SEC = 0.0  # in the workers too, which import this file
if __name__ == "__main__":
    folder, processes = Path(sys.argv[1]), int(sys.argv[2])
    clips = {cached.sha256_file(path): path for path in sorted((folder / "audio").iterdir())}
    experts, builders = {"beats": cached.slow_beats()}, {"beats": cached.slow_beats}
    config = CacheConfig(dir=str(folder / "cache"), processes=processes, threads=1, batch_size=1)
    caches = open_caches(experts, config)
    fill(experts, caches, plan_fill(experts, caches, clips, config), config, builders)
    caches["beats"].mark_complete(clips, 1.0)
"""


def _filler(folder: Path, processes: int) -> subprocess.Popen[bytes]:
    script = folder / "filler.py"
    script.write_text(FILLER)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment["OMNICHAT_TEST_LOG"] = str(folder / "log")
    arguments = [sys.executable, str(script), str(folder), str(processes)]
    with open(folder / "output", "ab") as output:
        return subprocess.Popen(arguments, env=environment, stdout=output, stderr=output, start_new_session=True)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [pytest.param(0, marks=pytest.mark.campaign), 2])
def test_killed_again_and_again_it_completes_and_loses_little(tmp_path: Path, processes: int) -> None:
    """kill -9 of everything, at random moments: nothing that was written is encoded again or damaged."""
    rng = random.Random(processes)
    clips = cached.recordings(tmp_path / "audio", [rng.randrange(12000, 20000) for _ in range(240)])
    folder, kills = tmp_path / "cache", 0
    while kills < 2:
        process = _filler(tmp_path, processes)
        before, patience = _count(folder), time.monotonic() + 120
        while process.poll() is None and _count(folder) <= before and time.monotonic() < patience:
            time.sleep(0.01)
        time.sleep(rng.uniform(0.0, 0.3))
        if process.poll() is not None:
            break
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        kills += 1
    assert kills == 2, f"{process.poll()} {_count(folder)} {(tmp_path / 'output').read_text()[-3000:]}"
    assert not list(folder.rglob("complete-*"))
    assert _filler(tmp_path, processes).wait() == 0, (tmp_path / "output").read_text()[-3000:]
    encoder = cached.slow_beats()
    cache = FeatureCache.of(folder, "beats", encoder)
    assert not cache.missing(sha for sha, _ in clips) and cache.marker(sha for sha, _ in clips).is_file()
    held = Counter(sha for path in cache.folder.glob("shard-*") for sha in read_header(path))
    assert set(held.values()) == {1} and len(held) == len(clips)
    encoded = sum(map(int, (tmp_path / "log").read_text().split()))
    lost_at_most = kills * max(1, processes) * 8  # four chunks of two clips under way in each process when it is killed
    assert len(clips) <= encoded <= len(clips) + lost_at_most
    alone = FeatureCache.of(tmp_path / "alone", "beats", encoder)
    fill_cache(encoder, clips[:20], alone, show_progress=False)
    for sha, _ in clips[:20]:
        assert torch.equal(alone.get(sha).x_TD, cache.get(sha).x_TD)


def _count(folder: Path) -> int:
    return len(list(folder.rglob("shard-*.safetensors")))


@pytest.mark.slow
def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    """The parent alone is killed: its workers write what they have and go."""
    cached.recordings(tmp_path / "audio", [4000 + 10 * number for number in range(200)])
    process = _filler(tmp_path, 2)
    while _count(tmp_path / "cache") < 2:
        assert process.poll() is None, (tmp_path / "output").read_text()[-3000:]
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    patience = time.monotonic() + 60
    while time.monotonic() < patience:
        try:
            os.killpg(process.pid, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        os.killpg(process.pid, signal.SIGKILL)
        pytest.fail("workers outlived their parent")
    assert _count(tmp_path / "cache") < 200


def test_rank_one_waits_for_rank_zero(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = cached.recordings(tmp_path / "audio", [4000, 9000])
    encoder = cached.beats()
    config = CacheConfig(dir=str(tmp_path / "cache"))
    monkeypatch.setattr(patience, "POLL_SEC", 0.01)
    monkeypatch.setattr(features, "heard_clips", lambda *_: dict(clips))
    monkeypatch.setenv("RANK", "1")
    caches = open_caches({"beats": encoder}, config)
    waiting = threading.Thread(target=fill_missing, args=({"beats": encoder}, caches, [], None, config))
    waiting.start()
    time.sleep(0.2)
    assert waiting.is_alive() and not (tmp_path / "cache").exists(), "it neither fills nor goes on without"
    fill_cache(encoder, clips, FeatureCache.of(tmp_path / "cache", "beats", encoder), show_progress=False)
    waiting.join(10)
    assert not waiting.is_alive() and len(caches["beats"]) == 2
    monkeypatch.setattr(patience, "PATIENCE_SEC", 0.05)
    with pytest.raises(UserError, match=r"rank 1 has waited.*the same folder"):
        wait_for_others(caches, {"a" * 64: tmp_path})
