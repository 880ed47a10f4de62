"""A mistake of the user's is one line on standard error, exit code 2, met before anything is loaded or made."""

from __future__ import annotations

import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.integration.conftest import Corpora, Outcome

Cli = Callable[..., Outcome]


@pytest.fixture
def nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make building an expert or a language model a failure of the test."""

    def refuse(*_: object) -> None:
        raise AssertionError("this mistake should have been met before anything is loaded")

    # A verb that is imported for the first time under the patch would keep it.
    for verb in ("cache_features", "evaluate", "inspect_sequence", "train"):
        importlib.import_module(f"omnichat.{verb}")
    monkeypatch.setattr("omnichat.assembly.build_experts", refuse)
    monkeypatch.setattr("omnichat.assembly.load_llm", refuse)


def assert_one_line(outcome: Outcome, *words: str) -> None:
    assert outcome.code == 2, outcome
    assert outcome.out == "", "standard output is for results"
    lines = outcome.err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("omnichat"), outcome.err
    assert "error: " in lines[0]
    missing = [word for word in words if word not in lines[0]]
    assert not missing, f"{missing} not in: {lines[0]}"


MISTAKES: list[tuple[str, tuple[str, ...]]] = [
    # unknown keys, however they are given
    ("train trainer.stepz=3", ("trainer.stepz", "did you mean 'trainer.steps'")),
    ("train +trainer.stepz=3", ("trainer.stepz", "did you mean 'trainer.steps'")),
    ("train ++trainer.stepz=3", ("trainer.stepz", "did you mean 'trainer.steps'")),
    ("train +x=1", ("'x'", "mixture", "trainer")),
    ("train x=1", ("'x'", "mixture", "trainer")),
    (
        "train experiment=none +mixture.sources.mine.pth=a +mixture.sources.mine.path=a",
        ("mixture.sources.mine.pth", "mine.path"),
    ),
    ("train experiment=none mixture.sources.mine.path=a", ("mixture.sources.mine", "+mixture.sources.mine")),
    ("evaluate run=a score.bootstrap=3", ("score.bootstrap", "score.bootstrap_samples")),
    ("synthesize +scene.gap=1", ("scene.gap", "scene.gap_sec")),
    ("prepare corpus=stand_in +stand_in.voice=1", ("stand_in.voice", "stand_in.voices")),
    # wrong types
    ("train trainer.steps=ten", ("trainer.steps", "ten", "Integer")),
    ("train trainer.steps=2.5", ("trainer.steps", "2.5", "Integer")),
    ("train seed=zero", ("seed", "zero")),
    ("train loader.workers=null", ("loader.workers", "int")),
    ("train mixture.sources=3", ("mixture.sources",)),
    ("train llm.lora.targets=q_proj", ("llm.lora.targets",)),
    ("synthesize history_turns.4=0.5", ("history_turns.4", "history_turns={4: ...}")),
    ("synthesize history_turns={4:many}", ("history_turns", "many")),
    # values out of range
    ("train mixture.alpha=1.2", ("mixture.alpha", "[0, 1]", "1.2")),
    ("train mixture.alpha=-0.1", ("mixture.alpha", "[0, 1]", "-0.1")),
    ("train mixture.alpha=nan", ("mixture.alpha", "[0, 1]", "nan")),
    ("train mixture.alpha=1e400", ("mixture.alpha", "[0, 1]", "inf")),
    ("train trainer.optim.lr_lora=nan", ("trainer.optim.lr_lora",)),
    ("train chat.input=sound", ("chat.input", "speech_text")),
    ("train resume=sometimes", ("resume", "never")),
    ("train name=a/b", ("name", "folder name")),
    ("inspect split=eval", ("split", "train, dev, test")),
    ("evaluate run=a split=train", ("split", "dev, test")),
    # groups
    ("train fusion=mixformer", ("fusion", "did you mean 'mix_former'", "stack")),
    ("train experts=usr", ("experts", "did you mean 'user'", "whisper")),
    ("train experiment=nothing", ("experiment", "demo, none, paper, smoke")),
    ("train fusion=3", ("group", "--help")),
    ("synthesize voice=none_such", ("voice", "piper")),
    # parts
    ("train fusion._target_=os.system", ("fusion._target_", "os.system", "not allowed")),
    ("train experts.whisper._target_=omnichat.encoders.base.Nothing", ("experts.whisper._target_", "cannot be")),
    ("train fusion._target_=omnichat.encoders.mert.MertEncoder", ("fusion._target_", "not a Fusion")),
    ("train +fusion.widht=3", ("fusion", "did you mean 'width'")),
    ("train fusion.widht=3", ("fusion.widht", "fusion.width")),
    ("train fusion.width=big", ("fusion.width", "'big'", "int")),
    ("train fusion.window_sec=nan", ("fusion.window_sec", "finite")),
    ("train ~fusion.window_sec fusion.window_sec=", ("fusion.window_sec",)),
    ("train experiment=none experts=none", ("experts", "chat.input=text")),
    # what is mandatory
    ("train experts=none +expert@experts.beats=beats", ("experts.beats.path", "missing")),
    ("evaluate", ("run is missing", "run=...")),
    ("report", ("runs is missing",)),
    ("prepare source=dailytalk out=a", ("path", "missing")),
    ("prepare path=a out=b", ("source", "dailytalk")),
    ("train experiment=none +mixture.sources.mine.weight=2", ("mixture.sources.mine.path", "missing")),
    ("train experiment=none", ("mixture.sources is empty",)),
    # no override at all
    ("train foo", ("foo", "key=value")),
    ("train mixture.alpha=[", ("mixture.alpha=[", "key=value")),
    ("trian", ("trian", "train")),
    # places that are none
    ("train experiment=none llm.path=./nothing +mixture.sources.mine.path=a", ("llm.path", "./nothing")),
    ("train experiment=none llm.path=asset:gpt +mixture.sources.mine.path=a", ("llm.path", "gpt", "smollm2")),
    ("train experiment=none +mixture.sources.mine.path=no/such/corpus", ("no/such/corpus",)),
    ("evaluate run=no/such/run", ("no/such/run", "omnichat train")),
    ("report runs=no/such/runs", ("no/such/runs",)),
    ("report runs=3", ("runs", "folder")),
    # the home folder of nobody (a quoted ~ reaches the program as it is)
    ("evaluate run='~nobody_here/run'", ("~nobody_here/run",)),
    ("report runs=['~nobody_here/runs']", ("runs", "~nobody_here/runs")),
    (
        "train experiment=none +mixture.sources.mine.path='~nobody_here/corpus'",
        ("mixture.sources.mine.path=~nobody_here/corpus", "no user of that name"),
    ),
    ("synthesize out='~nobody_here/made'", ("out=~nobody_here/made", "no user of that name")),
    ("data validate path='~nobody_here/made'", ("path=~nobody_here/made", "no user of that name")),
    ("train experiment=none llm.path='~nobody_here/llm' +mixture.sources.mine.path=a", ("~nobody_here/llm",)),
]


@pytest.mark.parametrize(("command", "words"), MISTAKES, ids=[command for command, _ in MISTAKES])
@pytest.mark.usefixtures("nothing_loads")
def test_mistakes_on_the_command_line(command: str, words: tuple[str, ...], omnichat: Cli) -> None:
    assert_one_line(omnichat(*command.split()), *words)
    assert not list(Path().rglob("*")), "a refused command leaves nothing behind"


@pytest.mark.usefixtures("nothing_loads")
def test_a_sweep_names_each_job_s_mistake_in_a_line(omnichat: Cli) -> None:
    outcome = omnichat("train", "-m", "mixture.alpha=1.5,0.2")
    *jobs, last = outcome.err.strip().splitlines()
    assert outcome.code == 2 and "Traceback" not in outcome.err
    assert ["mixture.alpha must lie in [0, 1]" in job for job in jobs] == [True, False]
    assert last.startswith("omnichat train: error: 2 jobs of the sweep failed") and "mixture.alpha=1.5" in last
    assert {path.parts[:2] for path in Path().rglob("*")} <= {("runs",), ("runs", ".sweeps")}


@pytest.fixture
def broken(corpora: Corpora, tmp_path: Path) -> Path:
    """A copy of the synthetic corpus, to be damaged."""
    return Path(shutil.copytree(corpora.synthetic, tmp_path / "broken"))


def train_on(omnichat: Cli, corpus: Path, *more: str) -> Outcome:
    outcome = omnichat("train", "experiment=none", f"+mixture.sources.mine.path={corpus}", *more)
    assert not Path("runs").exists(), "a refused run has no folder"
    return outcome


@pytest.mark.usefixtures("nothing_loads")
class TestCorpora:
    """What can be wrong with a corpus folder is named with file and line."""

    def test_empty_folder(self, omnichat: Cli, tmp_path: Path) -> None:
        (tmp_path / "empty").mkdir()
        assert_one_line(train_on(omnichat, tmp_path / "empty"), "empty", "manifest.jsonl")

    def test_no_dialogues(self, omnichat: Cli, broken: Path) -> None:
        (broken / "manifest.jsonl").write_text("")
        assert_one_line(train_on(omnichat, broken), "manifest.jsonl", "no dialogues")

    def test_missing_recording(self, omnichat: Cli, broken: Path) -> None:
        victim = sorted((broken / "audio").iterdir())[2]
        victim.unlink()
        assert_one_line(train_on(omnichat, broken), victim.name, "no such audio file")

    def test_recording_cut_short(self, omnichat: Cli, broken: Path) -> None:
        victim = sorted((broken / "audio").iterdir())[1]
        victim.write_bytes(victim.read_bytes()[:20])
        assert_one_line(train_on(omnichat, broken), victim.name)

    def test_line_that_is_no_json(self, omnichat: Cli, broken: Path) -> None:
        lines = (broken / "manifest.jsonl").read_text().splitlines()
        lines[2] = lines[2][:40]
        (broken / "manifest.jsonl").write_text("\n".join(lines) + "\n")
        assert_one_line(train_on(omnichat, broken), "manifest.jsonl:3:", "JSON")

    def test_label_outside_its_set(self, omnichat: Cli, broken: Path) -> None:
        lines = (broken / "manifest.jsonl").read_text().splitlines()
        value = json.loads(lines[1])
        value["turns"][0]["style"]["emotion"] = "hapy"
        lines[1] = json.dumps(value)
        (broken / "manifest.jsonl").write_text("\n".join(lines) + "\n")
        assert_one_line(train_on(omnichat, broken), "manifest.jsonl:2:", "hapy", "happy")

    def test_alpha_without_a_real_corpus(self, omnichat: Cli, broken: Path) -> None:
        assert_one_line(train_on(omnichat, broken, "mixture.alpha=0.2"), "mixture.alpha=0.2", "real")

    def test_no_training_dialogues(self, omnichat: Cli, broken: Path) -> None:
        path = broken / "manifest.jsonl"
        path.write_text(path.read_text().replace('"split": "train"', '"split": "dev"'))
        assert_one_line(train_on(omnichat, broken), "mixture.sources.mine", "no training dialogues")


@pytest.mark.usefixtures("nothing_loads")
class TestPlaces:
    """Output folders and run folders are looked at before anything is loaded."""

    def test_runs_below_a_file(self, omnichat: Cli, corpora: Corpora) -> None:
        Path("file").write_text("in the way")
        assert_one_line(train_on(omnichat, corpora.synthetic, "runs=file/runs"), "runs=", "file")

    @pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a file system that refuses every new file")
    @pytest.mark.parametrize("verb", ["train", "cache", "synthesize", "prepare"])
    def test_folder_that_takes_no_files(self, omnichat: Cli, corpora: Corpora, verb: str) -> None:
        source = ["experiment=none", f"+mixture.sources.mine.path={corpora.synthetic}"]
        commands = {
            "train": [*source, "runs=/proc/runs"],
            "cache": [*source, "cache.dir=/proc/features"],
            "synthesize": ["out=/proc/corpus"],
            "prepare": ["source=dailytalk", f"path={corpora.real}", "out=/proc/corpus"],
        }
        assert_one_line(omnichat(verb, *commands[verb]), "/proc", "cannot write")

    def test_resume_from_what_is_no_checkpoint(self, omnichat: Cli, corpora: Corpora) -> None:
        assert_one_line(train_on(omnichat, corpora.synthetic, "resume=./nothing"), "resume=./nothing", "checkpoint")

    def test_run_without_checkpoint(self, omnichat: Cli) -> None:
        Path("run").mkdir()
        Path("run/config.yaml").write_text("name: run\n")
        assert_one_line(omnichat("evaluate", "run=run"), "run=run", "checkpoint")

    def test_run_with_a_foreign_config(self, omnichat: Cli) -> None:
        Path("run").mkdir()
        Path("run/config.yaml").write_text("name: run\nstepz: 3\n")
        assert_one_line(omnichat("evaluate", "run=run"), "stepz")
        Path("run/config.yaml").write_text("name: [run\n")
        assert_one_line(omnichat("evaluate", "run=run"), "run/config.yaml")

    def test_folder_without_runs(self, omnichat: Cli) -> None:
        Path("empty").mkdir()
        assert_one_line(omnichat("report", "runs=empty"), "empty", "config.yaml")

    def test_dialogue_out_of_range(self, omnichat: Cli, corpora: Corpora) -> None:
        source = ["experiment=none", f"+mixture.sources.mine.path={corpora.synthetic}"]
        assert_one_line(omnichat("inspect", *source, "dialogue=99"), "dialogue=99", "6 dialogues", "train0-v0")
        assert_one_line(omnichat("inspect", *source, "from_source=others"), "from_source='others'", "mine")


def test_checkpoint_that_is_not_there(omnichat: Cli, corpora: Corpora, tmp_path: Path) -> None:
    run = omnichat("train", *corpora.overrides(tmp_path / "runs"), "name=one", "trainer.steps=1", "chat.input=text")
    assert run.code == 0, run.err
    outcome = omnichat("evaluate", f"run={tmp_path / 'runs' / 'one'}", "checkpoint=step-999999")
    assert_one_line(outcome, "step-999999", "step-000001")
