"""Runs as Slurm jobs: one batch file for corpora and features, one a run, which waits for it.

The jobs write into the ledger themselves. A job that is preempted, or whose time is over, is told to stop, saves itself
and goes on when it is queued again, or at the next call of the script.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from omnichat.experiments.study.jobs import MODULE, Job, write_job
from omnichat.utils.errors import UserError
from omnichat.utils.files import write_text_atomic


@dataclass(frozen=True, slots=True)
class Resources:
    """What a job asks for; the names are those of configs/hydra/launcher/slurm.yaml."""

    partition: str | None
    account: str | None
    gpus_per_node: int | None
    cpus_per_task: int
    mem_gb: int
    timeout_min: int
    signal_delay_s: int

    @classmethod
    def of(cls, settings: Mapping[str, object]) -> Resources:
        """Take what is needed of a launcher's settings."""
        return cls(**{name: settings[name] for name in cls.__slots__})  # type: ignore[arg-type]

    def lines(self) -> list[str]:
        """Lines of #SBATCH."""
        asked = {
            "partition": self.partition,
            "account": self.account,
            "gpus-per-node": self.gpus_per_node,
            "cpus-per-task": self.cpus_per_task,
            "mem": f"{self.mem_gb}G",
            "time": self.timeout_min,
            "signal": f"B:TERM@{self.signal_delay_s}",
        }
        return [f"#SBATCH --{name}={value}" for name, value in asked.items() if value is not None]


def batch_text(name: str, log: Path, resources: Resources, commands: Sequence[Sequence[str]]) -> str:
    """A batch file that runs commands one after the other and hands a request to stop on to the one that runs."""
    # Slurm sends the signal to the shell (B:), which must not sit in the foreground of its child to hear it.
    body = [f"run {shlex.join(command)}" for command in commands]
    head = [f"#SBATCH --job-name={name}", f"#SBATCH --output={log.absolute()}", "#SBATCH --open-mode=append"]
    return "\n".join(
        [
            "#!/bin/bash",
            *head,
            "#SBATCH --requeue",
            *resources.lines(),
            f"cd {shlex.quote(str(Path.cwd()))} || exit 1",
            'stop() { if [ -n "$child" ]; then kill -TERM $child; else early=yes; fi; }',
            "early= child=; trap stop TERM",
            "run() {",
            '  "$@" & child=$!',
            '  [ -z "$early" ] || kill -TERM $child',  # asked before there was a child to tell
            "  wait $child; code=$?",
            "  while kill -0 $child 2>/dev/null; do wait $child; code=$?; done",
            "  child=; [ $code -eq 0 ] || exit $code",
            "}",
            *body,
            "",
        ]
    )


def submit(
    study: Path, jobs: Sequence[Job], preparations: Sequence[Sequence[str]], resources: Resources
) -> dict[str, str]:
    """Write the batch files and hand them to sbatch; returns name -> id of the Slurm job.

    Args:
        study: its folder; batch files go to slurm/.
        jobs: what is left to do.
        preparations: `omnichat` commands that come before all of them.

    Raises:
        UserError: there is no sbatch, or it refuses a file.
    """
    if shutil.which("sbatch") is None:
        raise UserError("--launcher slurm: there is no sbatch here; start it on a node that submits jobs")
    first = [[sys.executable, "-m", "omnichat.cli", *command] for command in preparations]
    ids: dict[str, str] = {}
    if first:
        text = batch_text("prepare", study / "logs" / "prepare.log", resources, first)
        ids["prepare"] = _sbatch(study / "slurm" / "prepare.sbatch", text)
    for job in jobs:
        command = [sys.executable, "-m", MODULE, str(write_job(job))]
        text = batch_text(job.run, job.log, resources, [command])
        after = [f"--dependency=afterok:{ids['prepare']}"] if first else []
        ids[job.run] = _sbatch(study / "slurm" / f"{job.run}.sbatch", text, after)
    return ids


def _sbatch(path: Path, text: str, options: Sequence[str] = ()) -> str:
    write_text_atomic(path, text)
    (path.parent.parent / "logs").mkdir(parents=True, exist_ok=True)
    done = subprocess.run(["sbatch", "--parsable", *options, str(path)], capture_output=True, text=True)
    if done.returncode != 0:
        raise UserError(f"sbatch refused {path}: {' '.join(done.stderr.split())[:300]}")
    return done.stdout.strip().partition(";")[0]
