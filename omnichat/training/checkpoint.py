"""Checkpoints: trainables only, safetensors and JSON, whole or absent.

runs/<name>/checkpoints/step-NNNNNN/
    trainables.safetensors   fusion and LoRA
    optimizer.safetensors    AdamW's moments, named by parameter
    state.json               step, place in the data, fingerprints, config
    COMPLETE                 written last: size and SHA-256 of the three; a folder without it is ignored

A checkpoint appears by one rename. One that is written again is first moved aside as .step-NNNNNN.<id>.old, from
where `save_checkpoint` and `restore_interrupted` put it back if the writer died between the two renames.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import uuid
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from omnichat.utils.errors import UserError
from omnichat.utils.files import fsync_folder, read_json, sha256_file, write_json_atomic
from omnichat.utils.log import get_logger

log = get_logger(__name__)
MARKER = "COMPLETE"
FILES = ("trainables.safetensors", "optimizer.safetensors", "state.json")
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # what AdamW keeps of a parameter
SPARE_BYTES = 1 << 20  # beside the tensors: state.json, the marker, the file system's own


def save_checkpoint(
    folder: Path,
    step: int,
    trainables: dict[str, Tensor],
    optimizer: dict[str, Tensor],
    state: dict[str, Any],
    keep_last: int,
) -> Path:
    """Write step-NNNNNN atomically, then remove all but the newest `keep_last` and `state`'s best.

    A whole checkpoint of the same content is left as it is. Checkpoints of later steps, which a run leaves that was
    continued from an older one, are renamed to step-NNNNNN.aside and never read again.

    Raises:
        UserError: it could not be written (disk full, quota, read-only); every older checkpoint is as it was.
    """
    needed = sum(t.numel() * t.element_size() for t in (*trainables.values(), *optimizer.values())) + SPARE_BYTES
    target = folder / f"step-{step:06d}"
    temporary = folder / f".step-{step:06d}.{uuid.uuid4().hex[:8]}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        restore_interrupted(folder)
        if shutil.disk_usage(folder).free < needed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        temporary.mkdir()
        _write(temporary, step, trainables, optimizer, state)
        _publish(temporary, target)
        for later in checkpoints(folder):
            if int(later.name[5:]) > step:
                _set_aside(later)
        _prune(folder, keep_last, state.get("best_step"))
    except (OSError, SafetensorError) as error:
        raise _not_written(folder, step, needed, error) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints (those with a marker), oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{6,}", path.name)]
    return sorted((path for path in found if (path / MARKER).is_file()), key=lambda path: int(path.name[5:]))


def newest_whole(folder: Path) -> Path | None:
    """The newest checkpoint that is undamaged, or None if there is no checkpoint; damaged ones are warned about.

    Raises:
        UserError: there are checkpoints, and every one is damaged.
    """
    found = checkpoints(folder)
    for path in reversed(found):
        try:
            verify(path)
        except UserError as error:
            log.warning("%s; trying the one before it", error)
            continue
        return path
    if found:
        raise UserError(f"{folder}: every checkpoint is damaged; start anew with resume=never, or restore one")
    return None


def verify(path: Path) -> None:
    """Raise UserError naming the first file of a checkpoint that is not what its marker says."""
    if not (path / MARKER).is_file():
        raise UserError(f"{path}: not a complete checkpoint (no {MARKER} file)")
    try:
        marker = json.loads((path / MARKER).read_text(encoding="utf-8"))
        entries = [(name, int(marker["files"][name]["bytes"]), str(marker["files"][name]["sha256"])) for name in FILES]
    except (ValueError, TypeError, KeyError):
        raise UserError(f"{path / MARKER}: damaged, or of an older omnichat") from None
    for name, size, sha256 in entries:
        file = path / name
        if not file.is_file():
            raise UserError(f"{file}: missing; the checkpoint is damaged")
        if file.stat().st_size != size:
            raise UserError(f"{file}: {file.stat().st_size} bytes instead of {size}; the checkpoint is damaged")
        if sha256_file(file) != sha256:
            raise UserError(f"{file}: its content is not what was written; the checkpoint is damaged")


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Return (trainables, optimizer, state). Raises UserError for anything missing, damaged or not finite."""
    verify(path)
    loaded = []
    for name in FILES[:2]:
        try:
            tensors = load_file(path / name)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{path / name}: not readable as safetensors ({str(error).splitlines()[0]})") from None
        for key, value in tensors.items():
            if not bool(torch.isfinite(value).all()):
                raise UserError(f"{path / name}: tensor {key!r} holds NaN or infinity")
        loaded.append(tensors)
    return loaded[0], loaded[1], read_json(path / "state.json")


