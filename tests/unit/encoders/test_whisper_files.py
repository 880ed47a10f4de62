"""Whisper weights: every container leads to the same model, and a wrong file is refused by name."""

from __future__ import annotations

import os
import struct
from dataclasses import asdict
from difflib import SequenceMatcher
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from whisper import DecodingOptions
from whisper.audio import log_mel_spectrogram, pad_or_trim
from whisper.model import ModelDimensions, Whisper

from omnichat.audio.io import load_audio
from omnichat.encoders import whisper_files
from omnichat.encoders.whisper_ct2 import read_ctranslate2
from omnichat.encoders.whisper_files import convert_ctranslate2, load_whisper
from omnichat.utils.assets import asset_folder
from omnichat.utils.errors import UserError

torch.set_num_threads(1)
SAMPLES = Path(os.environ.get("OMNICHAT_SAMPLES", Path(__file__).parents[4] / "shared" / "data"))
TINY = ModelDimensions(80, 1500, 16, 2, 1, 51864, 448, 16, 2, 1)


def _hear(model: Whisper, path: Path) -> str:
    mel = log_mel_spectrogram(pad_or_trim(load_audio(path, 16000)), model.dims.n_mels)
    with torch.inference_mode():
        result = model.decode(mel, DecodingOptions(language="en", fp16=False, without_timestamps=True))
    return "".join(c for c in result.text.lower() if c.isalnum() or c == " ").strip()


def _write_ct2(path: Path, variables: dict[str, torch.Tensor], spec: str = "WhisperSpec") -> None:
    def text(value: str) -> bytes:
        return struct.pack("<H", len(value) + 1) + value.encode() + b"\0"

    parts = [struct.pack("<I", 6), text(spec), struct.pack("<II", 3, len(variables))]
    for name, tensor in variables.items():
        array = tensor.numpy()
        code = {"float32": 0, "int16": 2, "float16": 4}[str(array.dtype)]
        parts += [text(name), struct.pack(f"<B{array.ndim}I", array.ndim, *array.shape)]
        parts += [struct.pack("<BI", code, array.nbytes), array.tobytes()]
    path.write_bytes(b"".join(parts) + struct.pack("<I", 0))


def _ct2_variables(model: Whisper) -> dict[str, torch.Tensor]:
    """The inverse of the reader's mapping, written out on its own."""
    s = model.state_dict()
    out = {f"{side}/num_heads": torch.tensor(2, dtype=torch.int16) for side in ("encoder", "decoder")}
    for c in ("conv1", "conv2"):
        out |= {f"encoder/{c}/{f}": s[f"encoder.{c}.{f}"] for f in ("weight", "bias")}
    out["decoder/embeddings/weight"] = s["decoder.token_embedding.weight"]

    def norm(name: str, source: str) -> None:
        out[f"{name}/gamma"], out[f"{name}/beta"] = s[f"{source}.weight"], s[f"{source}.bias"]

    def linear(name: str, *sources: str) -> None:
        out[f"{name}/weight"] = torch.cat([s[f"{x}.weight"] for x in sources])
        out[f"{name}/bias"] = torch.cat([s.get(f"{x}.bias", torch.zeros(16)) for x in sources])

    for side, last in (("encoder", "ln_post"), ("decoder", "ln")):
        out[f"{side}/position_encodings/encodings"] = s[f"{side}.positional_embedding"]
        norm(f"{side}/layer_norm", f"{side}.{last}")
        block, to = f"{side}/layer_0", f"{side}.blocks.0"
        norm(f"{block}/self_attention/layer_norm", f"{to}.attn_ln")
        linear(f"{block}/self_attention/linear_0", f"{to}.attn.query", f"{to}.attn.key", f"{to}.attn.value")
        linear(f"{block}/self_attention/linear_1", f"{to}.attn.out")
        norm(f"{block}/ffn/layer_norm", f"{to}.mlp_ln")
        linear(f"{block}/ffn/linear_0", f"{to}.mlp.0")
        linear(f"{block}/ffn/linear_1", f"{to}.mlp.2")
    norm("decoder/layer_0/attention/layer_norm", "decoder.blocks.0.cross_attn_ln")
    cross = "decoder.blocks.0.cross_attn"
    linear("decoder/layer_0/attention/linear_0", f"{cross}.query")
    linear("decoder/layer_0/attention/linear_1", f"{cross}.key", f"{cross}.value")
    linear("decoder/layer_0/attention/linear_2", f"{cross}.out")
    return {name: tensor.detach().contiguous() for name, tensor in out.items()}


