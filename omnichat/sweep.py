"""One job of `omnichat VERB -m ...`, wherever its launcher runs it, and the list of those that failed.

A job that fails leaves the others alone: its outcome goes to a file that the command reads when all are done.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from omnichat.config import TrainRun
from omnichat.run_folder import same_result
from omnichat.utils.files import read_json, write_json_atomic
from omnichat.utils.log import get_logger

log = get_logger(__name__)
ASKED_TO_STOP = 128  # exit codes above it: the job has saved itself, and no other shall begin


def sweep_folder(words: list[str]) -> Path:
    """Folder of the outcomes: the user's hydra.sweep.dir, or one that no other sweep has."""
    given = [word.partition("=")[2] for word in words if word.startswith("hydra.sweep.dir=")]
    return Path(given[-1] if given else f"runs/.sweeps/{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}")


def in_sweep() -> bool:
    """Whether this is a job of a sweep."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def run_job(verb: str, work: Callable[[], None]) -> None:
    """Do a job's work and write down how it ended. What asks the whole command to stop is raised."""
    from omnichat.cli import Ended  # cli imports this module

    hydra = HydraConfig.get()
    overrides = [str(word) for word in hydra.overrides.task]
    outcome: dict[str, Any] = {"job": hydra.job.num, "overrides": overrides, "code": 0, "message": ""}
    old, sys.argv = sys.argv, [f"omnichat {verb}", *overrides]  # what would start this job alone
    try:
        with saved_before_requeue():
            work()
    except Ended as end:
        outcome |= {"code": end.code, "message": end.message}
        if end.code > ASKED_TO_STOP:
            raise
    except Exception as error:
        traceback.print_exc()
        outcome |= {"code": 1, "message": f"{type(error).__name__}: {error}"}
    finally:
        sys.argv = old
        write_json_atomic(Path(hydra.runtime.output_dir) / "outcome.json", outcome)
    if outcome["code"]:
        log.error("job %s failed: %s", outcome["job"], outcome["message"])


def told(folder: Path) -> dict[Path, tuple[int, int]]:
    """Outcomes that lie in the folder of a sweep -> what changes when one is written anew."""
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("*/outcome.json")}


def failures(folder: Path, before: dict[Path, tuple[int, int]]) -> list[dict[str, Any]]:
    """Outcomes of the jobs of a sweep that failed, in their order.

    Args:
        folder: of the sweep.
        before: what `told` said before it began: an earlier sweep may have used the folder, too.
    """
    found = [read_json(path) for path, written in told(folder).items() if before.get(path) != written]
    return sorted((outcome for outcome in found if outcome["code"]), key=lambda outcome: outcome["job"])


def is_finished(config: TrainRun) -> bool:
    """Whether the run folder of `config`, whose name is resolved, holds this very run, trained to its end."""
    folder = Path(config.runs) / config.name
    if config.resume != "auto" or not (folder / "run.json").is_file() or not (folder / "config.yaml").is_file():
        return False
    if read_json(folder / "run.json")["state"] != "finished":
        return False
    return same_result(config, folder)


@contextlib.contextmanager
def saved_before_requeue() -> Iterator[None]:
    """In a submitit job, let the run save itself before submitit puts the job into the queue again.

    submitit answers its signal (USR2, before the job's time is over or when it is preempted) by asking for a requeue
    and leaving at once. Here the run is first asked to stop, as by SIGTERM; while there is nothing to save yet, and so
    nobody who answers SIGTERM, submitit has its way.
    """
    requeue, ignored = signal.getsignal(signal.SIGUSR2), signal.getsignal(signal.SIGTERM)
    if not callable(requeue):
        yield
        return
    asked = False

    def ask(number: int, frame: Any) -> None:
        nonlocal asked
        if signal.getsignal(signal.SIGTERM) == ignored:
            requeue(number, frame)
        asked = True
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGUSR2, ask)
    try:
        yield
    except BaseException:
        if asked:
            requeue(signal.SIGUSR2, None)
        raise
    finally:
        signal.signal(signal.SIGUSR2, requeue)
