"""The study from end to end in miniature: its runs, what scripts share, what a second call does, kills."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from omnichat import study as study_verb
from omnichat.cli import run as run_cli
from omnichat.experiments.study import engine, jobs
from omnichat.experiments.study.ledger import Ledger
from omnichat.study_job import main as run_job
from omnichat.utils.files import iterate_jsonl, read_json
from tests.helpers.corpora import real_corpus, synthetic_corpus

# The two experts that take no time. The cheap part of a study; what is left out is what its parts' tests look at.
ASKED = ["--preset", "smoke", "--no-report", "--set", "~experts.whisper", "fusion.budget=60K"]
FOLDER = Path("studies/smoke")


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the corpora of the smoke preset."""
    folder = tmp_path_factory.mktemp("study")
    synthetic_corpus(folder / "corpora" / "sharechatx-smoke")
    real_corpus(folder / "corpora" / "dailytalk-stand-in-smoke")
    real_corpus(folder / "corpora" / "stand-in-2-smoke")
    synthetic_corpus(folder / "corpora" / "sharechatx-overlap-smoke")
    return folder


@pytest.fixture
def calls(work: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the verbs and runs that a study starts; all in this process, for imports take longer than the runs."""
    made: list[str] = []

    def preparation(words: list[str]) -> subprocess.CompletedProcess[bytes]:
        made.append(words[len(engine.OMNICHAT)])
        return subprocess.CompletedProcess(words, run_cli(words[len(engine.OMNICHAT) :]))

    def run(pool: jobs.Pool, waiting: list[jobs.Job]) -> None:
        for job in waiting:
            made.append(job.run)
            path = jobs.write_job(job)
            pool.on_start(job)
            job.log.parent.mkdir(parents=True, exist_ok=True)
            with open(job.log, "a", encoding="utf-8") as log, contextlib.redirect_stderr(log):
                code = run_job([str(path)])
            pool.on_end(job, code, 1.0)

    monkeypatch.chdir(work)
    monkeypatch.setattr(engine.subprocess, "run", preparation)
    monkeypatch.setattr(engine, "code_facts", lambda: {"version": "1", "commit": "a"})
    monkeypatch.setattr(jobs.Pool, "run", run)
    yield made


def events(run: str = "") -> list[tuple[str, str]]:
    return [(e["run"], e["event"]) for e in Ledger(FOLDER / "ledger.jsonl").events if run in ("", e["run"])]


def test_a_dry_run_says_what_would_be_done_and_does_nothing(
    calls: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert study_verb.main(["alpha", "windows"], None, [*ASKED, "--dry-run", "--seeds", "0", "1"]) == 0
    said = capsys.readouterr().out
    assert "8 of 8 runs to do" in said and "4 steps  sharechatx + dailytalk" in said and "by the preset's" in said
    assert not calls and not Path("studies").exists()


def test_a_script_makes_trains_evaluates_and_records(calls: list[str]) -> None:
    assert study_verb.main(["experts"], None, ASKED) == 0
    names = calls[1:]
    assert calls[0] == "cache" and len(names) == 2
    plan = read_json(FOLDER / "plans" / "experts.json")
    assert [run["name"] for arm in plan["arms"] for run in arm["runs"]] == names
    assert events() == [(name, event) for name in names for event in ("started", "finished", "evaluated")]
    for arm in plan["arms"]:
        folder = FOLDER / arm["runs"][0]["folder"]
        assert read_json(folder / "run.json")["state"] == "finished" and (folder / "predictions/test.jsonl").is_file()
        assert read_json(folder / "data.json")["alpha"] == arm["keys"]["alpha"]
    for name in plan["corpora"]:
        assert (FOLDER / plan["corpora"][name] / "manifest.jsonl").is_file()
    last = Ledger(FOLDER / "ledger.jsonl").events[-1]
    assert "test/bleu" in last["metrics"] and last["hours"] > 0 and set(last["data"]) == {"sharechatx", "dailytalk"}


def test_a_second_call_does_nothing_and_another_script_only_what_is_new(calls: list[str]) -> None:
    before = events()
    assert study_verb.main(["experts"], None, ASKED) == 0
    assert calls == [] and events() == before
    assert study_verb.main(["alpha"], None, ASKED) == 0
    known = {run for run, _ in before}
    assert len(calls) == 4 and known < set(calls), "alpha 1 is trained; the others' dev split is evaluated"
    for run in known:
        assert [event for _, event in events(run)].count("started") == 1
    assert {split.name for split in (FOLDER / "runs").glob("*/predictions/*.jsonl")} >= {"dev.jsonl", "test.jsonl"}


def test_changed_code_is_told_and_not_mixed(
    calls: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(engine, "code_facts", lambda: {"version": "1", "commit": "b"})
    assert study_verb.main(["experts"], None, ASKED) == 2 and not calls
    said = capsys.readouterr().err
    assert "1 (a) -> 1 (b)" in said and "--accept code" in said and said.count("\n") == 1
    assert study_verb.main(["experts"], None, [*ASKED, "--accept", "code"]) == 0 and not calls


def test_runs_that_are_made_anew_get_their_features_first(calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "code_facts", lambda: {"version": "1", "commit": "b"})
    monkeypatch.setattr(jobs.Pool, "run", lambda pool, waiting: calls.extend(job.run for job in waiting))
    assert study_verb.main(["experts"], None, [*ASKED, "--remake"]) == 0
    assert calls[0] == "cache" and len(calls) == 3, "what the runs read may be what has changed"


def test_a_failed_run_is_in_the_ledger_and_the_others_are_made(
    calls: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    bad = [*ASKED, "--fusions", "stack", "single_mert", "single_whisper"]  # there is no Whisper here
    assert study_verb.main(["fusion"], None, bad) == 1
    ended = {run: event for run, event in events() if run in calls}
    assert sorted(ended.values()) == ["evaluated", "evaluated", "failed"]
    failed = next(e for e in Ledger(FOLDER / "ledger.jsonl").events if e["event"] == "failed")
    assert "whisper" in failed["error"] and "single_whisper" not in failed["run"]
    assert failed["error"] in capsys.readouterr().out


def test_a_study_killed_in_the_midst_of_a_run_goes_on_from_its_checkpoint(
    work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real processes: one run is killed by SIGKILL, the study is asked to stop in the midst of it, then goes on."""
    monkeypatch.chdir(work)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(engine, "code_facts", lambda: {"version": "1", "commit": "a"})
    monkeypatch.setattr(engine.Study, "preparations", lambda self, tasks: [])  # all is there
    # both arms of `experts` become the same run by these settings
    asked = ["--preset", "smoke", "--no-report", "--steps", "20", "--set", "chat.input=text", "mixture.alpha=0.5"]
    asked += ["loader.batch_tokens=256"]  # quick steps: most of the time goes into starting the processes

    def kill(number: signal.Signals, least: int) -> None:
        """Send a signal as soon as the run has a checkpoint of at least this step."""
        until = time.monotonic() + 120
        while time.monotonic() < until:
            for folder in (FOLDER / "runs").glob("text-alpha0.5-*/checkpoints/step-*"):
                if int(folder.name.removeprefix("step-")) >= least:
                    if number == signal.SIGTERM:
                        os.kill(os.getpid(), number)
                    else:
                        with contextlib.suppress(ProcessLookupError):
                            os.kill(pool[0].running[0].process.pid, number)
                    return
            time.sleep(0.05)

    pool: list[jobs.Pool] = []
    plain = jobs.Pool.run

    def noted(self: jobs.Pool, waiting: list[jobs.Job]) -> None:
        pool[:] = [self]
        plain(self, waiting)

    monkeypatch.setattr(jobs.Pool, "run", noted)
    for number, least, code, last in ((signal.SIGKILL, 2, 1, "failed"), (signal.SIGTERM, 8, 130, "started")):
        thread = threading.Thread(target=kill, args=(number, least))
        thread.start()
        assert study_verb.main(["experts"], None, asked) == code
        thread.join()
        run = next(FOLDER.glob("runs/text-alpha0.5-*")).name
        assert events(run)[-1][1] == last
    assert "SIGKILL" in Ledger(FOLDER / "ledger.jsonl").last(run, "failed")["error"]  # type: ignore[index]
    assert study_verb.main(["experts"], None, asked) == 0
    assert [event for _, event in events(run)] == ["started", "failed", "started", "started", "finished", "evaluated"]
    steps = [
        row["step"] for _, row in iterate_jsonl(FOLDER / "runs" / run / "log.jsonl") if row.get("event") == "resume"
    ]
    assert len(steps) == 2 and 2 <= steps[0] <= steps[1] and 8 <= steps[1] < 20


def test_a_job_ends_when_its_study_is_gone(tmp_path: Path) -> None:
    """A study that is killed cannot ask its runs to stop."""
    code = "import time; from omnichat.study_job import _end_with; _end_with(1 << 22); time.sleep(60)"
    assert subprocess.run([sys.executable, "-c", code], timeout=50).returncode == -signal.SIGTERM
