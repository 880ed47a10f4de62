"""Checkpoints: trainables only, safetensors and JSON, whole or absent.

runs/<name>/checkpoints/step-NNNNNN/
    trainables.safetensors   fusion and LoRA
    optimizer.safetensors    AdamW's moments, named by parameter
    state.json               step, place in the data, fingerprints, config
    COMPLETE                 written last; a folder without it is ignored
"""

from __future__ import annotations

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
from omnichat.utils.files import fsync_folder, read_json, write_json_atomic, write_text_atomic

MARKER = "COMPLETE"
Flat = dict[str, Any]


def save_checkpoint(
    folder: Path,
    step: int,
    trainables: dict[str, Tensor],
    optimizer: dict[str, Tensor],
    state: dict[str, Any],
    keep_last: int,
) -> Path:
    """Write step-NNNNNN atomically, then remove all but the newest `keep_last` and `state`'s best."""
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"step-{step:06d}"
    temporary = folder / f".step-{step:06d}.{uuid.uuid4().hex[:8]}.tmp"
    temporary.mkdir()
    try:
        for name, tensors in (("trainables", trainables), ("optimizer", optimizer)):
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary / f"{name}.safetensors")
            with open(temporary / f"{name}.safetensors", "rb+") as handle:
                handle.flush()
                os.fsync(handle.fileno())
        write_json_atomic(temporary / "state.json", state)
        write_text_atomic(temporary / MARKER, f"{step}\n")
        fsync_folder(temporary)
        if target.exists():
            shutil.rmtree(target)
        temporary.rename(target)
        fsync_folder(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _prune(folder, keep_last, state.get("best_step"))
    return target


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.glob("step-*") if re.fullmatch(r"step-\d{6,}", path.name)]
    return sorted((path for path in found if (path / MARKER).is_file()), key=lambda path: int(path.name[5:]))


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Any]]:
    """Return (trainables, optimizer, state). Raises UserError for anything missing or unreadable."""
    if not (path / MARKER).is_file():
        raise UserError(f"{path}: not a complete checkpoint (no {MARKER} file)")
    try:
        trainables = load_file(path / "trainables.safetensors")
        optimizer = load_file(path / "optimizer.safetensors")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: a tensor file is missing or damaged ({str(error).splitlines()[0]})") from None
    return trainables, optimizer, read_json(path / "state.json")


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """AdamW's state as named tensors: `<parameter>/exp_avg` and so on."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    return {
        f"{names[parameter]}/{key}": value
        for parameter, entries in optimizer.state.items()
        for key, value in entries.items()
    }


def load_optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Put back what `optimizer_tensors` gave. Raises UserError if a parameter's state is missing or of no parameter."""
    parameters = dict(model.named_parameters())
    wanted = {id(p) for group in optimizer.param_groups for p in group["params"]}
    state: dict[nn.Parameter, dict[str, Tensor]] = {}
    for full, value in tensors.items():
        name, _, key = full.rpartition("/")
        if name not in parameters or id(parameters[name]) not in wanted:
            raise UserError(f"checkpoint: optimizer state of {name!r}, which this model does not train")
        device = parameters[name].device if key != "step" else value.device
        state.setdefault(parameters[name], {})[key] = value.to(device)
    if tensors and len(state) != len(wanted):
        raise UserError(f"checkpoint: optimizer state of {len(state)} tensors, this model trains {len(wanted)}")
    for parameter, entries in state.items():
        optimizer.state[parameter] = entries


def flatten(config: dict[str, Any], prefix: str = "") -> Flat:
    """Nested dict -> {"a.b": value}."""
    flat: Flat = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def refuse_changes(saved: dict[str, Any], current: dict[str, Any], path: Path) -> None:
    """Raise UserError naming the first setting or fingerprint that differs from the checkpoint's."""
    old, new = flatten(saved), flatten(current)
    for key in sorted(set(old) | set(new)):
        if old.get(key) != new.get(key):
            raise UserError(
                f"{path}: made with {key}={old.get(key)!r}, this run has {new.get(key)!r}; "
                "put it back, or start under another name= (or resume=never)"
            )


def _prune(folder: Path, keep_last: int, best_step: int | None) -> None:
    """Remove old checkpoints, and what writers that were killed have left; a run folder has one writer."""
    keep = {f"step-{best_step:06d}"} if best_step is not None else set()
    for torn in folder.glob(".step-*.tmp"):
        shutil.rmtree(torn, ignore_errors=True)
    for old in checkpoints(folder)[:-keep_last]:
        if old.name not in keep:
            shutil.rmtree(old, ignore_errors=True)
