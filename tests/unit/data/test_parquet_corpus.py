"""A corpus in Parquet is the corpus that was packed, read where it lies."""

from __future__ import annotations

import json
import pickle
import re
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from omnichat.audio.io import audio_info, load_audio
from omnichat.config import PrepareRun
from omnichat.data.corpus import Corpus
from omnichat.data.parquet import INDEX, export_parquet
from omnichat.data.parquet_corpus import ParquetCorpus, open_corpus
from omnichat.data.parquet_index import check_index
from omnichat.data.readers.corpus import CorpusFolder
from omnichat.prepare import pack
from omnichat.schema import SPLITS, Dialogue
from omnichat.utils.errors import UserError
from omnichat.utils.files import read_json, sha256_file, write_json_atomic


@pytest.fixture
def packed(synthetic: Corpus, tmp_path: Path) -> ParquetCorpus:
    export_parquet(synthetic, tmp_path / "packed", rows_per_shard=4)
    return ParquetCorpus.load(tmp_path / "packed", "full")


@pytest.mark.parametrize("held", ["data/thesis.tex", "data/run.parquet", "notes.md", "data"])
def test_an_export_replaces_nothing_but_an_export(synthetic: Corpus, tmp_path: Path, held: str) -> None:
    out = tmp_path / "out"
    (out / held).parent.mkdir(parents=True)
    (out / held).write_text("mine")
    with pytest.raises(UserError, match=r"out: (holds|is no Parquet export).*choose another folder"):
        export_parquet(synthetic, out)
    assert (out / held).read_text() == "mine"


def test_an_older_export_and_an_empty_folder_are_replaced(synthetic: Corpus, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    first = export_parquet(synthetic, out, rows_per_shard=2)
    second = export_parquet(synthetic, out)
    assert len(first) > len(second) == len(list((out / "data").iterdir()))
    (out / "notes.md").write_text("mine")
    with pytest.raises(UserError, match=r"out: holds notes\.md, which is of no export"):
        export_parquet(synthetic, out)


def test_neither_the_corpus_nor_the_current_folder_is_replaced(
    synthetic: Corpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(synthetic.root.parent)
    for folder in (synthetic.root, synthetic.root.parent, tmp_path / "link", synthetic.root / "audio" / ".."):
        with pytest.raises(UserError, match=r"is or holds the corpus itself"):
            export_parquet(synthetic, folder)
    monkeypatch.chdir(tmp_path)
    for out in (".", ".."):
        with pytest.raises(UserError, match=r"is or holds the (current folder|corpus)"):
            export_parquet(synthetic, Path(out))
    assert Corpus.load(synthetic.root).fingerprint() == synthetic.fingerprint()


def unplaced(dialogue: Dialogue) -> Dialogue:
    """The dialogue with its recordings' paths as they were before it was packed."""
    turns = [
        turn if turn.audio is None else replace(turn, audio=turn.audio.split("/", 4)[4]) for turn in dialogue.turns
    ]
    return replace(dialogue, turns=tuple(turns))


def test_it_holds_what_was_packed(synthetic: Corpus, packed: ParquetCorpus) -> None:
    assert (packed.name, packed.kind, packed.stand_in) == (synthetic.name, synthetic.kind, synthetic.stand_in)
    assert packed.fingerprint() == synthetic.fingerprint()
    assert [unplaced(d) for d in packed.iterate()] == [d for split in SPLITS for d in synthetic.iterate(split)]
    for split in SPLITS:
        assert packed.count(split) == synthetic.count(split)
        assert packed.summary(split) == synthetic.summary(split)
        for number in reversed(range(packed.count(split))):
            assert unplaced(packed.get(split, number)) == synthetic.get(split, number)
    assert packed.summary() == synthetic.summary()
    with pytest.raises(IndexError, match="train has 7 dialogues, 7 was asked"):
        packed.get("train", 7)


def test_recordings_are_read_in_place(synthetic: Corpus, packed: ParquetCorpus) -> None:
    before = sorted(packed.root.rglob("*"))
    for there, here in zip(packed.iterate("train"), synthetic.iterate("train"), strict=True):
        for packed_turn, turn in zip(there.turns, here.turns, strict=True):
            place = pickle.loads(pickle.dumps(packed.path_of(packed_turn)))
            path = synthetic.path_of(turn)
            assert place.read_bytes() == path.read_bytes() and place.name == path.name and place.exists()
            assert sha256_file(place) == turn.sha256
            assert audio_info(place) == audio_info(path)
            assert torch.equal(load_audio(place, 16000), load_audio(path, 16000))
    assert sorted(packed.root.rglob("*")) == before
    lost = replace(place, path="audio/none.flac")
    with pytest.raises(UserError, match=r"group \d+, row \d+\]/audio/none\.flac: no such recording in its row"):
        load_audio(lost, 16000)
    with pytest.raises(UserError, match="has no column 'audio' in a group of rows 99"):
        audio_info(replace(place, group=99))


def test_either_form_is_opened_by_its_folder(synthetic: Corpus, packed: ParquetCorpus, tmp_path: Path) -> None:
    assert isinstance(open_corpus(packed.root), ParquetCorpus)
    assert isinstance(open_corpus(synthetic.root), Corpus)
    with pytest.raises(UserError, match="no such corpus folder"):
        open_corpus(tmp_path / "nowhere")
    (packed.root / INDEX).unlink()
    with pytest.raises(UserError, match=rf"holds no {INDEX}.*prepare source=corpus format=parquet"):
        open_corpus(packed.root)


def test_a_shard_that_is_not_the_indexs_is_refused(packed: ParquetCorpus) -> None:
    shard = packed.root / packed.index["shards"][0]["file"]
    content = shard.read_bytes()
    shard.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    ParquetCorpus.load(packed.root, "fast")  # a changed byte is found by the hashes alone
    with pytest.raises(UserError, match=rf"{shard.name}: SHA-256 is not the one in {INDEX}"):
        ParquetCorpus.load(packed.root, "full")
    shard.write_bytes(content[:-10])
    with pytest.raises(UserError, match=rf"{shard.name}: has \d+ bytes, {INDEX} says \d+"):
        ParquetCorpus.load(packed.root, "exists")
    shard.write_bytes(b"x" * len(content))
    with pytest.raises(UserError, match=rf"{shard.name}: not readable as Parquet"):
        ParquetCorpus.load(packed.root)
    shard.unlink()
    with pytest.raises(UserError, match=rf"{shard.name}: no such shard, but {INDEX} names it"):
        ParquetCorpus.load(packed.root)


def test_bad_rows_are_named(packed: ParquetCorpus) -> None:
    index = read_json(packed.root / INDEX)
    shard = packed.root / index["shards"][0]["file"]
    table = pq.read_table(shard)
    rows = table.to_pylist()
    first = json.loads(rows[1]["dialogue"])
    first["turns"][0]["audio"] = "../../secret.flac"
    rows[1]["dialogue"] = json.dumps(first)
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), shard)
    index["shards"][0]["bytes"] = shard.stat().st_size
    write_json_atomic(packed.root / INDEX, index)
    with pytest.raises(UserError, match=r"parquet/0/1: not a dialogue: the audio path .* stay inside"):
        ParquetCorpus.load(packed.root).get("train", 1)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "a\nb"),
        ("name", 3),
        ("kind", "reel"),
        ("stand_in", 0),
        ("fingerprint", "0"),
        ("fingerprint", None),
        ("group_rows", 0),
        ("group_rows", True),
        ("shards", {}),
        ("summary", []),
        ("summary.train", None),
        ("summary.train.dialogues", 8),
        ("summary.train.recordings", "many"),
        ("summary.train.kind", "real"),
        ("summary.all.hours", -1),
        ("shards.0", "data/x.parquet"),
        ("shards.0.file", "../other/x.parquet"),
        ("shards.0.file", "/data/x.parquet"),
        ("shards.0.file", "data/more/x.parquet"),
        ("shards.0.file", "data//x.parquet"),
        ("shards.0.file", "data/x.csv"),
        ("shards.0.file", ["data", "x"]),
        ("shards.1.split", "trian"),
        ("shards.0.rows", -4),
        ("shards.0.rows", 4.0),
        ("shards.0.bytes", None),
        ("shards.0.sha256", "f" * 63),
    ],
)
def test_a_bad_field_of_the_index_is_named(packed: ParquetCorpus, field: str, value: object) -> None:
    index = read_json(packed.root / INDEX)
    *way, last = field.split(".")
    inner = index
    for step in way:
        inner = inner[int(step) if step.isdigit() else step]
    inner[int(last) if last.isdigit() else last] = value
    with pytest.raises(UserError) as caught:
        check_index(index, packed.root / INDEX)
    named = re.sub(r"shards\.(\d)", r"shards[\1]", field)
    assert str(caught.value).startswith(f"{packed.root / INDEX}: {named} must be ") and "\n" not in str(caught.value)


