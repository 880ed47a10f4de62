"""DailyTalk's quirks, its splits, its stand-in, and the stereo form."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from omnichat.data.readers.contiguous import DailyTalkContiguous
from omnichat.data.readers.dailytalk import EMOTIONS, SPLITS_FILE, DailyTalk, rule_hash
from omnichat.schema import EMOTIONS as OUR_EMOTIONS
from omnichat.schema import Dialogue
from omnichat.utils.errors import UserError

RATE = 8000


def utterance(speaker: object, text: str, emotion: str = "no emotion", **more: object) -> dict:
    return {"speaker": speaker, "text": text, "emotion": emotion, **more}


def write(root: Path, dialogues: dict[str, list[dict]], recorded: bool = True) -> Path:
    metadata = {}
    for key, utterances in dialogues.items():
        metadata[key] = {str(index): value for index, value in enumerate(utterances)}
        for index, value in enumerate(utterances) if recorded else ():
            stem = root / "data" / key / f"{index}_{value['speaker']}_d{key}"
            stem.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(f"{stem}.wav", np.full(RATE, 0.1), RATE)
            Path(f"{stem}.txt").write_text(value["text"].capitalize() + "\n")
    root.mkdir(parents=True, exist_ok=True)
    (root / "metadata.json").write_text(json.dumps(metadata))
    return root


def read(root: Path) -> tuple[list[Dialogue], list[str]]:
    reader = DailyTalk(str(root))
    return list(reader.dialogues()), reader.issues


PAIR = [utterance(1, "what are you working on?"), utterance(0, "my budget.", "happiness")]


def test_first_speaker_is_the_user_whatever_his_number(tmp_path: Path) -> None:
    dialogues, issues = read(write(tmp_path, {"3": PAIR, "4": PAIR[::-1]}))
    assert [[turn.speaker for turn in d.turns] for d in dialogues] == [["A", "B"], ["A", "B"]]
    assert [d.speakers["A"].voice for d in dialogues] == ["dailytalk-1", "dailytalk-0"]
    assert issues == []


def test_words_have_the_casing_of_the_text_files_where_there_are_any(tmp_path: Path) -> None:
    root = write(tmp_path, {"0": PAIR})
    (root / "data/0/1_0_d0.txt").unlink()
    (dialogue,), _ = read(root)
    assert [turn.text for turn in dialogue.turns] == ["What are you working on?", "my budget."]


def test_text_file_with_other_words_wins_and_is_told(tmp_path: Path) -> None:
    root = write(tmp_path, {"0": PAIR})
    (root / "data/0/1_0_d0.txt").write_text("My diet.")
    (dialogue,), issues = read(root)
    assert dialogue.turns[1].text == "My diet."
    assert len(issues) == 1 and "dialogue 0 turn 1" in issues[0] and "differ in words" in issues[0]


def test_missing_recording_keeps_the_words_and_is_told(tmp_path: Path) -> None:
    root = write(tmp_path, {"0": PAIR})
    (root / "data/0/1_0_d0.wav").unlink()
    (dialogue,), issues = read(root)
    assert dialogue.turns[0].audio == "data/0/0_1_d0.wav" and dialogue.turns[0].seconds == 1.0
    assert dialogue.turns[1].audio is None and dialogue.turns[1].text == "My budget."
    assert len(issues) == 1 and "1_0_d0.wav: no such audio file" in issues[0]


def test_missing_turn_is_told_and_turn_numbers_keep_their_files(tmp_path: Path) -> None:
    turns = [utterance(0, "one.", turn=3), utterance(1, "two.", turn=3), utterance(0, "three.", turn=3)]
    root = write(tmp_path, {"0": turns})
    metadata = json.loads((root / "metadata.json").read_text())
    del metadata["0"]["1"]
    metadata["0"]["3"] = utterance(1, "four.", turn=3)
    (root / "metadata.json").write_text(json.dumps(metadata))
    (dialogue,), issues = read(root)
    assert [turn.audio for turn in dialogue.turns] == ["data/0/0_0_d0.wav", "data/0/2_0_d0.wav", None]
    assert [turn.speaker for turn in dialogue.turns] == ["A", "A", "B"]  # two in a row stay two turns
    assert any("3_1_d0.wav" in issue for issue in issues)


def test_turns_come_in_the_order_of_their_numbers_not_of_their_text(tmp_path: Path) -> None:
    turns = [utterance(index % 2, f"turn {index}.") for index in range(12)]
    root = write(tmp_path, {"10": turns, "9": turns})
    metadata = json.loads((root / "metadata.json").read_text())
    metadata["9"] = dict(sorted(metadata["9"].items(), key=lambda pair: pair[0]))  # "0", "1", "10", "11", "2", ...
    (root / "metadata.json").write_text(json.dumps(metadata))
    dialogues, _ = read(root)
    assert [d.id for d in dialogues] == ["dailytalk-9", "dailytalk-10"]
    assert [turn.text for turn in dialogues[0].turns] == [f"Turn {index}." for index in range(12)]


def test_every_emotion_has_its_place_and_an_unknown_one_is_told(tmp_path: Path) -> None:
    assert sorted(EMOTIONS.values()) == sorted(OUR_EMOTIONS)
    turns = [utterance(index % 2, "words.", emotion) for index, emotion in enumerate([*EMOTIONS, "boredom"])]
    (dialogue,), issues = read(write(tmp_path, {"0": turns}))
    assert [turn.style.emotion for turn in dialogue.turns] == [*EMOTIONS.values(), None]
    assert len(issues) == 1 and "'boredom'" in issues[0]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"text": "hi"}, "lacks 'speaker'"),
        ({"speaker": 0}, "lacks 'text'"),
        (utterance(0, "  "), "no words"),
        (utterance("../../x", "hi."), "is not a number"),
        ("words", "not an object"),
    ],
)
def test_unusable_turn_is_skipped_with_its_reason(tmp_path: Path, bad: object, reason: str) -> None:
    root = write(tmp_path, {"0": PAIR}, recorded=False)
    metadata = json.loads((root / "metadata.json").read_text())
    metadata["0"]["2"] = bad
    (root / "metadata.json").write_text(json.dumps(metadata))
    (dialogue,), issues = read(root)
    assert len(dialogue.turns) == 2
    assert any("dialogue 0 turn 2: skipped" in issue and reason in issue for issue in issues)


def test_dialogue_of_one_or_three_speakers_is_skipped_and_told(tmp_path: Path) -> None:
    one, three = [utterance(0, "a."), utterance(0, "b.")], [utterance(n, "c.") for n in range(3)]
    dialogues, issues = read(write(tmp_path, {"0": one, "1": three, "2": PAIR}))
    assert [d.id for d in dialogues] == ["dailytalk-2"]
    assert any("dialogue 0: skipped" in issue for issue in issues)
    assert any("dialogue 1: skipped, a third speaker" in issue for issue in issues)


@pytest.mark.parametrize("text", ["", "[]", "{}", "{nope", '"x"'])
def test_unreadable_metadata_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "metadata.json").write_text(text)
    with pytest.raises(UserError, match=r"metadata\.json: "):
        list(DailyTalk(str(tmp_path)).dialogues())


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.just("0"), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(["0", "1", "x", "../a", ""]), JSON, min_size=1, max_size=3))
def test_any_json_is_read_or_refused_by_name(tmp_path_factory, metadata) -> None:
    root = tmp_path_factory.mktemp("any")
    (root / "metadata.json").write_text(json.dumps(metadata))
    reader = DailyTalk(str(root))
    assert list(reader.dialogues()) == []  # nothing here has two speakers with words
    assert len(reader.issues) >= len(metadata)


def test_fixed_splits_are_disjoint_and_of_the_stated_sizes() -> None:
    fixed = json.loads(SPLITS_FILE.read_text())
    assert (len(set(fixed["dev"])), len(set(fixed["test"]))) == (128, 200)
    assert not set(fixed["dev"]) & set(fixed["test"])
    assert all(0 <= number <= 2540 for number in fixed["dev"] + fixed["test"])
    # The rule that the file states: no train id has a smaller hash than the largest of the chosen.
    largest = max(rule_hash("test", str(number)) for number in fixed["test"])
    smaller = {n for n in range(2541) if rule_hash("test", str(n)) < largest} - set(fixed["dev"]) - set(fixed["test"])
    assert smaller <= {175}  # the one number that the release lacks


def test_official_ids_have_the_fixed_split(tmp_path: Path) -> None:
    fixed = json.loads(SPLITS_FILE.read_text())
    dev, test = str(fixed["dev"][0]), str(fixed["test"][0])
    train = next(str(n) for n in range(2541) if n not in fixed["dev"] + fixed["test"])
    stated = {dev: "val", test: "train", train: "train"}
    write(
        tmp_path, {key: [utterance(0, "a.", split=own), utterance(1, "b.", split=own)] for key, own in stated.items()}
    )
    assert {d.id: d.split for d in read(tmp_path)[0]} == {
        f"dailytalk-{dev}": "dev",
        f"dailytalk-{test}": "test",
        f"dailytalk-{train}": "train",
    }


def test_stand_in_is_called_so_and_is_divided_80_10_10(tmp_path: Path) -> None:
    root = write(tmp_path, {str(n): PAIR for n in range(40)}, recorded=False)
    (root / "STAND_IN").write_text("not DailyTalk")
    reader = DailyTalk(str(root))
    dialogues = list(reader.dialogues())
    assert reader.name == "dailytalk_stand_in"
    assert all(d.stand_in and d.source == "dailytalk_stand_in" for d in dialogues)
    splits = [d.split for d in dialogues]
    assert [splits.count(name) for name in ("train", "dev", "test")] == [32, 4, 4]


def test_stand_in_keeps_the_splits_that_it_states(tmp_path: Path) -> None:
    stated = ["train", "val", "test"]
    turns = [[utterance(0, "a.", split=own), utterance(1, "b.", split=own)] for own in stated]
    root = write(tmp_path, {str(n): value for n, value in enumerate(turns)}, recorded=False)
    (root / "STAND_IN").write_text("not DailyTalk")
    assert [d.split for d in read(root)[0]] == ["train", "dev", "test"]


def stereo(root: Path, words: list[list], sounding: list[tuple[int, float, float]]) -> list[Dialogue]:
    samples = np.random.default_rng(0).normal(0, 1e-3, (6 * RATE, 2))  # crosstalk and noise on both channels
    for channel, start, end in sounding:
        samples[round(start * RATE) : round(end * RATE), channel] += 0.3
    soundfile.write(root / "7.wav", samples, RATE)
    (root / "7.json").write_text(json.dumps({"alignments": words}))
    (root / "all.jsonl").write_text(json.dumps({"path": "7.wav", "duration": 6.0}) + "\n")
    reader = DailyTalkContiguous(str(root))
    return list(reader.dialogues())


SOUNDING = [(1, 0.5, 1.5), (0, 2.0, 2.5), (1, 3.0, 3.5), (1, 5.7, 5.9)]
SPANS = [("how", 0.5, 1.0), ("are", 1.0, 1.5), ("fine", 2.0, 2.5), ("good", 3.0, 3.5), ("bye", 5.7, 5.9)]


@pytest.mark.parametrize("labelled", [False, True], ids=["by energy", "by label"])
def test_stereo_words_become_turns(tmp_path: Path, labelled: bool) -> None:
    names = ["SPEAKER_OTHER", "SPEAKER_OTHER", "SPEAKER_MAIN", "SPEAKER_OTHER", "SPEAKER_OTHER"]
    tags = names if labelled else ["SPEAKER_MAIN"] * 5
    words = [[word, [start, end], tag] for (word, start, end), tag in zip(SPANS, tags, strict=True)]
    (dialogue,) = stereo(tmp_path, words, SOUNDING)
    assert [(t.speaker, t.text) for t in dialogue.turns] == [
        ("A", "how are"),
        ("B", "fine"),
        ("A", "good"),
        ("A", "bye"),  # after a pause of 2.2 s: a turn of its own
    ]
    assert [t.start_seconds for t in dialogue.turns] == pytest.approx([0.4, 1.9, 2.9, 5.6])
    reader = DailyTalkContiguous(str(tmp_path))
    for turn, (first, last) in zip(dialogue.turns, [(0.5, 1.5), (2.0, 2.5), (3.0, 3.5), (5.7, 5.9)], strict=True):
        wave_N, rate = reader.read(turn)
        assert float((wave_N.abs() > 0.2).sum()) / rate == pytest.approx(last - first, abs=2e-3)  # all of its sound


def test_stereo_with_the_words_of_one_channel_only_is_told(tmp_path: Path) -> None:
    words = [[word, [start, end], "SPEAKER_MAIN"] for word, start, end in SPANS[:2]]
    assert stereo(tmp_path, words, SOUNDING) == []
    reader = DailyTalkContiguous(str(tmp_path))
    assert list(reader.dialogues()) == [] and "fewer than two speakers" in reader.issues[0]


@pytest.mark.parametrize(
    "entry", [["a"], ["a", [1], "S"], ["a", [2, 1], "S"], ["a", ["x", 1], "S"], [3, [0, 1], "S"], 5]
)
def test_malformed_alignment_is_told_with_its_number(tmp_path: Path, entry: object) -> None:
    assert stereo(tmp_path, [["ok", [0.5, 1.0], "SPEAKER_MAIN"], entry], SOUNDING) == []
    reader = DailyTalkContiguous(str(tmp_path))
    list(reader.dialogues())
    assert any("7.json: alignments[1]" in issue for issue in reader.issues)
