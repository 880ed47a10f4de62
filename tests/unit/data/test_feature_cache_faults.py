"""What must not spoil a feature cache: changed files, long clips, broken experts and neighbours, a prune in between."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from omnichat.data import feature_cache
from omnichat.data.cache_check import recheck
from omnichat.data.cache_fill import fill_cache
from omnichat.data.cache_prune import remove, unreached
from omnichat.data.collate import ClipKey
from omnichat.data.feature_cache import FeatureCache
from omnichat.encoders import checkpoints
from omnichat.encoders.beats import BeatsEncoder
from omnichat.encoders.checkpoints import find_checkpoint
from omnichat.training.features import CacheConfig, ExpertFeatures
from omnichat.utils.errors import UserError
from tests.helpers import cached

torch.set_num_threads(1)


@pytest.fixture
def clips(tmp_path: Path) -> list[tuple[str, Path]]:
    return cached.recordings(tmp_path / "audio", [9000, 30000, 16000])


@pytest.fixture(scope="module")
def encoder() -> BeatsEncoder:
    return cached.beats()


def test_a_file_that_is_not_the_manifests_is_refused(
    tmp_path: Path, encoder: BeatsEncoder, clips: list[tuple[str, Path]]
) -> None:
    """Its features would be stored under the hash of the recording that it has replaced."""
    cache = FeatureCache.of(tmp_path / "cache", "beats", encoder)
    fill_cache(encoder, clips[1:], cache, show_progress=False)
    cached.recordings(tmp_path / "audio", [9001, 30000, 16001])
    with pytest.raises(UserError, match=r"0\.flac: is not the file whose SHA-256"):
        fill_cache(encoder, clips, cache, show_progress=False)
    assert not cache.has(clips[0][0])
    with pytest.raises(UserError, match=r"2\.flac: is not the file"):
        recheck(encoder, cache, {clips[2][0]: clips[2][1]}, 1, 0)
    online = ExpertFeatures({"beats": encoder}, {}, CacheConfig(mode="online"))
    with pytest.raises(UserError, match=r"0\.flac: is not the file"):
        online([ClipKey(*clips[0])])


class Broken(BeatsEncoder):
    """Gives NaN for the shortest clip."""

    def hidden_states(self, inputs: list[Tensor], length: int) -> tuple[list[Tensor], list[int]]:  # type: ignore[override]
        hidden, frames = super().hidden_states(inputs, length)
        if length < 200:
            hidden[-1][:] = torch.nan
        return hidden, frames


def test_features_that_are_not_finite_name_the_file_and_spare_the_others(
    tmp_path: Path, clips: list[tuple[str, Path]]
) -> None:
    expert = Broken(layers="last", dtype="float32", patch_width=16, conv_pos=16, **cached.SIZES)
    cache = FeatureCache.of(tmp_path / "cache", "beats", expert)
    with pytest.raises(UserError, match=r"2\.flac: BEATs.* not finite"):
        fill_cache(expert, clips, cache, batch_size=9, show_progress=False)
    assert [cache.has(sha) for sha, _ in clips] == [False, True, False], "the 1 s clips share a pass; the other stays"


def test_a_clip_beyond_the_longest_is_refused_by_name(tmp_path: Path, clips: list[tuple[str, Path]]) -> None:
    expert = cached.beats(max_sec=1.5)
    cache = FeatureCache.of(tmp_path / "cache", "beats", expert)
    with pytest.raises(UserError, match=r"1\.flac: 2 s are more than BeatsEncoder takes at a time \(1\.5 s\).*max_sec"):
        fill_cache(expert, clips, cache, show_progress=False)
    with pytest.raises(UserError, match="max_sec"):
        expert.encode_waves([torch.zeros(32000)])
    assert expert.encode_waves([torch.zeros(16000)]).mask_BT.any()


@pytest.mark.parametrize("content", ["", "[1]", "{"])
def test_a_broken_neighbour_does_not_stop_a_new_cache(
    tmp_path: Path, encoder: BeatsEncoder, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    other = tmp_path / "beats-0123456789abcdef-bfloat16"
    other.mkdir()
    (other / "meta.json").write_text(content)
    with caplog.at_level(logging.WARNING):
        cache = FeatureCache.of(tmp_path, "beats", encoder)
    assert len(cache) == 0
    assert ("not readable" in caplog.text) == (content != "[1]")
    for path in (other / "meta.json", other):
        os.utime(path, (time.time() - 7200,) * 2)
    assert [item.path for item in unreached({"beats": cache}, set())] == [other], "prune can take it away"


def test_an_own_meta_that_is_no_object_is_named(tmp_path: Path, encoder: BeatsEncoder) -> None:
    folder = FeatureCache.of(tmp_path, "beats", encoder).folder
    folder.mkdir()
    (folder / "meta.json").write_text(json.dumps(["no"]))
    with pytest.raises(UserError, match=r"meta\.json"):
        FeatureCache.of(tmp_path, "beats", encoder)


def test_a_reader_follows_what_prune_moves_and_says_what_it_took(
    tmp_path: Path, encoder: BeatsEncoder, clips: list[tuple[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(feature_cache, "_OPEN_SHARDS", 0)  # nothing stays open, as with many shards
    fill_cache(encoder, clips, FeatureCache.of(tmp_path, "beats", encoder), show_progress=False)
    reader, pruner = (FeatureCache.of(tmp_path, "beats", encoder) for _ in range(2))
    before = reader.get(clips[1][0]).x_TD.clone()
    found = unreached({"beats": pruner}, {clips[1][0]})
    assert [item.kind for item in found] == ["clips"] and remove(found, {"beats": pruner}) > 0
    assert torch.equal(reader.get(clips[1][0]).x_TD, before)
    with pytest.raises(UserError, match=r"holds no features|is gone"):
        reader.get(clips[0][0])


def test_reading_notes_that_the_cache_is_in_use(
    tmp_path: Path, encoder: BeatsEncoder, clips: list[tuple[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = FeatureCache.of(tmp_path, "beats", encoder)
    fill_cache(encoder, clips, cache, show_progress=False)
    meta = cache.folder / "meta.json"
    os.utime(meta, (1000, 1000))
    cache.get(clips[0][0])
    assert meta.stat().st_mtime == 1000, "not at every read"
    monkeypatch.setattr(feature_cache, "_TOUCH_SEC", -1.0)
    cache.get(clips[0][0])
    assert meta.stat().st_mtime > 1000


def test_the_folder_may_be_named_by_its_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert CacheConfig(dir="~/features").dir == str(tmp_path / "features")


def test_a_mistyped_file_is_no_hub_id(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "snapshot_download", lambda *a, **k: pytest.fail("asked the hub for a file"))
    for name in ("models/beats.pt", "whisper/model.safetensors"):
        with pytest.raises(UserError, match=f"{re.escape(name)}: no such file or folder"):
            find_checkpoint(name)
