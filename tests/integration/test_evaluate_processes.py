"""`omnichat evaluate launch=cpu2`: the bytes of one process, also after a kill; and a named culprit when one dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from omnichat.cli import run as run_cli
from omnichat.utils.files import read_json
from tests.helpers.corpora import real_corpus
from tests.integration.conftest import Corpora, Outcome

ROOT = Path(__file__).resolve().parents[2]
SLOW = ["replies=all", "max_new_tokens=60", "batch_tokens=1"]  # a reply a batch, so that there is something to share
QUICK = ["score.bertscore_model=null", "score.bootstrap_samples=100", "score.permutations=20", "audio_samples=1"]


@pytest.fixture(scope="module")
def run(corpora: Corpora, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shared") / "runs"
    assert run_cli(["train", *corpora.overrides(folder), "name=speech", "mixture.alpha=0.2", "trainer.steps=3"]) == 0
    return folder / "speech"


def start(run: Path, output: Path, *overrides: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "omnichat.cli", "evaluate", f"run={run}", *QUICK, *SLOW, *overrides]
    with open(output, "w") as handle:
        return subprocess.Popen(command, env=environment, stdout=handle, stderr=subprocess.STDOUT, text=True)


def results(run: Path) -> dict[str, Any]:
    files = [run / "metrics.json", *sorted((run / "predictions").glob("[!.]*.json*"))]
    return {path.name: path.read_bytes() for path in files}


@pytest.mark.slow
def test_two_processes_one_of_them_killed_give_the_bytes_of_one(
    run: Path, tmp_path: Path, omnichat: Callable[..., Outcome]
) -> None:
    other = f"+sets.other.path={real_corpus(tmp_path / 'other')}"
    one = omnichat("evaluate", f"run={run}", *QUICK, *SLOW, other)
    assert one.code == 0, one.err
    wanted = results(run)
    assert set(wanted) == {"metrics.json", "about.json", "test.jsonl", "other.test.jsonl"}
    for name in wanted:
        (run / name if name == "metrics.json" else run / "predictions" / name).unlink()

    process = start(run, tmp_path / "first", other, "launch=cpu2")
    second = run / "predictions" / ".test.partial-1.jsonl"
    while not second.is_file() or second.read_bytes().count(b"\n") < 2:
        assert process.poll() is None, (tmp_path / "first").read_text()[-3000:]
        time.sleep(0.01)
    pids = {(record := read_json(p))["rank"]: record["pid"] for p in (run / "launch/evaluate").glob("rank-*.json")}
    os.kill(pids[1], signal.SIGKILL)
    code, output = process.wait(), (tmp_path / "first").read_text()
    assert code == 1, output[-3000:]
    last = output.strip().splitlines()[-1]
    assert last.startswith("omnichat evaluate: rank 1 was killed by SIGKILL") and "replies decoded so far" in last
    assert "Traceback" not in output
    assert not (run / "metrics.json").exists() and not (run / "predictions" / "test.jsonl").exists()

    again = start(run, tmp_path / "second", other, "launch=cpu2")
    assert again.wait() == 0, (tmp_path / "second").read_text()[-3000:]
    assert results(run) == wanted
    said = (tmp_path / "second").read_text()
    assert "by 2 processes" in said and "were there before" in said and said.count("next: omnichat report") == 1
    assert not list((run / "predictions").glob(".*")), "nothing is left to go on from"


@pytest.mark.slow
@pytest.mark.campaign
def test_a_stop_reaches_all_and_one_process_goes_on(
    run: Path, tmp_path: Path, omnichat: Callable[..., Outcome]
) -> None:
    whole = omnichat("evaluate", f"run={run}", *QUICK, *SLOW, "split=dev")
    assert whole.code == 0, whole.err
    wanted = results(run)
    process = start(run, tmp_path / "output", "launch=cpu2", "split=dev")
    partial = run / "predictions" / ".dev.partial-1.jsonl"
    while not partial.is_file() or partial.read_bytes().count(b"\n") < 2:
        assert process.poll() is None, (tmp_path / "output").read_text()[-3000:]
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 143, (tmp_path / "output").read_text()[-3000:]
    assert "Traceback" not in (tmp_path / "output").read_text()
    assert read_json(run / "REQUEUE")["verb"] == "evaluate"
    assert results(run) == wanted, "older results stay"
    on = omnichat("evaluate", f"run={run}", *QUICK, *SLOW, "split=dev")
    assert on.code == 0 and "were there before" in on.out, on.err
    assert results(run) == wanted and not (run / "REQUEUE").exists()


def test_a_launcher_outside_is_refused(run: Path, omnichat: Callable[..., Outcome], monkeypatch: Any) -> None:
    monkeypatch.setenv("RANK", "0")
    outcome = omnichat("evaluate", f"run={run}")
    assert outcome.code == 2 and "omnichat evaluate launch=" in outcome.err, outcome.err
