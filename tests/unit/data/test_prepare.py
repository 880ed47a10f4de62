"""prepare: bad recordings are caught, counted and never half-written; what is good arrives unchanged."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from omnichat.data.audit import BadAudio, read_recording
from omnichat.data.corpus import Corpus, finish_corpus
from omnichat.data.parquet import export_parquet
from omnichat.data.prepare import ISSUES, SKIPPED, PrepareConfig, Spoken, prepare
from omnichat.data.readers.base import Reader
from omnichat.data.readers.parquet import ParquetShards
from omnichat.schema import Dialogue, Turn
from omnichat.utils.errors import UserError

RATE = 16000


class Listed(Reader):
    """A reader of dialogues that a test made."""

    name = "listed"
    licence = "CC0-1.0"
    kind = "real"
    made: tuple[Dialogue, ...] = ()

    def dialogues(self) -> Iterator[Dialogue]:
        self.issues = []
        yield from self.made


def sound(seconds: float = 1.0, rate: int = RATE) -> np.ndarray:
    return (0.5 * np.sin(np.arange(round(seconds * rate)) * 0.1)).astype(np.float32)


def listed(root: Path, count: int = 30) -> Listed:
    """`count` dialogues of two turns, each with its own two recordings."""
    root.mkdir()
    dialogues = []
    for number in range(count):
        turns = []
        for index, speaker in enumerate("AB"):
            name = f"{number}-{index}.wav"
            soundfile.write(root / name, sound(), RATE)
            turns.append(Turn(speaker, "some words here.", audio=name, sample_rate=RATE, seconds=1.0))
        split = "test" if number % 5 == 0 else "train"
        dialogues.append(Dialogue(f"listed-{number}", "listed", "real", "daily", split, tuple(turns)))
    reader = Listed(str(root))
    reader.made = tuple(dialogues)
    return reader


def cut_wav(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def cut_flac(path: Path) -> None:
    soundfile.write(path.with_suffix(".flac"), np.random.default_rng(0).uniform(-0.5, 0.5, RATE), RATE)
    content = path.with_suffix(".flac").read_bytes()
    path.write_bytes(content[: len(content) // 2])


def forged_flac(path: Path) -> None:
    """A FLAC whose header claims 2^36 - 1 samples."""
    soundfile.write(path.with_suffix(".flac"), sound(), RATE)
    content = bytearray(path.with_suffix(".flac").read_bytes())
    content[21] |= 0x0F
    content[22:26] = b"\xff\xff\xff\xff"
    path.write_bytes(bytes(content))


DAMAGE = {
    "truncated": cut_wav,
    "unreadable": lambda path: path.write_bytes(b"no audio at all"),
    "missing": lambda path: path.unlink(),
    "empty": lambda path: soundfile.write(path, np.zeros(0), RATE),
    "not finite": lambda path: soundfile.write(path, np.full(RATE, np.nan, np.float32), RATE, subtype="FLOAT"),
    "silent": lambda path: soundfile.write(path, np.zeros(RATE), RATE),
    "too short": lambda path: soundfile.write(path, sound(0.05), RATE),
    "too long": lambda path: soundfile.write(path, sound(61, 8000), 8000),
    "too short for its words": lambda path: soundfile.write(path, sound(0.15), RATE),
}


@pytest.mark.parametrize("reason", DAMAGE)
def test_damaged_recording_drops_its_dialogue_and_is_counted(tmp_path: Path, reason: str) -> None:
    reader = listed(tmp_path / "raw")
    DAMAGE[reason](reader.root / "7-0.wav")
    corpus = prepare(reader, PrepareConfig(out=str(tmp_path / "out")))
    assert [d.id for d in corpus.dialogues] == [d.id for d in reader.made if d.id != "listed-7"]
    assert not (tmp_path / "out" / "audio" / "listed-7").exists()
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    assert card["checks"][reason]["dialogues skipped"] == 1
    assert (card["checks"]["dialogues read"], card["checks"]["dialogues kept"]) == (30, 29)
    (row,) = [json.loads(line) for line in (tmp_path / "out" / SKIPPED).read_text().splitlines()]
    assert (row["dialogue"], row["reason"]) == ("listed-7", reason) and "7-0.wav" in row["message"]
    texts = [path.read_text() for path in (tmp_path / "out").iterdir() if path.is_file()]
    assert not any(str(tmp_path) in text for text in texts)  # the corpus knows nothing of this machine


@pytest.mark.parametrize("reason", ["truncated", "not finite", "missing"])
def test_raise_stops_at_the_recording_and_leaves_nothing(tmp_path: Path, reason: str) -> None:
    reader = listed(tmp_path / "raw", 3)
    DAMAGE[reason](reader.root / "1-1.wav")
    with pytest.raises(UserError, match=r"1-1\.wav.*dialogue 'listed-1'; on_bad_audio=skip"):
        prepare(reader, PrepareConfig(out=str(tmp_path / "out"), on_bad_audio="raise"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["raw"]


def test_too_many_bad_recordings_stop_the_run(tmp_path: Path) -> None:
    reader = listed(tmp_path / "raw", 10)
    for number in (3, 4):
        cut_wav(reader.root / f"{number}-0.wav")
    with pytest.raises(UserError, match=r"2 of 10 dialogues have bad recordings, more than max_bad_share=0\.05"):
        prepare(reader, PrepareConfig(out=str(tmp_path / "out")))
    kept = prepare(reader, PrepareConfig(out=str(tmp_path / "out"), max_bad_share=0.5))
    assert len(kept.dialogues) == 8


def test_forged_header_and_cut_flac_are_refused_before_memory_is_asked_for(tmp_path: Path) -> None:
    forged_flac(tmp_path / "a.wav")
    assert (tmp_path / "a.wav").stat().st_size < 60_000
    with pytest.raises(BadAudio, match="header claims") as caught:
        read_recording(tmp_path / "a.wav")
    assert caught.value.reason == "too long"
    cut_flac(tmp_path / "b.wav")
    with pytest.raises(BadAudio) as caught:
        read_recording(tmp_path / "b.wav")
    assert caught.value.reason in ("truncated", "unreadable")


def test_whole_wav_of_a_streaming_writer_is_not_called_truncated(tmp_path: Path) -> None:
    soundfile.write(tmp_path / "a.wav", sound(), RATE)
    content = bytearray((tmp_path / "a.wav").read_bytes())
    place = content.index(b"data") + 4
    content[place : place + 4] = b"\xff\xff\xff\xff"
    (tmp_path / "a.wav").write_bytes(bytes(content))
    wave_N, rate = read_recording(tmp_path / "a.wav")
    assert (len(wave_N), rate) == (RATE, RATE)


def test_turns_without_recordings_follow_need_audio(tmp_path: Path) -> None:
    reader = listed(tmp_path / "raw", 4)
    bare = {"audio": None, "sample_rate": None, "seconds": None}
    first, second, third, fourth = reader.made
    reader.made = (
        replace(first, turns=tuple(replace(turn, **bare) for turn in first.turns)),
        replace(second, turns=(replace(second.turns[0], **bare), second.turns[1])),
        replace(third, turns=(third.turns[0], replace(third.turns[1], **bare))),
        fourth,
    )

    def kept(need: str) -> list[str]:
        corpus = prepare(reader, PrepareConfig(out=str(tmp_path / need), need_audio=need))
        return [d.id.removeprefix("listed-") for d in corpus.dialogues]

    assert kept("none") == ["0", "1", "2", "3"]
    assert kept("user") == ["2", "3"]
    assert kept("all") == ["3"]
    reader.made = reader.made[:1]
    with pytest.raises(UserError, match=r"all 1 dialogues were skipped.*need_audio=none keeps their words"):
        kept("user")


def test_rate_is_converted_and_length_and_pitch_stay(tmp_path: Path) -> None:
    reader = listed(tmp_path / "raw", 1)
    corpus = prepare(reader, PrepareConfig(out=str(tmp_path / "out"), sample_rate=8000, splits=["test"]))
    turn = corpus.dialogues[0].turns[0]
    assert (turn.sample_rate, turn.seconds) == (8000, 1.0)
    wave, rate = soundfile.read(corpus.path_of(turn))
    assert rate == 8000
    np.testing.assert_allclose(wave[200:-200], sound()[::2][200:-200], atol=2e-3)


def test_limit_counts_in_each_split_and_splits_are_chosen(tmp_path: Path) -> None:
    reader = listed(tmp_path / "raw", 12)
    two = prepare(reader, PrepareConfig(out=str(tmp_path / "a"), limit=2))
    assert [d.id for d in two.dialogues] == ["listed-0", "listed-1", "listed-2", "listed-5"]
    test = prepare(reader, PrepareConfig(out=str(tmp_path / "b"), splits=["test"], name="held out"))
    assert [d.id for d in test.dialogues] == ["listed-0", "listed-5", "listed-10"] and test.name == "held out"
    with pytest.raises(UserError, match="no dialogues in the splits dev"):
        prepare(reader, PrepareConfig(out=str(tmp_path / "c"), splits=["dev"]))


def test_recording_shared_by_two_dialogues_is_written_once(tmp_path: Path) -> None:
    reader = listed(tmp_path / "raw", 2)
    first, second = reader.made
    reader.made = (first, replace(second, turns=(first.turns[0], second.turns[1])))
    corpus = prepare(reader, PrepareConfig(out=str(tmp_path / "out")))
    assert corpus.dialogues[0].turns[0] == corpus.dialogues[1].turns[0]
    assert len(list((tmp_path / "out").rglob("*.flac"))) == 3


def test_what_a_recogniser_hears_is_kept_with_the_recording_it_heard(tmp_path: Path) -> None:
    reader = listed(tmp_path / "raw", 3)
    first, second, third = reader.made
    silent = replace(second.turns[1], audio=None, sample_rate=None, seconds=None)
    reader.made = (
        replace(first, turns=(first.turns[0], replace(second.turns[0], speaker="B"))),  # a recording of two dialogues
        replace(second, turns=(second.turns[0], silent)),
        third,
    )
    asked: list[Spoken] = []

    def transcribe(recordings: Sequence[Spoken]) -> dict[str, str]:
        assert all(each.path.is_file() and each.seconds == pytest.approx(1.0) for each in recordings)
        asked.extend(recordings)
        return {each.sha256: f"heard {each.sha256}" for each in recordings}

    corpus = prepare(reader, PrepareConfig(out=str(tmp_path / "out")), transcribe)
    turns = [turn for dialogue in corpus.iterate() for turn in dialogue.turns]
    assert [turn.asr_text for turn in turns] == [turn.sha256 and f"heard {turn.sha256}" for turn in turns]
    assert sum(turn.asr_text is None for turn in turns) == 1
    assert len(asked) == len({each.sha256 for each in asked}), "each recording once"
    plain = prepare(reader, PrepareConfig(out=str(tmp_path / "plain")))
    assert all(turn.asr_text is None for dialogue in plain.iterate() for turn in dialogue.turns)


def test_old_corpus_survives_a_failure_and_gives_way_to_a_success(tmp_path: Path) -> None:
    reader = listed(tmp_path / "raw", 3)
    config = PrepareConfig(out=str(tmp_path / "out"), on_bad_audio="raise")
    before = prepare(reader, config).fingerprint()
    whole = (reader.root / "2-0.wav").read_bytes()
    cut_wav(reader.root / "2-0.wav")
    with pytest.raises(UserError):
        prepare(reader, config)
    assert Corpus.load(tmp_path / "out", "full").fingerprint() == before
    (reader.root / "2-0.wav").write_bytes(whole)
    reader.made = reader.made[:2]
    assert len(prepare(reader, config).dialogues) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "raw"]


def test_folder_that_is_no_corpus_is_not_replaced(tmp_path: Path) -> None:
    reader = listed(tmp_path / "raw", 1)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "draft.txt").write_text("years of work")
    with pytest.raises(UserError, match="exists and is not a corpus folder"):
        prepare(reader, PrepareConfig(out=str(tmp_path / "thesis")))
    assert (tmp_path / "thesis" / "draft.txt").read_text() == "years of work"
    with pytest.raises(UserError, match=r"not a corpus folder|folder that is read"):
        prepare(reader, PrepareConfig(out=str(reader.root)))


@pytest.mark.parametrize("name", ["../../etc/x", ".hidden", "a/b", "ü ñ", "x" * 300])
def test_ids_of_any_kind_stay_below_the_corpus(tmp_path: Path, name: str) -> None:
    reader = listed(tmp_path / "raw", 1)
    reader.made = (replace(reader.made[0], id=name),)
    corpus = prepare(reader, PrepareConfig(out=str(tmp_path / "out")))
    assert corpus.dialogues[0].id == name
    for path in (tmp_path / "out").rglob("*.flac"):
        assert not any(part.startswith(".") for part in path.relative_to(tmp_path / "out").parts)
    assert len(list((tmp_path / "out" / "audio").rglob("*.flac"))) == 2


def test_ids_that_differ_in_odd_characters_only_keep_their_own_recordings(tmp_path: Path) -> None:
    reader = listed(tmp_path / "raw", 2)
    soundfile.write(reader.root / "1-0.wav", 0.3 * sound(), RATE)
    reader.made = (replace(reader.made[0], id="a/b"), replace(reader.made[1], id="a:b"))
    corpus = prepare(reader, PrepareConfig(out=str(tmp_path / "out")))
    peaks = [np.abs(soundfile.read(corpus.path_of(d.turns[0]))[0]).max() for d in corpus.dialogues]
    assert peaks == pytest.approx([0.5, 0.15], abs=1e-3)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("splits", ["trian"]),
        ("splits", []),
        ("limit", 0),
        ("sample_rate", 16),
        ("need_audio", "some"),
        ("on_bad_audio", "drop"),
        ("max_bad_share", 1.2),
        ("max_bad_share", float("nan")),
        ("min_sec", 0.0),
        ("max_sec", float("inf")),
        ("max_words_per_sec", float("nan")),
        ("out", ""),
    ],
)
def test_config_refuses_a_bad_value_by_its_key(key: str, value: object) -> None:
    with pytest.raises(UserError, match=key):
        PrepareConfig(**({"out": "x"} | {key: value}))


def test_what_the_reader_met_is_kept_word_for_word(tmp_path: Path) -> None:
    reader = listed(tmp_path / "raw", 2)
    met = [f"{reader.root}/9-0.wav: no such audio file", "dialogue 9: skipped, no words"]
    reader.dialogues = lambda: (reader.issues.extend(met), iter(reader.made))[1]
    prepare(reader, PrepareConfig(out=str(tmp_path / "out")))
    lines = (tmp_path / "out" / ISSUES).read_text().splitlines()
    assert lines == ["9-0.wav: no such audio file", "dialogue 9: skipped, no words"]
    assert "2 irregularities" in (tmp_path / "out" / "README.md").read_text()


def test_out_must_be_given(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="out is missing"):
        prepare(listed(tmp_path / "raw", 1), PrepareConfig())


def test_parquet_survives_the_trip_and_refuses_a_changed_recording(tmp_path: Path) -> None:
    corpus = prepare(listed(tmp_path / "raw", 7), PrepareConfig(out=str(tmp_path / "out")))
    shards = export_parquet(corpus, tmp_path / "shards", rows_per_shard=2)
    names = ["test-00000-of-00001", "train-00000-of-00003", "train-00001-of-00003", "train-00002-of-00003"]
    assert sorted(path.stem for path in shards) == names
    reader = ParquetShards(str(tmp_path / "shards"))
    assert {d.id: d for d in reader.dialogues()} == {d.id: d for d in corpus.dialogues}
    for dialogue in corpus.dialogues:
        for turn in dialogue.turns:
            here = soundfile.read(corpus.path_of(turn), dtype="float32")[0]
            assert torch.equal(reader.read(turn)[0], torch.from_numpy(here))
    soundfile.write(corpus.path_of(corpus.dialogues[0].turns[0]), sound() / 2, RATE)
    with pytest.raises(UserError, match="SHA-256"):
        export_parquet(corpus, tmp_path / "shards")
    assert ParquetShards(str(tmp_path / "shards")).shards == reader.shards  # the old export is whole


def test_parquet_is_readable_by_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    corpus = prepare(listed(tmp_path / "raw", 3), PrepareConfig(out=str(tmp_path / "out")))
    files = [str(path) for path in export_parquet(corpus, tmp_path / "shards")]
    table = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "cache"))["train"]
    assert sorted(table["id"]) == sorted(d.id for d in corpus.dialogues)
    by_id = {d.id: d for d in corpus.dialogues}
    for row in table:
        for item, turn in zip(row["audio"], by_id[row["id"]].turns, strict=True):
            assert item["path"] == turn.audio
            assert item["bytes"] == corpus.path_of(turn).read_bytes()


def test_what_a_killed_run_left_is_cleared_away(tmp_path: Path) -> None:
    reader = listed(tmp_path / "raw", 2)
    left = tmp_path / ".out.partial" / "audio" / "stale"
    left.mkdir(parents=True)
    soundfile.write(left / "0.flac", sound(), RATE)
    prepare(reader, PrepareConfig(out=str(tmp_path / "out")))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "raw"]
    assert not (tmp_path / "out" / "audio" / "stale").exists()


@pytest.mark.parametrize("step", ["write_json_atomic", "write_text_atomic", "write_bytes_atomic"])
def test_corpus_whose_writing_breaks_off_has_no_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    reader = listed(tmp_path / "raw", 2)

    def disk_full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"omnichat.data.corpus.{step}", disk_full)
    with pytest.raises(OSError, match="No space"):
        finish_corpus(
            reader.root,
            reader.made,
            name="x",
            kind="real",
            seed=None,
            checks={},
            licences=[],
            notes=[],
            versions={},
        )
    with pytest.raises(UserError, match=r"holds no manifest\.jsonl"):
        Corpus.load(reader.root)
