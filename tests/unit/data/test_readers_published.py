"""VoxDialogue, StyleTalk and data sets by their columns: the published shapes, and what is made of them."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from omnichat.data.labels import label_of, split_by, style_of
from omnichat.data.readers.huggingface import HuggingFace
from omnichat.data.readers.styletalk import COLUMNS, StyleTalk
from omnichat.data.readers.voxdialogue import VoxDialogue
from omnichat.schema import Dialogue, Style
from omnichat.utils.errors import UserError
from tests.helpers.layouts import build, make_styletalk, make_voxdialogue, script


def scripts(folder: Path, value: Any, **settings: Any) -> tuple[list[Dialogue], list[str]]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "0.json").write_text(json.dumps(value))
    reader = VoxDialogue(str(folder), **settings)
    return list(reader.dialogues()), reader.issues


def test_a_script_gives_a_dialogue_for_each_style(tmp_path: Path) -> None:
    found, issues = scripts(tmp_path / "emotion", [script("the sea")])
    assert issues == [] and [d.id for d in found] == [f"voxdialogue-0-0-v{n}" for n in range(3)]
    assert {d.topic for d in found} == {"the sea"} and {d.split for d in found} == {"test"}
    first = found[0]
    assert [(t.speaker, t.text) for t in first.turns] == [
        ("A", "I went to the sea."),
        ("B", "Did you like it?"),
        ("A", "It was: something."),
        ("B", "How lovely!"),
    ]
    assert [d.turns[2].style for d in found] == [
        Style("high", "fast", "happy"),
        Style("low", "slow", "sad"),
        Style("normal", "normal", "happy"),  # "excited"
    ]
    assert len({d.turns[2].variant_of for d in found}) == 1 and first.turns[2].variant_of is not None
    assert (first.speakers["A"].gender, first.speakers["B"].gender) == ("female", "male")


def test_volume_in_the_fourth_place_is_not_taken_for_pitch(tmp_path: Path) -> None:
    value = [script("the sea", fourth=("loud", "low"))]
    assert {t.style.pitch for d in scripts(tmp_path / "a", value)[0] for t in d.turns} == {None}
    open_ones = [script("the sea", fourth=("normal", "low"))]
    assert {t.style.pitch for d in scripts(tmp_path / "b", open_ones)[0] for t in d.turns} == {None}
    told = scripts(tmp_path / "c", open_ones, fourth="pitch")[0]
    assert {t.style.pitch for d in told for t in d.turns} == {"normal", "low"}


def test_ages_and_third_places_that_tell_nothing_are_left_open(tmp_path: Path) -> None:
    value = script("shops")
    for key, text in value.items():
        if isinstance(text, str):
            value[key] = re.sub(r"(,\s*\w+)(,\s*\w+){2}\)", r"\1, 75)", text)
    value["history_turns"] = ["A (male, happy, 75): Back then.", "B (female, calm, 20): Really?"]
    found, issues = scripts(tmp_path, [value])
    assert {t.style.speed for d in found for t in d.turns} == {None} == {t.style.pitch for d in found for t in d.turns}
    assert found[0].turns[1].style.emotion == "neutral" and issues == []


def test_marks_of_delivery_are_no_words_and_words_that_differ_are_no_variants(tmp_path: Path) -> None:
    build("voxdialogue_scripts", tmp_path / "raw")
    reader = VoxDialogue(str(tmp_path / "raw"))
    stress = [d for d in reader.dialogues() if "stress" in d.id]
    assert [d.turns[2].text for d in stress] == ["I won.", "I won.", "I won."]
    assert all(d.turns[2].style == Style(emotion="happy") for d in stress)
    assert all(d.turns[2].variant_of is None for d in stress), "the stress is no style of the schema"
    value = script("a game")
    value["current_turn_style_1"] = "A (female, happy) One."
    found, _ = scripts(tmp_path / "other", value)
    assert found[0].turns[2].variant_of is None and found[1].turns[2].variant_of is not None


def test_background_folders_make_scenes(tmp_path: Path) -> None:
    audio, _ = scripts(tmp_path / "audio", [script("a dog barks")])
    music, _ = scripts(tmp_path / "music", [script("sad piano")])
    assert audio[0].scenario == "audio" and audio[0].scene is not None and audio[0].scene.caption == "a dog barks"
    assert music[0].scenario == "music" and music[0].scene is not None and music[0].scene.placement == "loop"


def test_a_broken_script_is_counted_and_the_others_are_read(tmp_path: Path) -> None:
    bad = script("a city")
    bad["response_of_current_style_2"] = "Absolutely, no speaker here"
    found, issues = scripts(tmp_path, [bad, script("the sea"), bad])
    assert len(found) == 3
    assert issues == [
        f"{tmp_path / '0.json'}: entry 0: skipped, response_of_current_style_2 is not 'A (attributes): words'"
        " (and 1 times more)"
    ]


def test_the_spoken_benchmark_is_read_once_with_its_recordings(tmp_path: Path) -> None:
    make_voxdialogue(tmp_path)
    reader = VoxDialogue(str(tmp_path), split="hash")
    found = list(reader.dialogues())
    assert len(found) == 4 and all(t.audio is not None for d in found for t in d.turns)
    assert found[0].turns[0].style == Style("low", "fast", "sad") and found[0].topic == "Lost Keys"
    assert len({d.split for d in found if d.topic == "Rain"}) == 1, "a topic is in one split"
    (tmp_path / "emotion" / "Rain" / "dialog_00001_000" / "002.wav").unlink()
    assert sum(t.audio is None for d in reader.dialogues() for t in d.turns) == 1
    assert "Rain" in reader.issues[0] and "no such recording, its words are kept" in reader.issues[0]


def test_how_the_user_spoke_is_kept_as_attributes(tmp_path: Path) -> None:
    quiet = scripts(tmp_path / "volume", [script("the sea", fourth=("loud", "quiet"))])[0]
    assert [d.attributes for d in quiet[:2]] == [
        {"gender": "female", "emotion": "happy", "speed": "fast", "volume": "loud", "subset": "volume"},
        {"gender": "female", "emotion": "sad", "speed": "slow", "volume": "quiet", "subset": "volume"},
    ]
    value = script("shops")
    for number, age in enumerate(("75", "20", "8"), start=1):
        value[f"current_turn_style_{number}"] = f"(male, excited, {age})"
    old = scripts(tmp_path / "all" / "age", [value])[0]
    assert [d.attributes["age"] for d in old] == ["75", "20", "8"] and old[0].attributes["emotion"] == "happy"
    assert VoxDialogue(str(tmp_path / "all")).dialogues().__next__().attributes["subset"] == "age"
    make_voxdialogue(tmp_path / "spoken")
    found = next(VoxDialogue(str(tmp_path / "spoken")).dialogues())
    assert found.attributes == {
        "gender": "female",
        "pitch": "low",
        "speed": "fast",
        "emotion": "angry",
        "subset": "emotion",
    }


def test_styletalk_as_published(tmp_path: Path) -> None:
    make_styletalk(tmp_path)
    reader = StyleTalk(str(tmp_path))
    found = list(reader.dialogues())
    assert reader.issues == [] and Counter(d.split for d in found) == {"train": 4, "test": 2}
    first, second = found[:2]
    assert [(t.speaker, t.text) for t in first.turns] == [
        ("B", "Have you been to health_3?"),
        ("A", "Yes, last week."),
        ("B", "How was it?"),
        ("A", "It was, well, as ever."),
        ("B", "So it goes, 0."),
    ]
    assert first.turns[3].style == Style(speed="fast", emotion="angry") and first.topic == "health"
    assert second.turns[4].style == Style(speed="normal", emotion="happy")  # "friendly"
    assert first.turns[3].variant_of == second.turns[3].variant_of is not None
    assert [t.audio is not None for t in first.turns] == [False, False, False, True, True]


def test_styletalk_columns_and_labels_are_the_user_s(tmp_path: Path) -> None:
    with open(tmp_path / "talks.csv", "w", newline="") as handle:
        rows = [["key", "before", "now", "then", "mood"], ["k1", "A: Hello. B: Hi.", "A: Well?", "Fine.", "Grumpy"]]
        csv.writer(handle).writerows(rows)
    columns = dict.fromkeys(COLUMNS) | {"id": "key", "context": "before", "current": "now", "response": "then"}
    settings: dict[str, Any] = {"files": {"dev": "talks.csv"}, "columns": columns | {"current_emotion": "mood"}}
    reader = StyleTalk(str(tmp_path), **settings, labels={})
    (found,) = reader.dialogues()
    assert found.split == "dev" and found.turns[2].style == Style()
    assert reader.issues == [f"{tmp_path / 'talks.csv'}:2: emotion 'Grumpy' is no label, left open"]
    (found,) = StyleTalk(str(tmp_path), **settings, labels={"emotion": {"grumpy": "angry"}}).dialogues()
    assert found.turns[2].style.emotion == "angry" and [t.speaker for t in found.turns] == ["A", "B", "A", "B"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("diag_id,context,curr_text\n", r"train\.csv:1: lacks the column 'res_text'"),
        ("", r"train\.csv:1: must hold the names"),
        ("diag_id,context,curr_text,res_text\na,b\n", r"train\.csv:2: has 2 cells, the line of names has 4"),
        ('diag_id,context,curr_text,res_text\na,b,c,d\na,"b\n', r"train\.csv:\d: not readable as CSV"),
        ("diag_id,context,curr_text,res_text\na,b,c,\udcff\n", r"train\.csv:2: holds bytes that are not UTF-8"),
    ],
)
def test_a_wrong_table_is_told_by_file_and_line(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "train.csv").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(UserError, match=told):
        list(StyleTalk(str(tmp_path)).dialogues())


def test_the_three_layouts_of_columns_tell_the_same_dialogues(tmp_path: Path) -> None:
    found = {}
    for name in ("hf_saved", "hf_turns", "hf_lists"):
        reader = build(name, tmp_path / name)
        found[name] = {d.turns[0].text: d for d in reader.dialogues()}
    saved, turns, lists = (found[name]["Is it 0?"] for name in found)
    for one in (saved, turns, lists):
        assert [(t.speaker, t.text) for t in one.turns] == [("A", "Is it 0?"), ("B", "It may be."), ("A", "Oh well.")]
        assert [t.style.speed for t in one.turns] == ["fast", "slow", "normal"]
        assert one.topic == "number"
    assert [t.style.emotion for t in saved.turns] == ["happy", "neutral", None]  # class labels by name; "meh" is open
    assert [t.style for t in turns.turns] == [t.style for t in saved.turns]
    assert {d.split for d in found["hf_saved"].values()} == {"train", "dev"}
    assert [t.seconds for t in saved.turns] == [t.seconds for t in lists.turns]


def test_a_row_of_a_question_and_its_answers_is_an_exchange(tmp_path: Path) -> None:
    reader = build("hf_questions", tmp_path / "asked")
    found = list(reader.dialogues())
    assert len(found) == 4 and reader.issues == [] and {d.split for d in found} == {"test"}
    for number, dialogue in enumerate(found):
        question, answer = dialogue.turns
        assert (question.speaker, question.text) == ("A", f"What follows after {number}?")
        assert (answer.speaker, answer.text) == ("B", f"That makes {number + 1} apples."), "the first that has words"
        assert question.audio is not None and (answer.audio is not None) == bool(number % 2)
        assert not question.style and not answer.style and dialogue.topic == "apples"
    spoken = found[1].turns
    assert not torch.equal(reader.read(spoken[0])[0][:100], reader.read(spoken[1])[0][:100])


def test_answers_of_other_forms(tmp_path: Path) -> None:
    columns = {"text": "q", "answer": "a"}
    rows = [{"q": "Is it?", "a": answer} for answer in ("Yes.", 4, ["One.", "1"], [], None)]
    found, issues = talks(tmp_path, rows, shape="exchange", columns=columns)
    assert [d.turns[1].text for d in found] == ["Yes.", "4", "One."]
    assert len(issues) == 2 and all("1 times more" in issue for issue in issues), issues


def talks(folder: Path, rows: list[dict[str, Any]], **settings: Any) -> tuple[list[Dialogue], list[str]]:
    folder.mkdir(exist_ok=True)
    (folder / "talks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    reader = HuggingFace(str(folder), **settings)
    return list(reader.dialogues()), reader.issues


CHAT = [
    {"role": "system", "text": "Be kind."},
    {"role": "user", "text": "Hi."},
    {"role": "assistant", "text": "Hello."},
]


def test_roles_by_name_by_order_and_by_turns(tmp_path: Path) -> None:
    columns = {"turns": "turns", "text": "text", "speaker": "role"}
    found, issues = talks(tmp_path, [{"turns": CHAT}], columns=columns)
    assert [(t.speaker, t.text) for t in found[0].turns] == [("A", "Hi."), ("B", "Hello.")] and issues == []
    named, _ = talks(tmp_path, [{"turns": CHAT}], columns=columns, speakers={"A": ["assistant"], "B": ["User"]})
    assert [t.speaker for t in named[0].turns] == ["B", "A"]
    _, issues = talks(tmp_path, [{"turns": CHAT}], columns=columns, ignore=[])
    assert issues == [f"{tmp_path / 'talks.jsonl'}:1: skipped, 'assistant' is a third speaker"]
    alternating, _ = talks(tmp_path, [{"turns": CHAT}])
    assert [t.speaker for t in alternating[0].turns] == ["A", "B", "A"]


def test_splits_by_column_by_file_and_by_hash(tmp_path: Path) -> None:
    columns = {"turns": "turns", "text": "text", "speaker": "role", "split": "part", "dialogue": "id"}
    rows = [{"id": n, "part": part, "turns": CHAT} for n, part in enumerate(("validation", "TEST", "odd"))]
    found, issues = talks(tmp_path, rows, columns=columns, split="train")
    assert [d.split for d in found] == ["dev", "test", "train"] and "none of source.splits" in issues[0]
    hashed, _ = talks(tmp_path, [{"id": n, "part": None, "turns": CHAT} for n in range(200)], columns=columns)
    counts = Counter(d.split for d in hashed)
    assert counts["train"] > 120 and counts["dev"] and counts["test"]
    assert split_by("hash", "x", "y") == split_by("hash", "x", "y")


def test_a_column_that_is_not_there_is_named_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"source\.columns\.turns='turn' is not valid \(did you mean 'turns'\?\)"):
        talks(tmp_path, [{"turns": CHAT}], columns={"turns": "turn", "text": "text"})


def test_an_id_given_twice_is_told_with_both_places(tmp_path: Path) -> None:
    row = {"id": "a", "turns": CHAT}
    columns = {"turns": "turns", "text": "text", "speaker": "role", "dialogue": "id"}
    with pytest.raises(UserError, match=r"talks\.jsonl:2: the id 'dialogues-a' was already given at .*talks\.jsonl:1"):
        talks(tmp_path, [row, row], columns=columns)


def test_a_recording_outside_the_folder_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret.wav").write_bytes(b"RIFF")
    rows = [{"turns": [{**turn, "wav": "../secret.wav"} for turn in CHAT]}]
    columns = {"turns": "turns", "text": "text", "speaker": "role", "audio": "wav"}
    found, issues = talks(tmp_path / "in", rows, columns=columns)
    assert all(t.audio is None for t in found[0].turns) and "stay inside it" in issues[0]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"shape": "turns"}, r"source\.shape='turns' is not valid \(did you mean 'turn'"),
        ({"shape": "turn"}, r"source\.columns\.dialogue must name a column"),
        ({"shape": "exchange"}, r"source\.columns\.answer must name a column"),
        ({"columns": {"text": "text", "answer": "a"}}, r"source\.columns\.answer belongs to source\.shape=exchange"),
        ({"labels": {"mood": {}}}, r"mood='mood' is not|source\.labels='mood' is not valid"),
        ({"labels": {"emotion": {"x": "glad"}}}, r"source\.labels\.emotion\.x='glad'"),
        ({"splits": {"train": "training"}}, r"source\.splits\.train='training'"),
        ({"files": {"train": "*.wav"}}, r"source\.files\.train='\*\.wav' finds no file"),
        ({"files": {"train": "../*"}}, r"source\.files\.train: .*stay inside"),
        ({"split": "most"}, r"source\.split='most'"),
        ({"speakers": {"C": []}}, r"source\.speakers='C'"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, settings: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        talks(tmp_path, [{"turns": CHAT}], **settings)


def test_a_data_set_of_the_hub_is_asked_for_by_its_id_alone(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"hub:='\.\./x' is no id of the hub"):
        HuggingFace("hub:../x")
    with pytest.raises(UserError, match=r"some/talks-that-are-not-here: the hub cannot be reached"):
        HuggingFace("hub:some/talks-that-are-not-here")


def test_labels_synonyms_and_the_user_s_map() -> None:
    assert label_of("emotion", "Excited", {}) == ("happy", True)
    assert label_of("emotion", "no_emotion", {}) == ("neutral", True)
    assert label_of("emotion", "happy", {"emotion": {"Happy": "sad"}}) == ("sad", True), "the user's word comes first"
    assert label_of("emotion", 3, {"emotion": {"3": "angry"}}) == ("angry", True)
    assert label_of("emotion", "zzz", {}) == (None, False) and label_of("emotion", None, {}) == (None, True)
    assert style_of({"speed": "quickly", "pitch": ["x"]}, {}) == (Style(speed="fast"), ["pitch \"['x']\""])
