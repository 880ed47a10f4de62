"""Whisper weights from whatever file the user has, whole or the encoder alone.

All of them end as openai-whisper's modules in float32, loaded strictly: a tensor that is missing, unknown or of another
shape is an error, and sizes come from the file, never from a table of models.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from whisper.model import AudioEncoder, ModelDimensions, Whisper

from omnichat.encoders.checkpoints import find_checkpoint, load_strict, read_safetensors, read_torch_file
from omnichat.encoders.whisper_ct2 import read_ctranslate2, whisper_state_from_ctranslate2
from omnichat.encoders.whisper_hf import CONFIG, read_transformers
from omnichat.utils.assets import cache_folder
from omnichat.utils.errors import UserError
from omnichat.utils.files import read_json, replace_folder, sha256_file, write_json_atomic
from omnichat.utils.log import get_logger

log = get_logger(__name__)

_CONVERSION = 1  # part of the cache key: raise it when the CTranslate2 mapping changes
WEIGHTS, DIMS = "model.safetensors", "dims.json"
_CT2_FILE = "model.bin"
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
# A hub repository may hold a model several times over: what is not safetensors is fetched only where that is missing,
# and float32 or flax copies never.
_HUB_FIRST = (CONFIG, DIMS, WEIGHTS, f"{WEIGHTS}.index.json", "model-*-of-*.safetensors")
_HUB_THEN = (CONFIG, _CT2_FILE, "pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*-of-*.bin")


def find_whisper(path: str) -> Path:
    """Turn a config's `path` into a file or folder: a local path, `asset:NAME`, or a hub id `owner/name`.

    Raises:
        UserError: nothing is there, or the hub cannot be reached and holds no local copy.
    """
    found = find_checkpoint(path, _HUB_FIRST)
    if found.is_file() or any((found / name).is_file() for name in (*_WEIGHTS, _CT2_FILE)):
        return found
    return find_checkpoint(path, _HUB_THEN)


def load_whisper(path: Path) -> Whisper:
    """Load Whisper, encoder and decoder, in float32 and eval mode, on CPU.

    Args:
        path: an OpenAI file (`*.pt`: `dims` and `model_state_dict`), or a folder: transformers' (config.json and
            safetensors or .bin weights, also in shards), CTranslate2's (`model.bin`; converted once, then read from
            the per-user cache), or our own (`model.safetensors` and `dims.json`).

    Raises:
        UserError: nothing of the kind is there, or its tensors are not those of a Whisper model.
    """
    raw, state, where = _read(path, decoder=True)
    return _build(_dims(raw, where), state, where)


def load_whisper_encoder(path: Path) -> tuple[AudioEncoder, ModelDimensions]:
    """Load Whisper's encoder alone: the decoder is neither built nor, where the format allows it, read.

    Files that never had a decoder (an encoder or a classifier saved by transformers) are welcome; `dims` then still
    states the decoder's sizes, as config.json does.

    Raises:
        UserError: as `load_whisper`, or an encoder that does not read 30 s.
    """
    raw, state, where = _read(path, decoder=False)
    dims = _dims(raw, where)
    if dims.n_audio_ctx != 1500:
        raise UserError(f"{where}: n_audio_ctx={dims.n_audio_ctx}; an encoder of 30 s, 1500 positions, is needed")
    _check_stem(dims, state, where)
    sizes = (dims.n_mels, dims.n_audio_ctx, dims.n_audio_state, dims.n_audio_head, dims.n_audio_layer)
    with torch.device("meta"):  # no time spent on random numbers that the file replaces, every one of them
        encoder = AudioEncoder(*sizes)
    encoder = encoder.to_empty(device="cpu")
    state = {name.removeprefix("encoder."): x for name, x in state.items() if name.startswith("encoder.")}
    load_strict(encoder, state, where, "a Whisper encoder")
    return encoder.eval(), dims


def _read(path: Path, decoder: bool) -> tuple[object, Mapping[str, Tensor], Path]:
    """(sizes, tensors by openai-whisper's names, file that they came from); without `decoder` it may be left out."""
    if path.is_file():
        return *_read_openai(path), path
    if (path / DIMS).is_file():
        skip = () if decoder else ("decoder.",)
        return read_json(path / DIMS), read_safetensors(path / WEIGHTS, skip), path / WEIGHTS
    if (path / _CT2_FILE).is_file():
        return _read(convert_ctranslate2(path), decoder)
    if (path / CONFIG).is_file() or any((path / name).is_file() for name in _WEIGHTS):
        return read_transformers(path, decoder)
    raise UserError(
        f"{path}: no Whisper weights; give an OpenAI .pt file, a transformers folder ({CONFIG} and weights), "
        f"a CTranslate2 folder ({_CT2_FILE}), or a folder of {WEIGHTS} and {DIMS}"
    )


def _read_openai(path: Path) -> tuple[object, Mapping[str, Tensor]]:
    if path.suffix == ".safetensors":
        raise UserError(f"{path}: says no sizes; give its folder, with transformers' {CONFIG} or our {DIMS} in it")
    content = read_torch_file(path, "Whisper")
    if not isinstance(content, dict) or not {"dims", "model_state_dict"} <= set(content):
        raise UserError(f"{path}: an OpenAI Whisper file holds `dims` and `model_state_dict`")
    state = content["model_state_dict"]
    if not isinstance(state, dict) or not all(isinstance(x, Tensor) for x in state.values()):
        raise UserError(f"{path}: `model_state_dict` must map names to tensors")
    return content["dims"], state


def convert_ctranslate2(folder: Path) -> Path:
    """Convert a CTranslate2 Whisper folder to safetensors in the per-user cache; return the converted folder.

    The cache key is the SHA-256 of `model.bin` and of this conversion's version; an existing folder is reused.
    """
    source = folder / _CT2_FILE
    target = cache_folder() / "converted" / f"whisper-{sha256_file(source)[:16]}-v{_CONVERSION}"
    if target.is_dir():  # made by one rename, so a folder that exists is whole
        return target
    log.info("converting %s to safetensors (once)", source)
    dims, state = whisper_state_from_ctranslate2(read_ctranslate2(source))
    _build(dims, state, source)  # strict: a wrong file is refused before it is cached
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".convert-") as scratch:
        finished = Path(scratch) / "model"
        finished.mkdir()
        save_file(state, str(finished / WEIGHTS))
        write_json_atomic(finished / DIMS, asdict(dims))
        if not target.is_dir():
            replace_folder(finished, target)
    return target


