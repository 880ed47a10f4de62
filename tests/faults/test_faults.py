"""Ten faults and more, through the campaign that `make faults` runs at length."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.kinds import KINDS

ROOT = Path(__file__).resolve().parents[2]
# What no other test does to a whole process; stopped and killed steps are in tests/integration/test_resume.py.
IN_CI = (
    "kill_write",
    "torn_write",
    "many_kills",
    "sigterm_dev",
    "stop_evaluate",
    "disk_refuses",
    "damage",
    "nan_skip",
    "changed",
    "bad_manifest",
)


@pytest.mark.slow
def test_ten_faults_are_survived(tmp_path: Path) -> None:
    """In a process of its own: it forks, and what ran in this one before may have started threads."""
    out = tmp_path / "faults.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "scripts/faults.py", f"--count={len(IN_CI)}", f"--kinds={','.join(IN_CI)}", f"--out={out}"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    results = json.loads(out.read_text())["faults"]
    assert [result["kind"] for result in results] == list(IN_CI)
    assert {result["outcome"] for result in results} <= {"held", "skipped"}


def test_the_weights_are_those_of_a_hundred() -> None:
    assert sum(KINDS.values()) >= 100 and min(KINDS.values()) >= 1
    assert {kind.__name__ for kind in KINDS} >= set(IN_CI)


@pytest.mark.campaign  # over two minutes; a killed pipeline goes on in tests/unit/synthesis/test_pipeline.py
def test_a_corpus_survives_kills_byte_for_byte(tmp_path: Path) -> None:
    """One fault of each kind through the campaign that `make faults-factory` runs at length."""
    out = tmp_path / "faults.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TMPDIR": str(tmp_path)}
    kinds = "kill_any_time,kill_at_write,damage_work"
    done = subprocess.run(
        [sys.executable, "scripts/faults.py", "--of=factory", "--count=3", f"--kinds={kinds}", f"--out={out}"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert [result["outcome"] for result in json.loads(out.read_text())["faults"]] == ["held"] * 3
