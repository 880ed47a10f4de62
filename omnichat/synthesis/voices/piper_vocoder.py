"""The vocoder of a Piper voice in bfloat16, which halves its time on a processor with bfloat16 units.

A Piper file is a VITS model (Kim et al., 2021) in ONNX. Its last part, a HiFi-GAN (Kong et al., 2020), takes most of
the time, and ONNX Runtime computes it in float32 only. Here that part is cut out of the graph and its few operators are
run by torch, channels last; what comes before stays with ONNX Runtime. So does the flow, the next in cost: in bfloat16
it would raise the noise from -39 dB to -24 on average and -10 at worst (docs/FACTORY.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from omnichat.utils.errors import UserError

_FRAMES = 32  # inputs are padded to a multiple: each new length has every operator compiled, a third of the time
_INSIDE = "/dec/"  # in the names of the vocoder's nodes, as torch's exporter took them from VITS


@dataclass(frozen=True, slots=True)
class _Step:
    """One operator: its attributes are plain numbers, its weights tensors."""

    kind: str
    inputs: tuple[str, ...]
    output: str
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    slope: float = 0.0
    done: frozenset[str] = frozenset()  # of its inputs: what no later step reads

    def length(self, samples: int, kernel: int) -> int:
        """Of a convolution's output."""
        if self.kind == "Conv":
            return samples + 2 * self.padding - self.dilation * (kernel - 1)
        return (samples - 1) * self.stride - 2 * self.padding + kernel


