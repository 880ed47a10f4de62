"""Sweeps through Hydra's launchers: a folder a job, finished jobs are skipped, a failed one leaves the others alone."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra_plugins.hydra_joblib_launcher.config import JobLibLauncherConf
from hydra_plugins.hydra_submitit_launcher.config import SlurmQueueConf
from omegaconf import OmegaConf
from submitit.slurm import slurm

from omnichat.sweep import failures, saved_before_requeue, told
from omnichat.utils.files import read_json
from tests.config.composing import CONFIGS
from tests.integration.conftest import Corpora, Outcome

Cli = Callable[..., Outcome]


def launcher(name: str) -> dict[str, Any]:
    """The settings of a file of configs/hydra/launcher, as Hydra composes them."""
    GlobalHydra.instance().clear()
    with initialize_config_dir(config_dir=str(CONFIGS), version_base="1.3"):
        tree = compose("train", overrides=[f"hydra/launcher={name}"], return_hydra_config=True)
    settings = OmegaConf.to_container(tree.hydra.launcher, resolve=False)
    assert isinstance(settings, dict)
    return {str(key): value for key, value in settings.items()}


def outcomes(folder: Path) -> dict[str, tuple[int, int]]:
    """Run -> (inode, time) of its run.json: another one was written if they change."""
    return {
        path.parent.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in sorted(folder.glob("*/run.json"))
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", ["joblib", pytest.param("submitit_local", marks=pytest.mark.campaign)])
def test_a_sweep_may_be_started_twice(corpora: Corpora, omnichat: Cli, name: str) -> None:
    words = ["-m", f"hydra/launcher={name}", *corpora.overrides(Path("runs")), "chat.input=text", "trainer.steps=1"]
    first = omnichat("train", *words, "mixture.alpha=0,1")
    assert first.code == 0, first.err
    runs = outcomes(Path("runs"))
    assert len(runs) == 2 and {run.split("-")[2] for run in runs} == {"alpha0", "alpha1"}
    for run in runs:
        assert read_json(Path("runs") / run / "run.json")["state"] == "finished"
        assert "-m" not in read_json(Path("runs") / run / "run.json")["command"].split()
    second = omnichat("train", *words, "mixture.alpha=0,1,0.5")
    assert second.code == 0, second.err
    again = outcomes(Path("runs"))
    assert len(again) == 3 and {run: again[run] for run in runs} == runs, "finished jobs are not done again"


@pytest.mark.slow
def test_a_failed_job_leaves_the_others_alone(corpora: Corpora, omnichat: Cli) -> None:
    words = [*corpora.overrides(Path("runs")), "chat.input=text", "trainer.steps=1"]
    outcome = omnichat("train", "-m", *words, "llm.lora.targets=[no_such],[q_proj]")
    assert outcome.code == 2
    assert "1 jobs of the sweep failed" in outcome.err and "llm.lora.targets=[no_such]" in outcome.err
    assert [read_json(path)["state"] for path in Path("runs").glob("*/run.json")] == ["finished"]


def test_failures_are_told_in_order(tmp_path: Path) -> None:
    for job, code in ((1, 2), (0, 1), (2, 0)):
        (tmp_path / str(job)).mkdir()
        (tmp_path / str(job) / "outcome.json").write_text(json.dumps({"job": job, "code": code, "message": ""}))
    assert [outcome["job"] for outcome in failures(tmp_path, {})] == [0, 1]
    assert failures(tmp_path, told(tmp_path)) == [], "of an earlier sweep in the same folder"


@pytest.mark.parametrize(("name", "plugin"), [("joblib", JobLibLauncherConf), ("slurm", SlurmQueueConf)])
def test_a_launcher_file_holds_what_its_plugin_takes(name: str, plugin: type) -> None:
    assert set(launcher(name)) == {entry.name for entry in fields(plugin)}
    assert launcher(name)["_target_"] == plugin()._target_


def test_what_slurm_would_be_told() -> None:
    settings = launcher("slurm")
    names = ("cpus_per_task", "gpus_per_node", "signal_delay_s", "array_parallelism", "additional_parameters")
    given = {name: settings[name] for name in names}
    text = slurm._make_sbatch_string(
        "run", "folder", time=settings["timeout_min"], partition="gpu", map_count=30, **given
    )
    for line in ("--gpus-per-node=1", "--signal=USR2@120", "--requeue", "--time=720", "%16"):
        assert line in text, text


class _Stopped(BaseException):
    """What a run raises when it has saved itself."""


def test_a_preempted_job_saves_itself_before_it_is_put_back() -> None:
    order: list[str] = []

    def stop(number: int, frame: object) -> None:
        order.append("saved")
        raise _Stopped

    former = {number: signal.getsignal(number) for number in (signal.SIGUSR2, signal.SIGTERM)}
    signal.signal(signal.SIGUSR2, lambda number, frame: order.append("requeued"))
    try:
        with pytest.raises(_Stopped), saved_before_requeue():
            signal.signal(signal.SIGTERM, stop)  # as the trainer does
            os.kill(os.getpid(), signal.SIGUSR2)
        assert order == ["saved", "requeued"]
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with saved_before_requeue():
            os.kill(os.getpid(), signal.SIGUSR2)
        assert order == ["saved", "requeued", "requeued"], "nothing to save yet"
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
