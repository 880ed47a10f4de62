"""docs/EVALUATION.md does what it says: each of its commands runs on files as it shows them; what is wrong is named."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.layouts import make_sharechatx
from tests.unit.experiments.builders import make_run

TEXT = (Path(__file__).resolve().parents[2] / "docs" / "EVALUATION.md").read_text(encoding="utf-8")
FOUND = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)
QUICK = ("score.bertscore_model=null", "score.bootstrap_samples=100", "score.permutations=20")


def blocks(kind: str) -> list[str]:
    return [block for language, block in FOUND if language == kind]


def make_inputs(work: Path) -> None:
    """What the commands read, as the document shows it."""
    make_run(work / "runs" / "demo", "words", given="text", skill=0.2, count=3, steps=20)
    ours = make_run(work / "runs" / "demo", "speech", skill=0.8, count=3, steps=20)
    for seed in range(3):
        make_run(work / "runs", f"s{seed}", seed=seed, count=3, steps=20)
    rows = [json.loads(line) for line in (ours / "predictions" / "test.jsonl").read_text().splitlines()]
    shown, alone = (json.loads(block) for block in blocks("json"))
    assert rows[0]["id"] == shown["id"], "the example's id is one of ours"
    theirs = [shown | {"id": row["id"]} for row in rows]
    others = [{"turn": row["id"], "reply": row["reference"]["text"]} for row in rows[1:]]
    for name, lines in (("theirs", theirs), ("alone", [alone]), ("others", others)):
        (work / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    make_sharechatx(work / "data" / "sharechatx_demo")


def test_every_command_runs(omnichat: Callable[..., Any]) -> None:
    work = Path.cwd()
    make_inputs(work)
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    assert len(commands) == 7
    for command in commands:
        program, *arguments = shlex.split(command)
        outcome = omnichat(*arguments, *QUICK)
        assert program == "omnichat" and outcome.code == 0, (command, outcome.err[-500:])
        assert "next: omnichat " in outcome.out and re.search(r"^BLEU +\d", outcome.out, re.MULTILINE), command
    seeds = json.loads((work / "scores" / "seeds" / "score.json").read_text())
    assert {(system["name"], len(system["files"])) for system in seeds["systems"]} == {("ours", 3), ("words", 1)}
    three = json.loads((work / "scores" / "three" / "score.json").read_text())
    assert "'b' lacks 1 of 15" in three["notes"][0]
    bleu = [row for row in three["rows"] if (row["system"], row["metric"], row["scenario"]) == ("b", "bleu", "all")]
    assert bleu[0]["value"] == pytest.approx(100.0) and bleu[0]["n"] == 14
    alone = json.loads((work / "scores" / "alone" / "score.json").read_text())
    assert any(row["scenario"] == "attribute:age=65" for row in alone["rows"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["predictions=none.jsonl"], "predictions: none.jsonl: no such file or folder"),
        (["predictions=[a.jsonl,b.jsonl]"], "predictions: 'b' lacks 1 of 15"),
        (["predictions=a.jsonl", "baseline=c"], "baseline='c' is not valid; choose one of: a"),
        (["predictions={}"], "predictions must be a path, a list of paths, or names with one or more paths each"),
        (["predictions=[3]"], "predictions must be a path"),
        (["predictions=a.jsonl", "on_missing=skip"], "on_missing='skip' is not valid; choose one of: error, common"),
        (["predictions=a.jsonl", "layout=json"], "layout='json' is not valid (did you mean 'jsonl'?)"),
        (["predictions=torn.jsonl"], "torn.jsonl:1: not a JSON object"),
        (["predictions=a.jsonl", "layout=jsonl", "layout.columns.idd=x"], "layout.columns"),
    ],
)
def test_mistakes_are_one_line(omnichat: Callable[..., Any], arguments: list[str], message: str) -> None:
    run = make_run(Path("runs"), "speech", count=3, steps=20)
    lines = (run / "predictions" / "test.jsonl").read_text().splitlines(keepends=True)
    for name, content in (("a", lines), ("b", lines[1:]), ("torn", [lines[0][:90] + "\n", *lines[1:]])):
        Path(f"{name}.jsonl").write_text("".join(content))
    outcome = omnichat("score", *arguments, *QUICK)
    assert outcome.code == 2 and message in outcome.err
    assert len(outcome.err.strip().splitlines()) == 1 and "Traceback" not in outcome.err
