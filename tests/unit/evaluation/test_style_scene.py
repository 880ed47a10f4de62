"""Style and scene metrics on cases whose right answer is known."""

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from omnichat.evaluation import scene, style
from omnichat.evaluation.predictions import Prediction
from omnichat.schema import EMOTIONS

Make = Callable[..., Prediction]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 7)), min_size=1, max_size=40))
def test_weighted_f1_is_scikit_learns(pairs: list[tuple[int, int]]) -> None:
    wanted, got = (np.array(column) for column in zip(*pairs, strict=True))
    ours = style.weighted_f1(style.confusion_stats(wanted, got).sum(axis=0, keepdims=True))[0]
    expected = f1_score(wanted, got, labels=range(7), average="weighted", zero_division=0)
    assert ours == pytest.approx(expected)


def test_an_unparsed_style_counts_as_wrong(make: Make) -> None:
    rows = [make("a"), make("b", got=None), make("c", wanted=None)]
    assert style.attribute_hits(rows, "emotion") == ([0, 1], [1.0, 0.0])
    assert style.attribute_hits(rows, "pitch") == ([0, 1], [1.0, 0.0])
    index, wanted, got = style.emotion_codes(rows)
    assert index.tolist() == [0, 1] and wanted.tolist() == [1, 1] and got.tolist() == [1, len(EMOTIONS)]
    assert style.predicted_emotion(rows[1]) == style.UNPARSED


def test_chance_keeps_label_habits() -> None:
    wanted = np.arange(700) % 7
    constant, one = np.zeros(700, dtype=np.int64), np.zeros(700, dtype=np.int64)
    real = style.weighted_f1(style.confusion_stats(wanted, constant).sum(axis=0, keepdims=True))[0]
    assert style.chance_f1(wanted, constant, one, 30, 0) == pytest.approx(np.full(30, real))
    assert style.chance_f1(wanted, wanted, one, 50, 0).mean() == pytest.approx(1 / 7, abs=0.02)


def test_chance_keeps_the_habits_of_each_scenario() -> None:
    """Who only knows the scenario is at chance: labels that follow the stratum alone are not disturbed by shuffles."""
    strata = np.arange(100) % 2
    wanted = np.where(strata == 0, 0, np.arange(100) % 7)
    draws = style.chance_f1(wanted, strata * 3, strata, 20, 0)
    real = style.weighted_f1(style.confusion_stats(wanted, strata * 3).sum(axis=0, keepdims=True))[0]
    assert draws == pytest.approx(np.full(20, real))


def group(make: Make, answers: list[tuple[str, str]], replies: tuple[str, str] | None = None) -> list[Prediction]:
    """Variants of one turn: (reference emotion, predicted emotion) each; the voice is the reference's."""
    rows = []
    for index, (wanted, got) in enumerate(answers):
        words = ("That is great news!", "I am sorry for you.")[index % 2]
        said = words if replies is None else replies[index % 2]
        rows.append(make(f"d-v{index}", voice=wanted, wanted=wanted, got=got, reference=words, hypothesis=said))
    return [Prediction(**{f: getattr(r, f) for f in r.__dataclass_fields__} | {"variant_of": "g"}) for r in rows]


@pytest.mark.parametrize(
    ("answers", "hits"),
    [
        ([("happy", "happy"), ("sad", "sad")], [1.0]),
        ([("happy", "sad"), ("sad", "happy")], [0.0]),  # differs, but the wrong way
        ([("happy", "happy"), ("sad", "happy")], [0.0]),  # deaf
        ([("happy", "happy"), ("sad", "fearful")], [0.0]),  # half right
        ([("happy", "happy"), ("sad", "sad"), ("angry", "sad")], [1.0, 0.0, 0.0]),
    ],
)
def test_style_sensitivity(make: Make, answers: list[tuple[str, str]], hits: list[float]) -> None:
    assert style.style_pairs(group(make, answers))[1] == hits


def test_pairs_of_equal_references_or_equal_voices_are_no_pairs(make: Make) -> None:
    rows = [
        make("d-v0", voice="happy", wanted="happy", variant_of="g"),
        make("d-v1", voice="angry", wanted="happy", variant_of="g"),
    ]
    assert style.style_pairs(rows) == ([], []) and style.reply_pairs(rows) == ([], [])
    same_voice = [
        make("d-v0", voice="sad", wanted="happy", reference="a b c", variant_of="g"),
        make("d-v1", voice="sad", wanted="sad", reference="d e f", variant_of="g"),
    ]
    assert style.variant_groups(same_voice) == [] and style.reply_pairs(same_voice) == ([], [])
    assert style.variant_groups([make("x"), make("y")]) == []


@pytest.mark.parametrize(
    ("replies", "hit"),
    [
        (("Such great news!", "So sorry for you."), 1.0),
        (("So sorry for you.", "Such great news!"), 0.0),
        (("Tell me more.", "Tell me more."), 0.0),
    ],
)
def test_reply_sensitivity(make: Make, replies: tuple[str, str], hit: float) -> None:
    rows = group(make, [("happy", "happy"), ("sad", "sad")], replies)
    assert style.reply_pairs(rows) == ([(0, 1)], [hit])


@pytest.mark.parametrize(
    ("reply", "keywords", "hit"),
    [
        ("Those dogs are loud!", ("dog",), True),
        ("Is that a dog’s bark?", ("dogs",), True),
        ("It keeps barking.", ("bark",), True),
        ("I love hotdogs.", ("dog",), False),
        ("Such a CAFÉ mood", ("cafe",), True),
        ("An acoustic guitar, I think.", ("acoustic guitars",), True),
        ("A guitar, acoustic?", ("acoustic guitar",), False),
        ("", ("dog",), False),
        ("Anything at all.", ("", "?!"), False),
    ],
)
def test_keyword_matching(reply: str, keywords: tuple[str, ...], hit: bool) -> None:
    assert scene.names_keyword(reply, keywords) is hit


def test_scene_rows_hits_and_chance(make: Make) -> None:
    rows = [
        make("a", scenario="audio", keywords=("dog",), hypothesis="A dog!"),
        make("b", scenario="audio", keywords=("cat",), hypothesis="A dog?"),
        make("c", scenario="audio", keywords=("cow",), hypothesis="Moo."),
        make("d"),
        make("e", scenario="audio", keywords=()),
    ]
    index = scene.scene_rows(rows)
    assert index == [0, 1, 2] and scene.scene_hits(rows, index) == [1.0, 0.0, 0.0]
    value, draws = scene.scene_chance(rows, index, 400, 0)
    assert value == pytest.approx(2 / 9) and draws.mean() == pytest.approx(2 / 9, abs=0.04)
    assert set(np.round(draws * 3)) <= {0.0, 1.0}
    apart = [*rows[:2], make("f", scenario="music", keywords=("dog",), hypothesis="Dog days.")]
    value, draws = scene.scene_chance(apart, [0, 1, 2], 50, 0)
    assert value == pytest.approx((0.5 + 0.5 + 1) / 3) and draws == pytest.approx(np.full(50, 2 / 3))
