"""The whole score: rows, subsets, intervals, paired comparison."""

import json
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
import sacrebleu

from omnichat.evaluation.predictions import Prediction, Reply
from omnichat.evaluation.score import METRICS, ScoreConfig, compare, dialogue_stem, figures, measures, score
from omnichat.schema import Style
from omnichat.utils.errors import UserError

Make = Callable[..., Prediction]
PLAIN = ScoreConfig(bertscore_model=None, bootstrap_samples=200, permutations=50)


def table(rows: list[dict]) -> dict[tuple[str, str], dict]:
    found = {(row["scenario"], row["metric"]): row for row in rows}
    assert len(found) == len(rows), "a key appears twice"
    return found


def corpus(make: Make, right: float, seed: int = 0, count: int = 30) -> list[Prediction]:
    """Dialogues with two styles each; a share `right` of the predicted emotions is right."""
    rng = random.Random(seed)
    rows = []
    for index in range(count):
        for variant, emotion in enumerate(("happy", "sad")):
            got = emotion if rng.random() < right else "neutral"
            words = f"{emotion} answer number {index}"
            rows.append(
                make(f"d{index}-v{variant}", voice=emotion, wanted=emotion, got=got, variant_of=f"g{index}")
                if index % 2
                else make(
                    f"d{index}-v{variant}",
                    scenario="audio",
                    source="other",
                    keywords=("dog",),
                    wanted=emotion,
                    got=got,
                    reference=words,
                    hypothesis=f"a dog and {words}",
                )
            )
    return rows


def test_rows_of_every_subset(make: Make) -> None:
    rows = corpus(make, 0.8)
    found = table(score(rows, PLAIN))
    assert {scenario for scenario, _ in found} == {"all", "emotion", "audio", "source:toy", "source:other"}
    assert {metric for _, metric in found} <= set(METRICS)
    assert found["all", "bleu"]["n"] == 60 and found["audio", "scene_hit"]["value"] == 1.0
    assert found["all", "style_sensitivity"]["n"] == 15 and ("audio", "style_sensitivity") not in found
    assert found["all", "emotion_f1_variants"]["n"] == 30
    for key, row in found.items():
        assert row["split"] == "test"
        assert row["ci95"][0] <= row["value"] + 1e-9 and row["value"] <= row["ci95"][1] + 1e-9, key
    json.dumps(score(rows, PLAIN), allow_nan=False)


def test_subset_value_is_the_library_on_the_subset(make: Make) -> None:
    rows = corpus(make, 0.5)
    audio = [row for row in rows if row.scenario == "audio"]
    expected = sacrebleu.corpus_bleu([r.hypothesis.text for r in audio], [[r.reference.text for r in audio]])
    got = table(score(rows, PLAIN))["audio", "bleu"]
    assert got["value"] == pytest.approx(expected.score) and "smooth:exp" in got["note"]


def test_order_of_rows_does_not_matter(make: Make) -> None:
    rows = corpus(make, 0.5)
    shuffled = random.Random(1).sample(rows, len(rows))
    one, two = table(score(rows, PLAIN)), table(score(shuffled, PLAIN))
    for key in one:
        if not key[1].endswith("_chance"):  # the shuffles of the chance rows depend on the order
            assert one[key]["value"] == pytest.approx(two[key]["value"]), key


def test_a_deaf_model_has_no_sensitivity_and_scores_at_chance(make: Make) -> None:
    rows = [replace(row, hypothesis=Reply("Okay.", Style("normal", "normal", "happy"))) for row in corpus(make, 1)]
    found = table(score(rows, PLAIN))
    assert found["all", "style_sensitivity"]["value"] == 0.0
    assert found["all", "emotion_f1"]["value"] == pytest.approx(found["all", "emotion_f1_chance"]["value"])
    assert "p = 1.000" in found["all", "emotion_f1_chance"]["note"]


