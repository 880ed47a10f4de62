"""A tiny corpus in each layout that a reader knows."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import soundfile

from omnichat.audio.io import save_audio
from omnichat.data.corpus import Corpus, finish_corpus
from omnichat.data.parquet import export_parquet
from omnichat.data.readers.base import Reader
from omnichat.data.readers.contiguous import DailyTalkContiguous
from omnichat.data.readers.corpus import CorpusFolder
from omnichat.data.readers.dailytalk import DailyTalk
from omnichat.data.readers.huggingface import HuggingFace
from omnichat.data.readers.parquet import ParquetShards
from omnichat.data.readers.sharechatx_demo import ShareChatXDemo
from omnichat.data.readers.styletalk import StyleTalk
from omnichat.data.readers.voxdialogue import VoxDialogue
from omnichat.schema import Dialogue, Scene, Style, Turn


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


def make_voxdialogue(root: Path) -> None:
    """The spoken benchmark."""
    folder = root / "emotion"
    index: dict[str, dict[str, list]] = {}
    said = [
        ("What a day it was.", "sad"),
        ("Tell me about it.", "neutral"),
        ("I lost my keys.", "angry"),
        ("Oh no!", "sad"),
    ]
    for topic in ("Lost_Keys", "Rain"):
        for name in ("dialog_00001_000", "dialog_00002_001"):
            turns = []
            for number, (words, emotion) in enumerate(said):
                wav = f"{topic}/{name}/{number + 1:03d}.wav"
                (folder / wav).parent.mkdir(parents=True, exist_ok=True)
                soundfile.write(folder / wav, noise(0.7, 16000, len(topic) + number), 16000)
                gender = ("female", "male")[number % 2]
                style = f"A {gender} speaker with low pitch, fast speaking rate, and {emotion} emotion."
                turns.append({"turn_id": number, "speaker_id": "AB"[number % 2], "insturct_style": style})
                turns[-1] |= {"spk_info": f"voice of a {gender}", "content": words, "wav_path": wav}
            index.setdefault(topic, {})[name] = turns
            (folder / topic / name / "dialog.json").write_text(json.dumps(turns))
    (folder / "processed_dialog_0.05.json").write_text(json.dumps(index))


def script(topic: str, *, fourth: tuple[str, str] = ("high", "low")) -> dict[str, Any]:
    """A script in VoxDialogue's shape."""
    return {
        "history_turns": [
            f"A (female, happy, fast, {fourth[0]}): I went to {topic}.",
            f"B (male, neutral, normal, {fourth[1]}): Did you like it?",
        ],
        "current_turn": "A: It was: something.",
        "current_turn_style_1": f"(female,  happy,  fast,  {fourth[0]})",
        "current_turn_style_2": f"(female, sad, slow, {fourth[1]})",
        "current_turn_style_3": "(female, excited, normal, normal)",
        "response_of_current_style_1": f"B (male, happy, normal, {fourth[0]}): How lovely!",
        "response_of_current_style_2": f"B (male, sad, slow, {fourth[1]}): I am sorry.",
        "response_of_current_style_3": "B (male, happy, fast, normal): Tell me more!",
        "aspect_list": topic,
    }


def make_scripts(root: Path) -> None:
    """VoxDialogue's scripts, in every shape that was published."""
    (root / "emotion").mkdir(parents=True)
    (root / "emotion" / "0.json").write_text(json.dumps([script("the sea"), script("the city")]))
    old = script("a farm")
    old["history turns"] = old.pop("history_turns")
    del old["aspect_list"]
    (root / "dialog_data.json").write_text(json.dumps({"Farms": old, "Towns": [script("a town")]}))
    stress = script("a game")
    del stress["current_turn"]
    for number, words in enumerate(("<stress> I </stress> won.", "I [laughter] won.", "I <stress>won</stress>.")):
        stress[f"current_turn_style_{number + 1}"] = f"A (female, happy) {words}"
    (root / "stress").mkdir()
    (root / "stress" / "1.json").write_text(json.dumps([stress]))


