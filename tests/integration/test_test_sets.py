"""Test sets from outside a run, held-out words, and what stays: the run's own figures, the set over alpha."""

from __future__ import annotations

import copy
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from omnichat.assembly import assemble, checked_sources
from omnichat.cli import run as run_cli
from omnichat.config import EvaluateRun
from omnichat.data.corpus import Corpus
from omnichat.data.mixture import MixtureConfig
from omnichat.evaluate import read_run_config
from omnichat.experiments.runs import load_run
from omnichat.prompt_sets import prompt_sets
from omnichat.utils.files import read_json, read_jsonl
from tests.helpers.corpora import real_corpus
from tests.helpers.layouts import make_dailytalk, make_hf_questions, make_voxdialogue
from tests.integration.conftest import Corpora, Outcome

Cli = Callable[..., Outcome]
QUICK = ["score.bertscore_model=null", "score.bootstrap_samples=100", "score.permutations=20", "max_new_tokens=6"]


@pytest.fixture(scope="module")
def run(corpora: Corpora, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run that hears both kinds of corpora, evaluated on its own test set."""
    folder = tmp_path_factory.mktemp("sets") / "runs"
    assert run_cli(["train", *corpora.overrides(folder), "name=speech", "mixture.alpha=0.2", "trainer.steps=3"]) == 0
    assert run_cli(["evaluate", f"run={folder / 'speech'}", *QUICK]) == 0
    return folder / "speech"


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A spoken-QA data set as `datasets` saves it."""
    folder = tmp_path_factory.mktemp("released") / "questions"
    folder.mkdir()
    make_hf_questions(folder)
    return folder


def rows_of(run: Path, name: str | None) -> list[dict[str, Any]]:
    return [row for row in read_json(run / "metrics.json") if row.get("set") == name]


def test_a_spoken_qa_set_of_the_hub_s_form_is_evaluated(
    run: Path, questions: Path, tmp_path: Path, omnichat: Cli
) -> None:
    before = {path: path.read_bytes() for path in (run / "predictions").glob("test.jsonl")}
    mine = rows_of(run, None)
    columns = "source.columns={text: question, audio: sound, answer: answers}"
    prepare = ["source=huggingface", f"path={questions}", f"out={tmp_path / 'qa'}", "source.shape=exchange"]
    made = omnichat("prepare", *prepare, columns, "source.split=test")
    assert made.code == 0, made.err
    outcome = omnichat("evaluate", f"run={run}", "own=false", f"+sets.qa.path={tmp_path / 'qa'}", *QUICK)
    assert outcome.code == 0, outcome.err
    assert "replies/s" in outcome.out and outcome.out.strip().splitlines()[-1].startswith("next: omnichat report")

    rows = read_jsonl(run / "predictions" / "qa.test.jsonl")
    assert [row["reference"]["text"] for row in rows] == [f"That makes {number + 1} apples." for number in range(4)]
    assert {row["source"] for row in rows} == {"qa"} and {row["input"] for row in rows} == {"speech"}
    assert all("attention" in row for row in rows), "the question was heard"
    theirs = rows_of(run, "qa")
    assert {row["scenario"] for row in theirs} == {"source:qa", "source:qa/daily"}
    names = {row["metric"] for row in theirs}
    assert {"bleu", "rouge_l", "meteor"} <= names
    assert not {name for name in names if "style" in name or "emotion" in name or "accuracy" in name}, (
        "a set without styles has no figure of styles"
    )
    assert all(row["n"] == 4 for row in theirs)

    assert rows_of(run, None) == mine, "the run's own figures are what they were"
    assert before == {path: path.read_bytes() for path in (run / "predictions").glob("test.jsonl")}
    about = read_json(run / "predictions" / "about.json")
    assert set(about) == {"test", "qa.test"} and about["qa.test"]["replies"] == 4
    loaded = load_run(run)
    assert loaded.metric("test", "bleu", "source:qa") is not None and set(loaded.outside) == {"qa"}
    assert len(loaded.outside["qa"]["test"]) == 4 and len(loaded.predictions["test"]) == about["test"]["replies"]
    assert loaded.metric("test", "bleu") in mine
    page = omnichat("report", f"runs=[{run}]", f"out={tmp_path / 'report'}")
    assert page.code == 0, page.err
    for name in ("report.md", "index.html"):
        assert "Other test sets" in (tmp_path / "report" / name).read_text(encoding="utf-8")


def test_own_and_outside_together_give_what_each_gives_alone(run: Path, tmp_path: Path, omnichat: Cli) -> None:
    other = real_corpus(tmp_path / "other")
    many = [f"run={run}", "split=dev", "replies=all", "limit=1", *QUICK]
    assert omnichat("evaluate", *many).code == 0
    own = (run / "predictions" / "dev.jsonl").read_bytes()
    mine = rows_of(run, None)
    both = omnichat("evaluate", *many, f"+sets.other.path={other}")
    assert both.code == 0, both.err
    assert (run / "predictions" / "dev.jsonl").read_bytes() == own and rows_of(run, None) == mine
    assert {row["dialogue"] for row in read_jsonl(run / "predictions" / "other.dev.jsonl")} == {"r-dev0"}, "limit"
    theirs = rows_of(run, "other")
    assert omnichat("evaluate", *many, "own=false", f"+sets.other.path={other}").code == 0
    assert rows_of(run, "other") == theirs


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("+sets.vox.path=no/such", ("no/such",)),
        ("+sets.vox.path={raw}", ("sets.vox.path", "omnichat prepare source=")),
        ("+sets.dailytalk.path={real}", ("sets.dailytalk", "another name")),
        ("+sets.test.path={real}", ("sets.test", "name")),
        ("own=false", ("own=false", "+sets.")),
        ("+sets.vox.pth=a", ("sets.vox.pth", "path")),
        ("leaks=ignore", ("leaks", "leave_out")),
        ("launch.strategy=fsdp2", ("launch.strategy", "whole model")),
        ("trainer.steps=3", ("trainer.steps",)),
        ("limit=0", ("limit",)),
    ],
)
def test_a_wrong_set_is_told_in_a_line(
    run: Path, questions: Path, corpora: Corpora, omnichat: Cli, override: str, words: tuple[str, ...]
) -> None:
    outcome = omnichat("evaluate", f"run={run}", override.format(raw=questions, real=corpora.real))
    assert outcome.code == 2 and all(word in outcome.err.splitlines()[-1] for word in words), outcome.err


