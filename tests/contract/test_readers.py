"""What every reader promises, on a tiny corpus in each layout."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml

from omnichat.audio.io import save_audio
from omnichat.data.corpus import Corpus, finish_corpus
from omnichat.data.parquet import export_parquet
from omnichat.data.prepare import PrepareConfig, prepare
from omnichat.data.readers.base import Reader
from omnichat.data.readers.contiguous import DailyTalkContiguous
from omnichat.data.readers.corpus import CorpusFolder
from omnichat.data.readers.dailytalk import DailyTalk
from omnichat.data.readers.parquet import ParquetShards
from omnichat.data.readers.sharechatx_demo import ShareChatXDemo
from omnichat.schema import Dialogue, Scene, Style, Turn, dialogue_from_json, dialogue_to_json
from omnichat.utils.errors import UserError

torch.set_num_threads(1)
CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "source"


def noise(seconds: float, rate: int, seed: int) -> np.ndarray:
    return 0.2 * np.random.default_rng(seed).standard_normal(round(seconds * rate)).clip(-4, 4).astype(np.float32)


def make_dailytalk(root: Path, stand_in: bool = False) -> None:
    metadata: dict[str, dict[str, dict]] = {}
    words = ["what is it?", "my new camera.", "oh! show me.", "here you are."]
    for number in range(4):
        turns = {}
        for index, text in enumerate(words):
            speaker = (index + number) % 2
            stem = root / "data" / str(number) / f"{index}_{speaker}_d{number}"
            stem.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(f"{stem}.wav", noise(0.6 + 0.1 * index, 44100, 10 * number + index), 44100)
            Path(f"{stem}.txt").write_text(text.capitalize() + "\n")
            turns[str(index)] = {"turn": 4, "topic": 1, "emotion": "happiness", "act": "inform"}
            turns[str(index)] |= {"speaker": speaker, "text": text, "dialog_idx": number, "utterance_idx": index}
        metadata[str(number)] = turns
    (root / "metadata.json").write_text(json.dumps(metadata))
    if stand_in:
        (root / "STAND_IN").write_text("a stand-in, not DailyTalk\n")


def make_sharechatx(root: Path) -> None:
    rows = []
    for key, emotion in (("c-1", "happy"), ("c-2", "sad")):
        turns = []
        for index, text in enumerate(("Hello there.", "Hi, how are you?", "I got the letter.")):
            (root / key).mkdir(parents=True, exist_ok=True)
            soundfile.write(root / key / f"{index}.wav", noise(0.7, 16000, index), 16000)
            style = {"pitch": "normal", "speed": "normal", "emotion": emotion if index == 2 else "neutral"}
            turns.append({"speaker": "AB"[index % 2], "text": text, "style": style, "seconds": 0.7})
            turns[-1]["audio"] = f"{key}/{index}.wav"
        replies = [{"who": "omni", "text": "I see.", "style": None}]
        rows.append({"id": key, "scenario": "emotion", "background_caption": None, "turns": turns, "replies": replies})
    (root / "dialogues.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def make_contiguous(root: Path) -> None:
    rate = 16000
    (root / "data_stereo").mkdir(parents=True)
    spans = [(0, 0.2, "Hello"), (0, 0.6, "there"), (1, 1.6, "Hi"), (1, 2.0, "you"), (0, 3.0, "Bye")]
    with open(root / "dailytalk.jsonl", "w") as index:
        for number in range(2):
            stereo = np.zeros((4 * rate, 2), dtype=np.float32)
            for channel, start, _ in spans:
                stereo[round(start * rate) : round((start + 0.3) * rate), channel] = noise(0.3, rate, number)
            soundfile.write(root / "data_stereo" / f"{number}.wav", stereo, rate)
            words = [[word, [start, start + 0.3], "SPEAKER_MAIN"] for _, start, word in spans]
            (root / "data_stereo" / f"{number}.json").write_text(json.dumps({"alignments": words}))
            index.write(json.dumps({"path": f"data_stereo/{number}.wav", "duration": 4.0}) + "\n")


def make_corpus(root: Path) -> None:
    def turn(speaker: str, text: str, name: str, **fields: object) -> Turn:
        if not (root / "audio" / f"{name}.flac").exists():
            save_audio(root / "audio" / f"{name}.flac", noise(0.8, 16000, len(name) + ord(name[-1])), 16000)
        return Turn(speaker, text, Style("low", "slow", "sad"), f"audio/{name}.flac", 16000, 0.8, **fields)

    save_audio(root / "audio" / "rain.flac", noise(1.0, 16000, 3), 16000)
    dialogues = []
    for version, split in (("v0", "train"), ("v1", "train"), ("v2", "test")):
        turns = turn("A", "Listen to that.", f"heard-{version}", variant_of="g"), turn("B", "I hear rain.", "reply")
        scene = Scene("rain falls", "under", 0.0, "audio/rain.flac", ("rain",))
        dialogues.append(Dialogue(f"d-{version}", "small", "synthetic", "audio", split, turns, scene=scene))
    licences = [{"part": "noise", "licence": "CC0-1.0"}]
    settings = {"seed": 0, "checks": {}, "licences": licences, "notes": [], "versions": {}}
    finish_corpus(root, dialogues, name="small", kind="synthetic", **settings)


def make_parquet(root: Path) -> None:
    source = root.with_name("source-of-shards")
    make_corpus(source)
    export_parquet(Corpus.load(source), root, rows_per_shard=1)


LAYOUTS: dict[str, tuple[Callable[[Path], None], type[Reader]]] = {
    "dailytalk": (make_dailytalk, DailyTalk),
    "dailytalk_stand_in": (lambda root: make_dailytalk(root, stand_in=True), DailyTalk),
    "sharechatx_demo": (make_sharechatx, ShareChatXDemo),
    "dailytalk_contiguous": (make_contiguous, DailyTalkContiguous),
    "corpus": (make_corpus, CorpusFolder),
    "parquet": (make_parquet, ParquetShards),
}


@pytest.fixture(params=LAYOUTS)
def reader(request: pytest.FixtureRequest, tmp_path: Path) -> Reader:
    make, part = LAYOUTS[request.param]
    root = tmp_path / "raw"
    if part is not ParquetShards:
        root.mkdir()
    make(root)
    return part(str(root))


def test_two_passes_agree(reader: Reader) -> None:
    first, issues = list(reader.dialogues()), list(reader.issues)
    assert first
    assert list(reader.dialogues()) == first
    assert reader.issues == issues == []


def test_dialogues_are_the_corpus_s(reader: Reader) -> None:
    dialogues = list(reader.dialogues())
    assert len({dialogue.id for dialogue in dialogues}) == len(dialogues)
    assert {(dialogue.source, dialogue.kind) for dialogue in dialogues} == {(reader.name, reader.kind)}
    assert reader.licence
    for dialogue in dialogues:
        assert dialogue.turns[0].speaker == "A"
        assert {turn.speaker for turn in dialogue.turns} == {"A", "B"}
        assert dialogue_from_json(json.loads(json.dumps(dialogue_to_json(dialogue)))) == dialogue


def test_recordings_are_what_the_turns_say(reader: Reader) -> None:
    for dialogue in reader.dialogues():
        for turn in dialogue.turns:
            wave_N, rate = reader.read(turn)
            assert wave_N.dtype == torch.float32 and wave_N.dim() == 1
            assert rate == turn.sample_rate
            assert turn.seconds is not None and abs(len(wave_N) / rate - turn.seconds) < 2e-3
            assert 0.01 < float(wave_N.abs().max()) <= 1.0


def test_reading_in_any_order_gives_the_same(reader: Reader) -> None:
    turns = [turn for dialogue in reader.dialogues() for turn in dialogue.turns]
    waves = {turn.audio: reader.read(turn)[0] for turn in turns}
    fresh = type(reader)(str(reader.root))
    for turn in reversed(turns):
        assert torch.equal(fresh.read(turn)[0], waves[turn.audio])


def test_prepare_keeps_words_styles_and_sound(reader: Reader, tmp_path: Path) -> None:
    corpus = prepare(reader, PrepareConfig(out=str(tmp_path / "out"), sample_rate=None))
    assert Corpus.load(tmp_path / "out", verify="full").dialogues == corpus.dialogues
    originals = list(reader.dialogues())
    assert len(corpus.dialogues) == len(originals)
    for mine, original in zip(corpus.dialogues, originals, strict=True):
        blank = {"audio": None, "sample_rate": None, "seconds": None, "sha256": None}
        assert [replace(t, **blank) for t in mine.turns] == [replace(t, **blank) for t in original.turns]
        assert (mine.id, mine.split, mine.stand_in) == (original.id, original.split, original.stand_in)
        for new, old in zip(mine.turns, original.turns, strict=True):
            wave = soundfile.read(corpus.path_of(new), dtype="float32")[0]
            np.testing.assert_allclose(wave, reader.read(old)[0].numpy(), atol=1 / 32768)


def test_prepare_twice_gives_the_same_bytes(reader: Reader, tmp_path: Path) -> None:
    prints = {prepare(reader, PrepareConfig(out=str(tmp_path / name))).fingerprint() for name in ("one", "two")}
    assert len(prints) == 1
    assert not list(tmp_path.glob(".*.partial"))


@pytest.mark.parametrize("part", sorted({part for _, part in LAYOUTS.values()}, key=lambda part: part.__name__))
def test_wrong_folder_is_one_line_that_names_it(part: type[Reader], tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(UserError) as caught:
            part(str(path))
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_config_names_a_reader_and_every_argument_of_it(path: Path) -> None:
    node = yaml.safe_load(path.read_text())
    module, _, name = node.pop("_target_").rpartition(".")
    part = getattr(importlib.import_module(module), name)
    assert issubclass(part, Reader)
    signature = inspect.signature(part).parameters
    assert set(node) == set(signature)
    assert node.pop("path") == "${path}"
    assert node == {key: signature[key].default for key in node}


def test_every_reader_has_a_config_and_a_layout_here() -> None:
    files = {path.stem for path in (CONFIGS.parents[1] / "omnichat/data/readers").glob("*.py")} - {"__init__", "base"}
    targets = {yaml.safe_load(path.read_text())["_target_"].split(".")[-2] for path in CONFIGS.glob("*.yaml")}
    tested = {part.__module__.rsplit(".", 1)[1] for _, part in LAYOUTS.values()}
    assert files == targets == tested