def _build(dims: ModelDimensions, state: Mapping[str, Tensor], where: Path) -> Whisper:
    _check_stem(dims, state, where)
    with torch.random.fork_rng(devices=[]):  # openai-whisper draws weights; the global generator stays where it was
        model = Whisper(dims)
    load_strict(model, state, where, "Whisper")
    return model.eval()


def _dims(raw: Any, where: Path) -> ModelDimensions:
    names = [field.name for field in fields(ModelDimensions)]
    if not isinstance(raw, dict) or set(raw) != set(names):
        raise UserError(f"{where}: Whisper's dims are {json.dumps(names)}")
    if bad := [name for name in names if type(raw[name]) is not int or not 0 < raw[name] <= 1_000_000]:
        raise UserError(f"{where}: dims.{bad[0]} must be a positive integer, got {raw[bad[0]]!r}")
    for side in ("audio", "text"):
        width, heads = raw[f"n_{side}_state"], raw[f"n_{side}_head"]
        if width % heads or width % 2:
            raise UserError(f"{where}: n_{side}_state={width} must be even and a multiple of n_{side}_head={heads}")
    return ModelDimensions(**raw)


def _check_stem(dims: ModelDimensions, state: Mapping[str, Tensor], where: Path) -> None:
    """Compare sizes with the first tensor and the number of blocks, before memory is taken for what a file claims."""
    first = state.get("encoder.conv1.weight")
    if first is not None and first.shape != (dims.n_audio_state, dims.n_mels, 3):
        raise UserError(
            f"{where}: encoder.conv1.weight has shape {tuple(first.shape)}, "
            f"the sizes say {(dims.n_audio_state, dims.n_mels, 3)}"
        )
    blocks = {name.split(".")[2] for name in state if name.startswith("encoder.blocks.")}
    if len(blocks) != dims.n_audio_layer:
        raise UserError(f"{where}: holds {len(blocks)} encoder blocks, the sizes say {dims.n_audio_layer}")
