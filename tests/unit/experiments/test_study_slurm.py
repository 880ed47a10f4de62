"""Slurm jobs of the study, against a stand-in for sbatch: what is handed over, and that the batch files work."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from omnichat.experiments.study.jobs import Job
from omnichat.experiments.study.slurm import Resources, batch_text, submit
from omnichat.study import slurm_settings
from omnichat.utils.errors import UserError

RESOURCES = Resources.of(slurm_settings())


def job(study: Path, name: str) -> Job:
    return Job(str(study), name, ["seed=0"], [["test", ""]], [], {}, ["seed=0"], "hash", {"version": "1"}, {})


def sbatch(folder: Path, body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put an executable `sbatch` on the PATH."""
    folder.mkdir()
    (folder / "sbatch").write_text(f"#!/bin/bash\n{body}\n")
    (folder / "sbatch").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_runs_wait_for_corpora_and_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = tmp_path / "calls"
    sbatch(tmp_path / "bin", f'echo "$@" >> {calls}; wc -l < {calls}', monkeypatch)
    study = tmp_path / "studies" / "paper"
    ids = submit(study, [job(study, "a"), job(study, "b")], [["cache", "experiment=paper"]], RESOURCES)
    assert ids == {"prepare": "1", "a": "2", "b": "3"}
    words = [line.split() for line in calls.read_text().splitlines()]
    assert [w[:-1] for w in words] == [["--parsable"], *[["--parsable", "--dependency=afterok:1"]] * 2]
    text = Path(words[1][-1]).read_text()
    assert f"#SBATCH --time={slurm_settings()['timeout_min']}" in text and "--partition" not in text
    assert "omnichat.study_job" in text and "experiment=paper" in Path(words[0][-1]).read_text()
    assert Job.read(study / "jobs" / "a.json") == job(study, "a")


def test_no_sbatch_and_one_that_refuses_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="no sbatch"):
        submit(tmp_path / "s", [job(tmp_path / "s", "a")], [], RESOURCES)
    sbatch(tmp_path / "bin", "echo 'invalid partition' >&2; exit 1", monkeypatch)
    with pytest.raises(UserError, match="invalid partition"):
        submit(tmp_path / "s", [job(tmp_path / "s", "a")], [], RESOURCES)


def run_text(tmp_path: Path, *commands: list[str]) -> Path:
    path = tmp_path / "job.sbatch"
    path.write_text(batch_text("a", tmp_path / "log", RESOURCES, commands))
    return path


def test_a_batch_file_stops_at_the_first_command_that_fails(tmp_path: Path) -> None:
    path = run_text(tmp_path, ["echo", "one two"], ["bash", "-c", "exit 3"], ["echo", "three"])
    done = subprocess.run(["bash", str(path)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "one two\n")


def test_a_batch_file_hands_the_request_to_stop_on_and_waits(tmp_path: Path) -> None:
    child = "trap 'sleep 0.2; echo saved; exit 143' TERM; echo ready; while true; do sleep 0.05; done"
    path = run_text(tmp_path, ["bash", "-c", child], ["echo", "never"])
    process = subprocess.Popen(["bash", str(path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=30)[0] == "saved\n" and process.returncode == 143
