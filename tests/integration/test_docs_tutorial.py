"""docs/TUTORIAL.md does what it says: each command runs as it stands, on few recordings, with a tiny model."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.helpers.corpora import synthetic_corpus
from tests.helpers.doc_commands import ROOT, commands_of
from tests.helpers.layouts import wav_bytes

PAGE = "docs/TUTORIAL.md"
TEXT = (ROOT / PAGE).read_text(encoding="utf-8")
STEPS = [command for command in commands_of(PAGE, TEXT) if command.whole]
# The demo's recipe in miniature.
MODEL = ("llm=tiny", "~experts.whisper", "tracking.wandb=disabled", "loader.workers=0", "trainer.calibration_clips=8")
SCORE = ("score.bertscore_model=null", "score.bootstrap_samples=100", "score.permutations=20")
QUICK = {
    "inspect": MODEL[:4],
    "train": (*MODEL, "trainer.steps=3", "trainer.dev_every=3", "trainer.checkpoint_every=3"),
    "evaluate": (*SCORE, "max_new_tokens=4"),
    "score": SCORE,
}


def make_recordings(folder: Path) -> None:
    """Recordings and a table as the page shows them: the page's two rows, then more like them."""
    (block,) = re.findall(r"^```csv\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)
    names, *shown = csv.reader(io.StringIO(block))
    rows = list(shown)
    for number, part in enumerate(["train"] * 5 + ["dev"] * 2 + ["test"] * 2, 2):
        for talk, order, who, words, mood, file, _ in shown:
            assert talk == "t1"
            rows.append([f"t{number}", order, who, f"{words} {number}", mood, file.replace("t1", f"t{number}"), part])
    (folder / "wavs").mkdir(parents=True)
    for number, row in enumerate(rows):
        (folder / row[names.index("file")]).write_bytes(
            wav_bytes(100 + number)
        )  # 1.5 s and more: long enough for the words
    with open(folder / "turns.csv", "w", newline="", encoding="utf-8") as handle:
        csv.writer(handle).writerows([names, *rows])


def test_every_step_of_the_tutorial_runs(omnichat: Callable[..., Any]) -> None:
    work = Path.cwd()
    make_recordings(work / "data" / "mine")
    verbs = []
    for step in STEPS:
        program, verb, *overrides = step.words
        verbs.append(verb)
        if verb == "synthesize":  # run by `make demo-short`; here a corpus of tones stands where it writes
            assert overrides == ["corpus=demo"]
            synthetic_corpus(work / "corpora" / "sharechatx-demo")
            continue
        outcome = omnichat(verb, *overrides, *QUICK.get(verb, ()))
        assert program == "omnichat" and outcome.code == 0, (step, outcome.err[-800:])
    assert " ".join(verbs) == ("prepare data data synthesize inspect train evaluate score train evaluate score report")
    drawn = {}
    for name, alpha in (("alpha0.2", 0.2), ("alpha0.5", 0.5)):
        data = json.loads((work / "runs" / "tutorial" / name / "data.json").read_text())
        drawn[name] = {source["name"] for source in data["sources"]}
        assert data["alpha"] == alpha and drawn[name] == {"sharechatx", "mine"}
    both = (work / "scores" / "both" / "score.md").read_text()
    assert "alpha0.2" in both and "alpha0.5" in both and "source:mine" in both
    page = (work / "runs" / "tutorial" / "report" / "index.html").read_text()
    assert "alpha0.2" in page and "alpha0.5" in page
    for named in re.findall(r"`((?:corpora|runs|scores)/[\w./-]+\.\w+)`", TEXT):
        if "skipped" not in named:
            assert (work / named).is_file(), f"the page names {named}"
