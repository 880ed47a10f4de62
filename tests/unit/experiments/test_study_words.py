"""What the study's page says in words: who leads, and which doubts are told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from omnichat.evaluation.seeds import SeedSummary
from omnichat.experiments.study_report import words as sentences
from omnichat.experiments.study_report.arms import Block
from omnichat.experiments.study_report.doubts import study_doubts
from omnichat.experiments.study_report.study import read_study
from tests.unit.experiments.studies import whole_study, write_plan


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole_study(tmp_path_factory.mktemp("studies") / "demo")


@pytest.mark.parametrize(
    ("note", "said"),
    [("nltk 1, exact; one dialogue: its interval is unknown", False), ("nltk 1, exact + stem + synonyms", True)],
)
def test_another_meteor_is_said_and_another_interval_is_not(study: Path, tmp_path: Path, note: str, said: bool) -> None:
    folder = tmp_path / "study"
    for name, text in (("a", "nltk 1, exact"), ("b", note)):
        shutil.copytree(study / "runs" / "alpha-0-s0", folder / "runs" / name)
        path = folder / "runs" / name / "metrics.json"
        row = {
            "split": "test",
            "scenario": "all",
            "metric": "meteor",
            "value": 0.5,
            "n": 9,
            "ci95": [0, 1],
            "note": text,
        }
        kept = [row for row in json.loads(path.read_text()) if row["metric"] != "meteor"]
        path.write_text(json.dumps([*kept, row]))
    write_plan(folder, "dailytalk", [("one", {}, [("a", 0)]), ("two", {}, [("b", 0)])])
    text = " ".join(study_doubts(read_study(folder)))
    assert ("METEOR was not computed in the same way" in text) == said


def test_rows_that_are_equal_have_no_leader(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = next(plan for plan in read_study(study).plans if plan.script == "fusion")
    means = iter([0.5, 0.5, *[0.25] * len(plan.arms)])
    monkeypatch.setattr(sentences, "summary", lambda *_: SeedSummary(next(means), (0.2, 0.8), 9, (0.5,)))
    assert sentences._leader(plan, Block(""), "emotion_f1") == "No row leads in Emotion F1: several have 0.500."
    means = iter([0.5, 0.75, *[0.25] * len(plan.arms)])
    assert sentences._leader(plan, Block(""), "emotion_f1").startswith(
        f"{plan.arms[1].label} has the best Emotion F1, 0.750"
    )


def test_the_rows_that_the_best_stands_clear_of_are_named(study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = next(plan for plan in read_study(study).plans if plan.script == "fusion")
    first, second, third, *rest = [arm.label for arm in plan.arms]
    intervals = iter([(0.6, 0.8), (0.1, 0.5), (0.2, 0.7), *[(0.0, 0.6)] * len(rest)])
    means = iter([0.7, 0.3, 0.4, *[0.2] * len(rest)])
    monkeypatch.setattr(sentences, "summary", lambda *_: SeedSummary(next(means), next(intervals), 9, (0.5,)))
    said = sentences._leader(plan, Block(""), "emotion_f1")
    assert said.startswith(
        f"{first} has the best Emotion F1, 0.700 [0.600, 0.800]. Its interval lies apart from those of"
    )
    apart, near = said.split("; it overlaps those of ")
    assert second in apart and third in near and third not in apart