STYLETALK = ["diag_id", "context", "curr_audio_id", "res_audio_id", "curr_text", "res_text"]
STYLETALK += [f"{which}_{what}" for which in ("curr", "res") for what in ("emotion", "speed", "volume")]


def make_styletalk(root: Path) -> None:
    for table, topics in (("train.csv", ("health_3", "movie_7")), ("eval.csv", ("sport_9",))):
        rows = []
        for topic in topics:
            for number, (heard, speed, answer) in enumerate(
                (("unfriendly", "fast", "sad"), ("cheerful", "slow", "friendly"))
            ):
                files = [f"{topic}/{letter}_{number}.wav" for letter in "cr"]
                for file in files:
                    (root / file).parent.mkdir(parents=True, exist_ok=True)
                    soundfile.write(root / file, noise(0.8, 16000, len(file) + number), 16000)
                context = f"A : Have you been to {topic}? B : Yes, last week. A : How was it?"
                rows.append([topic, context, *files, "B: It was, well, as ever.  ", f"  So it goes, {number}."])
                rows[-1] += [heard, speed, "loud", answer, "normal", "normal"]
        with open(root / table, "w", newline="", encoding="utf-8") as handle:
            csv.writer(handle).writerows([STYLETALK, *rows])


def wav_bytes(seed: int) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, noise(0.5 + 0.01 * seed, 16000, seed), 16000, format="WAV")
    return buffer.getvalue()


NAMED = {"dialogue": "id", "topic": "about", "text": "words", "speaker": "who", "emotion": "mood", "speed": "rate"}
NAMED |= {"audio": "sound", "split": None, "caption": None, "order": None, "pitch": None}
OPTIONS: dict[str, Any] = {"speakers": {"A": ["user"], "B": ["bot"]}, "labels": {"emotion": {"meh": None}}}
MOODS = ["no emotion", "joy", "meh"]


def hf_turns(number: int, sound: bool = True) -> list[dict[str, Any]]:
    said = [
        ("user", f"Is it {number}?", 1, "quick"),
        ("bot", "It may be.", 0, "slow"),
        ("user", "Oh well.", 2, "normal"),
    ]
    turns = []
    for index, (who, words, mood, rate) in enumerate(said):
        audio = {"bytes": wav_bytes(10 * number + index), "path": None} if sound else None
        turns.append({"who": who, "words": words, "mood": mood, "rate": rate, "sound": audio})
    return turns


def hf_features(inner: bool) -> datasets.Features:
    text, mood, audio = datasets.Value("string"), datasets.ClassLabel(names=MOODS), datasets.Audio(decode=False)
    turn = {"who": text, "words": text, "mood": mood, "rate": text, "sound": audio}
    if inner:
        return datasets.Features({"id": text, "about": text, "talk": [turn]})
    return datasets.Features({"id": text, "about": text, "at": datasets.Value("int32"), **turn})


def hf_table(rows: list[dict[str, Any]], features: datasets.Features) -> datasets.Dataset:
    """Straight from Arrow: to encode audio, `datasets` would ask for torchcodec."""
    return datasets.Dataset(pa.Table.from_pylist(rows, schema=features.arrow_schema))


def make_hf_saved(root: Path) -> None:
    """A row a dialogue with a list of objects, saved by `datasets`, bytes inside."""
    parts = {}
    for split, numbers in (("train", (0, 1)), ("validation", (2,))):
        rows = [{"id": f"d{n}", "about": "number", "talk": hf_turns(n)} for n in numbers]
        parts[split] = hf_table(rows, hf_features(inner=True))
    datasets.DatasetDict(parts).save_to_disk(str(root))


