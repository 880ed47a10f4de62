"""Every command of README.md, CONTRIBUTING.md, docs/ and `--help` is run by a test, checked here, or excused by name.

Checked means: overrides are composed into the verb's typed schema and every part they name is held against its
constructor; a script's own parser takes the arguments; a make target is there, and what it runs is checked in turn.
"""

from __future__ import annotations

from functools import cache

import pytest

from tests.config.composing import ROOT
from tests.helpers.doc_checks import Unmet, check
from tests.helpers.doc_commands import Command, commands_of, documented, help_examples

# Pages of which a test of their own runs all blocks, command by command -> that test.
RUN = {
    "docs/ADDING_A_PART.md": "tests/integration/test_docs_walkthrough.py",
    "docs/DATA.md": "tests/integration/test_docs_data.py",
    "docs/EVALUATION.md": "tests/integration/test_docs_evaluation.py",
    "docs/TUTORIAL.md": "tests/integration/test_docs_tutorial.py",
}
# What can neither run here nor be checked without running -> why.
EXCUSED = {
    ".venv/bin/pre-commit install": "writes a hook into the repository's own .git",
    "omnichat VERB --help": "VERB stands for any verb",
    "omnichat train launch=NAME ...": "NAME stands for any file of configs/launch, which tests/config compose",
    "omnichat synthesize writer=NAME": "NAME stands for any file of configs/writer, which tests/config compose",
    'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)': "asks a Slurm cluster",
    "hf auth login": "asks for the reader's own token of the hub",
    "tensorboard --logdir runs": "a server that runs until it is stopped",
    "wandb sync runs/demo/wandb/offline-run-*": "uploads to wandb's server",
    "wandb sync": "uploads to wandb's server",
}


@cache
def every_command() -> tuple[Command, ...]:
    return (*documented(), *help_examples())


@pytest.fixture(autouse=True)
def _cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a cluster sets, for the configs that ask for it."""
    monkeypatch.setenv("MASTER_ADDR", "somewhere")
    monkeypatch.setenv("SLURM_JOB_ID", "1")


def faults(commands: list[Command]) -> list[str]:
    """What is wrong with these commands, each with its place; equal ones are checked once."""
    found, seen = [], set()
    for command in commands:
        key = (command.text, command.whole)
        if key in seen or command.text in EXCUSED or (command.whole and command.file in RUN):
            continue
        seen.add(key)
        try:
            check(command)
        except Unmet:
            found.append(f"{command.place}: {command.text}: no test runs it, and nothing here can check it")
        except Exception as error:  # a config, a parser, a part: each has errors of its own
            found.append(f"{command.place}: {command.text}: {type(error).__name__}: {error}")
    return found


@pytest.mark.parametrize("name", sorted({command.file for command in every_command()}))
def test_every_command_is_met(name: str) -> None:
    wrong = faults([command for command in every_command() if command.file == name])
    assert not wrong, "\n".join(wrong)


def test_every_verb_shows_examples() -> None:
    from omnichat.cli import VERBS

    assert {command.words[1] for command in help_examples()} == set(VERBS)


def test_no_excuse_outlives_its_command() -> None:
    assert not set(EXCUSED) - {command.text for command in every_command()}


def test_the_tests_that_run_pages_read_them() -> None:
    shown = {command.file for command in every_command() if command.whole}
    for page, test in RUN.items():
        source = (ROOT / test).read_text(encoding="utf-8")
        assert page in shown and page.rpartition("/")[2] in source, f"{test} should run the commands of {page}"
        assert "blocks(" in source or "commands_of(" in source


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("omnichat train mixture.alhpa=0.2", "alhpa"),
        ("omnichat train fusion=mixformer", "mixformer"),
        ("omnichat train experts.beats.depht=2", "depht"),
        ("omnichat train -m mixture.alpha=0,2", "alpha"),
        ("omnichat score", "predictions"),
        ("omnichat fly", "no verb"),
        ("omnichat train --dry-run", "no such option"),
        ("make fly", "fly"),
        ("python scripts/study_alpha.py --preset huge", "huge"),
        ("python scripts/study_alfa.py", "no such file"),
        ("python -c 'import torch;;'", "SyntaxError"),
        ("pip install omnichat[wings]", "wings"),
        ("pip install wings", "wings"),
        ("curl http://127.0.0.1:8000", "no test runs it"),
        ("omnichat runs | head", "no test runs it"),
    ],
)
def test_a_wrong_command_is_named_with_its_place(line: str, said: str) -> None:
    commands = commands_of("docs/NEW.md", f"Do this:\n\n```bash\n{line}\n```\n")
    (wrong,) = faults(commands)
    assert wrong.startswith("docs/NEW.md:4: ") and said in wrong
