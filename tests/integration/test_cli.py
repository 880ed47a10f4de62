"""The command itself: help, version, composed configs, real processes, and what it needs installed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from omnichat import __version__, cli
from omnichat.cli import VERBS
from omnichat.config import SCHEMAS, typed
from tests.integration.conftest import Corpora, Outcome

ROOT = Path(__file__).resolve().parents[2]
Cli = Callable[..., Outcome]


def process(code_or_module: list[str], cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run this Python in a process of its own, elsewhere, with the checkout importable."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, *code_or_module], cwd=cwd, env=environment, capture_output=True, text=True)


def test_every_verb_has_a_schema() -> None:
    assert set(VERBS) == set(SCHEMAS)


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",), ("help",)])
def test_the_overview_names_every_verb(arguments: tuple[str, ...], omnichat: Cli) -> None:
    outcome = omnichat(*arguments)
    assert outcome.code == 0 and outcome.err == ""
    assert all(f"omnichat {verb} " in outcome.out and text in outcome.out for verb, text in VERBS.items())


def test_version(omnichat: Cli) -> None:
    assert omnichat("--version") == Outcome(0, f"omnichat {__version__}\n", "")


@pytest.mark.parametrize("verb", VERBS)
def test_help_of_a_verb_shows_examples_choices_and_settings(verb: str, omnichat: Cli) -> None:
    outcome = omnichat(verb, "--help")
    assert outcome.code == 0, outcome.err
    for heading in ("examples", f"omnichat {verb}", "choices (group=name)", "settings and their defaults"):
        assert heading in outcome.out
    assert "_schema" not in outcome.out and "Powered by Hydra" not in outcome.out
    assert not list(Path().iterdir()), "asking for help leaves nothing behind"


@pytest.mark.parametrize("verb", VERBS)
def test_the_examples_of_the_help_compose(verb: str, omnichat: Cli) -> None:
    import shlex

    from tests.config.composing import NEEDED, config

    lines = [line.strip() for line in omnichat(verb, "--help").out.splitlines()]
    examples = [line for line in lines if line.startswith(f"omnichat {verb} ") and "=" in line.split(":")[0]]
    examples = [line.partition("   ")[0] for line in examples]
    assert examples
    for example in examples:
        words = [word for word in shlex.split(example)[2:] if word not in ("-m", "--cfg", "job")]
        if "..." in example or "-m" in example.split():
            words = [word for word in words if "," not in word]
        words += (
            NEEDED.get(verb, [])
            if not any(word.startswith(("path=", "run=", "runs=", "predictions=")) for word in words)
            else []
        )
        words = [word for word in words if word != "..."]
        config(verb, cli._overrides(verb, words))


def test_a_reader_that_has_read_enough_gets_no_trace(tmp_path: Path) -> None:
    """As in `omnichat train --help | head -1`."""
    command = [sys.executable, "-m", "omnichat.cli", "train", "--help"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        said = process.stderr.read().decode()
    assert process.returncode == 128 + signal.SIGPIPE and "Traceback" not in said and "BrokenPipe" not in said


def test_cfg_job_prints_the_composed_config(omnichat: Cli) -> None:
    outcome = omnichat("train", "experiment=smoke", "trainer.steps=7", "--cfg", "job")
    assert outcome.code == 0 and outcome.err == ""
    run = typed(OmegaConf.create(outcome.out), SCHEMAS["train"])
    assert run.trainer.steps == 7 and run.mixture.sources
    assert not list(Path().iterdir())


def test_a_process_ends_with_two_on_a_mistake_and_prints_one_line(tmp_path: Path) -> None:
    done = process(["-m", "omnichat.cli", "train", "mixture.alpha=1.2"], tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "omnichat train: error: mixture.alpha must lie in [0, 1] (the share of real dialogues), got 1.2\n"
    )
    assert not list(tmp_path.iterdir())


def test_the_overview_does_not_wait_for_torch(tmp_path: Path) -> None:
    code = "import sys; from omnichat.cli import run; run(['--help']); sys.exit('torch' in sys.modules)"
    done = process(["-c", code], tmp_path)
    assert done.returncode == 0 and "omnichat train" in done.stdout, done.stderr


BLOCK = textwrap.dedent(
    """
    import sys

    for name in ("piper", "parselmouth"):
        sys.modules[name] = None  # importing it raises ModuleNotFoundError
    from omnichat.cli import run
    """
)


@pytest.mark.slow
def test_without_the_synthesis_extra_training_works_and_synthesis_says_what_to_install(
    tmp_path: Path, corpora: Corpora
) -> None:
    train = ["train", *corpora.overrides(tmp_path / "runs"), "name=one", "trainer.steps=1", "chat.input=text"]
    commands = [["train", "--help"], train, ["synthesize", "corpus=smoke", f"out={tmp_path / 'made'}"]]
    code = BLOCK + "for arguments in " + repr(commands) + ":\n    print('code', run(arguments), flush=True)\n"
    done = process(["-c", code], tmp_path)
    codes = [line for line in done.stdout.splitlines() if line.startswith("code ")]
    assert codes == ["code 0", "code 0", "code 2"], done.stderr
    last = [line for line in done.stderr.splitlines() if "error" in line]
    assert len(last) == 1 and "pip install omnichat[synthesis]" in last[0] and last[0].startswith("omnichat synthesize")
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "made").exists()


def test_disk_errors_are_one_line(
    corpora: Corpora, tmp_path: Path, omnichat: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "runs" / "one" / "config.yaml"))

    monkeypatch.setattr("omnichat.train.write_text_atomic", full)
    outcome = omnichat("train", *corpora.overrides(tmp_path / "runs"), "name=one", "chat.input=text")
    assert outcome.code == 2
    last = outcome.err.strip().splitlines()[-1]
    assert "No space left on device" in last and "config.yaml" in last and "Traceback" not in outcome.err


def test_our_own_faults_keep_their_trace(omnichat: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error that is no mistake of the user's must not be made to look like one."""

    def broken(*_: object) -> None:
        raise FileNotFoundError(2, "No such file or directory", "ours.json")

    monkeypatch.setattr("omnichat.train.checked_sources", broken)
    with pytest.raises(FileNotFoundError, match=r"ours\.json"):
        omnichat("train")
