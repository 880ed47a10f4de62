"""A sweep makes one run folder a job, and nothing else where the command was typed."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from omegaconf import OmegaConf

from omnichat.cli import run
from omnichat.run_folder import answers_requeue, run_name, write_requeue
from omnichat.sweep import is_finished
from omnichat.training.trainer import Stopped
from omnichat.utils.errors import UserError
from omnichat.utils.files import read_json, read_jsonl, write_json_atomic, write_text_atomic
from tests.config.composing import config
from tests.integration.conftest import Corpora, Outcome

Cli = Callable[..., Outcome]


def test_a_sweep_over_alpha(corpora: Corpora, omnichat: Cli) -> None:
    outcome = omnichat("train", "-m", *corpora.overrides(Path("runs")), "mixture.alpha=0,0.2,1", "trainer.steps=2")
    assert outcome.code == 0, outcome.err
    assert {path.name for path in Path().iterdir()} == {"runs"}, "no outputs/ or multirun/ beside the runs"
    folders = sorted(path for path in Path("runs").iterdir() if path.name != ".sweeps")
    assert len(folders) == 3
    alphas = []
    for folder in folders:
        assert {"config.yaml", "log.jsonl", "data.json", "run.json", "checkpoints"} <= {
            p.name for p in folder.iterdir()
        }
        assert yaml.safe_load((folder / "config.yaml").read_text())["name"] == folder.name
        assert read_json(folder / "run.json")["state"] == "finished"
        assert (folder / "checkpoints" / "step-000002").is_dir()
        data, rows = read_json(folder / "data.json"), read_jsonl(folder / "log.jsonl")
        alphas.append(data["alpha"])
        assert f"alpha{data['alpha']:g}-" in folder.name
        assert data["alpha_realised"] == [row for row in rows if row["event"] == "step"][-1]["alpha_realised"]
        if data["alpha"] in (0, 1):
            assert data["alpha_realised"] == data["alpha"], "only the one kind is drawn"
    assert sorted(alphas) == [0, 0.2, 1]


def test_a_sweep_may_change_the_precision(corpora: Corpora, omnichat: Cli) -> None:
    common = [*corpora.overrides(Path("runs")), "trainer.steps=1", "chat.input=text"]
    outcome = omnichat("train", "-m", *common, "trainer.precision=bf16,fp32")
    assert outcome.code == 0, outcome.err
    runs = [read_json(path) for path in Path("runs").glob("*/run.json")]
    assert sorted(run["precision"] for run in runs) == ["bf16", "fp32"]


def name_of(monkeypatch: pytest.MonkeyPatch, *overrides: str) -> str:
    """The automatic name of a run with these overrides on its command line."""
    hydra = SimpleNamespace(overrides=SimpleNamespace(task=list(overrides)))
    monkeypatch.setattr("omnichat.run_folder.HydraConfig.initialized", lambda: True)
    monkeypatch.setattr("omnichat.run_folder.HydraConfig.get", lambda: hydra)
    return run_name(config("train", overrides))


DIFFERENT = [
    (),
    ("seed=1",),
    ("mixture.alpha=0.2",),
    ("chat.input=text",),
    ("fusion=stack",),
    ("fusion.queries=2",),
    ("fusion.width=128",),
    ("fusion.dropout=0.2",),
    ("llm.lora.dropout=0.2",),
    ("experts=whisper",),
    ("experts.whisper.layers=mix",),
    ("experts.mert.layers=mix",),
    ("experiment=demo",),
    ("experiment=smoke",),
    ("trainer.optim.lr_lora=1e-4",),
    ("+mixture.sources.mine.path=a/b",),
    ("+mixture.sources.mine.path=a/c",),
    ("+mixture.sources.mine.path=a_c",),
    ("cache.dtype=float32",),
    ("trainer.speed.compile=true",),
    ("launch=cpu2",),
    ("+mixture.sources.mine.path=" + "long/" * 100 + "b",),
    ("+mixture.sources.mine.path=" + "long/" * 100 + "c",),
]


def test_automatic_names_differ_wherever_runs_do(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name_of(monkeypatch, *overrides) for overrides in DIFFERENT]
    assert len(set(names)) == len(names), sorted(names)
    assert all(len(name.encode()) <= 200 and "/" not in name and not name.startswith(".") for name in names)


NO_RESULT = ["runs=elsewhere", "resume=never", "tracking.wandb=disabled", "cache.dir=a", "cache.threads=2"]
NO_RESULT += ["launch.timeout_sec=60", "trainer.log_every=2", "trainer.dev_every=7", "trainer.checkpoint_every=7"]
NO_RESULT += ["trainer.keep_last=1", "trainer.max_skips=1", "trainer.watch.samples=2", "trainer.preflight=false"]
NO_RESULT += ["trainer.speed.checkpointing=true", "loader.workers=0", "mixture.index_dir=a"]


@pytest.mark.parametrize("override", NO_RESULT)
def test_what_sets_no_result_is_not_in_the_name(override: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert name_of(monkeypatch, override) == name_of(monkeypatch)


@pytest.mark.parametrize(
    ("override", "same"), [("cache.dir=a", True), ("trainer.dev_every=7", True), ("cache.dtype=float32", False)]
)
def test_what_is_finished_has_the_same_result(override: str, same: bool, tmp_path: Path) -> None:
    write_json_atomic(tmp_path / "mine" / "run.json", {"state": "finished"})
    folder = [f"runs={tmp_path}", "name=mine"]
    write_text_atomic(tmp_path / "mine" / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(config("train"))))
    assert is_finished(config("train", [*folder, override])) is same


def test_the_answer_to_a_requeue_is_the_very_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = [f"runs={tmp_path}", "name=mine"]
    write_text_atomic(tmp_path / "mine" / "config.yaml", OmegaConf.to_yaml(OmegaConf.structured(config("train"))))
    assert not answers_requeue(config("train", [*folder, "resume=never"])), "nobody has asked"
    monkeypatch.setattr(sys, "argv", ["omnichat train", *folder, "resume=never"])
    write_requeue(tmp_path / "mine", "train", Stopped("stopped", 7, signal.SIGTERM))
    assert answers_requeue(config("train", [*folder, "resume=never"]))
    assert not answers_requeue(config("train", [*folder, "resume=some/path"])), "another wish"
    assert not answers_requeue(config("train", [*folder, "resume=never", "seed=1"])), "another run"


def test_a_sweep_by_mode_counts_its_own_failed_jobs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(config: object) -> None:
        raise UserError("this job cannot be done")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("omnichat.train.run", fail)
    write_json_atomic(Path("old/7/outcome.json"), {"job": 7, "overrides": [], "code": 1, "message": "long ago"})
    words = ["train", "experiment=smoke", "hydra.sweep.dir=old"]
    assert run([*words, "hydra.mode=MULTIRUN", "seed=1,2"]) == 2
    said = capsys.readouterr().err
    assert "2 jobs of the sweep failed" in said and "long ago" not in said
    assert run(words) == 2
    assert "sweep" not in capsys.readouterr().err, "one job is no sweep, whatever lies in the folder"


def test_a_given_name_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert name_of(monkeypatch, "name=mine", "seed=3") == "mine"
