"""Scripts from files: both forms, which request gets which script, and errors that name line or entry."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omnichat.schema import Style
from omnichat.synthesis.base import Rejected, Script, ScriptRequest, script_problems
from omnichat.synthesis.writers.script_file import ScriptFileWriter
from omnichat.utils.errors import UserError
from tests.helpers.scripts import OWL, STYLES, grammar, request

# Written for this test in the shape of VoxDialogue's script files.
VOX: dict[str, Any] = {
    "history_turns": [
        "A (female, neutral, normal, normal): The boiler has been making a noise since Monday.",
        "B (male, surprised, fast, high): Since Monday: and nobody called anyone?",
        "A (female, sad, slow, low): I kept hoping that it would stop.",
        "B (male, neutral, normal, low): They never do that.",
    ],
    "current_turn": "A: The plumber has just been here.",
    "current_turn_style_1": "(female,  happy,  fast,  high)",
    "current_turn_style_2": "(female, scared, slow, low)",
    "current_turn_style_3": "(female, neutral, normal, normal)",
    "response_of_current_style_1": "B (male, happy, fast, high): Then it is mended, how wonderful!",
    "response_of_current_style_2": "B (male, fearful, slow, low): What did he say, is it as bad as that?",
    "response_of_current_style_3": "B (male, neutral, normal, normal): And what is his bill?",
    "aspect_list": "Broken boiler",
}
OWN: dict[str, Any] = {
    "scenario": "audio",
    "split": "train",
    "topic": "a night walk",
    "sound": {"caption": "an owl hooting", "keywords": ["owl"]},
    "history": [
        {"speaker": "A", "text": "It has grown quite dark.", "emotion": "fearful"},
        {"speaker": "B", "text": "We are nearly home.", "pitch": "medium", "speed": None},
    ],
    "current": "Did you hear that?",
    "variants": [
        {"style": {"emotion": "fearful"}, "reply": {"text": "It is only an owl."}},
        {"style": {"emotion": "happy", "pitch": "high"}, "reply": {"text": "An owl, how lovely!", "emotion": "happy"}},
    ],
}
VOX_STYLES = (Style("high", "fast", "happy"), Style("low", "slow", "fearful"), Style("normal", "normal", "neutral"))


def write(folder: Path, value: Any, name: str = "scripts.json") -> Path:
    path = folder / name
    if isinstance(value, bytes):
        path.write_bytes(value)
    elif name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in value))
    else:
        path.write_text(json.dumps(value))
    return path


def writer(path: Path, **changed: Any) -> ScriptFileWriter:
    settings = {
        "licence": "test",
        "scenario": "emotion",
        "on_bad_entry": "raise",
        "split_shares": {"train": 1.0},
        "max_words": 14,
    }
    return ScriptFileWriter(str(path), **{**settings, **changed})


@pytest.mark.parametrize("form", ["list", "by topic", "lines", "one", "spaced key"])
def test_every_published_form_gives_the_same_script(form: str, tmp_path: Path) -> None:
    bare = {key: value for key, value in VOX.items() if key != "aspect_list"}
    value, name = {
        "list": ([VOX], "x.json"),
        "by topic": ({"Broken boiler": bare}, "x.json"),
        "lines": ([VOX], "x.jsonl"),
        "one": (VOX, "x.json"),
        "spaced key": ([{("history turns" if k == "history_turns" else k): v for k, v in VOX.items()}], "x.json"),
    }[form]
    (asked,) = writer(write(tmp_path, value, name)).offers("emotion", "train")
    assert (asked.history_turns, asked.styles, asked.topic) == (4, VOX_STYLES, "Broken boiler")
    script = writer(write(tmp_path, value, name)).write(asked)
    assert script_problems(script, asked, 14) == []
    assert script.history[1].text == "Since Monday: and nobody called anyone?"
    assert script.history[1].style == Style("high", "fast", "surprised")
    assert script.current == "The plumber has just been here."
    assert script.variants[1].reply.text == "What did he say, is it as bad as that?"


def test_a_file_that_says_loud_has_volumes_where_others_have_pitches(tmp_path: Path) -> None:
    loud = copy.deepcopy(VOX) | {"current_turn_style_1": "(female, happy, fast, loud)"}
    one, two = writer(write(tmp_path, [VOX, loud])).offers("emotion", "train")
    assert [style.pitch for style in one.styles + two.styles] == ["normal"] * 6
    assert [style.speed for style in two.styles] == ["fast", "slow", "normal"]


def test_the_plan_s_styles_are_met_by_the_replies_of_their_emotions(tmp_path: Path) -> None:
    path = write(tmp_path, [VOX])
    styles = (Style("low", "normal", "neutral"), Style("normal", "fast", "happy"))
    script = writer(path).write(request(3, turns=2, styles=styles))
    assert [variant.style for variant in script.variants] == list(styles)
    assert [variant.reply.text for variant in script.variants] == [
        "And what is his bill?",
        "Then it is mended, how wonderful!",
    ]
    assert [line.text for line in script.history] == ["I kept hoping that it would stop.", "They never do that."]
    for unfit in (request(3, turns=6, styles=styles), request(3), request(3, split="dev", styles=styles)):
        assert list(writer(path).write_batch([unfit], None)) == [Rejected(("no script of the file fits",))]
    with pytest.raises(UserError, match=r"scripts.json: no script of the file fits"):
        writer(path).write(request(3))


def test_sounds_are_met_by_replies_that_name_them(tmp_path: Path) -> None:
    source = writer(write(tmp_path, [OWN], "own.jsonl"))
    styles = (Style("low", "slow", "happy"), Style("low", "slow", "fearful"))
    script = source.write(ScriptRequest("audio", "train", 0, 2, styles, OWL))
    assert script.sound == OWL and [v.reply.text for v in script.variants] == [
        "An owl, how lovely!",
        "It is only an owl.",
    ]
    assert script.history[1].style == Style("normal", "normal", "neutral")
    assert source.offers("audio", "train")[0].sound is not None and not source.offers("emotion", "train")


def entries(count: int) -> list[dict[str, Any]]:
    return [
        {**VOX, "current_turn": f"A: This is plumber number {n}.", "aspect_list": f"Topic {n}"} for n in range(count)
    ]


def test_each_script_is_given_once_in_an_order_that_repeats(tmp_path: Path) -> None:
    path = write(tmp_path, entries(20))
    asked = [request(seed, styles=VOX_STYLES) for seed in range(21)]
    got = list(writer(path).write_batch(asked, tmp_path))
    assert len({script.current for script in got[:20] if isinstance(script, Script)}) == 20
    assert got[20] == Rejected(("every fitting script of the file is used",))
    source = writer(path)
    assert list(source.write_batch(asked, None)) == got == list(source.write_batch(asked, None))
    assert [one.current for one in got[:20] if isinstance(one, Script)] != [
        f"This is plumber number {n}." for n in range(20)
    ]
    named = writer(path).write(request(0, styles=VOX_STYLES, topic="Topic 7"))
    assert named.current == "This is plumber number 7."


def test_every_entry_answers_its_own_request(tmp_path: Path) -> None:
    rows = entries(12)
    for number, row in enumerate(rows):
        row["current_turn_style_1"] = f"(female, {('happy', 'sad', 'angry')[number % 3]}, fast, high)"
    source = writer(write(tmp_path, rows))
    asked = source.offers("emotion", "train")
    got = list(source.write_batch(asked, None))
    assert [one.topic for one in got if isinstance(one, Script)] == [f"Topic {n}" for n in range(12)]


def test_splits_follow_the_topic(tmp_path: Path) -> None:
    shares = {"train": 0.6, "dev": 0.2, "test": 0.2}
    source = writer(write(tmp_path, [*entries(200), *entries(200)]), split_shares=shares)
    topics = {split: {one.topic for one in source.offers("emotion", split)} for split in shares}
    assert sum(len(some) for some in topics.values()) == 200 == len(set.union(*topics.values()))
    assert 90 < len(topics["train"]) < 150 and min(len(topics["dev"]), len(topics["test"])) > 20


def test_long_sentences_are_counted_and_not_passed_on(tmp_path: Path) -> None:
    long = {**VOX, "current_turn": "A: " + "so " * 20}
    got = list(writer(write(tmp_path, [long])).write_batch([request(0, styles=VOX_STYLES)], None))
    assert got == [Rejected(("a sentence of more than 14 words",))]


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in VOX.items() if name != key}


BAD: list[tuple[Any, str, str]] = [
    (b"\xff\xfe", "x.json", r"x.json: not UTF-8 \(byte 0\)"),
    (b"{", "x.json", r"x.json: not readable as JSON: .*\(column 2\)"),
    (b"[\n{,}\n]", "x.json", r"x.json: not readable as JSON: .*\(line 2, column 2\)"),
    (b"[" * 100_000, "x.json", r"x.json: not readable as JSON: RecursionError"),
    (b"{}\n{]\n", "x.jsonl", r"x.jsonl:1: lacks|x.jsonl:2: not readable as JSON"),
    ([OWN, 3], "x.jsonl", r"x.jsonl:2: expected a JSON object, got int"),
    (b"3", "x.json", r"x.json: expected a list or an object of scripts, got int"),
    ([], "x.json", r"x.json: holds no usable script"),
    ([VOX, []], "x.json", r"x.json: entry 1: expected a JSON object, got list"),
    ([VOX, without("current_turn")], "x.json", r"entry 1: no current_turn: its variants differ in words"),
    ([without("response_of_current_style_2")], "x.json", r"entry 0: lacks response_of_current_style_2"),
    ([without("current_turn_style_1")], "x.json", r"entry 0: lacks current_turn_style_1"),
    ([{**VOX, "current_turn": "B: No."}], "x.json", r"entry 0: current_turn is not A's"),
    ([{**VOX, "current_turn_style_2": "(female, hangry)"}], "x.json", r"entry 0: an emotion that is not known"),
    ([{**VOX, "history_turns": "x"}], "x.json", r"entry 0: history_turns must be a list"),
    ([{**VOX, "history_turns": [3]}], "x.json", r"entry 0: a turn must be like"),
    ([{**VOX, "history_turns": VOX["history_turns"][1:]}], "x.json", r"entry 0: the history does not alternate A, B"),
    ([{**VOX, "history_turns": VOX["history_turns"][:3]}], "x.json", r"entry 0: the history does not alternate A, B"),
    ([{**VOX, "scenario": "daily"}], "x.json", r"entry 0: scenario must be one of: emotion, audio, music"),
    ([{**VOX, "aspect_list": {}}], "x.json", r"entry 0: aspect_list must be text"),
    ([{**VOX, "current_turn": "A: \U0001f600"}], "x.json", r"entry 0: a character that cannot be spoken"),
    ([{**OWN, "mood": 1}], "x.jsonl", r"x.jsonl:1: the script has the unknown field 'mood'; known: scenario"),
    ([{**OWN, "split": "all"}], "x.jsonl", r"x.jsonl:1: split must be one of: train, dev, test"),
    ([{**OWN, "variants": []}], "x.jsonl", r"x.jsonl:1: has no variants"),
    ([{**OWN, "variants": [{"style": {}}]}], "x.jsonl", r"x.jsonl:1: a variant must have a style and a reply"),
    (
        [{**OWN, "variants": [{"style": {"pitch": "odd"}, "reply": {"text": "x"}}]}],
        "x.jsonl",
        r":1: pitch must be one of",
    ),
    ([{**OWN, "sound": {"caption": "x"}}], "x.jsonl", r":1: sound must have a caption and keywords"),
    ([{**OWN, "history": [{"text": "x"}]}], "x.jsonl", r":1: a turn has another speaker than A or B"),
    ([{**OWN, "current": ""}], "x.jsonl", r":1: an empty sentence"),
]


@pytest.mark.parametrize(("value", "name", "message"), BAD)
def test_malformed_files_are_named_by_line_or_entry(value: Any, name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message) as error:
        writer(write(tmp_path, value, name))
    assert "\n" not in str(error.value)


def test_bad_entries_can_be_skipped_and_are_counted(tmp_path: Path) -> None:
    source = writer(write(tmp_path, [VOX, without("current_turn"), VOX]), on_bad_entry="skip")
    assert source.describe()["scripts"] == 2 and source.describe()["skipped"] == 1
    with pytest.raises(UserError, match=r"holds no usable script \(1 skipped\)"):
        writer(write(tmp_path, [without("current_turn")]), on_bad_entry="skip")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"scenario": "daily"}, "scenario='daily'"),
        ({"on_bad_entry": "ignore"}, "on_bad_entry='ignore'"),
        ({"split_shares": {"train": 0.5}}, r"split_shares must sum to 1, got 0\.5"),
        ({"split_shares": {"all": 1.0}}, "split_shares='all'"),
        ({"split_shares": {"train": 2.0, "dev": -1.0}}, r"split_shares\.dev must be >= 0"),
    ],
)
def test_settings_are_checked(changed: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        writer(write(tmp_path, [VOX]), **changed)
    with pytest.raises(UserError, match=r"writer.path: .*: no such file"):
        writer(tmp_path / "none.json")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
fuzz = settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@fuzz
@given(data=st.data())
def test_any_damage_gives_scripts_or_a_named_error(data: st.DataObject, tmp_path: Path) -> None:
    value: Any = copy.deepcopy([VOX, OWN])
    node = value
    while isinstance(node, dict | list) and node:
        key = data.draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
        if not isinstance(node[key], dict | list) or data.draw(st.booleans()):
            node[key] = data.draw(JSON)
            break
        node = node[key]
    name = data.draw(st.sampled_from(["x.json", "x.jsonl"]))
    _loads_or_names(write(tmp_path, value, name))


@fuzz
@given(raw=st.binary(max_size=60) | st.text(max_size=60).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_give_scripts_or_a_named_error(raw: bytes, tmp_path: Path) -> None:
    for name in ("x.json", "x.jsonl"):
        _loads_or_names(write(tmp_path, raw, name))


def _loads_or_names(path: Path) -> None:
    try:
        source = writer(path)
    except UserError as error:
        assert str(path) in str(error) and "\n" not in str(error)
        return
    for scenario in ("emotion", "audio", "music"):
        for asked in source.offers(scenario, "train"):
            for got in source.write_batch([asked], None):
                assert isinstance(got, Rejected) or script_problems(got, asked, 14) == []


def test_the_grammar_takes_a_topic_of_its_own_split_only() -> None:
    own = grammar().words["topics"]["dev"][3]
    assert grammar().write(request(0, split="dev", topic=own)).topic == own
    plain = grammar().write(request(0, split="train", styles=STYLES))
    assert grammar().write(request(0, split="train", styles=STYLES, topic=own)) == plain


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda row: row.update(scenario="emotion"), "a script of scenario emotion has a sound"),
        (lambda row: row["variants"][1].update(style={"emotion": "fearful", "pitch": "normal"}),
         "two variants have the same style"),
    ],
)  # fmt: skip
def test_what_no_corpus_can_hold_is_named_where_it_stands(change: Any, reason: str, tmp_path: Path) -> None:
    row = copy.deepcopy(OWN)
    change(row)
    with pytest.raises(UserError, match=rf"x\.jsonl:2: {reason}"):
        writer(write(tmp_path, [OWN, row], "x.jsonl"))
    assert writer(write(tmp_path, [OWN, row], "x.jsonl"), on_bad_entry="skip").skipped == {reason: 1}


@pytest.mark.parametrize(
    ("text", "reason"),
    [("=cmd|'/C calc'!A0", "a bracket in a sentence"), ("d" + "o" * 100 + "g", "a word of more than 60 letters")],
)
def test_a_sentence_that_no_one_says_is_rejected(text: str, reason: str, tmp_path: Path) -> None:
    made = writer(write(tmp_path, [{**OWN, "current": text}], "x.jsonl"))
    assert next(made.write_batch(made.offers("audio", "train"), None)) == Rejected((reason,))
