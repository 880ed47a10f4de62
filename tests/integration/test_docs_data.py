"""docs/DATA.md does what it says: its commands run on corpora as it shows them, its Python reads the result."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from omnichat.data.corpus import Corpus, parse_dialogue
from tests.helpers.layouts import make_dailytalk, make_styletalk, make_voxdialogue, wav_bytes

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "DATA.md").read_text(encoding="utf-8")
FOUND = re.findall(r"^```(\w+)\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)


def blocks(kind: str) -> list[str]:
    return [block for language, block in FOUND if language == kind]


def make_inputs(work: Path) -> None:
    """What the commands read, as the document shows it."""
    for name, make in (("dailytalk", make_dailytalk), ("voxdialogue", make_voxdialogue), ("styletalk", make_styletalk)):
        (work / "data" / name).mkdir(parents=True)
        make(work / "data" / name)
    shown = json.loads(blocks("json")[1])
    (work / "data" / "talks" / "sounds").mkdir(parents=True)
    lines = []
    for number in range(40):
        text = json.dumps(shown).replace("t1", f"t{number}").replace("there", f"number {number}")
        for index, turn in enumerate(json.loads(text)["talk"]):
            (work / "data" / "talks" / turn["wav"]).write_bytes(wav_bytes(2 * number + index))
        lines.append(text.replace("Good morning", f"Good morning, number {number}"))
    (work / "data" / "talks" / "talks.jsonl").write_text("\n".join(lines) + "\n")
    (work / "data" / "rows").mkdir()
    rows = ["talk_id,number,line,name,part", "a,2,Well.,Eve,train", "a,1,Hello.,Ann,train", "b,1,Hi.,Ann,test"]
    (work / "data" / "rows" / "rows.csv").write_text("\n".join([*rows, "b,2,Hi!,Eve,test"]) + "\n")


def test_every_command_runs_and_the_python_reads_what_they_made(
    omnichat: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    work = Path.cwd()
    make_inputs(work)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    commands = [line for block in blocks("bash") for line in block.splitlines()]
    assert len(commands) >= 10
    for command in commands:
        program, *arguments = shlex.split(command)
        outcome = omnichat(*arguments)
        assert program == "omnichat" and outcome.code == 0, (command, outcome.err[-500:])
    talks = Corpus.load(work / "corpora" / "talks", "full")
    assert talks.dialogues[0].turns[0].style.emotion == "happy" and talks.name == "talks"
    rows = Corpus.load(work / "corpora" / "rows").dialogues
    assert [(t.speaker, t.text) for t in rows[0].turns] == [("A", "Hello."), ("B", "Well.")]
    assert [d.split for d in rows] == ["train", "test"]
    given: dict[str, Any] = {}
    exec(blocks("python")[0], given)
    assert given["rate"] == 16000 and len(given["samples"]) > 1000


def test_every_command_of_the_text_is_a_block_or_needs_the_hub() -> None:
    inline = re.findall(r"`(omnichat [^`]+=[^`]*)`", TEXT)
    assert inline == ["omnichat data push path=corpora/talks repo=ORGANISATION/NAME"]


def test_the_line_of_the_schema_is_one() -> None:
    dialogue = parse_dialogue(json.loads(blocks("json")[0]))
    assert dialogue.scene is not None and dialogue.turns[0].variant_of == "made-7"


def test_every_reader_is_in_the_table() -> None:
    told = set(re.findall(r"^\| (.*?) \|", TEXT, flags=re.MULTILINE))
    names = {name for cell in told for name in re.findall(r"`(\w+)`", cell)}
    assert {path.stem for path in (ROOT / "configs" / "source").glob("*.yaml")} <= names
