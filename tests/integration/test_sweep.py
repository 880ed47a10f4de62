"""A sweep makes one run folder a job, and nothing else where the command was typed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from omnichat.run_folder import run_name
from omnichat.utils.files import read_json, read_jsonl
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
    ("+mixture.sources.mine.path=" + "long/" * 100 + "b",),
    ("+mixture.sources.mine.path=" + "long/" * 100 + "c",),
]


def test_automatic_names_differ_wherever_runs_do(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name_of(monkeypatch, *overrides) for overrides in DIFFERENT]
    assert len(set(names)) == len(names), sorted(names)
    assert all(len(name.encode()) <= 200 and "/" not in name and not name.startswith(".") for name in names)


@pytest.mark.parametrize("override", ["runs=elsewhere", "resume=never", "tracking.wandb=disabled", "cache.dir=a"])
def test_what_sets_no_result_is_not_in_the_name(override: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert name_of(monkeypatch, override) == name_of(monkeypatch)


def test_a_given_name_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    assert name_of(monkeypatch, "name=mine", "seed=3") == "mine"