def restore_interrupted(folder: Path) -> None:
    """Put back a checkpoint whose writer died while replacing it, and remove what else it left half done.

    Only for a run's one writer, before it writes.
    """
    for torn in folder.glob(".step-*.tmp"):
        shutil.rmtree(torn, ignore_errors=True)
    for old in folder.glob(".step-*.old"):
        target = folder / old.name[1:].split(".")[0]
        if target.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(target)


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """AdamW's state as named tensors: `<parameter>/exp_avg` and so on."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{key}": value
        for parameter, entries in optimizer.state.items()
        for key, value in entries.items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave.

    Raises:
        UserError: the state of a parameter is missing, of another shape, or of no parameter; nothing was changed.
    """
    parameters = dict(model.named_parameters())
    wanted = {id(p) for group in optimizer.param_groups for p in group["params"]}
    state: dict[nn.Parameter, dict[str, Tensor]] = {}
    for full, value in tensors.items():
        name, _, key = full.rpartition("/")
        if name not in parameters or id(parameters[name]) not in wanted:
            raise UserError(f"checkpoint: optimizer state of {name!r}, which this model does not train")
        if key not in MOMENTS:
            raise UserError(f"checkpoint: optimizer state {full!r} is none of {', '.join(MOMENTS)}")
        shape = torch.Size() if key == "step" else parameters[name].shape
        if value.shape != shape:
            raise UserError(f"checkpoint: optimizer state {full} is {tuple(value.shape)}, not {tuple(shape)}")
        device = parameters[name].device if key != "step" else value.device
        state.setdefault(parameters[name], {})[key] = value.to(device)
    if tensors and len(state) != len(wanted):
        raise UserError(f"checkpoint: optimizer state of {len(state)} tensors, this model trains {len(wanted)}")
    for parameter, entries in state.items():
        if lacks := [key for key in MOMENTS if key not in entries]:
            name = next(n for n, p in parameters.items() if p is parameter)
            raise UserError(f"checkpoint lacks the optimizer state '{name}/{lacks[0]}'")
    for parameter, entries in state.items():
        optimizer.state[parameter] = entries


def _write(
    temporary: Path, step: int, trainables: dict[str, Tensor], optimizer: dict[str, Tensor], state: dict[str, Any]
) -> None:
    """All files of a checkpoint, flushed to disk, the marker last."""
    for name, tensors in zip(FILES[:2], (trainables, optimizer), strict=True):
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary / name)
        with open(temporary / name, "rb+") as handle:
            os.fsync(handle.fileno())
    write_json_atomic(temporary / "state.json", state)
    files = {
        name: {"bytes": (temporary / name).stat().st_size, "sha256": sha256_file(temporary / name)} for name in FILES
    }
    write_json_atomic(temporary / MARKER, {"step": step, "files": files})
    fsync_folder(temporary)


def _publish(temporary: Path, target: Path) -> None:
    """Rename a finished folder to its place; at every moment the step exists under some name."""
    if (target / MARKER).is_file() and (target / MARKER).read_bytes() == (temporary / MARKER).read_bytes():
        try:
            verify(target)
            return  # the same run wrote the same before
        except UserError as error:
            log.warning("%s; writing it again", error)
    old = temporary.with_suffix(".old")
    if target.exists():
        target.rename(old)
    temporary.rename(target)
    fsync_folder(target.parent)
    shutil.rmtree(old, ignore_errors=True)


def _set_aside(path: Path) -> None:
    aside = next(p for i in range(1, 10_000) if not (p := path.with_name(f"{path.name}.aside{i}")).exists())
    path.rename(aside)
    log.warning("%s: of a step that this run has yet to take; kept as %s", path, aside.name)


def _not_written(folder: Path, step: int, needed: int, error: Exception) -> UserError:
    try:
        free = f"{shutil.disk_usage(folder).free / 1e6:.1f} MB are free"
    except OSError:
        free = "how much is free cannot be told"
    what = error.strerror if isinstance(error, OSError) else str(error).splitlines()[0]
    return UserError(
        f"{folder}: cannot write the checkpoint of step {step} ({what}); it needs {needed / 1e6:.1f} MB, {free}; "
        "older checkpoints are untouched: make room and start the same command again"
    )


def _prune(folder: Path, keep_last: int, best_step: int | None) -> None:
    """Remove old checkpoints: out of sight by one rename first, so that a kill leaves none that lacks a file."""
    keep = {f"step-{best_step:06d}"} if best_step is not None else set()
    for old in checkpoints(folder)[:-keep_last]:
        if old.name not in keep:
            hidden = folder / f".{old.name}.{uuid.uuid4().hex[:8]}.tmp"
            old.rename(hidden)
            shutil.rmtree(hidden, ignore_errors=True)
