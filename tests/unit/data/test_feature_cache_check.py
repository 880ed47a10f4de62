"""Verify finds every kind of damage, prune finds what is not reached, and a new key says what has changed."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save

from omnichat.data import cache_check
from omnichat.data.cache_changes import changes
from omnichat.data.cache_check import check_shards, move_aside, raise_if_damaged, recheck
from omnichat.data.cache_fill import fill_cache
from omnichat.data.cache_prune import remove, unreached
from omnichat.data.feature_cache import EncodedClip, FeatureCache, folder_of
from omnichat.encoders.base import AudioEncoder
from omnichat.utils.errors import UserError
from tests.helpers import cached

Clips = list[tuple[str, Path]]


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Clips:
    return cached.recordings(tmp_path_factory.mktemp("audio"), [9000, 30000, 2000, 16000])


@pytest.fixture(scope="module")
def encoder() -> AudioEncoder:
    return cached.beats()


@pytest.fixture
def cache(tmp_path: Path, encoder: AudioEncoder, clips: Clips) -> FeatureCache:
    """Two shards of two clips."""
    filled = FeatureCache.of(tmp_path, "beats", encoder)
    for half in (clips[:2], clips[2:]):
        fill_cache(encoder, half, filled, show_progress=False)
    filled.mark_complete((sha for sha, _ in clips), 1.0)
    return filled


def rewritten(path: Path, change: Callable[[str, dict[str, torch.Tensor]], None]) -> Path:
    """The shard with its tensors changed, under the name that its new content asks for."""
    tensors = load_file(path)
    change(next(iter(tensors)).partition("/")[0], tensors)
    content = save(tensors)
    path.unlink()
    path = path.with_name(f"shard-{hashlib.sha256(content).hexdigest()[:32]}.safetensors")
    path.write_bytes(content)
    return path


def flip(path: Path) -> Path:
    """One bit of the last byte."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return path


