"""Run folders are read as far as they go, and what is wrong is said in one line."""

import json
from pathlib import Path

import pytest
import yaml

from omnichat.experiments.runs import find_run, load_run, load_runs, seed_groups, setting
from omnichat.experiments.tables import runs_table
from omnichat.utils.errors import UserError
from tests.unit.experiments.builders import make_run


def test_a_whole_run(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path, "one", alpha=0.3, seed=4, steps=60))
    assert (run.name, run.alpha, run.input, run.seed, run.last_step) == ("one", 0.3, "speech", 4, 60)
    assert run.problems == () and run.stand_ins == ("dailytalk_stand_in",) and run.random_experts == ("beats", "mert")
    assert run.metric("test", "bleu")["n"] == len(run.predictions["test"])
    assert run.metric("test", "nothing") is None
    assert [event["event"] for event in run.events] == ["resume", "end"]


def test_a_judge_s_grades_are_figures_of_the_run_and_a_column_of_its_report(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "graded")
    plain = load_run(folder)
    assert plain.metric("test", "judge") is None
    replies = plain.predictions["test"]
    grades = {p.key: 1.0 + number % 5 for number, p in enumerate(replies)}
    lines = [json.dumps({"source": p.source, "id": p.id, "judge": grades[p.key]}) for p in replies]
    (folder / "predictions" / "test.judge.jsonl").write_text("\n".join(lines) + "\n")
    run = load_run(folder)
    for scenario in {"all", *(p.scenario for p in replies)}:
        mine = [grades[p.key] for p in replies if scenario in ("all", p.scenario)]
        row = run.metric("test", "judge", scenario)
        assert row is not None and row["n"] == len(mine) and row["value"] == pytest.approx(sum(mine) / len(mine))
        assert 1.0 <= row["ci95"][0] <= row["value"] <= row["ci95"][1] <= 5.0
    assert run.metrics[: len(plain.metrics)] == plain.metrics, "the run's own figures stay"
    assert "Judge" in runs_table([run], "test", []).columns and "Judge" not in runs_table([plain], "test", []).columns
    (folder / "predictions" / "test.judge.jsonl").write_text('{"source": "x", "id": "y#1", "judge": 3}\n')
    with pytest.raises(UserError, match=r"test\.judge\.jsonl:1: id 'y#1'"):
        load_run(folder)


def test_seed_and_alpha_zero_are_values(tmp_path: Path) -> None:
    run = load_run(make_run(tmp_path, "zero", alpha=0.0, seed=0, steps=20))
    assert run.seed == 0 and run.alpha == 0.0


def test_the_last_row_of_a_repeated_step_counts(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "again", steps=40)
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    logged = [row for row in rows if row["event"] == "step"]
    run = load_run(folder)
    assert len(logged) > 40 and [row["step"] for row in run.steps] == list(range(1, 41))
    last = {row["step"]: row["loss"] for row in logged}
    assert [row["loss"] for row in run.steps] == [last[step] for step in range(1, 41)]


def test_a_young_run_lists_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("name: young\n")
    run = load_run(tmp_path)
    assert run.name == "young" and run.alpha is None and run.last_step is None and len(run.problems) == 5


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.yaml", "a: [", "config.yaml: not readable as YAML"),
        ("config.yaml", "- a", "config.yaml: expected a mapping, got list"),
        ("metrics.json", "{}", "metrics.json: expected a JSON list, got dict"),
        ("metrics.json", '[{"split": "test"}]', "metrics.json: row 0 lacks the field 'scenario'"),
        ("run.json", "{", "run.json: not readable as JSON"),
        ("data.json", '{"sources": [{}]}', "data.json: sources[0] lacks the field 'name'"),
        ("log.jsonl", '{"event": "step"}\n', "log.jsonl:1: a step row needs an integer step"),
        ("predictions/test.jsonl", "{}\n", "test.jsonl:1: prediction lacks the field 'id'"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, file: str, content: str, message: str) -> None:
    (tmp_path / "config.yaml").write_text("name: x\n")
    (tmp_path / "predictions").mkdir()
    (tmp_path / file).write_text(content)
    with pytest.raises(UserError) as error:
        load_run(tmp_path)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_wrong_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such run folder"):
        load_run(tmp_path / "none")
    with pytest.raises(UserError, match=r"no config\.yaml"):
        load_run(tmp_path)
    with pytest.raises(UserError, match="at least one run folder"):
        load_runs([])
    (tmp_path / "config.yaml").write_text("name: x\n")
    with pytest.raises(UserError, match="named twice"):
        load_runs([tmp_path, tmp_path / "." / ""])


def test_names_seeds_and_baseline(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for seed, folder in enumerate(folders):
        folder.mkdir()
        recipe = {"name": "same" if seed < 2 else "other", "seed": seed, "mixture": {"alpha": 0.2 if seed < 2 else 0.5}}
        (folder / "config.yaml").write_text(yaml.safe_dump(recipe))
    runs = load_runs(folders)
    assert [run.name for run in runs] == ["same (a)", "same (b)", "other"]
    assert [[run.seed for run in group] for group in seed_groups(runs)] == [[0, 1], [2]]
    assert find_run(runs, "other") is runs[2] and find_run(runs, "a") is runs[0]
    with pytest.raises(UserError, match=r"baseline='othr' is not valid \(did you mean 'other'\?\)"):
        find_run(runs, "othr")


def test_setting() -> None:
    assert setting({"a": {"b": 0}}, "a.b") == 0
    assert setting({"a": 1}, "a.b") is None and setting({}, "a") is None
