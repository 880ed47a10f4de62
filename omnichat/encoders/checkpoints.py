"""What every expert needs to load a user's checkpoint: find it, read it without running it, and check every tensor."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from omnichat.utils.assets import resolve_path
from omnichat.utils.errors import UserError
from omnichat.utils.files import read_json

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_TRAINERS = ("fairseq", "omegaconf", "argparse", "numpy")  # whose objects an honest checkpoint may hold
_FILES = (".pt", ".pth", ".bin", ".safetensors", ".json", ".ckpt")  # a path's ends that no hub id has
_SHOWN = 4  # names of each kind of fault that an error message holds
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")


def find_checkpoint(path: str, patterns: Sequence[str] = ("*.json", "*.safetensors", "*.bin")) -> Path:
    """Turn a config's `path` into a local file or folder.

    Args:
        path: a local path, `asset:NAME`, or a hub id `owner/name`; a local path wins where both could be meant.
        patterns: the files of a hub repository that are fetched; code is none of them, and none is ever run.

    Raises:
        UserError: nothing is there, or the hub cannot be reached and holds no local copy.
    """
    local = resolve_path(path)
    if local.exists():
        return local
    if not _HUB_ID.fullmatch(path) or path.endswith(_FILES):
        raise UserError(f"{path}: no such file or folder")
    try:
        return Path(snapshot_download(path, allow_patterns=list(patterns)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: no such file or folder, and not to be had from the hub: {reason}") from None


def read_torch_file(path: Path, what: str, remedy: str = "") -> Any:
    """Read a .pt, .pth or .bin file, tensors and plain containers only: a pickled object is refused and never run.

    Args:
        path: the file.
        what: the model's name, for messages.
        remedy: what to do about a file that holds a trainer's objects beside its weights, for that message.

    Raises:
        UserError: no such file, truncated, not a torch file, or it holds more than weights.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such {what} checkpoint")
    try:
        # Mapped, so that what a loader leaves aside (a decoder, optimiser states) is not read into memory.
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        reason = " ".join(str(error).split())
        named = re.search(r"GLOBAL ([\w.]+)", reason)
        because = f"it wants to run {named[1]}" if named else "its pickle is damaged or holds more than tensors"
        if remedy and named and named[1].split(".")[0] in _TRAINERS:  # not for a payload: it would be followed
            because += f"; {remedy}"
        raise UserError(f"{path}: refused, nothing of it was executed: {because}") from None
    except (RuntimeError, EOFError, ValueError, KeyError, AttributeError, OSError, zipfile.BadZipFile) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{path}: truncated, or not a torch file: {reason}") from None


def read_safetensors(path: Path, skip: Sequence[str] = ()) -> dict[str, Tensor]:
    """Read a safetensors file, without the tensors whose names begin with one of `skip`.

    Raises:
        UserError: it is missing, truncated or something else.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with safe_open(str(path), framework="pt") as handle:
            names = [name for name in list(handle.keys()) if not name.startswith(tuple(skip))]
            return {name: handle.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as safetensors: {error}") from None


def read_weights(folder: Path, what: str, skip: Sequence[str] = ()) -> tuple[dict[str, Tensor], Path]:
    """Read a transformers folder's weights: safetensors before .bin, one file or shards with an index.

    Args:
        folder: holds model.safetensors or pytorch_model.bin, or shards of one of them and their index.
        what: the kind of checkpoint, for messages.
        skip: tensors whose names begin so are left aside.

    Returns:
        The tensors, as stored, and the file (or index) that they came from.

    Raises:
        UserError: no weights there, a shard is missing or damaged, or an index names a file outside of the folder.
    """
    for name, index in zip(("model.safetensors", "pytorch_model.bin"), _INDEXES, strict=True):
        if (folder / name).is_file():
            return _read_one(folder / name, what, skip), folder / name
        if (folder / index).is_file():
            return _read_shards(folder / index, what, skip), folder / index
    raise UserError(f"{folder}: holds neither model.safetensors nor pytorch_model.bin (or an index of shards)")


def _read_one(path: Path, what: str, skip: Sequence[str]) -> dict[str, Tensor]:
    content = read_safetensors(path, skip) if path.suffix == ".safetensors" else read_torch_file(path, what)
    if not isinstance(content, dict) or not all(isinstance(x, Tensor) for x in content.values()):
        raise UserError(f"{path}: a {what} weights file maps names to tensors")
    return {name: x for name, x in content.items() if not str(name).startswith(tuple(skip))}


def _read_shards(index: Path, what: str, skip: Sequence[str]) -> dict[str, Tensor]:
    raw = read_json(index)
    places = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(places, dict) or not places or not all(isinstance(x, str) for x in places.values()):
        raise UserError(f"{index}: an index of shards maps tensors to files under `weight_map`")
    places = {tensor: name for tensor, name in places.items() if not str(tensor).startswith(tuple(skip))}
    state: dict[str, Tensor] = {}
    for name in sorted(set(places.values())):
        if Path(name).name != name:
            raise UserError(f"{index}: {name!r} is not a plain file name")
        state |= _read_one(index.parent / name, what, skip)
    if lost := sorted(set(places) - set(state)):
        raise UserError(f"{index}: the shards lack {listed(lost)}")
    return state


def load_strict(model: nn.Module, state: Mapping[str, Tensor], where: Path, what: str) -> None:
    """Load a state dict as float32; every tensor of the model must come, with its shape, and no other.

    Raises:
        UserError: naming what is missing, unknown and misshapen. The model is then unchanged.
    """
    expected = model.state_dict()
    state = {_new_name(name, expected): tensor for name, tensor in state.items()}
    faults = []
    if missing := sorted(set(expected) - set(state)):
        faults.append(f"lacks {listed(missing)}")
    if unknown := sorted(set(state) - set(expected)):
        faults.append(f"holds unknown {listed(unknown)}")
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(x.shape)}"
        for name, x in sorted(expected.items())
        if name in state and state[name].shape != x.shape
    ]
    if shapes:
        faults.append(f"has other shapes: {listed(shapes)}")
    if faults:
        raise UserError(f"{where}: not {what} of this size: it {'; '.join(faults)}")
    model.load_state_dict(state, strict=True)  # copies into the model's own float32 tensors


def _new_name(name: str, expected: Mapping[str, Tensor]) -> str:
    """Weight norm's tensors under their present name; old checkpoints call them `weight_g` and `weight_v`."""
    for old, number in (("weight_g", 0), ("weight_v", 1)):
        if name.endswith(f".{old}"):
            new = f"{name.removesuffix(old)}parametrizations.weight.original{number}"
            return new if new in expected else name
    return name


def listed(names: Sequence[str]) -> str:
    """The first few names, and how many more there are."""
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"


def check_sizes(what: str, multiple_of: Mapping[str, int], **sizes: int) -> None:
    """Check the sizes of a random build: all at least 1, `width` a multiple of what `multiple_of` names.

    Raises:
        UserError: naming the first size that does not fit.
    """
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"{what}: {name} must be at least 1, got {size}")
    for name, divisor in multiple_of.items():
        if sizes["width"] % divisor:
            raise UserError(f"{what}: width={sizes['width']} must be a multiple of {name}={divisor}")