def _set(name: str, value: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], Path]:
    def change(sha: str, tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{sha}/{name}"] = value(tensors[f"{sha}/{name}"]).contiguous()

    return lambda path: rewritten(path, change)


def _without_time(sha: str, tensors: dict[str, torch.Tensor]) -> None:
    del tensors[f"{sha}/time"]


DAMAGE = {
    "checksum": (flip, "checksum"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:-9]) and path, "checksum"),
    "empty": (lambda path: path.write_bytes(b"") or path, "checksum"),
    "infinite": (_set("x", lambda x: x * torch.inf), "not finite"),
    "width": (_set("x", lambda x: x[..., :-1]), "shape"),
    "layers": (_set("x", lambda x: x[0]), "shape"),
    "frames": (_set("time", lambda x: x[:-1]), "shape"),
    "dtype": (_set("x", lambda x: x.float()), "dtype"),
    "backwards": (_set("time", lambda x: x.flip(0)), "times that fall"),
    "no time": (lambda path: rewritten(path, _without_time), "an x and a time"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_named_and_moved_aside(
    cache: FeatureCache, encoder: AudioEncoder, clips: Clips, name: str
) -> None:
    damage, said = DAMAGE[name]
    before = check_shards(cache.folder, encoder.spec, "bfloat16")
    assert before.shards == 2 and not before.damaged and before.clips == {sha for sha, _ in clips}
    path = damage(cache.shard_of(clips[0][0]))
    found = check_shards(cache.folder, encoder.spec, "bfloat16")
    assert list(found.damaged) == [path] and said in found.damaged[path]
    assert found.clips == {sha for sha, _ in clips[2:]}, "the other shard is sound"
    with pytest.raises(UserError, match=f"1 damaged.*{path.name}.*repair=true"):
        raise_if_damaged(found.damaged)
    assert move_aside(found.damaged) == [path.with_name(f"{path.name}.damaged")]
    assert not check_shards(cache.folder, encoder.spec, "bfloat16").damaged
    again = FeatureCache.of(cache.root, "beats", encoder)
    assert len(again.missing(sha for sha, _ in clips)) == 2
    assert fill_cache(encoder, clips, again, show_progress=False)["clips"] == 2


def test_a_shard_moved_aside_takes_its_marker_along(cache: FeatureCache, clips: Clips) -> None:
    other = cache.mark_complete([sha for sha, _ in clips[2:]], 1.0)
    move_aside([cache.shard_of(clips[0][0])])
    assert list(cache.folder.glob("complete-*")) == [other]


def test_recheck_compares_bits(
    cache: FeatureCache, encoder: AudioEncoder, clips: Clips, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert recheck(encoder, cache, dict(clips), 99, 0) == (4, {})
    assert recheck(encoder, cache, dict(clips), 2, 0)[0] == 2
    path = cache.shard_of(clips[0][0])
    held = {sha: cache.get(sha) for sha, _ in clips[:2]}
    close = {sha: EncodedClip(clip.x_TD * (1 + 2**-7), clip.time_sec) for sha, clip in held.items()}
    path.unlink()
    cache.refresh()
    cache.write(list(close.items()), cache_check.made_on(encoder))
    count, faults = recheck(encoder, cache, dict(clips), 99, 0)
    assert count == 4 and list(faults) == [cache.shard_of(clips[0][0])]
    assert "relative L2" in next(iter(faults.values()))
    elsewhere = {"device": "cuda", "torch": "2.0.0"}
    monkeypatch.setattr(cache_check, "read_made", lambda _: elsewhere)
    assert recheck(encoder, cache, dict(clips), 99, 0)[1] == {}, "rounding of another device passes"
    path = cache.shard_of(clips[0][0])
    path.unlink()
    cache.refresh()
    wild = [(sha, EncodedClip(clip.x_TD * 1.5, clip.time_sec)) for sha, clip in held.items()]
    cache.write(wild, elsewhere)
    assert len(recheck(encoder, cache, dict(clips), 99, 0)[1]) == 1, "more than rounding does not"


def test_prune_lists_by_kind_and_spares_the_rest(tmp_path: Path, cache: FeatureCache, clips: Clips) -> None:
    other = cached.beats(seed=1)
    old = FeatureCache.of(tmp_path, "beats", other)
    fill_cache(other, clips[:1], old, show_progress=False)
    for name in ("beats-large-0123456789abcdef-bfloat16", "mert-0123456789abcdef-bfloat16", "notes"):
        (tmp_path / name).mkdir()
    young, stale = cache.folder / ".shard-a.tmp", cache.folder / ".shard-b.tmp"
    for path in (young, stale):
        path.write_bytes(b"half")
    assert [item.kind for item in unreached({"beats": cache}, {sha for sha, _ in clips})] == ["recent"]
    for path in (stale, *old.folder.iterdir()):
        os.utime(path, (time.time() - 7200,) * 2)
    (cache.folder / "shard-c.safetensors.damaged").write_bytes(b"bad")
    reached = {sha for sha, _ in clips[1:]}
    found = unreached({"beats": cache}, reached)
    kinds = {kind: [item for item in found if item.kind == kind] for kind in ("leftovers", "fingerprints", "clips")}
    assert [item.path.name for item in kinds["leftovers"]] == [".shard-b.tmp", "shard-c.safetensors.damaged"]
    assert [item.path for item in kinds["fingerprints"]] == [old.folder]
    assert "other weights" in kinds["fingerprints"][0].why and kinds["fingerprints"][0].bytes > old.size_bytes()
    assert [item.path for item in kinds["clips"]] == [cache.shard_of(clips[0][0])]
    stays = {sha: cache.get(sha).x_TD.clone() for sha in reached}
    assert remove(found, {"beats": cache}) == sum(item.bytes for item in found)
    assert not old.folder.exists() and not stale.exists() and young.exists()
    assert {path.name for path in tmp_path.iterdir()} == {
        cache.folder.name, "beats-large-0123456789abcdef-bfloat16", "mert-0123456789abcdef-bfloat16", "notes"
    }  # fmt: skip
    after = FeatureCache.of(tmp_path, "beats", cached.beats())
    assert not after.has(clips[0][0]) and not list(cache.folder.glob("complete-*"))
    assert all(torch.equal(after.get(sha).x_TD, x) for sha, x in stays.items())
    assert unreached({"beats": after}, reached) == []


CHANGED: dict[str, tuple[dict[str, Any], str]] = {
    "weights": ({"seed": 1}, "other weights (SHA-256"),
    "layers": ({"layers": 1}, "layers=mix there, 1 now"),
    "dtype": ({"dtype": "bfloat16"}, "computed in float32 there, bfloat16 now"),
    "passes": ({"batch_sec": 8.0}, "batch_sec=null there, 8.0 now"),
}


@pytest.mark.parametrize("name", CHANGED)
def test_a_changed_setting_makes_a_new_key_and_is_said(
    cache: FeatureCache, clips: Clips, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    setting, said = CHANGED[name]
    with caplog.at_level(logging.INFO, logger="omnichat"):
        other = FeatureCache.of(cache.root, "beats", cached.beats(**setting))
    assert other.folder != cache.folder and not other.has(clips[0][0])
    assert f"{cache.folder.name} does not serve: {said}" in caplog.text
    assert ";" not in caplog.text.partition("does not serve")[2], "what did not change is not said"


def test_storage_dtype_code_version_and_front_end_are_named(cache: FeatureCache, caplog: Any) -> None:
    with caplog.at_level(logging.INFO, logger="omnichat"):
        FeatureCache.of(cache.root, "beats", cached.beats(), "float32")
    assert "stored as bfloat16 there, float32 now (cache.dtype)" in caplog.text
    for key, value, said in (("version", 99, "version 1 of"), ("frontend", {"mels": 64}, "front-end's mels is 128")):
        encoder = cached.beats()
        settings = {**encoder.settings(), key: value}
        encoder.settings = lambda settings=settings: settings  # type: ignore[method-assign]
        other = FeatureCache.of(cache.root, "beats", encoder)
        assert other.folder != cache.folder
        assert any(said in phrase for phrase in changes(cache.meta(), other.meta()))


def test_the_nearest_of_several_is_named(cache: FeatureCache, clips: Clips, caplog: pytest.LogCaptureFixture) -> None:
    further = cached.beats(seed=1, layers=0)
    fill_cache(further, clips[:1], FeatureCache.of(cache.root, "beats", further), show_progress=False)
    with caplog.at_level(logging.INFO, logger="omnichat"):
        caplog.clear()
        FeatureCache.of(cache.root, "beats", cached.beats(layers=1))
    assert f"{cache.folder.name} does not serve: layers=mix there, 1 now (1 more" in caplog.text


def test_an_opened_cache_explains_nothing(cache: FeatureCache, caplog: pytest.LogCaptureFixture) -> None:
    """Settings that hold tuples come back from JSON as lists, and are no change."""
    encoder = cached.mert()
    held = FeatureCache.of(cache.root, "mert", encoder)
    held.write([("a" * 64, EncodedClip(torch.zeros(2, encoder.spec.width), torch.zeros(2)))])
    assert folder_of(cache.root, "mert", encoder, "bfloat16") == held.folder
    assert changes(cache_meta(held), FeatureCache.of(cache.root, "mert", cached.mert()).meta()) == []
    assert changes(cache_meta(held), FeatureCache.of(cache.root, "mert", cached.mert(), "float32").meta()) == [
        "stored as bfloat16 there, float32 now (cache.dtype)"
    ]


def cache_meta(cache: FeatureCache) -> Any:
    from omnichat.utils.files import read_json

    return read_json(cache.folder / "meta.json")
