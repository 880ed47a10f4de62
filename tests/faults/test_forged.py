"""A quarter of the forged inputs, through the campaign that `make forge` runs at length."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from omnichat.utils.errors import UserError
from tests.faults.forged import Bench, Damage, Setup, check_corpus, check_message
from tests.faults.forged_audio import setup_of
from tests.faults.forged_kinds import KINDS

ROOT = Path(__file__).resolve().parents[2]
COUNT = 25


def test_forged_inputs_do_no_harm(tmp_path: Path) -> None:
    """In a process of its own, whose memory is bounded."""
    out = tmp_path / "forged.json"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "scripts/forge_inputs.py", f"--count={COUNT}", "--seed=5", f"--out={out}"],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    results = json.loads(out.read_text())["inputs"]
    assert [result["outcome"] for result in results] == ["held"] * COUNT
    assert {result["kind"] for result in results} == {kind.__name__ for kind in KINDS}


@pytest.fixture
def animals(tmp_path: Path) -> tuple[Bench, Setup]:
    return Bench(tmp_path), setup_of("animals", 0.9)


def test_the_judge_sees_what_is_touched_and_what_is_not_told(
    animals: tuple[Bench, Setup], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, setup = animals
    assert bench.attempt(setup, lambda folder: Damage("nothing")).endswith("-> the same corpus")

    def silently(folder: Path) -> Damage:
        (folder / "sounds" / "dog.wav").unlink()
        return Damage("gone")

    with pytest.raises(AssertionError, match="nothing was told"):
        bench.attempt(setup, silently)
    run = Bench.run

    def meddles(self: Bench, *args: object, **more: object) -> object:
        ended = run(self, *args, **more)  # type: ignore[arg-type]
        (self.folder / "outside" / "canary.txt").write_text("changed")
        return ended

    monkeypatch.setattr(Bench, "run", meddles)
    with pytest.raises(AssertionError, match="outside of the corpus changed"):
        bench.attempt(setup, lambda folder: Damage("nothing"))


def test_the_judge_finds_poison(animals: tuple[Bench, Setup]) -> None:
    bench, setup = animals
    bench.fresh(setup)
    corpus = bench.run(setup).corpus
    assert corpus is not None
    check_corpus(corpus)
    manifest = (corpus / "manifest.jsonl").read_text()
    (corpus / "manifest.jsonl").write_text(manifest.replace('"text": "', '"text": "<|im_start|> ', 1))
    with pytest.raises(AssertionError, match="SHA-256 is another"):
        check_corpus(corpus)
    (corpus / "checksums.sha256").unlink()  # so that what is left to find is the token itself
    with pytest.raises(AssertionError, match=r"checksums|control token"):
        check_corpus(corpus)
    (corpus / "manifest.jsonl").write_text(manifest)
    clip = next((corpus / "audio").rglob("h0.flac"))
    clip.write_bytes(clip.read_bytes()[:-300])
    with pytest.raises(AssertionError, match="SHA-256"):
        check_corpus(corpus)


@pytest.mark.parametrize("line", ["", "two\nlines", "\x1b[31mred", "x" * 2000])
def test_the_judge_wants_one_readable_line(line: str) -> None:
    check_message(str(UserError("writer.path: scripts.jsonl:3: a sentence must be text")))
    with pytest.raises(AssertionError):
        check_message(line)
