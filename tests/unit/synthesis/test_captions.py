"""Captions in CSV files: any bytes give file:line errors or counted issues; splits; what the layouts mean."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omnichat.audio.io import save_audio
from omnichat.schema import SPLITS
from omnichat.synthesis.sounds.captioned import Captions
from omnichat.synthesis.sounds.captions import CaptionFiles
from omnichat.synthesis.sounds.recordings import Limits
from omnichat.utils.errors import UserError
from tests.helpers.sound_files import RATE, audiocaps, clip, forged_flac, musiccaps, own_csv, write_csv

ANY = Limits(max_bad=1.0)


def source(path: Path, **changes: Any) -> CaptionFiles:
    given = {
        "name": "mine", "licence": "own", "path": str(path), "csv": {"all": "captions.csv"}, "audio": ".",
        "files": ["{file}"], "caption": ["caption"], "keywords": None, "unique": "file", "split": None,
        "split_values": {}, "captions": Captions(), "limits": ANY,
    }  # fmt: skip
    return CaptionFiles(**(given | changes))


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return own_csv(tmp_path_factory.mktemp("own"))


def all_sounds(found: CaptionFiles) -> list:
    names = {split: found._scan()[split] for split in SPLITS}
    return [sound for split in SPLITS for sound in names[split]]


cell = st.one_of(
    st.sampled_from(
        ["wavs/clip0.wav", "clip1", "wavs/clip2", "clip3.wav", "../secret.wav", "", "A dog barks", "caption"]
    ),
    st.text(max_size=30),
    st.binary(max_size=12).map(lambda raw: raw.decode("utf-8", "surrogateescape")),
)


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.lists(cell, min_size=0, max_size=4), max_size=12), joiner=st.sampled_from([",", '","', "\t"]))
def test_any_lines_are_sounds_or_counted_issues(
    collection: Path, tmp_path: Path, rows: list[list[str]], joiner: str
) -> None:
    lines = ["file,caption", *(joiner.join(row) for row in rows)]
    (tmp_path / "wild.csv").write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    found = source(collection, csv={"all": str(tmp_path / "wild.csv")})
    try:
        sounds = all_sounds(found)
    except UserError as error:
        assert "wild.csv" in str(error) and "\n" not in str(error)
        sounds = []
    assert len(found.issues) <= found.bad.total() <= found.looked
    assert all(f"{tmp_path / 'wild.csv'}:" in issue for issue in found.issues)
    # up to three times where they are too few to be split; what a good line repeats is no issue of its own
    assert len({sound.name for sound in sounds}) + len(found.issues) <= found.looked
    for sound in sounds:
        assert sound.name.startswith("mine/wavs/clip") and sound.caption.isprintable()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.one_of(st.binary(max_size=200), st.sampled_from([b"", b"\0", b"\xff\xfe", b'"', b'file,caption\n"'])))
def test_any_bytes_are_a_user_error_or_nothing_to_hear(collection: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "wild.csv").write_bytes(content)
    with pytest.raises(UserError, match=r"wild\.csv") as error:
        source(collection, csv={"all": str(tmp_path / "wild.csv")}).sounds("train")
    assert "\n" not in str(error.value)


def broken(folder: Path) -> dict[str, tuple[str, str]]:
    """Row of a bad caption file -> reason under which it counts, piece of its message."""
    save_audio(folder / "wavs" / "silent-head.wav", clip(1), RATE)
    (folder / "wavs" / "cut.wav").write_bytes((folder / "wavs" / "clip1.wav").read_bytes()[:9000])
    (folder / "wavs" / "forged.flac").write_bytes(forged_flac())
    (folder / "wavs" / "text.mp3").write_bytes(b"this is no sound")
    save_audio(folder / "wavs" / "long.wav", clip(1, 3.0), RATE)
    return {
        "wavs/clip1.wav,A dog,too many": ("malformed line", "has 3 fields, the header has 2"),
        "wavs/clip2.wav": ("malformed line", "has 1 fields"),
        "wavs/clip3.wav,A \0 dog": ("malformed line", "no UTF-8 text"),
        "wavs/clip3.wav,A \udcff dog": ("malformed line", "no UTF-8 text"),
        "wavs/clip4.wav,  ": ("bad caption", "an empty caption"),
        "wavs/clip5.wav,A \x07 bell": ("bad caption", "no text"),
        f"wavs/clip6.wav,{'dog ' * 300}": ("bad caption", "characters, at most 1000"),
        "wavs/clip0.wav,A second dog": ("repeated", "file 'wavs/clip0.wav' is that of line 2 again"),
        "wavs/none.wav,A dog": ("missing", "holds no recording 'wavs/none.wav'"),
        "../wavs/clip7.wav,A dog": ("missing", "holds no recording"),
        "wavs/cut.wav,A dog": ("truncated", "fewer than its header claims"),
        "wavs/forged.flac,A dog": ("too long", "header claims"),
        "wavs/text.mp3,A dog": ("unreadable", "not readable as audio"),
        "wavs/long.wav,A dog": ("too long", "at most 2 s"),
    }


def test_each_fault_is_an_issue_with_file_and_line(tmp_path: Path) -> None:
    own_csv(tmp_path)
    faults = broken(tmp_path)
    text = "\n".join(["file,caption", "wavs/clip0.wav,A first dog", *faults, "clip8,A last dog"])
    (tmp_path / "captions.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    limits = Limits(max_bad=1.0, min_sec=0.1, max_sec=2.0)
    found = source(tmp_path, limits=limits, audio=".")
    assert [sound.caption for sound in all_sounds(found)] != []
    assert {sound.caption for sound in all_sounds(found)} == {"a first dog", "a last dog"}
    for line, (issue, (reason, message)) in enumerate(zip(found.issues, faults.values(), strict=True), start=3):
        assert issue.startswith(f"{tmp_path / 'captions.csv'}:{line}: ") and message in issue, issue
        assert found.left_out()[reason] >= 1
    assert found.looked == len(faults) + 2 and found.bad.total() == len(faults)
    with pytest.raises(UserError, match=rf"mine: {len(faults)} of {len(faults) + 2} .*captions\.csv:3: .*max_bad=0\.5"):
        source(tmp_path, limits=Limits(max_bad=0.5, min_sec=0.1, max_sec=2.0)).sounds("train")


def test_a_lost_quotation_mark_counts_every_line_that_it_swallows(tmp_path: Path) -> None:
    own_csv(tmp_path)
    rows = [f"wavs/clip{n}.wav,A dog" for n in range(9)]
    rows[2] = 'wavs/clip2.wav,"A dog'
    (tmp_path / "captions.csv").write_text("\n".join(["file,caption", *rows]) + "\n")
    found = source(tmp_path)
    assert len(all_sounds(found)) == 3, "the swallowed lines are one long caption"
    rows[2] = 'wavs/clip2.wav,"A dog",'
    rows[3] = 'wavs/clip3.wav,"' + "x" * 140_000
    (tmp_path / "captions.csv").write_text("\n".join(["file,caption", *rows]) + "\n")
    found = source(tmp_path)
    all_sounds(found)
    # csv's own limit is the process's: where another reader has raised it, the caption's length is what is told
    told = ("field larger than field limit", "characters, at most 1000 are believed")
    assert found.bad.total() >= 2 and any(words in issue for issue in found.issues for words in told)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"caption": ["captoin"]}, r"captions\.csv:1: caption: column='captoin' .*did you mean 'caption'"),
        ({"files": ["{fil}.wav"]}, r"captions\.csv:1: files: column='fil' .*did you mean 'file'"),
        ({"keywords": "tags"}, r"captions\.csv:1: keywords: column='tags'"),
        ({"csv": {"train": "none.csv"}}, r"csv\.train: .*none\.csv: no such file"),
        ({"csv": {"trian": "captions.csv"}}, "did you mean 'train'"),
        ({"csv": {"all": "captions.csv", "test": "captions.csv"}}, "csv must name a file for each split, or one"),
        ({"audio": "nowhere"}, "audio: .*nowhere: no such folder"),
        ({"split_values": {"x": "tset"}}, "split_values.x='tset' .*did you mean 'test'"),
        ({"caption": []}, "must each hold at least one name"),
    ],
)
def test_mistakes_name_their_key(collection: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        source(collection, **changes).sounds("train")
    with pytest.raises(UserError, match=r"captions\.shares must sum to 1"):
        Captions(shares={"train": 0.5})


def test_the_hash_splits_recordings_and_stays_when_others_come(collection: Path, tmp_path: Path) -> None:
    before = {split: {s.name for s in source(collection).sounds(split)} for split in SPLITS}
    assert sum(map(len, before.values())) == 12 and all(before.values())
    rows = list(csv.reader((collection / "captions.csv").open()))
    write_csv(tmp_path / "fewer.csv", rows[0], [row for row in rows[1:] if "clip3" not in row[0]])
    fewer = source(collection, csv={"all": str(tmp_path / "fewer.csv")})
    after = {split: {s.name for s in fewer.sounds(split)} for split in SPLITS}
    assert sum(len(before[split] - after[split]) for split in SPLITS) <= 2, "at most the one that fills a gap moves"
    write_csv(tmp_path / "two.csv", rows[0], rows[1:3])
    two = source(collection, csv={"all": str(tmp_path / "two.csv")})
    assert len(two.sounds("train")) == len(two.sounds("test")) == 2, "too few to split: every split hears them"
    assert "every split hears the same" in two.describe()["split_rule"]


def test_a_split_column_decides_and_dev_is_taken_from_train(tmp_path: Path) -> None:
    musiccaps(tmp_path)
    found = source(
        tmp_path, csv={"all": "musiccaps-public.csv"}, files=["{ytid}", "[{ytid}]-[{start_s}-{end_s}]"], unique="ytid",
        keywords="aspect_list", split="is_audioset_eval", split_values={"True": "test", "False": "train"},
        captions=Captions(ignore=["low quality"], slot="mood"),
    )  # fmt: skip
    numbers = {split: {s.name for s in found.sounds(split)} for split in SPLITS}
    assert len(numbers["test"]) == 4 and numbers["dev"] and len(numbers["dev"] | numbers["train"]) == 8
    assert {s.words["mood"] for s in found.sounds("train")} <= {"sad", "jazzy"}
    assert all("low quality" not in s.keywords for s in found.sounds("train"))
    wrong = source(tmp_path, csv={"all": "musiccaps-public.csv"}, files=["{ytid}"], unique=None, split="author_id")
    with pytest.raises(UserError, match="holds no captioned recording"):
        wrong.sounds("train")
    assert wrong.left_out() == {"unknown split": 12}


def official(path: Path, **changes: Any) -> CaptionFiles:
    files = ["{youtube_id}", "Y{youtube_id}", "{youtube_id}_{start_time}", "{audiocap_id}"]
    csvs = {"train": "train.csv", "dev": "val.csv", "test": "test.csv"}
    return source(path, csv=csvs, files=files, unique="audiocap_id", **changes)


def test_recordings_of_two_splits_are_kept_from_one_of_them(tmp_path: Path) -> None:
    audiocaps(tmp_path)
    with (tmp_path / "train.csv").open("a") as handle:
        handle.write("999,-test0_x,30,A dog of the test\n")
    found = official(tmp_path)
    names = {split: {s.name for s in found.sounds(split)} for split in SPLITS}
    assert not names["train"] & names["test"]
    assert found.left_out()["in two splits"] == 2, "both of its captions in test"
    assert "is of test here, but of train at" in found.issues[0]


def test_a_recording_with_several_captions_is_one_sound_with_the_first_short_one(tmp_path: Path) -> None:
    audiocaps(tmp_path)
    assert len(official(tmp_path).sounds("dev")) == 5
    train_only = official(tmp_path)
    train_only.csv = {"train": train_only.csv["train"]}
    assert len(train_only.sounds("train")) == 4, "files say what each split has"
    with pytest.raises(UserError, match="no recording for the split dev"):
        train_only.sounds("dev")
    short = official(tmp_path, captions=Captions(max_words=4))
    assert {s.caption for s in short.sounds("test")} == {"barking and water"}
    with pytest.raises(UserError, match="has no recording for the split train"):
        short.sounds("train")


def test_memory_holds_few_of_many(collection: Path) -> None:
    found = source(collection, limits=Limits(memory_mb=0.1))
    for sound in all_sounds(found):
        assert np.isfinite(found.load(sound.name, RATE)).all()
        assert found._waves.bytes <= 1e5