def test_the_documented_commands_run(run: Path, questions: Path, omnichat: Cli) -> None:
    """docs/TEST_SETS.md, but for the commands of several processes, which have their own tests."""
    text = (Path(__file__).resolve().parents[2] / "docs" / "TEST_SETS.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```bash\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    commands = [line for block in blocks for line in block.splitlines() if "launch" not in line]
    assert len(commands) == 5
    Path("runs").mkdir()
    Path("runs/speech").symlink_to(run)
    for name, make in (("voxdialogue", make_voxdialogue), ("dailytalk", make_dailytalk)):
        Path("data", name).mkdir(parents=True)
        make(Path("data", name))
    Path("data/questions").symlink_to(questions)
    for command in commands:
        verb, *words = shlex.split(command)[1:]
        outcome = omnichat(verb, *words, *(QUICK if verb == "evaluate" else ()))
        assert outcome.code == 0, (command, outcome.err[-600:])
    heard = {row["heard"]["text"] for row in read_jsonl(run / "predictions" / "vox.test.jsonl")}
    vox = Corpus.load("corpora/vox")
    assert heard == {dialogue.turns[-2].text for dialogue in vox.iterate("test")}
    assert {row["scenario"] for row in rows_of(run, "vox")} > {"source:vox"}


def test_a_set_without_the_split_says_what_it_has(run: Path, questions: Path, tmp_path: Path, omnichat: Cli) -> None:
    columns = "source.columns={text: question, audio: sound, answer: answers}"
    prepare = ["source=huggingface", f"path={questions}", f"out={tmp_path / 'qa'}", "source.shape=exchange"]
    assert omnichat("prepare", *prepare, columns, "source.split=test").code == 0
    outcome = omnichat("evaluate", f"run={run}", "split=dev", f"+sets.qa.path={tmp_path / 'qa'}", *QUICK)
    assert outcome.code == 2 and "no dev dialogue (4 of test)" in outcome.err, outcome.err


def test_what_training_has_said_is_told_refused_or_left_out(run: Path, tmp_path: Path, omnichat: Cli) -> None:
    """The tones' synthetic corpus says the same sentences in every split, the real one others in each."""
    command = ["evaluate", f"run={run}", "split=dev", *QUICK]
    told = omnichat(*command)
    assert told.code == 0
    told_lines = [line for line in told.err.splitlines() if "leak:" in line]
    assert (
        len(told_lines) == 1 and "leak: 4 of 4 replies" in told_lines[0] and "its question's words 2" in told_lines[0]
    )
    whole = (run / "predictions" / "dev.jsonl").read_bytes()
    refused = omnichat(*command, "leaks=refuse")
    assert refused.code == 2 and "leaks=refuse: dev: leak: 4 of 4" in refused.err.splitlines()[-1]
    assert (run / "predictions" / "dev.jsonl").read_bytes() == whole
    nothing = omnichat(*command, "leaks=leave_out")
    assert nothing.code == 2 and "leaves nothing" in nothing.err.splitlines()[-1]


def test_the_set_is_the_same_whatever_alpha(run: Path) -> None:
    config = EvaluateRun(run=str(run), replies="all")
    trained = read_run_config(run)
    seen = {}
    mixtures: dict[str, dict[str, Any]] = {
        "0": {"alpha": 0.0},
        "0.5": {"alpha": 0.5},
        "1": {"alpha": 1.0},
        "schedule": {"schedule": [[0, 1.0], [3, 0.0]]},
        "by seconds": {"alpha": 0.5, "unit": "second"},
        "other seed": {"alpha": 0.5},
    }
    for name, changes in mixtures.items():
        mixed = copy.deepcopy(trained)
        mixed.mixture = MixtureConfig(**{"sources": trained.mixture.sources, **changes})
        mixed.seed = 5 if name == "other seed" else trained.seed
        parts = assemble(mixed, checked_sources(mixed))
        for split in ("dev", "test"):
            config.split = split
            [asked] = prompt_sets(config, parts.sources, parts.chat)
            prompts = [(p.item.source, p.item.dialogue, p.turn, tuple(p.item.sequence.ids)) for p in asked.prompts]
            seen.setdefault(split, {})[name] = (asked.fingerprint(), prompts)
    for split, found in seen.items():
        assert all(one == found["0"] for one in found.values()), split
        corpora = [Corpus.load(source.path) for source in trained.mixture.sources.values()]
        assert {d for _, d, _, _ in found["0"][1]} == {d.id for c in corpora for d in c.iterate(split)}