def test_a_lacking_field_and_a_shard_named_twice_are_refused(packed: ParquetCorpus) -> None:
    index = read_json(packed.root / INDEX)
    index["shards"][1]["file"] = index["shards"][0]["file"]
    with pytest.raises(UserError, match=r"shards\[1\]\.file='data/.*' stands there twice"):
        check_index(index, packed.root / INDEX)
    del index["shards"][1]["rows"]
    write_json_atomic(packed.root / INDEX, index)
    with pytest.raises(UserError, match=rf"{INDEX}: shards\[1\]\.rows is missing"):
        ParquetCorpus.load(packed.root)


def test_groups_of_another_size_are_refused(packed: ParquetCorpus) -> None:
    """Else other dialogues would be read, and none would say so."""
    index = read_json(packed.root / INDEX)
    index["group_rows"] = 2
    write_json_atomic(packed.root / INDEX, index)
    with pytest.raises(UserError, match=r"group 0 has 4 rows; by shards\.json's group_rows=2 it holds 2"):
        ParquetCorpus.load(packed.root)


def test_another_versions_index_is_refused(packed: ParquetCorpus) -> None:
    write_json_atomic(packed.root / INDEX, {"format": 99})
    with pytest.raises(UserError, match=rf"{INDEX}: not of this version's making; pack the corpus again"):
        open_corpus(packed.root)


def test_prepare_packs_a_finished_folder_and_nothing_else(synthetic: Corpus, tmp_path: Path) -> None:
    reader = CorpusFolder(str(synthetic.root))
    out = str(tmp_path / "out")
    done = pack(reader, PrepareRun(out=out, path=str(synthetic.root), format="parquet"))
    assert done.count("train") == synthetic.count("train") and (done.root / "README.md").is_file()
    with pytest.raises(UserError, match="limit=3: format=parquet packs a corpus as it is"):
        pack(reader, PrepareRun(out=out, path="", format="parquet", limit=3))
    with pytest.raises(UserError, match=r"format='zip' is not valid.*folder, parquet"):
        PrepareRun(out=out, path="", format="zip")
