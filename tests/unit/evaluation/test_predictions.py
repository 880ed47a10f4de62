"""The predictions file: what is written is read back, and every mistake names file, line and field."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnichat.evaluation.predictions import (
    Heard,
    Line,
    Prediction,
    Reply,
    prediction_from_json,
    prediction_of,
    prediction_to_json,
    read_predictions,
    write_predictions,
)
from omnichat.schema import Dialogue, Scene, Style, Turn
from omnichat.text.style_format import format_reply
from omnichat.utils.errors import UserError
from tests.unit.evaluation.builders import build

Make = Callable[..., Prediction]


def test_written_predictions_are_read_back_equal(tmp_path: Path, make: Make) -> None:
    rows = (
        make("a", got=None, variant_of="g"),
        make("b", 3, keywords=("dog",), scenario="audio", stand_in=True),
        make("e", attributes={"age": "65", "gender": "female"}),
        make("c", wanted=None, attention=((0.2, 0.8), (1.0, 0.0)), experts=("w", "b"), window_sec=0.34, audio_file="x"),
    )
    write_predictions(tmp_path / "test.jsonl", rows)
    assert read_predictions(tmp_path / "test.jsonl") == rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "tset"}, "split='tset' is not valid (did you mean 'test'?)"),
        ({"id": "d1#2"}, "id must be d1#1"),
        ({"turn": True}, "turn must be of type int"),
        ({"extra": 1}, "prediction field='extra'"),
        ({"raw": None}, "raw must be of type str"),
        ({"hypothesis": {"text": "x", "style": {"emotion": "joyful"}}}, "style.emotion='joyful'"),
        ({"hypothesis": {"text": "x", "style": {"emotion": ["sad"]}}}, "emotion"),
        ({"reference": {"text": "x", "style": None}}, "reference.style must be an object"),
        ({"history": [{"speaker": "C", "text": "x"}]}, "history[0].speaker='C'"),
        ({"heard": {"text": "x", "style": {}}}, "heard lacks the field 'scene'"),
        ({"attention": [[0.1, 0.9]], "experts": ["one"], "window_sec": 0.3}, "attention must hold 1 numbers"),
        ({"attention": [["a"]], "experts": ["one"], "window_sec": 0.3}, "list of lists of numbers"),
        ({"attributes": ["x"]}, "attributes must be of type dict"),
        ({"attributes": {"Age": "65"}}, "attributes: name 'Age' must be of a-z"),
        ({"attributes": {"age": 65}}, "attributes.age must be a line of 1 to 100 characters"),
        ({"attention": [[1.0]]}, "experts must be of type list"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, make: Make, change: dict, message: str) -> None:
    path = tmp_path / "test.jsonl"
    good = prediction_to_json(make("d0"))
    bad = prediction_to_json(make("d1")) | change
    path.write_text("\n".join([json.dumps(good), json.dumps(bad), ""]))
    with pytest.raises(UserError) as error:
        read_predictions(path)
    assert str(error.value).startswith(f"{path}:2: ") and message in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_empty_and_double(tmp_path: Path, make: Make) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_predictions(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(UserError, match="holds no predictions"):
        read_predictions(tmp_path / "empty.jsonl")
    write_predictions(tmp_path / "two.jsonl", [make(), make()])
    with pytest.raises(UserError, match=r"two.jsonl:2: id 'd1#1' of source 'toy' appears twice"):
        read_predictions(tmp_path / "two.jsonl")
    write_predictions(tmp_path / "ok.jsonl", [make(), make(source="other")])
    assert [row.key for row in read_predictions(tmp_path / "ok.jsonl")] == ["toy/d1#1", "other/d1#1"]


def test_files_without_attributes_are_read_and_written_as_before(make: Make) -> None:
    row = prediction_to_json(make())
    assert "attributes" not in row and prediction_from_json(row).attributes == {}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_json_in_any_field_is_read_or_refused_in_one_line(data: st.DataObject) -> None:
    row = prediction_to_json(build(attention=((1.0,),), experts=("w",), window_sec=0.3, keywords=("x",)))
    row["attributes"] = {"age": "65"}
    row[data.draw(st.sampled_from(sorted(row)))] = data.draw(json_values)
    try:
        assert isinstance(prediction_from_json(row), Prediction)
    except UserError as error:
        assert "\n" not in str(error)


def test_a_reply_stands_beside_all_that_its_dialogue_says() -> None:
    turns = (
        Turn("A", "Hi.", Style("low", "slow", "sad")),
        Turn("B", "Hello.", Style("high", "fast", "happy")),
        Turn("A", "Look.", Style("normal", "slow", "neutral"), variant_of="d0"),
        Turn("B", "Where?", Style("low", "fast", "surprised")),
    )
    dialogue = Dialogue(
        "d", "there", "synthetic", "audio", "test", turns, scene=Scene("rain"), attributes={"age": "65"}, stand_in=True
    )
    raw = "".join(format_reply(Style("high", "slow", "sad"), "Oh no."))
    made = prediction_of(dialogue, 3, "corpus", raw, "asr", audio_file="a.wav")
    assert made == Prediction(
        id="d#3",
        dialogue="d",
        turn=3,
        source="corpus",
        kind="synthetic",
        scenario="audio",
        split="test",
        stand_in=True,
        history=(Line("A", "Hi."), Line("B", "Hello.")),
        heard=Heard("Look.", Style("normal", "slow", "neutral"), Scene("rain")),
        variant_of="d0",
        reference=Reply("Where?", Style("low", "fast", "surprised")),
        hypothesis=Reply("Oh no.", Style("high", "slow", "sad")),
        raw=raw,
        input="asr",
        audio_file="a.wav",
        attributes={"age": "65"},
    )
