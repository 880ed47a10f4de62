"""Replies of other systems: by columns, beside our references, and the published replies of three systems."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import sacrebleu
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from omnichat.config import config_folder
from omnichat.evaluation.predictions import Line, Prediction, prediction_to_json, write_predictions
from omnichat.experiments.layouts.jsonl import COLUMNS, JsonlReplies
from omnichat.experiments.layouts.own import OmniChatPredictions
from omnichat.experiments.layouts.sharechatx_demo import ShareChatXDemoReplies
from omnichat.experiments.score_tables import score_systems
from omnichat.experiments.systems import align, read_systems
from omnichat.schema import Style
from omnichat.utils.errors import UserError
from tests.unit.evaluation.builders import build
from tests.unit.experiments.builders import PLAIN

SAMPLES = Path(os.environ.get("OMNICHAT_SAMPLES", Path(__file__).resolve().parents[4] / "shared" / "data"))
OWN = OmniChatPredictions()
DEFAULTS = yaml.safe_load((config_folder() / "layout" / "jsonl.yaml").read_text(encoding="utf-8"))


def layout(columns: dict[str, str | None] | None = None, **changes: Any) -> JsonlReplies:
    values = {**DEFAULTS, **changes, "columns": {**DEFAULTS["columns"], **(columns or {})}}
    del values["_target_"]
    return JsonlReplies(**values)


def parsed(tmp_path: Path, row: Any, columns: dict[str, str | None] | None = None, **changes: Any) -> Prediction:
    path = tmp_path / "theirs.jsonl"
    path.write_text(json.dumps(row) + "\n")
    (found,) = layout(columns, **changes).read(path)[""]
    return found


def test_the_yaml_names_every_column() -> None:
    assert set(DEFAULTS["columns"]) == set(COLUMNS)


def test_columns_history_styles_and_attributes(tmp_path: Path) -> None:
    row = {
        "key": 7,
        "out": {"text": "Yay!", "mood": "joyous"},
        "gold": "Hooray!",
        "gold_mood": "happiness",
        "messages": [{"role": "user", "content": "Hi."}, {"role": "gpt", "content": "Yes?"}],
        "said": "I won.",
        "years": 65,
    }
    columns = {"id": "key", "hypothesis": "out.text", "reference": "gold", "history": "messages", "heard": "said"}
    columns |= {"hypothesis_emotion": "out.mood", "reference_emotion": "gold_mood"}
    labels = {"emotion": {"joyous": "happy"}}
    found = parsed(tmp_path, row, columns, labels=labels, attributes={"age": "years"}, scenario="emotion")
    assert (found.id, found.turn, found.scenario, found.source) == ("7#3", 3, "emotion", "outside")
    assert found.history == (Line("A", "Hi."), Line("B", "Yes?")) and found.heard.text == "I won."
    assert found.hypothesis.style == found.reference.style == Style(emotion="happy")
    assert found.attributes == {"age": "65"}


@pytest.mark.parametrize(
    ("texts", "heard", "speakers"), [(3, None, "AB"), (2, None, "B"), (2, "said", "AB"), (3, "said", "BAB")]
)
def test_speakers_take_turns_and_the_user_is_answered(
    tmp_path: Path, texts: int, heard: str | None, speakers: str
) -> None:
    row = {"id": "x", "hypothesis": "a", "reference": "b", "said": "s", "before": [f"t{n}" for n in range(texts)]}
    found = parsed(tmp_path, row, {"history": "before", "heard": heard})
    assert "".join(line.speaker for line in found.history) == speakers
    assert found.heard.text == ("s" if heard else f"t{texts - 1}") and found.turn == len(speakers) + 1


def test_a_style_tag_is_read_and_no_style_is_an_unparsed_one(tmp_path: Path) -> None:
    row = {"id": "x#4", "hypothesis": "[normal, fast, sad] Oh no.", "reference": "b"}
    tagged = parsed(tmp_path, row, style_tag=True)
    assert (tagged.hypothesis.text, tagged.hypothesis.style) == ("Oh no.", Style("normal", "fast", "sad"))
    assert tagged.raw == row["hypothesis"] and tagged.id == "x#4"
    untagged = parsed(tmp_path, row)
    assert untagged.hypothesis.style is None and untagged.hypothesis.text == row["hypothesis"]


@pytest.mark.parametrize(
    ("row", "columns", "message"),
    [
        ({"hypothesis": "a", "reference": "b"}, {}, "id: a text is missing there; it was to be the id"),
        ({"id": "x", "reference": "b"}, {}, r"hypothesis: a text is missing there \(an empty text where the system"),
        ({"id": "x", "hypothesis": 3, "reference": "b"}, {}, r"hypothesis \(hypothesis\) must be a text, got int"),
        ({"id": "x", "hypothesis": "a", "reference": "b", "h": "t"}, {"history": "h"}, r"\(history\) must be a list"),
        ({"id": "x", "hypothesis": "a", "reference": "b", "h": [3]}, {"history": "h"}, r"h\[0\] must be a text or an"),
        (
            {"id": "x", "hypothesis": "a", "reference": "b", "h": [{"role": "usr", "text": "t"}]},
            {"history": "h"},
            r"h\[0\] speaker='usr' is not valid \(did you mean 'user'\?\)",
        ),
        ({"id": "x", "hypothesis": "a", "reference": "b", "s": "tset"}, {"split": "s"}, "split='tset' is not valid"),
        ([1], {}, "expected a JSON object, got list"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, row: Any, columns: dict[str, str | None], message: str) -> None:
    path = tmp_path / "theirs.jsonl"
    path.write_text(json.dumps({"id": "w", "hypothesis": "", "reference": "b"}) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(UserError, match=message) as error:
        layout(columns).read(path)
    assert str(error.value).startswith(f"{path}:2: ") and "\n" not in str(error.value)


def test_ids_twice_and_settings_that_name_nothing(tmp_path: Path) -> None:
    path = tmp_path / "theirs.jsonl"
    path.write_text(2 * (json.dumps({"id": "w", "hypothesis": "", "reference": "b"}) + "\n"))
    with pytest.raises(UserError, match=r"theirs\.jsonl:2: id 'w#1' of source 'outside' appears twice"):
        layout().read(path)
    with pytest.raises(UserError, match=r"layout\.columns='refrence' .*did you mean 'reference'"):
        layout({"refrence": "x"})
    with pytest.raises(UserError, match=r"layout\.columns\.reference must name a column"):
        layout({"reference": None})
    with pytest.raises(UserError, match=r"layout\.scenario='dayly'"):
        layout(scenario="dayly")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["text", "role", "z"]), inner),
    max_leaves=5,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(["id", "hypothesis", "reference", "h", "e"]), json_values))
def test_any_json_is_read_or_refused_in_one_line(tmp_path_factory: pytest.TempPathFactory, row: dict[str, Any]) -> None:
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text(json.dumps(row) + "\n")
    try:
        found = layout({"history": "h", "hypothesis_emotion": "e"}, attributes={"some": "e"}).read(path)
        assert isinstance(found[""][0], Prediction)
    except UserError as error:
        assert "\n" not in str(error)


def test_ours_beside_theirs_with_our_references(tmp_path: Path) -> None:
    ours = [build(f"d{n}", 3, reference=f"My answer to it is {n}.", attributes={"age": "20"}) for n in range(5)]
    write_predictions(tmp_path / "ours.jsonl", ours)
    theirs = tmp_path / "theirs.jsonl"
    theirs.write_text(
        "".join(json.dumps({"id": f"d{n}", "said": f"My answer to it is {n}."}) + "\n" for n in range(4, -1, -1))
    )
    reader = layout({"hypothesis": "said"}, references=str(tmp_path / "ours.jsonl"))
    systems, _ = read_systems({"a": str(tmp_path / "ours.jsonl"), "b": str(theirs)}, "test", reader, {})
    systems, notes = align(systems, "a", "error")
    scores = score_systems(systems, "test", "a", PLAIN)
    bleu = {row["system"]: row["value"] for row in scores.rows if (row["metric"], row["scenario"]) == ("bleu", "all")}
    assert bleu["b"] == pytest.approx(100.0) and bleu["a"] < 50 and notes == []
    assert any(row["scenario"] == "attribute:age=20" and row["system"] == "b" for row in scores.rows)
    with pytest.raises(UserError, match=r"layouts='c' is not valid; choose one of: a, b"):
        read_systems({"a": str(theirs), "b": str(theirs)}, "test", reader, {"c": reader})
    by_name, _ = read_systems({"b": str(theirs), "a": str(tmp_path / "ours.jsonl")}, "test", OWN, {"b": reader})
    assert [system.name for system in by_name] == ["b", "a"]
    theirs.write_text(json.dumps({"id": "d9", "said": ""}) + "\n")
    with pytest.raises(UserError, match=r"theirs\.jsonl:1: id 'd9' is not in layout\.references="):
        reader.read(theirs)


def test_a_dialogue_with_two_replies_needs_the_reply_s_id(tmp_path: Path) -> None:
    write_predictions(tmp_path / "ours.jsonl", [build("d", 1), build("d", 3)])
    row = {"id": "d", "hypothesis": ""}
    with pytest.raises(UserError, match=r"id 'd' may be any of 2 replies"):
        parsed(tmp_path, row, references=str(tmp_path / "ours.jsonl"))
    found = parsed(tmp_path, row | {"id": "d#3"}, references=str(tmp_path / "ours.jsonl"))
    assert prediction_to_json(found) | {"hypothesis": 0, "raw": 0} == prediction_to_json(build("d", 3)) | {
        "hypothesis": 0,
        "raw": 0,
    }


needs_samples = pytest.mark.skipif(not (SAMPLES / "sharechatx_demo").is_dir(), reason="the sample dialogues are absent")


@needs_samples
def test_replies_of_three_published_systems_are_scored() -> None:
    """OmniChat's replies stand in for the reference of four dialogues; the fifth has DailyTalk's own."""
    dailytalk = SAMPLES / "dailytalk"
    reader = ShareChatXDemoReplies(dailytalk=str(dailytalk) if dailytalk.is_dir() else None)
    systems, notes = read_systems(str(SAMPLES / "sharechatx_demo"), "test", reader, {})
    systems, _ = align(systems, "fun", "error")
    assert [system.name for system in systems] == ["omni", "fun", "qwen"]
    assert "states no reference" in notes[0] and len(notes) == (1 if dailytalk.is_dir() else 2)
    scores = score_systems(systems, "test", "fun", PLAIN)
    found = {(row["system"], row["scenario"], row["metric"]): row for row in scores.rows}
    assert found["omni", "emotion", "bleu"]["value"] == pytest.approx(100.0)
    for name in ("fun", "qwen"):
        assert found[name, "all", "style_parse_failure"]["value"] == 1.0
        assert found[name, "all", "emotion_accuracy"]["value"] == 0.0
        assert 0 < found[name, "all", "rouge_l"]["value"] < 1
        (replies,) = (system.seeds[0].predictions for system in systems if system.name == name)
        expected = sacrebleu.corpus_bleu([p.hypothesis.text for p in replies], [[p.reference.text for p in replies]])
        assert found[name, "all", "bleu"]["value"] == pytest.approx(expected.score, abs=1e-9)
    if dailytalk.is_dir():
        daily = next(p for p in systems[0].seeds[0].predictions if p.source == "dailytalk")
        assert daily.heard.text.lower().startswith("what's that supposed to mean") and daily.turn == 5
        assert daily.reference.text.startswith("well, there are adhesive strips")
        assert found["omni", "daily", "bleu"]["value"] < 50


@needs_samples
def test_the_stand_in_reference_is_a_system() -> None:
    with pytest.raises(UserError, match=r"layout\.reference='omin' .*did you mean 'omni'"):
        ShareChatXDemoReplies("omin").read(SAMPLES / "sharechatx_demo")
