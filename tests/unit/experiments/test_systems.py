"""Systems to score: what a path may be, and every way in which files may not belong together, each named in a line."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from omnichat.evaluation.predictions import Prediction, Reply, prediction_to_json, write_predictions
from omnichat.evaluation.score import score
from omnichat.experiments.layouts.own import OmniChatPredictions
from omnichat.experiments.score_tables import figures_table, markdown, plain, score_systems
from omnichat.experiments.systems import Seed, System, SystemsConfig, align, read_systems
from omnichat.schema import Style
from omnichat.utils.errors import UserError
from tests.unit.evaluation.builders import build
from tests.unit.experiments.builders import PLAIN, make_run

OURS = OmniChatPredictions()


def written(path: Path, rows: list[Prediction]) -> Path:
    write_predictions(path, rows)
    return path


def some(count: int = 6, **changes: Any) -> list[Prediction]:
    return [build(f"d{n}", reference=f"Answer number {n}.", **changes) for n in range(count)]


def read(given: Any, split: str = "test") -> dict[str, System]:
    return {system.name: system for system in read_systems(given, split, OURS, {})[0]}


def test_files_are_systems_by_their_names_and_lists_in_a_mapping_are_seeds(tmp_path: Path) -> None:
    a, b = written(tmp_path / "a.jsonl", some()), written(tmp_path / "b.jsonl", some())
    assert set(read([str(a), str(b)])) == {"a", "b"} and set(read(str(a))) == {"a"}
    found = read({"x": [str(a), str(b)], "y": str(a)})
    assert [len(found[name].seeds) for name in ("x", "y")] == [2, 1]


def test_run_folders_of_one_recipe_are_one_system(tmp_path: Path) -> None:
    for name, given, seed in (("words-seed0", "text", 0), ("words-seed1", "text", 1), ("hears", "speech", 0)):
        make_run(tmp_path, name, given=given, seed=seed, count=3, steps=20)
    found = read(str(tmp_path))
    assert {name: len(system.seeds) for name, system in found.items()} == {"words": 2, "hears": 1}
    assert set(read(str(tmp_path / "hears"))) == {"hears"}
    with pytest.raises(UserError, match=r"predictions/dev\.jsonl: no such file; make it: omnichat evaluate run="):
        read(str(tmp_path / "hears"), "dev")
    with pytest.raises(UserError, match=r"holds no run folder with predictions/dev\.jsonl"):
        read(str(tmp_path), "dev")


def test_sidecars_come_with_their_file(tmp_path: Path) -> None:
    path = written(tmp_path / "a.jsonl", some())
    rows = [{"source": "toy", "id": f"d{n}#1", "judge": 1.0 + n % 5} for n in range(6)]
    (tmp_path / "a.judge.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (seed,) = read(str(path))["a"].seeds
    scores = score_systems([System("a", (seed,))], "test", None, PLAIN)
    assert next(row["value"] for row in scores.rows if row["metric"] == "judge") == pytest.approx(16 / 6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("none.jsonl", r"none\.jsonl: no such file or folder"),
        (["a.jsonl", "other/a.jsonl"], r"two systems are called 'a'; name them: predictions=\{NAME: PATH"),
        ("dev.jsonl", r"dev\.jsonl: holds no test replies, but dev: give split=dev"),
        ("bad.jsonl", r"bad\.jsonl:2: prediction lacks the field 'hypothesis'"),
        ("twice.jsonl", r"twice\.jsonl:3: id 'd0#1' of source 'toy' appears twice"),
        ("other", r"other: holds no run folder"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: Any, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.jsonl", "other/a.jsonl"):
        written(Path(name), some())
    written(Path("dev.jsonl"), some(split="dev"))
    written(Path("twice.jsonl"), [*some(2), some(1)[0]])
    lines = [prediction_to_json(row) for row in some(2)]
    del lines[1]["hypothesis"]
    Path("bad.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    with pytest.raises(UserError, match=message) as error:
        read(given)
    assert "\n" not in str(error.value)


def system(name: str, *seeds: list[Prediction]) -> System:
    return System(name, tuple(Seed(Path(f"{name}{n}.jsonl"), tuple(rows)) for n, rows in enumerate(seeds)))


def test_missing_replies_are_counted_and_named_or_left_out_of_all() -> None:
    ours, theirs = system("ours", some()), system("theirs", some()[1:], some()[:4])
    with pytest.raises(UserError) as error:
        align([ours, theirs], "ours", "error")
    assert str(error.value) == (
        "predictions: 'theirs' (theirs0.jsonl) lacks 1 of 6 (toy/d0#1); 'theirs' (theirs1.jsonl) lacks 2 of 6 "
        "(toy/d4#1, toy/d5#1); on_missing=common scores the 3 replies that all have"
    )
    aligned, notes = align([ours, theirs], "ours", "common")
    assert {tuple(p.id for p in seed.predictions) for one in aligned for seed in one.seeds} == {
        ("d1#1", "d2#1", "d3#1")
    }
    assert len(notes) == 1 and notes[0].startswith("3 replies are scored that all have")
    with pytest.raises(UserError, match="no reply is there in every system: 'ours' lacks 6 of 12"):
        align([ours, system("b", some(source="other"))], "ours", "common")
    with pytest.raises(UserError, match="on_missing='ignore' is not valid"):
        SystemsConfig(on_missing="ignore")


@pytest.mark.parametrize(
    ("change", "told"),
    [(Reply("Else.", Style("normal", "normal", "happy")), "'Else.' and not"), (Reply("Answer number 2."), "its style")],
)
def test_other_references_are_named(change: Reply, told: str) -> None:
    rows = some()
    rows[2] = replace(rows[2], reference=change)
    with pytest.raises(UserError) as error:
        align([system("ours", some()), system("theirs", rows)], "ours", "error")
    text = str(error.value)
    assert "'theirs' has other references than 'ours' for 1 of 6 replies (first toy/d2#1: " in text and told in text
    assert "\n" not in text


def test_order_in_the_files_does_not_matter() -> None:
    scores = [
        score_systems(align([system("a", rows), system("b", some())], "b", "error")[0], "test", "b", PLAIN)
        for rows in (some(got="sad"), some(got="sad")[::-1])
    ]
    assert scores[0].rows == scores[1].rows and scores[0].tests == scores[1].tests


def replies(make_right: Callable[[int], bool], count: int = 40) -> list[Prediction]:
    return [build(f"d{n}", got="happy" if make_right(n) else "sad") for n in range(count)]


def test_one_seed_scores_as_score_does_and_the_tests_are_marked() -> None:
    good, bad = replies(lambda n: n % 8 != 0), replies(lambda n: n % 8 == 0)
    scores = score_systems([system("good", good), system("bad", bad), system("same", bad)], "test", "bad", PLAIN)
    alone = [row for row in scores.rows if row["system"] == "good"]
    assert [{k: v for k, v in row.items() if k != "system"} for row in alone] == score(good, PLAIN)
    marks = {(test.run, test.metric): test.mark for test in scores.tests if test.scenario == "all"}
    assert marks["good", "emotion_f1"] == "better" and marks["same", "emotion_f1"] is None
    of_metric = [test for test in scores.tests if test.metric == "emotion_accuracy" and test.scenario == "all"]
    assert {test.run for test in of_metric} == {"good", "same"}
    assert next(t.p_holm for t in of_metric if t.run == "good") == pytest.approx(
        2 * next(t.p for t in of_metric if t.run == "good")
    ), "adjusted over the two systems"
    text = plain(figures_table(scores, "all"))
    assert "0.875*▲ [" in text and "bad (baseline)" in text
    assert "## Paired tests against bad" in markdown(scores)
    json.dumps(scores.to_json(PLAIN), allow_nan=False)


def test_several_seeds_have_a_mean_and_two_intervals() -> None:
    seeds = [replies(lambda n, s=s: n % 5 > s) for s in range(3)]
    scores = score_systems([system("a", *seeds)], "test", None, PLAIN)
    row = next(r for r in scores.rows if (r["metric"], r["scenario"]) == ("emotion_accuracy", "all"))
    assert row["values"] == pytest.approx([0.8, 0.6, 0.4]) and row["value"] == pytest.approx(0.6)
    # Student's t with two degrees of freedom: 4.303 * 0.2 / sqrt(3)
    assert row["ci95_seeds"] == pytest.approx([0.6 - 0.49683, 1.0], abs=1e-4), "cut to the metric's range"
    assert row["ci95"][0] <= row["ci95_seeds"][0] and row["ci95"][1] <= 1.0
    assert "3 seeds" in plain(figures_table(scores, "all"))
