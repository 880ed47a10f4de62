"""Dataset folders: splits, columns, rows that hold no sound, folders that are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from omnichat.audio.io import encode_audio, save_audio
from omnichat.schema import SPLITS
from omnichat.synthesis.sounds.captioned import Captions
from omnichat.synthesis.sounds.dataset import DatasetFolder
from omnichat.synthesis.sounds.recordings import Limits
from omnichat.utils.errors import UserError
from tests.helpers.sound_files import RATE, clip, dataset, forged_flac

datasets = pytest.importorskip("datasets")


def source(path: Path, **changes: Any) -> DatasetFolder:
    given = {
        "name": "mine", "licence": "own", "path": str(path), "audio": "audio", "caption": ["caption"], "keywords": None,
        "splits": {"train": "train", "validation": "dev", "test": "test"}, "captions": Captions(),
        "limits": Limits(max_bad=1.0),
    }  # fmt: skip
    return DatasetFolder(**(given | changes))


@pytest.mark.parametrize("saved", [True, False])
def test_the_dataset_s_own_splits_are_kept(tmp_path: Path, saved: bool) -> None:
    found = source(dataset(tmp_path / "x", saved, ("train", "validation", "test")))
    for split, theirs in zip(SPLITS, ("train", "validation", "test"), strict=True):
        assert [sound.name for sound in found.sounds(split)] == [f"mine/{theirs}/{index:07d}" for index in range(4)]
    with pytest.raises(UserError, match="split of the dataset, which splits lacks:='validation'"):
        source(tmp_path / "x", splits={"train": "train", "test": "test"}).sounds("train")


@pytest.mark.parametrize("saved", [True, False])
def test_a_single_split_is_split_by_hash(tmp_path: Path, saved: bool) -> None:
    found = source(dataset(tmp_path / "x", saved, ("test",)))
    names = {split: {sound.name for sound in found.sounds(split)} for split in SPLITS}
    assert all(names.values()) and sum(map(len, names.values())) == len(set.union(*names.values())) == 12


def rows_with_faults(folder: Path) -> list[dict[str, Any]]:
    save_audio(folder / "inside.wav", clip(3), RATE)
    save_audio(folder.parent / "outside.wav", clip(4), RATE)
    good = encode_audio(clip(1), RATE)
    sounds = [
        {"bytes": good, "path": "a.flac"},
        {"bytes": None, "path": "inside.wav"},
        {"bytes": None, "path": "../outside.wav"},
        {"bytes": None, "path": None},
        None,
        {"bytes": b"junk", "path": "a.flac"},
        {"bytes": forged_flac(), "path": "a.flac"},
        {"bytes": good, "path": "a.flac"},
        {"bytes": good, "path": "a.flac"},
    ]
    texts: list[Any] = [["A bell", "A bell rings"], *[["A bell"]] * 6, [], None]
    tags: list[Any] = [["church bell", "bell"], *[["bell"]] * 8]
    return [{"audio": s, "text": t, "tags": k} for s, t, k in zip(sounds, texts, tags, strict=True)]


def test_bad_rows_are_issues_with_their_place(tmp_path: Path) -> None:
    folder = tmp_path / "x"
    folder.mkdir()
    datasets.Dataset.from_list(rows_with_faults(folder)).to_parquet(str(folder / "train.parquet"))
    found = source(folder, caption=["text"], keywords="tags", splits={"train": "train"})
    (first, second) = sorted({sound.name: sound for split in SPLITS for sound in found.sounds(split)}.values(),
                             key=lambda sound: sound.name)  # fmt: skip
    assert (first.caption, first.keywords) == ("a bell", ("bell", "church bell"))
    assert second.name == "mine/train/0000001" and len(found.load(second.name, RATE)) == len(clip(3))
    faults = ["lies outside of", "no recording", "no recording", "not readable", "header claims", "no caption",
              "no caption"]  # fmt: skip
    for index, (issue, message) in enumerate(zip(found.issues, faults, strict=True), start=2):
        assert issue.startswith(f"{folder}:train[{index}]: ") and message in issue, issue
    assert found.looked == 9 and found.bad.total() == 7


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"audio": "wave"}, "audio column='wave' is not valid.* choose one of: audio, caption"),
        ({"caption": ["captoin"]}, "column='captoin' .*did you mean 'caption'"),
        ({"keywords": "tags"}, "column='tags'"),
        ({"audio": "caption"}, None),
    ],
)
def test_wrong_columns_are_named(tmp_path: Path, changes: dict[str, Any], message: str | None) -> None:
    found = source(dataset(tmp_path / "x", True), **changes)
    with pytest.raises(UserError, match=message or ".") as error:
        found.sounds("train")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("file", ["dataset_info.json", "dataset_dict.json", "train.parquet", "notes.txt"])
@pytest.mark.parametrize("content", [b"", b"{}", b"[1, 2]", b"\x00\xff junk"])
def test_a_folder_that_is_no_dataset_is_named(tmp_path: Path, file: str, content: bytes) -> None:
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError) as error:
        source(tmp_path).sounds("train")
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)
