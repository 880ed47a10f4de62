"""The table of the fusion ablation: every cell from the run folders, each run against its own seed's baseline."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from omnichat.evaluation.predictions import read_predictions, write_predictions
from omnichat.experiments import plots
from omnichat.experiments.ablation import compares_fusions, fusion_table, fusion_tests
from omnichat.experiments.report import write_report
from omnichat.experiments.runs import Run, load_runs
from tests.unit.experiments.builders import PLAIN, make_run

SALMONN = "salmonn.WindowQFormer"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    made = [
        make_run(root, "mix_former-seed0", skill=0.95, steps=40, count=5),
        make_run(root, "words", given="text", steps=40, count=5),
    ]
    made += [
        make_run(root, f"salmonn-seed{seed}", skill=0.3, seed=seed, steps=40, count=5, fusion=SALMONN)
        for seed in (0, 1)
    ]
    made.append(make_run(root, "mix_former-seed1", skill=0.9, seed=1, steps=40, count=5))
    made.append(
        make_run(root, "single-seed2", skill=0.5, seed=2, steps=40, count=5, fusion="single.Single", state="stopped")
    )
    return made


@pytest.fixture(scope="module")
def runs(folders: list[Path]) -> tuple[Run, ...]:
    return load_runs(folders)


def cells(runs: tuple[Run, ...], **given: object) -> dict[str, dict[str, str]]:
    table = fusion_table(runs, "test", **given)  # type: ignore[arg-type]
    return {row[0].text: dict(zip(table.columns, [cell.text for cell in row], strict=True)) for row in table.rows}


def test_cells_are_those_of_the_run_folders(runs: tuple[Run, ...]) -> None:
    found = cells(runs)
    assert list(found) == [run.name for run in runs if run.name != "words"], "a run of words has no fusion"
    row, run = found["salmonn-seed1"], next(run for run in runs if run.name == "salmonn-seed1")
    assert (row["Fusion"], row["Parameters"], row["Slots / s"]) == ("WindowQFormer", "1,998,614", "16.43")
    assert (row["Steps"], row["Dialogues"]) == ("40", "2,580"), "both sources together"
    assert row["s / step"] == "0.91", "the median of 0.52 to 1.30"
    assert row["Dev loss"] == f"{run.dev[-1]['loss']:.3f}"
    for title, metric in (("Emotion F1", "emotion_f1"), ("Pitch accuracy", "pitch_accuracy")):
        value = run.metric("test", metric)
        assert value is not None and row[title] == f"{value['value']:.3f}"
    assert not any("against" in title for title in row)


def test_what_a_run_does_not_say_is_a_dash(runs: tuple[Run, ...]) -> None:
    bare = replace(runs[0], info={"fusion": {"class": "Stack"}}, data={}, steps=(), dev=(), metrics=())
    [row] = fusion_table([bare], "test").rows
    assert [cell.text for cell in row[1:]] == ["Stack", *["–"] * 6]


def test_each_run_is_tested_against_the_baseline_of_its_seed(runs: tuple[Run, ...]) -> None:
    tests = fusion_tests([run for run in runs if run.name != "words"], runs[0], "test", PLAIN)
    assert {test.run for test in tests} == {"salmonn-seed0", "salmonn-seed1"}, "seed 2 has no baseline"
    by_run = {test.run: test for test in tests if (test.metric, test.scenario) == ("emotion_f1", "all")}
    for seed in (0, 1):
        base, run = (next(r for r in runs if r.name == f"{name}-seed{seed}") for name in ("mix_former", "salmonn"))
        values = [r.metric("test", "emotion_f1") for r in (run, base)]
        assert values[0] is not None and values[1] is not None
        difference = values[0]["value"] - values[1]["value"]
        assert by_run[f"salmonn-seed{seed}"].difference == pytest.approx(difference, abs=1e-9)
    found = cells(runs, tests=tests, baseline="mix_former")
    title = "Emotion F1 against mix_former"
    assert found["mix_former-seed0"][title] == found["single-seed2"][title] == "–"
    assert found["salmonn-seed0"][title].startswith("-0.")
    text = fusion_table(runs, "test", tests, "mix_former").markdown()
    assert " ▼ [-" in text and "p = 0.0" in text and "single-seed2 [unfinished]" in text


def test_a_baseline_that_hears_nothing_is_no_baseline_of_fusions(runs: tuple[Run, ...]) -> None:
    words = next(run for run in runs if run.name == "words")
    assert fusion_tests(runs, words, "test", PLAIN) == []
    assert "against words" not in fusion_table(runs, "test", [], "words").markdown()


def test_the_report_shows_fusions_where_they_differ(folders: list[Path], tmp_path: Path) -> None:
    page = write_report(folders, tmp_path / "all", "mix_former-seed0", PLAIN).read_text(encoding="utf-8")
    assert 'id="fusions"' in page and 'href="#fusions"' in page and "against mix_former-seed0" in page
    assert "## Fusions on the test split" in (tmp_path / "all" / "report.md").read_text(encoding="utf-8")
    assert not compares_fusions(load_runs([folders[0], folders[1], folders[4]]))


def test_attention_of_one_expert_is_drawn(folders: list[Path], tmp_path: Path) -> None:
    """Single has one row in its picture; a fusion without attention has none, and the page is whole all the same."""
    alone = make_run(tmp_path, "single", steps=40, count=5, fusion="single.Single")
    deaf = make_run(tmp_path, "stack", steps=40, count=5, fusion="stack.Stack")
    for folder, experts in ((alone, ("whisper",)), (deaf, None)):
        path = folder / "predictions" / "test.jsonl"
        rows = [
            p if p.attention is None
            else replace(p, attention=tuple((1.0,) for _ in p.attention) if experts else None, experts=experts)
            for p in read_predictions(path)
        ]  # fmt: skip
        write_predictions(path, rows)
    page = write_report([alone, deaf], tmp_path / "report", None, PLAIN).read_text(encoding="utf-8")
    assert "Mean attention mass of each expert by scenario, single" in page
    assert "Mean attention mass of each expert by scenario, stack" not in page
    assert json.loads((tmp_path / "report" / "results.json").read_text())


def test_ten_runs_can_be_told_apart(runs: tuple[Run, ...]) -> None:
    """More runs than colours: their lines differ in style."""
    figure = plots.loss_curves([replace(runs[0], name=f"run{i}") for i in range(10)])(plots.LIGHT)
    firm = [line for line in figure.axes[0].get_lines() if str(line.get_label()).startswith("run")]
    looks = {(line.get_color(), line.get_linestyle()) for line in firm}
    assert len(firm) == len(looks) == 10
