"""The plan of a corpus: balance, independence, errors."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnichat.schema import EMOTIONS, PITCHES, SPEEDS
from omnichat.synthesis.plan import SynthesisConfig, plan_corpus
from omnichat.synthesis.scenes.config import SceneConfig
from omnichat.synthesis.scenes.maker import SceneMaker
from omnichat.synthesis.topics.base import TopicSource
from omnichat.synthesis.topics.lists import TopicList
from omnichat.utils.errors import UserError


def plan(topics: TopicSource | None = None, **changes: object) -> list:
    settings_ = {"name": "x", "out": "x", "dialogues": {"emotion": {"train": 20, "test": 9}}} | changes
    return plan_corpus(SynthesisConfig(**settings_), SceneMaker(SceneConfig(), None, None, 16000), topics)


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 40), variants=st.integers(1, 7), seed=st.integers(0, 2**31))
def test_labels_are_balanced_within_one_and_distinct_within_a_dialogue(count: int, variants: int, seed: int) -> None:
    stems = plan(dialogues={"emotion": {"train": count}}, variants_per_dialogue=variants, seed=seed)
    assert len(stems) == count
    for stem in stems:
        assert len({style.emotion for style in stem.styles}) == variants
    for attribute, names in (("emotion", EMOTIONS), ("pitch", PITCHES), ("speed", SPEEDS)):
        counts = Counter(getattr(style, attribute) for stem in stems for style in stem.styles)
        used = [counts[name] for name in names]
        assert max(used) - min(used) <= 1, f"{attribute}: {counts}"


def test_pitch_tells_nothing_of_emotion() -> None:
    stems = plan(dialogues={"emotion": {"train": 700}}, variants_per_dialogue=3)
    pairs = Counter((style.emotion, style.pitch) for stem in stems for style in stem.styles)
    assert min(pairs.values()) > 60, "100 expected of each of the 21 pairs"
    assert len(pairs) == 21


def test_the_plan_is_a_function_of_the_seed_and_of_nothing_else() -> None:
    assert plan(seed=0) == plan(seed=0, out="elsewhere", workers=7)
    assert plan(seed=0) != plan(seed=1)


def test_topics_occur_equally_often_and_are_those_of_the_split() -> None:
    shares = {"train": 0.8, "dev": 0.1, "test": 0.1}
    topics = TopicList(None, "topic", "split", shares, "")
    stems = plan(topics, dialogues={"emotion": {"train": 700, "test": 60}})
    for split in ("train", "test"):
        counts = Counter(stem.topic for stem in stems if stem.split == split)
        assert set(counts) == set(topics.topics(split))
        assert max(counts.values()) - min(counts.values()) <= 1
    assert all(stem.request(0).topic == stem.topic for stem in stems)
    assert [stem.styles for stem in stems] == [
        s.styles for s in plan(dialogues={"emotion": {"train": 700, "test": 60}})
    ]


def test_a_larger_corpus_keeps_the_splits_apart_from_each_other() -> None:
    few = [stem for stem in plan(dialogues={"emotion": {"train": 5, "test": 4}}) if stem.split == "test"]
    many = [stem for stem in plan(dialogues={"emotion": {"train": 50, "test": 4}}) if stem.split == "test"]
    assert few == many


def test_history_lengths_follow_their_shares() -> None:
    stems = plan(dialogues={"emotion": {"train": 600}}, history_turns={2: 0.75, 4: 0.25})
    counts = Counter(stem.history_turns for stem in stems)
    assert set(counts) == {2, 4}
    assert 400 < counts[2] < 500


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"workers": 0}, "workers must be >= 1, got 0"),
        ({"variants_per_dialogue": 8}, "variants_per_dialogue must be 1 to 7"),
        ({"dialogues": {}}, "asks for no dialogue"),
        ({"dialogues": {"emotoin": {"train": 1}}}, "did you mean 'emotion'"),
        ({"dialogues": {"emotion": {"trian": 1}}}, "did you mean 'train'"),
        ({"dialogues": {"emotion": {"train": -1}}}, "must be >= 0"),
        ({"history_turns": {3: 1.0}}, "even numbers"),
        ({"history_turns": {2: 0.5}}, "must sum to 1"),
        ({"user_voices": ["ada"], "model_voices": ["ada"]}, "share no voice"),
    ],
)
def test_mistakes_name_their_key(changes: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(**changes)
