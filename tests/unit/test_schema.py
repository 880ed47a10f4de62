"""Backchannels and placements in the manifest; the rest of the schema is tested where corpora are written and read."""

from __future__ import annotations

from typing import Any

import pytest

from omnichat.schema import Backchannel, Dialogue, Scene, Turn, dialogue_from_json, dialogue_to_json
from omnichat.utils.errors import UserError


def dialogue(*said: Backchannel) -> Dialogue:
    turn = Turn("A", "I went to the station.", audio="a.flac", sample_rate=16000, seconds=2.0, backchannels=said)
    return Dialogue("x", "made", "synthetic", "audio", "train", (turn,), scene=Scene("a dog barking", "between"))


def test_backchannels_and_placement_survive_json() -> None:
    before = dialogue(Backchannel("B", "Mm-hm.", 0.5, 0.3), Backchannel("B", "Right.", 1.25, 0.5))
    row = dialogue_to_json(before)
    assert row["scene"]["placement"] == "between"
    assert row["turns"][0]["backchannels"][0] == {
        "speaker": "B",
        "text": "Mm-hm.",
        "start_seconds": 0.5,
        "seconds": 0.3,
    }
    assert dialogue_from_json(row) == before


def test_a_dialogue_without_them_is_written_as_before_and_old_lines_are_read() -> None:
    row = dialogue_to_json(dialogue())
    assert row["turns"] == [
        {"speaker": "A", "text": "I went to the station.", "audio": "a.flac", "sample_rate": 16000, "seconds": 2.0}
    ]
    assert dialogue_from_json(row).turns[0].backchannels == ()


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (Backchannel("A", "Mm-hm.", 0.0, 0.1), "'Mm-hm.' is by A, whose own turn it is"),
        (Backchannel("B", "Mm-hm.", 1.9, 0.2), "ends at 2.100 s, the turn at 2.000 s"),
    ],
)
def test_a_backchannel_lies_in_the_other_s_turn(said: Backchannel, message: str) -> None:
    with pytest.raises(UserError, match=message):
        dialogue(said)


GOOD = {"speaker": "B", "text": "Right.", "start_seconds": 0.1, "seconds": 0.2}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("Right.", r"turns\[0\]\.backchannels must be a list, got str"),
        (["Right."], r"turns\[0\]\.backchannels\[0\] must be a JSON object, got str"),
        ([{**GOOD, "text": None}], r"backchannels\[0\]\.text must not be null"),
        ([{**GOOD, "text": " "}], r"backchannels\[0\]: backchannel\.text must be a non-empty string"),
        ([{**GOOD, "seconds": "x"}], r"backchannels\[0\]\.seconds must be a number, got str"),
        ([{**GOOD, "seconds": 0.0}], r"backchannels\[0\]: backchannel\.seconds must be positive"),
        ([{**GOOD, "start_seconds": -1.0}], "start_seconds must be at least 0"),
        ([{**GOOD, "start_seconds": float("nan")}], "start_seconds must be finite"),
        ([GOOD, {**GOOD, "speaker": "C"}], r"backchannels\[1\]: backchannel\.speaker='C' is not valid"),
        ([{**GOOD, "txet": ""}], r"backchannels\[0\] field='txet' .*did you mean 'text'"),
        ([{"speaker": "B", "text": "Right."}], r"backchannels\[0\] lacks the field 'start_seconds'"),
    ],
)
def test_a_malformed_backchannel_is_named_by_its_place(value: Any, message: str) -> None:
    row = dialogue_to_json(dialogue())
    row["turns"][0]["backchannels"] = value
    with pytest.raises(UserError, match=message):
        dialogue_from_json(row)


def test_attributes_survive_json_and_are_optional() -> None:
    assert "attributes" not in dialogue_to_json(dialogue())
    row = dialogue_to_json(dialogue()) | {"attributes": {"age": "65", "speaking-rate": "slow"}}
    assert dialogue_from_json(row).attributes == row["attributes"]
    assert dialogue_to_json(dialogue_from_json(row)) == row


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["age"], "dialogue.attributes must be a JSON object, got list"),
        ({"Age": "65"}, "dialogue.attributes: name 'Age' must be of a-z"),
        ({"age=": "65"}, "name 'age='"),
        ({"age": 65}, r"dialogue.attributes.age must be a line of 1 to 100 characters, got '65'"),
        ({"age": " "}, "attributes.age must be"),
        ({"age": "x\ny"}, "attributes.age must be"),
        ({"age": "x" * 101}, "attributes.age must be"),
    ],
)
def test_malformed_attributes_are_named(value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as error:
        dialogue_from_json(dialogue_to_json(dialogue()) | {"attributes": value})
    assert "\n" not in str(error.value)
