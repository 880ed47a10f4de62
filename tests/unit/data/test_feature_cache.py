"""The feature cache: what comes out is what went in, whoever wrote it and however the writer ended."""

from __future__ import annotations

import logging
import multiprocessing
import os
import pickle
import signal
from pathlib import Path

import pytest
import torch

from omnichat.audio.io import load_audio, save_audio
from omnichat.data import feature_cache
from omnichat.data.cache_fill import estimate_bytes, fill_cache
from omnichat.data.feature_cache import EncodedClip, FeatureCache, collate_clips
from omnichat.encoders.beats import BeatsEncoder
from omnichat.encoders.mert import MertEncoder
from omnichat.utils.errors import UserError
from omnichat.utils.files import sha256_file

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def encoder() -> BeatsEncoder:
    return BeatsEncoder(layers="mix", dtype="float32")


@pytest.fixture
def clips(tmp_path: Path) -> list[tuple[str, Path]]:
    found = []
    for number, samples in enumerate((9000, 30000, 2000, 16000, 24000)):
        path = tmp_path / "audio" / f"{number}.flac"
        wave = 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(number))
        save_audio(path, wave.clamp(-1, 1), 16000)
        found.append((sha256_file(path), path))
    return found


def _clip(value: float, frames: int = 4) -> EncodedClip:
    return EncodedClip(torch.full((frames, 3), value), torch.arange(frames).float())


def _cache(folder: Path, dtype: str = "float32", fingerprint: str = "a" * 64) -> FeatureCache:
    return FeatureCache(folder, "beats", fingerprint, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cached_equals_online(tmp_path: Path, encoder: BeatsEncoder, clips: list[tuple[str, Path]], dtype: str) -> None:
    """The online path encodes the same clips and casts to the storage dtype: not one bit may differ."""
    cache = FeatureCache.of(tmp_path / "cache", "beats", encoder, dtype)
    stats = fill_cache(encoder, clips, cache, batch_size=5, show_progress=False)
    assert stats["clips"] == 5 and stats["audio_seconds"] == pytest.approx(81000 / 16000)
    order = [1, 4, 3, 0, 2]  # the filler sorts by length; the same passes make the same bits
    waves = [load_audio(clips[i][1], 16000) for i in order]
    online = encoder.encode_clips([encoder.frontend(wave) for wave in waves])
    fresh = FeatureCache.of(tmp_path / "cache", "beats", encoder, dtype)
    batch = collate_clips([fresh.get(clips[i][0]) for i in order])
    expected = collate_clips(online, fresh.dtype)
    for name in ("x_BTD", "mask_BT", "time_sec"):
        assert torch.equal(getattr(batch, name), getattr(expected, name)), name
    assert batch.x_BTD.dtype == fresh.dtype and batch.x_BTD.dim() == 4


def test_filling_again_encodes_nothing_and_other_expert_has_its_own(
    tmp_path: Path, encoder: BeatsEncoder, clips: list[tuple[str, Path]]
) -> None:
    cache = FeatureCache.of(tmp_path, "beats", encoder)
    fill_cache(encoder, clips[:3], cache, batch_size=2, show_progress=False)
    assert cache.missing([sha for sha, _ in clips]) == [clips[3][0], clips[4][0]]
    assert fill_cache(encoder, clips, cache, show_progress=False)["clips"] == 2
    assert fill_cache(encoder, clips, cache, show_progress=False) | {"seconds": 0.0} == {
        **dict.fromkeys(("clips", "audio_seconds", "seconds", "bytes"), 0.0)
    }
    mert = MertEncoder(dtype="float32")
    assert not FeatureCache.of(tmp_path, "mert", mert).has(clips[0][0])


def test_size_estimate_is_near(tmp_path: Path, encoder: BeatsEncoder, clips: list[tuple[str, Path]]) -> None:
    cache = FeatureCache.of(tmp_path, "beats", encoder)
    stats = fill_cache(encoder, clips, cache, show_progress=False)
    assert stats["bytes"] == cache.size_bytes()
    assert estimate_bytes(encoder, stats["audio_seconds"]) == pytest.approx(stats["bytes"], rel=0.15)


def test_several_writers_share_a_cache_and_readers_refresh(tmp_path: Path) -> None:
    one, two = _cache(tmp_path), _cache(tmp_path)
    one.write([("x" * 64, _clip(1.0))])
    two.write([("y" * 64, _clip(2.0)), ("x" * 64, _clip(1.0))])
    assert not one.has("y" * 64)
    one.refresh()
    assert one.get("y" * 64).x_TD.eq(2.0).all() and len(one) == 2
    assert len(_cache(tmp_path)) == 2


def _write_until_killed(folder: Path) -> None:
    cache = _cache(folder)
    cache.write([("x" * 64, _clip(1.0))])
    rename = os.rename

    def die(source: object, target: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)
        rename(source, target)  # type: ignore[arg-type]

    os.rename = die  # type: ignore[assignment]
    cache.write([("y" * 64, _clip(2.0))])


def test_a_killed_writer_loses_one_shard(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=_write_until_killed, args=(tmp_path,))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    cache = _cache(tmp_path)
    assert cache.get("x" * 64).x_TD.eq(1.0).all()
    assert cache.missing(["x" * 64, "y" * 64]) == ["y" * 64]
    cache.write([("y" * 64, _clip(2.0))])
    assert len(_cache(tmp_path)) == 2


def test_damage_and_absence_are_named(tmp_path: Path) -> None:
    cache = _cache(tmp_path)
    cache.write([("x" * 64, _clip(1.0))])
    with pytest.raises(UserError, match="y" * 64):
        cache.get("y" * 64)
    shard = next(cache.folder.glob("shard-*"))
    shard.write_bytes(shard.read_bytes()[:-7])
    with pytest.raises(UserError, match=shard.name):
        _cache(tmp_path)
    with pytest.raises(UserError, match="not finite"):
        cache.write([("z" * 64, _clip(float("nan")))])


def test_a_reader_survives_pickling_and_many_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_cache, "_OPEN_SHARDS", 2)
    cache = _cache(tmp_path, "bfloat16")
    for number in range(5):
        cache.write([(f"{number}" * 64, _clip(float(number)))])
    copy = pickle.loads(pickle.dumps(cache))
    for reader in (cache, copy):
        for number in (0, 1, 2, 3, 4, 0):
            clip = reader.get(f"{number}" * 64)
            assert clip.x_TD.eq(number).all() and clip.x_TD.dtype == torch.bfloat16
        assert len(reader._handles) == 2


