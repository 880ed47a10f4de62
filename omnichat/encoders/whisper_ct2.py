"""Whisper in CTranslate2's layout (`model.bin`, as faster-whisper's folders hold it), version 6.

Little-endian: a header (version, spec name, revision, count), then per variable its name, dims, dtype, byte count and
data.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from whisper.model import ModelDimensions

from omnichat.utils.errors import UserError

_CT2_VERSION = 6
_CT2_DTYPES: dict[int, np.dtype[Any]] = {
    0: np.dtype("<f4"),
    1: np.dtype("i1"),
    2: np.dtype("<i2"),
    3: np.dtype("<i4"),
    4: np.dtype("<f2"),
}

# CTranslate2 fuses query, key and value (rows, in that order) and stores a key bias, which Whisper does not have.
_NORM = {"gamma": "weight", "beta": "bias"}
_PLAIN = {
    "encoder/conv1/weight": "encoder.conv1.weight",
    "encoder/conv1/bias": "encoder.conv1.bias",
    "encoder/conv2/weight": "encoder.conv2.weight",
    "encoder/conv2/bias": "encoder.conv2.bias",
    "encoder/position_encodings/encodings": "encoder.positional_embedding",
    "decoder/position_encodings/encodings": "decoder.positional_embedding",
    "decoder/embeddings/weight": "decoder.token_embedding.weight",
    "encoder/layer_norm/gamma": "encoder.ln_post.weight",
    "encoder/layer_norm/beta": "encoder.ln_post.bias",
    "decoder/layer_norm/gamma": "decoder.ln.weight",
    "decoder/layer_norm/beta": "decoder.ln.bias",
}
_BLOCK = re.compile(r"(encoder|decoder)/layer_(\d+)/(self_attention|attention|ffn)/(layer_norm|linear_\d)/(\w+)")
_NORMS = {"self_attention": "attn_ln", "attention": "cross_attn_ln", "ffn": "mlp_ln"}
_LINEARS: dict[tuple[str, str], tuple[str, ...]] = {
    ("self_attention", "linear_0"): ("attn.query", "attn.key", "attn.value"),
    ("self_attention", "linear_1"): ("attn.out",),
    ("attention", "linear_0"): ("cross_attn.query",),
    ("attention", "linear_1"): ("cross_attn.key", "cross_attn.value"),
    ("attention", "linear_2"): ("cross_attn.out",),
    ("ffn", "linear_0"): ("mlp.0",),
    ("ffn", "linear_1"): ("mlp.2",),
}
_SETTINGS = {
    *(f"decoder/{name}" for name in ("activation", "alibi", "alignment_heads", "alignment_layer", "num_heads")),
    *(f"decoder/{name}" for name in ("pre_norm", "scale_embeddings", "start_from_zero_embedding")),
    "encoder/num_heads",
}


@dataclass(slots=True)
class _Cursor:
    """Reads little-endian fields from bytes and refuses to read past their end."""

    content: memoryview
    path: Path
    position: int = 0

    def take(self, count: int) -> memoryview:
        if count > len(self.content) - self.position:
            raise UserError(f"{self.path}: truncated: {count} bytes announced at offset {self.position}")
        self.position += count
        return self.content[self.position - count : self.position]

    def unpack(self, layout: str) -> tuple[int, ...]:
        return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout)))

    def text(self) -> str:
        (length,) = self.unpack("H")
        try:
            return bytes(self.take(length)).rstrip(b"\0").decode("utf-8")
        except UnicodeDecodeError:
            raise UserError(f"{self.path}: not a CTranslate2 model (a name is not text)") from None


def read_ctranslate2(path: Path) -> dict[str, np.ndarray]:
    """Read every variable of a CTranslate2 `model.bin` (version 6, spec WhisperSpec), without copies.

    Raises:
        UserError: another version or spec, a truncated file, or sizes that contradict each other.
    """
    if path.stat().st_size == 0:  # an empty file cannot be mapped
        raise UserError(f"{path}: empty file")
    cursor = _Cursor(memoryview(np.memmap(path, dtype=np.uint8, mode="r").data), path)
    (version,) = cursor.unpack("I")
    if version != _CT2_VERSION:
        raise UserError(f"{path}: CTranslate2 file version {version} is not supported, expected {_CT2_VERSION}")
    if (spec := cursor.text()) != "WhisperSpec":
        raise UserError(f"{path}: holds a {spec!r}, expected a 'WhisperSpec'")
    _revision, count = cursor.unpack("II")
    variables = {}
    for _ in range(count):
        name = cursor.text()
        (rank,) = cursor.unpack("B")
        dims = cursor.unpack(f"{rank}I")
        code, size = cursor.unpack("BI")
        if code not in _CT2_DTYPES:
            raise UserError(f"{path}: variable {name!r} has the unknown dtype {code}")
        dtype = _CT2_DTYPES[code]
        if int(np.prod(dims, dtype=np.int64)) * dtype.itemsize != size:
            raise UserError(f"{path}: variable {name!r} announces {size} bytes for shape {dims} of {dtype}")
        variables[name] = np.frombuffer(cursor.take(size), dtype=dtype).reshape(dims)
    return variables


def whisper_state_from_ctranslate2(variables: dict[str, np.ndarray]) -> tuple[ModelDimensions, dict[str, Tensor]]:
    """Map CTranslate2 variables to (dims, float32 state dict) of openai-whisper.

    Raises:
        UserError: quantised weights, an unknown variable, or a key bias that is not zero.
    """
    quantised = [name for name in variables if name.endswith("/weight_scale")]
    if quantised:
        raise UserError(f"{quantised[0]}: an int8/int16 CTranslate2 model cannot be converted; use its float16 form")
    state: dict[str, Tensor] = {}
    for name, array in variables.items():
        if name not in _SETTINGS:
            state.update(_map_variable(name, array))
    try:
        width = state["encoder.conv1.weight"].shape[0]
        dims = ModelDimensions(
            n_mels=state["encoder.conv1.weight"].shape[1],
            n_audio_ctx=state["encoder.positional_embedding"].shape[0],
            n_audio_state=width,
            n_audio_head=int(variables["encoder/num_heads"]),
            n_audio_layer=_depth(state, "encoder"),
            n_vocab=state["decoder.token_embedding.weight"].shape[0],
            n_text_ctx=state["decoder.positional_embedding"].shape[0],
            n_text_state=state["decoder.token_embedding.weight"].shape[1],
            n_text_head=int(variables["decoder/num_heads"]),
            n_text_layer=_depth(state, "decoder"),
        )
    except KeyError as error:
        raise UserError(f"the CTranslate2 file lacks {error.args[0]!r}") from None
    return dims, state


def _depth(state: dict[str, Tensor], side: str) -> int:
    return 1 + max((int(name.split(".")[2]) for name in state if name.startswith(f"{side}.blocks.")), default=-1)


def _map_variable(name: str, array: np.ndarray) -> Iterator[tuple[str, Tensor]]:
    if array.dtype.kind != "f":
        raise UserError(f"variable {name!r} has dtype {array.dtype}, expected float16 or float32")
    tensor = torch.from_numpy(array.astype(np.float32))
    if name in _PLAIN:
        yield _PLAIN[name], tensor
        return
    match = _BLOCK.fullmatch(name)
    if match is None:
        raise UserError(f"unknown variable {name!r} in a CTranslate2 Whisper file")
    side, index, part, kind, field = match.groups()
    prefix = f"{side}.blocks.{index}."
    if kind == "layer_norm" and field in _NORM:
        yield f"{prefix}{_NORMS[part]}.{_NORM[field]}", tensor
        return
    targets = _LINEARS.get((part, kind))
    if targets is None or field not in ("weight", "bias"):
        raise UserError(f"unknown variable {name!r} in a CTranslate2 Whisper file")
    for target, rows in zip(targets, tensor.chunk(len(targets)), strict=True):
        if target.endswith(".key") and field == "bias":
            if bool(rows.any()):
                raise UserError(f"variable {name!r} holds a key bias, which Whisper does not have")
            continue
        yield f"{prefix}{target}.{field}", rows.contiguous()