def make_hf_turns(root: Path) -> None:
    """A row a turn, out of order, in Parquet."""
    for split, numbers in (("train", (0, 1)), ("test", (3,))):
        rows = [{"id": f"d{n}", "about": "number", "at": i, **t} for n in numbers for i, t in enumerate(hf_turns(n))]
        table = hf_table(rows[::-1], hf_features(inner=False))
        table.to_parquet(str(root / f"{split}-00000-of-00001.parquet"))


def make_hf_lists(root: Path) -> None:
    """A row a dialogue with lists side by side, JSON lines, paths of recordings."""
    with open(root / "train.jsonl", "w") as handle:
        for number in range(3):
            turns = hf_turns(number)
            paths = []
            for index, turn in enumerate(turns):
                paths.append(f"wavs/{number}-{index}.wav")
                (root / "wavs").mkdir(exist_ok=True)
                (root / paths[-1]).write_bytes(turn["sound"]["bytes"])
            row = {"id": number, "about": "number", "mood": ["joy", "sad", "meh"], "sound": paths}
            row |= {key: [turn[key] for turn in turns] for key in ("who", "words", "rate")}
            handle.write(json.dumps(row) + "\n")


def make_hf_questions(root: Path) -> None:
    """A row a question with its recording and its answers, as in spoken question answering, saved by `datasets`."""
    text, audio = datasets.Value("string"), datasets.Audio(decode=False)
    columns = {"question": text, "sound": audio, "answers": [text], "said": audio, "subject": text}
    rows = [
        {
            "question": f"What follows after {number}?",
            "sound": {"bytes": wav_bytes(number), "path": None},
            "answers": ["", f"That makes {number + 1} apples.", str(number + 1)],
            "said": {"bytes": wav_bytes(50 + number), "path": None} if number % 2 else None,
            "subject": "apples",
        }
        for number in range(4)
    ]
    hf_table(rows, datasets.Features(columns)).save_to_disk(str(root))


QUESTIONS = {"text": "question", "audio": "sound", "answer": "answers", "answer_audio": "said", "topic": "subject"}


@dataclass(frozen=True)
class Layout:
    """How a tiny corpus is made, and the reader of it with its settings."""

    make: Callable[[Path], None]
    part: type[Reader]
    settings: dict[str, Any] = field(default_factory=dict)


def hf(**changes: Any) -> dict[str, Any]:
    return {**OPTIONS, **changes}


LAYOUTS: dict[str, Layout] = {
    "dailytalk": Layout(make_dailytalk, DailyTalk),
    "dailytalk_stand_in": Layout(lambda root: make_dailytalk(root, stand_in=True), DailyTalk),
    "sharechatx_demo": Layout(make_sharechatx, ShareChatXDemo),
    "dailytalk_contiguous": Layout(make_contiguous, DailyTalkContiguous),
    "corpus": Layout(make_corpus, CorpusFolder),
    "parquet": Layout(make_parquet, ParquetShards),
    "voxdialogue": Layout(make_voxdialogue, VoxDialogue),
    "voxdialogue_scripts": Layout(make_scripts, VoxDialogue, {"split": "hash"}),
    "styletalk": Layout(make_styletalk, StyleTalk),
    "hf_saved": Layout(make_hf_saved, HuggingFace, hf(columns={**NAMED, "turns": "talk"})),
    "hf_turns": Layout(make_hf_turns, HuggingFace, hf(shape="turn", columns={**NAMED, "order": "at"})),
    "hf_questions": Layout(
        make_hf_questions, HuggingFace, {"shape": "exchange", "columns": QUESTIONS, "split": "test"}
    ),
    "hf_lists": Layout(make_hf_lists, HuggingFace, hf(columns=NAMED)),
}
WITHOUT_SOUND = {"voxdialogue_scripts"}


def build(name: str, root: Path) -> Reader:
    """Make the layout below `root` and open its reader."""
    layout = LAYOUTS[name]
    if layout.part is not ParquetShards:
        root.mkdir()
    layout.make(root)
    return layout.part(str(root), **layout.settings)