def test_a_changed_expert_is_said_and_never_served(
    tmp_path: Path, clips: list[tuple[str, Path]], caplog: pytest.LogCaptureFixture
) -> None:
    old, new = BeatsEncoder(dtype="float32", seed=0), BeatsEncoder(dtype="float32", seed=1, layers=1)
    fill_cache(old, clips[:1], FeatureCache.of(tmp_path, "beats", old), show_progress=False)
    with caplog.at_level(logging.INFO, logger="omnichat"):
        cache = FeatureCache.of(tmp_path, "beats", new)
    assert not cache.has(clips[0][0])
    assert "layers=last there, 1 now" in caplog.text and "other weights" in caplog.text
    assert "front-end" not in caplog.text and "version" not in caplog.text, "what did not change is not said"
    (tmp_path / cache.folder.name).mkdir()
    (cache.folder / "meta.json").write_text('{"fingerprint": "other"}')
    with pytest.raises(UserError, match="other"):
        FeatureCache.of(tmp_path, "beats", new)


def test_bad_audio_raises_or_is_left_out(tmp_path: Path, encoder: BeatsEncoder, clips: list[tuple[str, Path]]) -> None:
    broken = tmp_path / "audio" / "broken.flac"
    broken.write_bytes(clips[0][1].read_bytes()[:600])
    absent = tmp_path / "audio" / "absent.flac"
    work = [*clips[:2], ("b" * 64, broken), ("a" * 64, absent)]
    cache = FeatureCache.of(tmp_path / "cache", "beats", encoder)
    with pytest.raises(UserError, match="absent"):
        fill_cache(encoder, work, cache, show_progress=False)
    seen: list[Path] = []
    fill_cache(encoder, work, cache, show_progress=False, on_bad_audio=lambda path, error: seen.append(path))
    assert set(seen) == {broken, absent} and len(cache) == 2
