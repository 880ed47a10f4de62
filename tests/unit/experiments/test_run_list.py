"""The list of runs: states, figures, filters; folders that are damaged or being written."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from omnichat.experiments.run_list import duration, find_runs, list_runs, table_rows
from omnichat.utils.errors import UserError


def make_run(
    folder: Path, state: str | None = "finished", age_sec: float = 0.0, dev: tuple[float, ...] = (2.0,)
) -> Path:
    """A run folder as training leaves it, `age_sec` ago."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(
        "seed: 3\nchat: {input: speech}\nmixture: {alpha: 0.2}\ntrainer: {steps: 100}\n", encoding="utf-8"
    )
    rows: list[dict[str, Any]] = []
    for number, loss in enumerate(dev, start=1):
        rows.append({"event": "step", "step": 10 * number, "loss": loss + 1, "mfu": 0.25})
        rows.append({"event": "dev", "step": 10 * number, "loss": loss, "loss_style": loss / 2})
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    if state is not None:
        info = {"state": state, "command": "omnichat train experiment=demo", "wall_seconds": 61.0}
        (folder / "run.json").write_text(json.dumps(info), encoding="utf-8")
    moment = time.time() - age_sec
    for path in folder.iterdir():
        os.utime(path, (moment, moment))
    return folder


def test_a_run_is_summed_up(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "demo" / "speech", dev=(2.0, 1.5, 1.75))
    (folder / "REQUEUE").write_text("{}", encoding="utf-8")
    (run,) = list_runs(tmp_path)
    assert (run.name, run.state, run.step, run.steps) == ("demo/speech", "finished", 30, 100)
    assert (run.best_dev, run.best_step, run.input, run.alpha, run.seed) == (1.5, 20, "speech", 0.2, 3)
    assert run.requeue and run.command == "omnichat train experiment=demo" and run.wall_sec == 61.0
    assert run.age_sec is not None and run.age_sec < 60 and run.problems == []
    titles, rows = table_rows([run], None)
    assert len(titles) == len(rows[0]) and "1.5000 @ 20" in rows[0] and "finished, requeue" in rows[0]


def test_a_running_run_that_is_silent_is_dead(tmp_path: Path) -> None:
    make_run(tmp_path / "alive", "running", age_sec=60)
    make_run(tmp_path / "silent", "running", age_sec=3600)
    make_run(tmp_path / "done", "finished", age_sec=7200)
    assert {run.name: run.state for run in list_runs(tmp_path)} == {
        "alive": "running",
        "silent": "dead",
        "done": "finished",
    }
    assert [run.name for run in list_runs(tmp_path)] == ["alive", "silent", "done"]  # who wrote last comes first
    assert [run.name for run in list_runs(tmp_path, state="dead")] == ["silent"]
    assert [run.state for run in list_runs(tmp_path, name="silent", dead_after_sec=9000)] == ["running"]


def test_folders_inside_runs_and_runs_moved_aside_are_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "a")
    (run / "wandb" / "offline-run-1" / "files").mkdir(parents=True)
    (run / "wandb" / "offline-run-1" / "files" / "config.yaml").write_text("{}", encoding="utf-8")
    make_run(tmp_path / "a.old1")
    make_run(tmp_path / ".sweeps" / "0")
    make_run(tmp_path / "sweep" / "b.old")
    assert [str(p.relative_to(tmp_path)) for p in find_runs(tmp_path)] == ["a", "sweep/b.old"]
    assert [p.name for p in find_runs(tmp_path, moved_aside=True)] == ["a", "a.old1", "b.old"]
    assert find_runs(run) == [run]
    assert [entry.name for entry in list_runs(tmp_path, name="sweep/*")] == ["sweep/b.old"]


def test_a_metric_is_taken_from_the_log_or_the_evaluation(tmp_path: Path) -> None:
    first = make_run(tmp_path / "first", dev=(2.0, 1.0))
    make_run(tmp_path / "second")
    metric = {"split": "test", "scenario": "all", "metric": "bleu", "value": 7.5, "n": 3}
    (first / "metrics.json").write_text(json.dumps([metric, metric | {"scenario": "music", "value": 1}]))

    def values(name: str) -> dict[str, float | None]:
        return {run.name: run.metric for run in list_runs(tmp_path, metric=name)}

    assert values("test/bleu") == {"first": 7.5, "second": None}
    assert values("dev/loss_style") == {"first": 0.5, "second": 1.0}
    assert values("step/mfu") == {"first": 0.25, "second": 0.25}
    with pytest.raises(UserError, match=r"test/blue.*test/bleu"):
        list_runs(tmp_path, metric="test/blue")


def test_damaged_and_half_written_runs_are_listed_as_far_as_they_go(tmp_path: Path) -> None:
    torn = make_run(tmp_path / "torn")
    with open(torn / "log.jsonl", "a", encoding="utf-8") as handle:
        handle.write('{"event": "step", "step": 11, "lo')
    broken = make_run(tmp_path / "broken")
    (broken / "run.json").write_text("{", encoding="utf-8")
    (broken / "config.yaml").write_text("- a list\n", encoding="utf-8")
    young = make_run(tmp_path / "young", state=None)
    (young / "log.jsonl").unlink()
    found = {run.name: run for run in list_runs(tmp_path)}
    assert found["torn"].step == 10 and found["torn"].problems == []
    assert found["broken"].state == "unknown" and found["broken"].best_dev == 2.0
    assert {problem.partition(":")[0] for problem in found["broken"].problems} == {"run.json", "config.yaml"}
    assert found["young"].state == "unknown" and found["young"].step is None


def test_a_repeated_dev_row_counts_once_and_the_last_one(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", dev=(2.0,))
    with open(folder / "log.jsonl", "a", encoding="utf-8") as handle:
        handle.write('{"event": "dev", "step": 10, "loss": 3.0}\n')
    assert list_runs(tmp_path)[0].best_dev == 3.0


def test_rows_of_a_branch_that_a_resume_left_do_not_count(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "a", dev=(2.0, 1.5, 1.0))
    with open(folder / "log.jsonl", "a", encoding="utf-8") as log:
        log.write(json.dumps({"event": "resume", "step": 20, "checkpoint": "step-000020"}) + "\n")
    (run,) = list_runs(tmp_path)
    assert (run.step, run.best_dev, run.best_step) == (20, 1.5, 20)
    with open(folder / "log.jsonl", "a", encoding="utf-8") as log:
        log.write(json.dumps({"event": "step", "step": 21, "loss": 1.9, "mfu": 0.5}) + "\n")
    (run,) = list_runs(tmp_path, metric="step/mfu")
    assert (run.step, run.metric, run.best_step) == (21, 0.5, 20)


def test_mistakes_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        list_runs(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"state='ded' is not valid.*dead"):
        list_runs(tmp_path, state="ded")
    assert list_runs(tmp_path) == []


@pytest.mark.parametrize(
    ("seconds", "words"), [(None, "–"), (41.9, "41s"), (432, "7m12"), (7500, "2h05"), (270_000, "3d3h")]
)
def test_durations(seconds: float | None, words: str) -> None:
    assert duration(seconds) == words