def test_unparsed_styles_are_counted(make: Make) -> None:
    rows = corpus(make, 1)
    rows[0] = replace(rows[0], hypothesis=Reply("Okay.", None))
    found = table(score(rows, PLAIN))
    assert found["all", "style_parse_failure"]["value"] == pytest.approx(1 / 60)
    assert found["all", "emotion_accuracy"]["value"] == pytest.approx(59 / 60)
    assert found["all", "pitch_accuracy"]["value"] == pytest.approx(59 / 60)


def test_compare_finds_the_better_run(make: Make) -> None:
    good, bad = corpus(make, 0.9), corpus(make, 0.3, seed=5)
    found = table(compare(good, bad, PLAIN))
    assert found["all", "emotion_f1"]["difference"] > 0.2 and found["all", "emotion_f1"]["p"] < 0.05
    assert found["all", "bleu"]["p"] == 1.0 and found["all", "bleu"]["difference"] == 0.0
    assert compare(good, [replace(row, split="dev") for row in bad], PLAIN) == []


def test_splits_are_scored_apart_and_nothing_is_an_error(make: Make) -> None:
    rows = [make("a"), make("b", split="dev", got="sad")]
    values = {row["split"]: row["value"] for row in score(rows, PLAIN) if row["metric"] == "emotion_accuracy"}
    assert values == {"dev": 0.0, "test": 1.0}
    for row in score(rows, PLAIN):
        if not row["metric"].endswith("chance"):  # one dialogue says nothing about others
            assert row["ci95"] == [0.0, METRICS[row["metric"]].top] and "unknown" in row["note"]
    with pytest.raises(UserError, match="no predictions"):
        score([], PLAIN)


def test_config_errors_name_the_key() -> None:
    with pytest.raises(UserError, match=r"score.bootstrap_samples must be >= 100, got 3"):
        ScoreConfig(bootstrap_samples=3)
    with pytest.raises(UserError, match=r"score.bertscore_layers"):
        ScoreConfig(bertscore_layers=0)


def test_dialogue_stem() -> None:
    assert [dialogue_stem(name) for name in ("d1-v0", "d1-v12", "a-v1-x", "b")] == ["d1", "d1", "a-v1-x", "b"]


def test_attributes_make_subsets(make: Make) -> None:
    rows = [
        replace(row, attributes={"age": str(20 + n % 2)} if n < 40 else {}) for n, row in enumerate(corpus(make, 0.5))
    ]
    found = table(score(rows, PLAIN))
    assert found["attribute:age", "bleu"]["n"] == 40
    assert [found[f"attribute:age={age}", "bleu"]["n"] for age in (20, 21)] == [20, 20]
    part = [row for row in rows if row.attributes.get("age") == "20"]
    assert found["attribute:age=20", "emotion_f1"]["value"] == table(score(part, PLAIN))["all", "emotion_f1"]["value"]
    many = [replace(row, attributes={"age": str(n)}) for n, row in enumerate(rows)]
    assert not any("=" in name for name, _ in table(score(many, PLAIN))), "sixty values are no subsets"


def test_replies_that_all_agree_have_an_interval_by_their_number(make: Make) -> None:
    found = table(score([make(f"d{n}") for n in range(10)], PLAIN))
    # Clopper and Pearson: ten hits of ten
    assert found["all", "emotion_accuracy"]["ci95"] == pytest.approx([0.025**0.1, 1.0])
    assert found["all", "style_parse_failure"]["ci95"] == pytest.approx([0.0, 1 - 0.025**0.1])


def test_a_subset_that_one_seed_lacks_has_no_figures(make: Make) -> None:
    rows = corpus(make, 0.5)
    stated = [replace(row, attributes={"age": "20"}) for row in rows]
    seeds = [stated, rows, stated]
    found = {row["scenario"] for row in figures(seeds, [measures(part, None) for part in seeds], PLAIN)}
    assert "all" in found and not {name for name in found if name.startswith("attribute:")}
