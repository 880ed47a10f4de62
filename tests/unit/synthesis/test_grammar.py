"""The grammar's scripts: splits apart, replies that follow what was heard, errors of word lists."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from omnichat.schema import EMOTIONS, SPLITS, Style
from omnichat.synthesis.base import ScriptRequest, Sound, names_sound
from omnichat.synthesis.writers.grammar import PACKAGED_WORDS, GrammarWriter
from omnichat.utils.errors import UserError

MIRROR = {name: name for name in EMOTIONS}
DOG = Sound("animals/dog.mp3", "a dog barking", ("dog", "barking"), {"animal": "dog", "action": "barking"})
ALL = tuple(Style("normal", "normal", name) for name in EMOTIONS)


def request(
    seed: int, scenario: str = "emotion", split: str = "train", styles: tuple[Style, ...] = ALL
) -> ScriptRequest:
    return ScriptRequest(scenario, split, seed, 4, styles, None if scenario == "emotion" else DOG)


def test_no_sentence_is_possible_in_two_splits() -> None:
    """Exhaustive and not sampled: fill every template with every topic of every split."""
    words = yaml.safe_load(PACKAGED_WORDS.read_text())

    def templates(node: object) -> list[str]:
        if isinstance(node, str):
            return [node]
        return [t for child in (node.values() if isinstance(node, dict) else node) for t in templates(child)]

    said: dict[str, str] = {}
    for scenario, kind, slot in (
        ("emotion", "topics", "topic"),
        ("audio", "places", "place"),
        ("music", "places", "place"),
    ):
        for template in templates(words[scenario]):
            for split in SPLITS:
                for word in words[kind][split]:
                    sentence = template.format(**{slot: word, "opener": "{opener}", "sound": "{sound}"})
                    assert said.setdefault(sentence, split) == split, sentence


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**62), split=st.sampled_from(SPLITS))
def test_reply_depends_on_the_heard_style_and_the_words_do_not_tell_it(seed: int, split: str) -> None:
    writer = GrammarWriter(None, MIRROR)
    script = writer.write(request(seed, split=split))
    assert script == writer.write(request(seed, split=split))
    assert [variant.reply.style for variant in script.variants] == [writer.reply_style(style) for style in ALL]
    assert len({variant.reply.text for variant in script.variants}) == len(EMOTIONS)
    own = yaml.safe_load(PACKAGED_WORDS.read_text())["emotion"]["replies"]
    for variant in script.variants:
        fits = [e for e in EMOTIONS for t in own[e] if t.format(topic=script.topic) == variant.reply.text]
        assert fits == [variant.reply.style.emotion]
    # the same seed with other styles says the same words: the current turn cannot depend on its style
    other = writer.write(request(seed, split=split, styles=ALL[::-1]))
    assert (other.current, other.history) == (script.current, script.history)
    for user, reply in zip(script.history[::2], script.history[1::2], strict=True):
        assert reply.style == writer.reply_style(user.style)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**62))
def test_only_the_reply_names_the_sound(seed: int) -> None:
    script = GrammarWriter(None, MIRROR).write(request(seed, "audio"))
    assert all(names_sound(variant.reply.text, DOG.keywords) for variant in script.variants)
    assert not any(
        names_sound(text, DOG.keywords) for text in (script.current, *(line.text for line in script.history))
    )


def test_reply_rule_is_the_config_s() -> None:
    writer = GrammarWriter(None, MIRROR | {"angry": "neutral"})
    assert writer.reply_style(Style("low", "fast", "angry")) == Style("low", "fast", "neutral")
    with pytest.raises(UserError, match="did you mean 'happy'"):
        GrammarWriter(None, MIRROR | {"sad": "hapy"})
    with pytest.raises(UserError, match="lacks 'disgusted'"):
        GrammarWriter(None, {name: name for name in EMOTIONS[:-1]})


def test_word_lists_that_would_mix_splits_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "words.yaml"
    words = yaml.safe_load(PACKAGED_WORDS.read_text())
    words["topics"]["test"].append(words["topics"]["train"][0])
    path.write_text(yaml.safe_dump(words))
    with pytest.raises(UserError, match=r"words.yaml: 'the schedule' is in topics.train and in topics.test"):
        GrammarWriter(str(path), MIRROR)
    words["topics"]["test"].pop()
    words["emotion"]["current"].append("I have news.")
    path.write_text(yaml.safe_dump(words))
    with pytest.raises(UserError, match=r"lacks \{topic\}"):
        GrammarWriter(str(path), MIRROR)
    del words["openers"]
    words["emotion"]["current"].pop()
    path.write_text(yaml.safe_dump(words))
    with pytest.raises(UserError, match="lacks the key 'openers'"):
        GrammarWriter(str(path), MIRROR)
    path.write_text("{")
    with pytest.raises(UserError, match="not readable as YAML"):
        GrammarWriter(str(path), MIRROR)
    with pytest.raises(UserError, match="no such file"):
        GrammarWriter(str(tmp_path / "none.yaml"), MIRROR)
