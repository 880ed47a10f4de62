"""The run folder: its name, its claim, data.json, run.json and REQUEUE."""

from __future__ import annotations

import contextlib
import math
import os
import platform
import re
import shlex
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from omnichat import __version__
from omnichat.assembly import Assembly
from omnichat.config import TrainRun, to_plain
from omnichat.data.quarantine import left_out
from omnichat.data.subset import whole_fingerprint
from omnichat.schema import SPLITS
from omnichat.training.checkpoint import checkpoints, newest_whole, restore_interrupted, verify
from omnichat.training.data import Source
from omnichat.training.identity import result_settings, sets_result
from omnichat.training.trainer import Stopped, Trainer
from omnichat.utils.errors import UserError
from omnichat.utils.files import read_json, sha256_bytes, write_json_atomic
from omnichat.utils.log import get_logger, rank

log = get_logger(__name__)
_IN_NAME = ("chat.input", "mixture.alpha", "seed")  # always part of an automatic name
_COUNTS = ("dialogues", "turns", "recordings", "hours", "labels")  # of a split, for the report
_LONGEST_NAME = 120  # bytes; file systems stop at 255, and tools add endings
REQUEUE = "REQUEUE"  # file of a run that a scheduler stopped and should start again
_PACKAGES = ("torch", "transformers", "peft", "accelerate", "openai-whisper", "numpy")


def run_name(config: TrainRun) -> str:
    """The run's name; `auto` makes one of input, alpha, seed and every other override, so a sweep's jobs differ.

    An override is named by the last two parts of its key: `fusion.dropout` is not `lora.dropout`. One that changes no
    result is left out; the group `launch` is not one: its files set the number of micro-batches.
    """
    if config.name != "auto":
        return config.name
    parts = [config.chat.input, f"alpha{config.mixture.alpha:g}", f"seed{config.seed}"]
    overrides = list(HydraConfig.get().overrides.task) if HydraConfig.initialized() else []
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        if key in _IN_NAME or key.startswith("lr_find.") or not (sets_result(key) or key == "launch"):
            continue
        if key == "experiment":
            parts.insert(0, value)
        else:
            parts.append(f"{'.'.join(key.split('.')[-2:])}={value}")
    text = "-".join(parts)
    name = re.sub(r"[^a-zA-Z0-9_.=,+-]+", "_", text)
    if name != text or len(name) > _LONGEST_NAME:  # another text may come out the same
        name = f"{name[: _LONGEST_NAME - 9]}-{sha256_bytes(text.encode())[:8]}"
    return name


def claim_run_folder(folder: Path, resume: str) -> tuple[Path, Path | None]:
    """Return (folder, checkpoint to continue from or None). An older run is moved aside by `resume=never`, never lost.

    Whatever asked for a requeue is answered by this start: the marker is removed.

    Raises:
        UserError: `resume` names no complete checkpoint, or a damaged one; or all of the run's are damaged.
    """
    if resume not in ("auto", "never"):
        path = Path(resume)
        found = [path] if path in checkpoints(path.parent) else checkpoints(path / "checkpoints")
        if not found:
            raise UserError(f"resume={resume}: neither a complete checkpoint nor a run folder that has one")
        verify(found[-1])
        folder.mkdir(parents=True, exist_ok=True)
        clear_requeue(folder, "train")
        return folder, found[-1]
    if resume == "never" and folder.exists():
        aside = next(p for i in range(1, 10_000) if not (p := folder.with_name(f"{folder.name}.old{i}")).exists())
        folder.rename(aside)
        log.info("resume=never: the older run is kept as %s", aside)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot make the run folder {folder}: {error.strerror}") from None
    if (folder / "checkpoints").is_dir() and rank() == 0:
        restore_interrupted(folder / "checkpoints")
    newest = newest_whole(folder / "checkpoints")
    clear_requeue(folder, "train")
    return folder, newest


def same_result(config: TrainRun, folder: Path) -> bool:
    """Whether the run in `folder` was made with settings that give the result of `config`."""
    if not (folder / "config.yaml").is_file():
        return False
    saved = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    assert isinstance(saved, dict)
    return result_settings({str(key): value for key, value in saved.items()}) == result_settings(to_plain(config))


def answers_requeue(config: TrainRun) -> bool:
    """Whether this start is the scheduler's answer to the REQUEUE of the very command, with the very `resume`.

    A command with resume=never or a path, started again as it was, would throw away what it had saved.
    """
    folder = Path(config.runs) / config.name
    if not (folder / REQUEUE).is_file():
        return False
    asked = read_json(folder / REQUEUE)
    return asked["verb"] == "train" and asked.get("resume") == config.resume and same_result(config, folder)


def write_requeue(folder: Path, verb: str, stopped: Stopped) -> None:
    """After a SIGTERM, leave word for the scheduler that the same command would go on; Ctrl-C leaves none."""
    if stopped.by != signal.SIGTERM or rank() != 0:
        return
    words, resume = [], "auto"  # as typed; whatever it was, the next start goes on from here
    for word in sys.argv[1:]:
        key, _, text = word.partition("=")
        if key.lstrip("+") == "resume":
            word, resume = "resume=auto", text.strip("'\"")
        words.append(word)
    command = shlex.join(["omnichat", verb, *words])
    value = {"verb": verb, "step": stopped.step, "signal": stopped.by.name, "command": command, "resume": resume}
    write_json_atomic(folder / REQUEUE, value)


