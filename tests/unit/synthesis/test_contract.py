"""From a model's text to a script: what is mended, what is rejected and why, and that nothing else can come out."""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from omnichat.remote.answers import strict_json
from omnichat.schema import EMOTIONS, PITCHES, SPEEDS, Style
from omnichat.synthesis.base import Rejected, Script, script_problems
from omnichat.synthesis.writers import labels
from omnichat.synthesis.writers.contract import answer_schema, parse_script
from omnichat.synthesis.writers.labels import map_label, names_emotion, plain, tidy
from omnichat.synthesis.writers.prompting import SCENARIOS, Prompts
from omnichat.utils.errors import UserError
from tests.helpers.scripts import OWL, SOUNDS, answer_of, grammar, request

REQUEST = request(7)
RIGHT = grammar().write(REQUEST)
ANSWER = answer_of(RIGHT)
TEXT = json.dumps(ANSWER)


def parsed(value: Any) -> Script | Rejected:
    return parse_script(value if isinstance(value, str) else json.dumps(value), REQUEST, 14)


def changed(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    value = copy.deepcopy(ANSWER)
    change(value)
    return value


@pytest.mark.parametrize("scenario", SOUNDS)
@pytest.mark.parametrize("turns", [0, 4, 8])
@pytest.mark.parametrize("reply_style", ["chosen", "heard"])
def test_a_script_written_as_an_answer_is_read_back(scenario: str, turns: int, reply_style: str) -> None:
    for seed in range(5):
        asked = request(seed, scenario, turns)
        script = grammar().write(asked)
        text = json.dumps(answer_of(script, reply_style))
        assert parse_script(text, asked, 14, reply_style) == script
        for words in (None, 14):
            assert strict_json(text, answer_schema(asked, reply_style, words))


def test_schemas_are_schemas_and_the_positional_one_fixes_the_places() -> None:
    for words in (None, 14):
        jsonschema.Draft202012Validator.check_schema(answer_schema(REQUEST, "chosen", words))
    swapped = changed(lambda value: value["history"].reverse())
    assert strict_json(json.dumps(swapped), answer_schema(REQUEST))
    assert not strict_json(json.dumps(swapped), answer_schema(REQUEST, "chosen", 14))
    for text in ("so " * 14 + "long.", "No end", "A <|im_end|> token.", "Two.\nlines."):
        value = changed(lambda value, text=text: value.update(current=text))
        assert not strict_json(json.dumps(value), answer_schema(REQUEST, "chosen", 14))


@pytest.mark.parametrize(
    "text",
    [
        f"```json\n{TEXT}\n```",
        f"Here is your dialogue!\n```\n{TEXT}\n```\nI hope you like it {{really}}.",
        f"<think>{{not this}} {TEXT[:50]}</think>\n{TEXT}",
        f'Set {{}} aside: {{"a": 1}} and read {TEXT} -- done',
        f"[{TEXT}]",
        f'{{"script": {TEXT}}}',
        TEXT[:-1] + ",}",
        TEXT.replace("}, {", "},\n{").replace("]", ",]", 1),
        TEXT.replace('", "pitch"', '" "pitch"', 1),
        TEXT.replace('{"speaker"', '{// who\n"speaker"', 1).replace("// who\n", ""),
        json.dumps(ANSWER, indent=4),
    ],
)
def test_what_can_be_mended_without_doubt_is(text: str) -> None:
    assert parsed(text) == RIGHT


@pytest.mark.parametrize("cut", [10, len(TEXT) // 2, len(TEXT) - 80, len(TEXT) - 30])
def test_an_answer_that_was_cut_off_is_not_completed(cut: int) -> None:
    assert isinstance(parsed(TEXT[:cut]), Rejected)


CASES: list[tuple[str, Callable[[dict[str, Any]], Any], str]] = [
    ("one turn less", lambda v: v["history"].pop(), "history has another number of entries than asked"),
    ("no current", lambda v: v.pop("current"), "the answer lacks a field"),
    ("more", lambda v: v.update(mood="x"), "the answer has a field too many"),
    ("label", lambda v: v["history"][0].update(emotion="hangry"), "a label of emotion that is not known"),
    ("speaker", lambda v: v["history"][0].update(speaker="C"), "a label of speaker that is not known"),
    ("number", lambda v: v["history"][0].update(text=5), "history.text has another type"),
    ("null label", lambda v: v["replies"][0].update(pitch=None), "a label of pitch that is not known"),
    ("order", lambda v: v["history"].reverse(), "history does not alternate A, B"),
    ("twice", lambda v: v["replies"][1].update(variant=1), "replies do not answer each style once"),
    ("fourth", lambda v: v["replies"][1].update(variant=4), "replies.variant breaks the schema"),
    ("empty", lambda v: v.update(current=" "), "an empty sentence"),
    ("long", lambda v: v.update(current="so " * 20), "a sentence of more than 14 words"),
    ("token", lambda v: v.update(current="Hello <|im_end|> there."), "a bracket in a sentence"),
    ("token in reply", lambda v: v["replies"][2].update(text="<|im_start|>system"), "a bracket in a sentence"),
    ("feeling", lambda v: v.update(current="I am so furious about it."), "the current turn names an emotion"),
    ("emoji", lambda v: v.update(current="I saw it \U0001f600."), "a character that cannot be spoken"),
    ("half", lambda v: v.update(current="I saw \ud800 it."), "a character that cannot be spoken"),
    ("other", lambda v: v["history"][0].update(text="B: I saw it."), "a line begins with another speaker's name"),
    ("dots", lambda v: v.update(current="..."), "a line without words"),
]


@pytest.mark.parametrize(("change", "reason"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_what_breaks_the_contract_is_rejected_with_its_reason(
    change: Callable[[dict[str, Any]], Any], reason: str
) -> None:
    got = parsed(changed(change))
    assert isinstance(got, Rejected) and reason in got.reasons, got


def test_a_field_given_twice_is_not_guessed() -> None:
    got = parsed(TEXT[:-1] + ', "current": "Something else entirely."}')
    assert got == Rejected(("a field is given twice",))


def test_labels_names_quotes_and_stage_directions_are_tidied() -> None:
    def change(value: dict[str, Any]) -> None:
        value["history"][0] |= {"speaker": "Speaker A", "emotion": " Excited ", "pitch": "medium", "speed": "QUICK"}
        value["history"][0]["text"] = "“A: It’s   fine, (laughs) really.”"
        value["history"][1] |= {"speaker": "b", "emotion": "scared", "pitch": "low pitch"}
        value["history"][1]["text"] = "*sighs* Well\u200b, all right…"
        value["replies"].reverse()
        value["replies"][0]["variant"] = "3"

    script = parsed(changed(change))
    assert isinstance(script, Script)
    first, second = script.history[:2]
    assert (first.speaker, first.style) == ("A", Style("normal", "fast", "happy"))
    assert first.text == "It's fine, really."
    assert (second.style.emotion, second.style.pitch, second.text) == ("fearful", "low", "Well, all right...")
    assert script.variants == RIGHT.variants


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


def check(text: str, got: Script | Rejected) -> None:
    if isinstance(got, Script):
        assert script_problems(got, REQUEST, 14) == []
        json.dumps([got.topic, *got.sentences()]).encode("ascii")
        "".join([got.topic, *got.sentences()]).encode("utf-8")
    else:
        assert got.reasons and all(0 < len(reason) < 80 and "\n" not in reason for reason in got.reasons), got
        assert not any(re.search(r"\d", reason.replace("14", "")) for reason in got.reasons), (
            "no figures: they are counted"
        )


@settings(max_examples=150, deadline=None)
@given(st.text() | JSON.map(json.dumps) | st.binary().map(lambda raw: raw.decode("latin-1")))
def test_any_text_gives_a_script_or_reasons(text: str) -> None:
    check(text, parsed(text))


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_damage_to_a_good_answer_gives_a_script_or_reasons(data: st.DataObject) -> None:
    value = copy.deepcopy(ANSWER)
    node: Any = value
    while isinstance(node, dict | list) and node:
        key = data.draw(st.sampled_from(list(node) if isinstance(node, dict) else range(len(node))))
        if not isinstance(node[key], dict | list) or data.draw(st.booleans()):
            node[key] = data.draw(JSON)
            break
        node = node[key]
    text = json.dumps(value)
    check(text, parsed(text))
    begin = data.draw(st.integers(0, len(TEXT)))
    end = data.draw(st.integers(begin, min(len(TEXT), begin + 40)))
    torn = TEXT[:begin] + data.draw(st.text(max_size=5)) + TEXT[end:]
    check(torn, parsed(torn))


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 20_000, "{" * 5000, "9" * 50_000, "{'" * 9000, "x" * 200_000]
)
def test_nesting_and_size_do_not_bring_it_down(text: str) -> None:
    assert isinstance(parsed(text), Rejected)


def test_mending_never_loses_or_adds_a_word() -> None:
    """Quotes inside a text can be read in two ways; where the mended one lacks words, there is no script."""
    torn = TEXT.replace(RIGHT.current, 'She said "no" to "me, "')
    got = parsed(torn)
    if isinstance(got, Script):
        assert got.current == 'She said "no" to "me, "'.strip()


def test_the_table_of_labels_is_whole_and_unambiguous() -> None:
    raw = yaml.safe_load((labels._TABLE).read_text())
    for kind, names in (("emotion", EMOTIONS), ("pitch", PITCHES), ("speed", SPEEDS)):
        assert [map_label(kind, name) for name in names] == list(names)
        for label, words in raw[kind].items():
            assert [map_label(kind, word.upper()) for word in words] == [label] * len(words)
    for word, label in (("excited", "happy"), ("scared", "fearful"), ("hangry", None), (3, None), (None, None)):
        assert map_label("emotion", word) == label
    assert map_label("pitch", "medium") == "normal" and map_label("speed", "very fast pace") == "fast"


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80))
def test_tidying_is_done_once(text: str) -> None:
    once, problem = tidy(text, "A")
    if problem is None:
        assert "\n" not in once and once == " ".join(once.split())
    assert not set(plain(text)) & set("<>{}[]|`\n") and plain(plain(text)) == plain(text)


def test_neutral_words_name_no_emotion() -> None:
    assert names_emotion("I am so Happy today.") and names_emotion("Are you scared?")
    assert not names_emotion("I just heard back about the schedule.")
    for seed in range(40):
        assert not names_emotion(grammar().write(request(seed)).current)


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("reply_style", ["chosen", "heard"])
def test_the_prompt_asks_for_exactly_what_the_request_says(scenario: str, reply_style: str) -> None:
    prompts = Prompts("v1", 2, 14, reply_style)
    asked = request(3, scenario, 6, topic=None if scenario == "audio" else "the <|im_end|>{{ 7 * 7 }} bakery")
    messages = prompts.messages(asked)
    assert [message["role"] for message in messages][-1] == "user" and len(messages) in (4, 6)
    last = messages[-1]["content"]
    assert "exactly 6 turns" in last and "exactly 3 replies" in last
    for number, style in enumerate(asked.styles, start=1):
        assert f"{number}. {style.emotion} emotion, {style.pitch} pitch, {style.speed} speed" in last
    assert "<|" not in last and "49" not in last and ("bakery" in last) == (scenario != "audio")
    if asked.sound is not None:
        assert asked.sound.caption in last and all(word in last for word in asked.sound.keywords)
    assert ('"pitch"' in last.rpartition('"variant"')[2]) == (reply_style == "chosen")
    assert prompts.messages(asked) == messages and prompts.describe()["version"] == "v1"


def test_prompts_of_one_s_own(tmp_path: Any) -> None:
    for name in ("emotion", "audio", "music", "system"):
        (tmp_path / f"{name}.md").write_text("Say {{ topic }} in {{ max_words }} words.")
    own = Prompts(str(tmp_path), 2, 9, "chosen")
    assert own.messages(request(0, topic="tea"))[-1]["content"] == "Say tea in 9 words."
    assert own.describe()["sha256"] != Prompts("v1", 0, 9, "chosen").describe()["sha256"]
    (tmp_path / "music.md").write_text("{{ nothing }}")
    with pytest.raises(UserError, match=r"music.md: 'nothing' is undefined"):
        Prompts(str(tmp_path), 0, 9, "chosen")
    (tmp_path / "music.md").write_text("{% for %}")
    with pytest.raises(UserError, match=r"music.md:1: "):
        Prompts(str(tmp_path), 0, 9, "chosen")
    (tmp_path / "music.md").write_text("{{ ''.__class__.__mro__ }}")
    with pytest.raises(UserError, match=r"music.md"):
        Prompts(str(tmp_path), 0, 9, "chosen")
    (tmp_path / "music.md").unlink()
    with pytest.raises(UserError, match=r"has no file music.md"):
        Prompts(str(tmp_path), 0, 9, "chosen")


@pytest.mark.parametrize(
    "line", ['{"scenario": "emotion"}', '{"scenario": "emotion", "topic": "x", "styles": 3, "answer": {}}', "[]", "{"]
)
def test_a_bad_example_is_named_by_its_line(line: str, tmp_path: Any) -> None:
    for path in (Prompts("v1", 0, 14, "chosen").folder).glob("*.md"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "examples.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=r"examples.jsonl:1: "):
        Prompts(str(tmp_path), 1, 14, "chosen")


def test_every_example_fits_under_the_default_length_and_none_is_left_out() -> None:
    prompts = Prompts("v1", 99, 14, "chosen")
    lines = (prompts.folder / "examples.jsonl").read_text().splitlines()
    messages = sum(len(prompts.messages(request(0, scenario))) - 2 for scenario in SCENARIOS)
    assert messages == 2 * len(lines) and {json.loads(line)["scenario"] for line in lines} == set(SCENARIOS)
    assert OWL.caption not in (prompts.folder / "examples.jsonl").read_text()
