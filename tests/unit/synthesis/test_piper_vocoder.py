"""A Piper voice whose vocoder runs in bfloat16: the same wave but for rounding, and a plain word for other graphs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from omnichat.synthesis.voices import piper_vocoder
from omnichat.synthesis.voices.piper import PiperPraatVoice
from omnichat.synthesis.voices.piper_vocoder import SplitSession, _prepared
from omnichat.utils.errors import UserError
from omnichat.utils.parts import build_part
from tests.contract.test_voices import node
from tests.helpers.voices import piper_model

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("parselmouth")


def small_vits(path: Path, unsqueezed: bool = False, **conv: Any) -> Path:
    """A graph of the shape of Piper's: something in front, then a vocoder with every operator that a HiFi-GAN has, and
    maybe a last axis that Piper's own export adds."""
    helper, rng = onnx.helper, np.random.default_rng(0)
    shapes = {"e": (4, 1, 3), "pre": (8, 4, 3), "up": (8, 4, 8), "res": (4, 4, 3), "post": (1, 4, 7), "cond": (8, 4, 1)}
    weights = {name: (0.4 * rng.standard_normal(shape)).astype(np.float32) for name, shape in shapes.items()}
    weights |= {"bias": np.full(8, 0.1, np.float32), "three": np.array(3.0, np.float32), "shape": np.array([1, 1, -1])}
    weights["who"] = rng.standard_normal((1, 4, 1)).astype(np.float32)

    def make(kind: str, name: str, inputs: list[str], output: str, **fields: Any) -> Any:
        return helper.make_node(kind, inputs, [output], name=name, **fields)

    nodes = [
        make("Cast", "/enc/Cast", ["input"], "ids", to=onnx.TensorProto.FLOAT),
        make("Reshape", "/enc/Reshape", ["ids", "shape"], "row"),
        make("Conv", "/enc/Conv", ["row", "e"], "latent", pads=[1, 1]),
        make("Identity", "/enc/Identity", ["who"], "speaker"),
        make("Conv", "/dec/conv_pre/Conv", ["latent", "pre", "bias"], "a", pads=[1, 1]),
        make("Conv", "/dec/cond/Conv", ["speaker", "cond"], "c"),
        make("Add", "/dec/Add", ["a", "c"], "b"),
        make("LeakyRelu", "/dec/LeakyRelu", ["b"], "d", alpha=0.1),
        make("ConvTranspose", "/dec/ups.0/ConvTranspose", ["d", "up"], "f", strides=[4], pads=[2, 2]),
        make("LeakyRelu", "/dec/res/LeakyRelu", ["f"], "r", alpha=0.1),
        make("Conv", "/dec/res/Conv", ["r", "res"], "g", **({"dilations": [3], "pads": [3, 3]} | conv)),
        make("Add", "/dec/res/Add", ["g", "f"], "h"),
        make("Div", "/dec/Div", ["h", "three"], "i"),
        make("LeakyRelu", "/dec/LeakyRelu_1", ["i"], "j"),
        make("Conv", "/dec/conv_post/Conv", ["j", "post"], "k", pads=[3, 3]),
        make("Tanh", "/dec/Tanh", ["k"], "wave" if unsqueezed else "output"),
    ]
    if unsqueezed:
        weights["axis"] = np.array([1])
        nodes.append(make("Unsqueeze", "/Unsqueeze", ["wave", "axis"], "output"))
    graph = helper.make_graph(
        nodes,
        "vits",
        [helper.make_tensor_value_info("input", onnx.TensorProto.INT64, [1, "phonemes"])],
        [helper.make_tensor_value_info("output", onnx.TensorProto.FLOAT, [1, 1, *[1] * unsqueezed, None])],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize("unsqueezed", [False, True])
def test_the_wave_is_that_of_the_whole_graph_but_for_rounding(tmp_path: Path, unsqueezed: bool) -> None:
    path = small_vits(tmp_path / "v.onnx", unsqueezed)
    whole = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    split = SplitSession(path, onnxruntime.SessionOptions())
    for length in (1, 5, 40):
        feed = {"input": np.random.default_rng(length).integers(-2, 3, (1, length))}
        wanted, got = whole.run(None, feed)[0], split.run(None, feed)[0]
        assert got.shape == wanted.shape == (1, 1, *[1] * unsqueezed, 4 * length) and got.dtype == np.float32
        assert 1e-6 < np.abs(got - wanted).max() < 0.05 and np.array_equal(got, split.run(None, feed)[0])


def test_a_value_is_given_back_after_its_last_reader_and_not_before(tmp_path: Path) -> None:
    split = SplitSession(small_vits(tmp_path / "v.onnx"), onnxruntime.SessionOptions())
    feed = {"input": np.random.default_rng(0).integers(-2, 3, (1, 9))}
    values = {
        name: _prepared(value)
        for name, value in zip(split._entries, split._front.run(split._entries, feed), strict=True)
    }
    entries = {name: value.clone() for name, value in values.items()}
    with torch.inference_mode():
        wave = split._vocode(values)
        assert set(values) == {"output"}
        # Every step again, with nothing given back and so nothing overwritten.
        split._steps = [replace(step, done=frozenset()) for step in split._steps]
        kept = split._vocode(entries)
    assert torch.equal(wave, kept) and len(entries) == len(split._steps) + len(split._entries)


def test_padding_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two convolutions with a bias and a speaker's vector in front of others: silence beyond the end is no silence."""
    split = SplitSession(small_vits(tmp_path / "v.onnx"), onnxruntime.SessionOptions())
    for length in (1, 2, 31, 32, 33, 50):
        feed = {"input": np.random.default_rng(length).integers(-2, 3, (1, length))}
        with monkeypatch.context() as patch:
            patch.setattr(piper_vocoder, "_FRAMES", 1)
            exact = split.run(None, feed)[0]
        padded = split.run(None, feed)[0]
        assert padded.shape == exact.shape
        np.testing.assert_allclose(padded, exact, atol=1e-2)  # a step of bfloat16 at 1 is .008


def test_lengths_share_what_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split, seen = SplitSession(small_vits(tmp_path / "v.onnx"), onnxruntime.SessionOptions()), set()
    convolve = piper_vocoder.F.conv2d

    def conv2d(x: torch.Tensor, *given: Any, **fields: Any) -> torch.Tensor:
        seen.add(tuple(x.shape))
        return convolve(x, *given, **fields)

    monkeypatch.setattr(piper_vocoder.F, "conv2d", conv2d)
    split.run(None, {"input": np.ones((1, 33), np.int64)})
    first = set(seen)
    for length in (34, 50, 64):
        split.run(None, {"input": np.ones((1, length), np.int64)})
    assert seen == first


def test_a_graph_of_another_kind_is_told_in_one_line(tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    with pytest.raises(UserError, match=r"does not end in a part named dec; set voice.vocoder=float32"):
        SplitSession(piper_model(tmp_path / "hum", (110.0,)), options)
    with pytest.raises(UserError, match="has a node Conv of another kind"):
        SplitSession(small_vits(tmp_path / "odd.onnx", dilations=[3], pads=[2, 4]), options)


def test_the_setting_is_checked_and_part_of_the_voice() -> None:
    voice = build_part(node("piper") | {"vocoder": "bfloat16"}, "voice", PiperPraatVoice)
    assert voice.describe()["vocoder"] == "bfloat16"
    with pytest.raises(UserError, match=r"voice.vocoder='float16' is not valid"):
        build_part(node("piper") | {"vocoder": "float16"}, "voice", PiperPraatVoice)


@pytest.mark.slow
def test_the_packaged_voice_says_the_same_in_either() -> None:
    waves = []
    for vocoder in ("float32", "bfloat16"):
        voice = build_part(node("piper") | {"vocoder": vocoder}, "voice", PiperPraatVoice)
        preset = next(iter(voice.presets.values()))
        waves.append(voice._speak_plain("The train leaves at nine.", preset, 1.0, 0)[0])
    whole, split = waves
    noise_db = 10 * np.log10(np.mean((whole - split) ** 2) / np.mean(whole**2))
    assert whole.shape == split.shape and -60 < noise_db < -25