def clear_requeue(folder: Path, verb: str) -> None:
    """Remove the marker that an earlier start of the same verb left."""
    if (folder / REQUEUE).is_file() and read_json(folder / REQUEUE)["verb"] == verb and rank() == 0:
        (folder / REQUEUE).unlink()


@contextlib.contextmanager
def first_error_counts() -> Iterator[None]:
    """For what is written while an error passes: a disk that refuses this too must not hide that error."""
    passing = sys.exception()
    try:
        yield
    except OSError as error:
        if passing is None:
            raise
        log.warning("%s: %s", error.filename or "the run folder", error.strerror)


def source_facts(source: Source) -> dict[str, Any]:
    """What data.json says of a corpus, however much of it is drawn."""
    splits = {split: source.corpus.summary(split) for split in SPLITS}
    return {
        "name": source.name,
        "path": str(source.corpus.root),
        "kind": source.kind,
        "stand_in": source.corpus.stand_in,
        "fingerprint": whole_fingerprint(source.corpus),
        "left_out": left_out(source.corpus),  # dialogues, for a recording that cannot be used
        "splits": {split: {name: counts[name] for name in _COUNTS} for split, counts in splits.items()},
    }


def write_data_json(folder: Path, config: TrainRun, parts: Assembly, trainer: Trainer) -> None:
    """Write which data the run saw: sources, counts, hours, alpha asked and realised."""
    counter, mixture = trainer.counter, config.mixture
    share, interval = counter.realised()
    by_dialogue, dialogue_interval = counter.dialogues()
    total = math.fsum(sums[0] for sums in counter.amounts.values())
    sources = []
    for source in parts.sources:
        amount = counter.amounts.get(source.name, [0.0, 0.0])[0]
        sources.append(
            source_facts(source)
            | {
                "limit": config.mixture.sources[source.name].limit,  # training dialogues at most, as asked
                "weight": source.weight,
                "drawn": counter.drawn.get(source.name, 0),
                "epochs": trainer.data.epochs(counter, source.name),
                "share": amount / total if total > 0 else 0.0,
            }
        )
    data = {
        "alpha": trainer.data.plan.mixture.alpha_until(sum(counter.drawn.values())),
        "unit": mixture.unit,
        "schedule": mixture.schedule,
        "dialogues_per_step": trainer.data.dialogues_per_step,
        "one_pass_of": mixture.one_pass_of,
        "steps": trainer.steps,
        "alpha_realised": share,
        "alpha_ci95": list(interval),
        "alpha_dialogues": by_dialogue,
        "alpha_dialogues_ci95": list(dialogue_interval),
    }
    write_json_atomic(folder / "data.json", data | {"sources": sources})


def write_run_json(
    folder: Path, config: TrainRun, parts: Assembly, trainer: Trainer, state: str, started: float
) -> None:
    """Write what ran: experts, fusion, sizes, hardware, versions, time, command."""
    earlier = read_json(folder / "run.json") if (folder / "run.json").is_file() else {}
    before = earlier.get("earlier_wall_seconds", 0.0)
    if state == "running":
        before = earlier.get("wall_seconds", 0.0)
    counts = Counter({"trainable": 0, "frozen": 0})
    for parameter in parts.model.parameters():
        counts["trainable" if parameter.requires_grad else "frozen"] += parameter.numel()
    value: dict[str, Any] = {
        "name": config.name,
        "state": state,
        "experts": [
            {"name": name, "description": text, "random": "random weights" in text}
            for name, text in parts.expert_descriptions.items()
        ],
        "parameters": dict(counts),
        "fusion": _fusion(parts, trainer),
        "precision": trainer.precision,
        "steps": trainer.steps,
        "hardware": hardware(),
        "versions": versions(),
        "resumed_despite": trainer.state.accepted,
        "earlier_wall_seconds": before,
        "wall_seconds": round(before + time.time() - started, 1),
        "command": shlex.join(["omnichat", "train", *sys.argv[1:]]),
    }
    write_json_atomic(folder / "run.json", value)


def versions() -> dict[str, str]:
    """Versions of what makes a run: this package, Python and the libraries."""
    found = {"omnichat": __version__, "python": platform.python_version()}
    return found | {package: version(package) for package in _PACKAGES}


def hardware() -> str:
    """One line: processor class, cores, memory, accelerators; no host name."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}"
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    amx = " with AMX" if torch.cpu._is_amx_tile_supported() else ""
    return f"{platform.machine()} CPU{amx}, {os.cpu_count()} cores, {memory:.0f} GiB"


def _fusion(parts: Assembly, trainer: Trainer) -> dict[str, Any] | None:
    """Class and size of the fusion, and what it costs: LLM slots a second of the recordings in the training split."""
    fusion = parts.model.fusion
    if fusion is None:
        return None
    totals = [items.totals for items in trainer.data.items.values()]
    seconds = math.fsum(each["heard_sec"] for each in totals)
    return {
        "class": type(fusion).__name__,
        "parameters": sum(parameter.numel() for parameter in fusion.parameters()),
        "slots_per_sec": math.fsum(each["slots"] for each in totals) / seconds if seconds > 0 else None,
    }