class SplitSession:
    """In the place of the ONNX Runtime session of a Piper voice: the same inputs, nearly the same wave.

    Args:
        model: the .onnx file. options: of the ONNX Runtime session for all but the vocoder.

    Raises:
        UserError: the onnx package is not installed, or the file holds no vocoder of the known operators.
    """

    def __init__(self, model: Path, options: Any) -> None:
        try:
            import onnx
            import onnxruntime
        except ImportError as error:
            raise UserError(f"voice.vocoder=bfloat16 needs onnx: pip install onnx ({error})") from None
        loaded = onnx.load(str(model))
        graph = loaded.graph
        vocoder = [node for node in graph.node if _INSIDE in node.name]
        rest = [node for node in graph.node if _INSIDE not in node.name]
        inside = {name for node in vocoder for name in node.output}
        weights = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
        self._output = graph.output[0].name
        self._axes: tuple[int, ...] = ()  # that the graph adds behind the vocoder
        behind = [node for node in rest if inside & set(node.input)]
        if [node.op_type for node in behind] == ["Unsqueeze"] and behind[0].input[-1] in weights:
            (last,) = behind
            if last.output[0] == self._output:
                rest.remove(last)
                self._output, self._axes = last.input[0], tuple(int(axis) for axis in weights[last.input[1]])
                behind = []
        if not vocoder or behind or self._output not in inside:
            raise _unknown(model, "its graph does not end in a part named dec")
        steps = [_step(model, node, onnx.helper.get_attribute_value) for node in vocoder]
        needed = {name for step in steps for name in step.inputs}
        self._constants = {name: _prepared(weights[name]) for name in needed & set(weights)}
        self._steps = _with_ends(steps, set(weights) | {self._output})
        self._entries = sorted(needed - inside - set(weights))
        used = {name for node in rest for name in node.input}
        kept = [one for one in graph.initializer if one.name in used]
        ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in self._entries]
        front = onnx.helper.make_graph(rest, graph.name, list(graph.input), ends, kept)
        made = onnx.helper.make_model(front, opset_imports=loaded.opset_import, ir_version=loaded.ir_version)
        self._front = onnxruntime.InferenceSession(
            made.SerializeToString(), sess_options=options, providers=["CPUExecutionProvider"]
        )

    def run(self, names: Sequence[str] | None, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The wave, float32 [1, 1, N] or [1, 1, 1, N] as in the graph, as the only output."""
        assert names is None, "a Piper voice has one output"
        values = dict(zip(self._entries, self._front.run(self._entries, dict(feed)), strict=True))
        with torch.inference_mode():
            wave = self._vocode({name: _prepared(value) for name, value in values.items()}).numpy()
        return [np.expand_dims(wave, self._axes)]

    def _vocode(self, values: dict[str, Tensor]) -> Tensor:
        lengths = {name: value.shape[-1] for name, value in (values | self._constants).items() if value.ndim == 4}
        values |= {name: _padded(values[name]) for name in self._entries}
        for step in self._steps:
            x, *more = (self._constants[name] if name in self._constants else values[name] for name in step.inputs)
            length = max(lengths[name] for name in step.inputs if name in lengths)
            if step.kind in ("Conv", "ConvTranspose"):
                length = lengths[step.inputs[0]]
                x[..., length:] = 0.0  # what a convolution may find beyond the end, as in the graph
                length = step.length(length, more[0].shape[-1])
            values[step.output], lengths[step.output] = _apply(step, x, more), length
            for name in step.done:  # else every step writes to fresh pages, which takes a fifth more time or worse
                del values[name]
        return values[self._output].float()[:, :, 0, : lengths[self._output]]


def _padded(x: Tensor) -> Tensor:
    """With a whole number of _FRAMES; a vector that holds for all frames stays one."""
    missing = -x.shape[-1] % _FRAMES if x.ndim == 4 and x.shape[-1] > 1 else 0
    return F.pad(x, (0, missing)).contiguous(memory_format=torch.channels_last) if missing else x


def _apply(step: _Step, x: Tensor, more: list[Tensor]) -> Tensor:
    ours = step.inputs[0] in step.done  # then x may be overwritten
    if step.kind == "Conv":
        bias = more[1] if more[1:] else None
        return F.conv2d(x, more[0], bias, padding=(0, step.padding), dilation=(1, step.dilation))
    if step.kind == "ConvTranspose":
        bias = more[1] if more[1:] else None
        return F.conv_transpose2d(x, more[0], bias, stride=(1, step.stride), padding=(0, step.padding))
    if step.kind == "LeakyRelu":
        return F.leaky_relu(x, step.slope, inplace=ours)
    if step.kind == "Add":
        return x.add_(more[0]) if ours and x.shape == more[0].shape else x + more[0]
    if step.kind == "Div":
        return x / more[0]
    return torch.tanh(x)


def _with_ends(steps: list[_Step], kept: set[str]) -> list[_Step]:
    """Each step with what it is the last to read, but for the names kept."""
    ended = []
    for step in reversed(steps):
        ended.append(replace(step, done=frozenset(step.inputs) - kept))
        kept = kept | set(step.inputs)
    return ended[::-1]


def _prepared(array: np.ndarray) -> Tensor:
    """bfloat16; what has a time axis [.., .., T] becomes [.., .., 1, T], channels last."""
    tensor = torch.from_numpy(np.array(array)).bfloat16()
    return tensor[:, :, None].contiguous(memory_format=torch.channels_last) if tensor.ndim == 3 else tensor


def _step(model: Path, node: Any, value_of: Any) -> _Step:
    """Read one node. Raises UserError for what the vocoder of a Piper voice does not hold."""
    found = {one.name: value_of(one) for one in node.attribute}
    inputs, output = tuple(node.input), node.output[0]
    if node.op_type in ("Add", "Div", "Tanh"):
        return _Step(node.op_type, inputs, output)
    if node.op_type == "LeakyRelu":
        return _Step(node.op_type, inputs, output, slope=float(found.get("alpha", 0.01)))
    pads = list(found.get("pads", (0, 0)))
    plain = found.get("group", 1) == 1 and not set(found) & {"auto_pad", "output_padding", "output_shape"}
    stride, dilation = list(found.get("strides", (1,))), list(found.get("dilations", (1,)))
    fits = {"Conv": stride == [1], "ConvTranspose": dilation == [1]}.get(node.op_type, False)
    if not (plain and fits and len(pads) == 2 and pads[0] == pads[1]):
        raise _unknown(model, f"its vocoder has a node {node.op_type} of another kind")
    return _Step(node.op_type, inputs, output, int(stride[0]), int(pads[0]), int(dilation[0]))


def _unknown(model: Path, why: str) -> UserError:
    return UserError(f"voice.vocoder=bfloat16: {model}: {why}; set voice.vocoder=float32")