@pytest.fixture(scope="module")
def tiny() -> Whisper:
    torch.manual_seed(0)
    model = Whisper(TINY).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()  # biases and norms too, so that swapped tensors cannot go unseen
    return model


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(whisper_files, "cache_folder", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def _same(one: Whisper, other: Whisper) -> None:
    left, right = one.state_dict(), other.state_dict()
    assert left.keys() == right.keys()
    for name in left:
        torch.testing.assert_close(left[name], right[name], rtol=0, atol=0, msg=name)


def test_all_three_containers_hold_the_same_model(tiny: Whisper, tmp_path: Path, cache: Path) -> None:
    torch.save({"dims": asdict(TINY), "model_state_dict": tiny.state_dict()}, tmp_path / "tiny.pt")
    folder = tmp_path / "ct2"
    folder.mkdir()
    _write_ct2(folder / "model.bin", _ct2_variables(tiny))
    _same(load_whisper(tmp_path / "tiny.pt"), tiny)
    loaded = load_whisper(folder)
    _same(loaded, tiny)
    assert loaded.dims == TINY and not loaded.training
    _same(load_whisper(convert_ctranslate2(folder)), tiny)


def test_conversion_is_cached_and_reused(tiny: Whisper, tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "ct2"
    folder.mkdir()
    _write_ct2(folder / "model.bin", _ct2_variables(tiny))
    first = convert_ctranslate2(folder)
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    assert first.is_relative_to(cache)
    assert convert_ctranslate2(folder) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == stamp
    changed = _ct2_variables(tiny)
    changed["encoder/conv1/bias"] = changed["encoder/conv1/bias"] + 1
    _write_ct2(folder / "model.bin", changed)
    assert convert_ctranslate2(folder) != first


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v.pop("encoder/conv2/bias"), "encoder.conv2.bias"),
        (lambda v: v.update({"encoder/conv9/bias": torch.zeros(3)}), "encoder/conv9/bias"),
        (lambda v: v["encoder/layer_0/self_attention/linear_0/bias"].add_(1), "key bias"),
        (lambda v: v.update({"encoder/conv1/weight_scale": torch.zeros(3)}), "float16"),
        (lambda v: v.pop("encoder/num_heads"), "encoder/num_heads"),
        (lambda v: v.update({"decoder/layer_norm/beta": torch.zeros(3)}), "shape"),
    ],
)
def test_a_wrong_file_is_refused_and_not_cached(change, message: str, tiny: Whisper, tmp_path: Path, cache) -> None:  # type: ignore[no-untyped-def]
    variables = {name: tensor.clone() for name, tensor in _ct2_variables(tiny).items()}
    change(variables)
    _write_ct2(tmp_path / "model.bin", variables)
    with pytest.raises(UserError, match=message):
        load_whisper(tmp_path)
    assert not list(cache.glob("converted/whisper-*"))


@settings(max_examples=40, deadline=None)
@given(cut=st.integers(0, 20_000), flip=st.integers(0, 400), value=st.integers(0, 255))
def test_a_damaged_file_gives_an_error_of_ours(
    tmp_path_factory, tiny: Whisper, cut: int, flip: int, value: int
) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path_factory.mktemp("damaged") / "model.bin"
    _write_ct2(path, {"encoder/conv1/bias": tiny.state_dict()["encoder.conv1.bias"], "encoder/x": torch.zeros(2, 3)})
    content = bytearray(path.read_bytes())
    content[flip % len(content)] = value
    path.write_bytes(bytes(content[: max(1, len(content) - cut % len(content))]))
    try:
        read_ctranslate2(path)
    except UserError as error:
        assert str(path) in str(error)


def test_untrusted_or_foreign_files_are_refused(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return (os.mkdir, (str(tmp_path / "ran"),))

    torch.save({"dims": Payload(), "model_state_dict": {}}, tmp_path / "evil.pt")
    with pytest.raises(UserError, match=r"evil\.pt"):
        load_whisper(tmp_path / "evil.pt")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(UserError, match="no Whisper weights"):
        load_whisper(tmp_path)
    save_file({"x": torch.zeros(1)}, str(tmp_path / "model.safetensors"))
    (tmp_path / "dims.json").write_text("{}")
    with pytest.raises(UserError, match="n_mels"):
        load_whisper(tmp_path)


def _packaged() -> Whisper:
    try:
        return load_whisper(asset_folder("whisper_tiny_en"))
    except UserError as error:
        pytest.skip(f"packaged Whisper is out of reach: {error}")


def test_packaged_whisper_hears_a_real_recording() -> None:
    folder = SAMPLES / "dailytalk" / "data" / "1689"
    if not folder.is_dir():
        pytest.skip("no DailyTalk sample")
    model = _packaged()
    heard = " ".join(_hear(model, path) for path in sorted(folder.glob("*.wav"))).split()
    said = " ".join(path.read_text() for path in sorted(folder.glob("*.txt"))).lower()
    words = "".join(c for c in said if c.isalnum() or c == " ").split()
    same = sum(block.size for block in SequenceMatcher(a=words, b=heard, autojunk=False).get_matching_blocks())
    assert same >= 0.85 * len(words), heard  # tiny.en gets 31 of 35 words right; noise would get next to none


def test_packaged_whisper_hears_a_synthetic_voice(tmp_path: Path) -> None:
    piper = pytest.importorskip("piper")
    import wave

    try:
        voice_file = next(asset_folder("piper_joe").rglob("*.onnx"))
    except UserError as error:
        pytest.skip(f"packaged voice is out of reach: {error}")
    model = _packaged()
    with wave.open(str(tmp_path / "clip.wav"), "wb") as handle:
        piper.PiperVoice.load(str(voice_file)).synthesize_wav("The weather is lovely this morning.", handle)
    assert _hear(model, tmp_path / "clip.wav") == "the weather is lovely this morning"
