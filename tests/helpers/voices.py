"""Small voices that tests build: Piper models in ONNX, random speech models, a CosyVoice server and checkout."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import numpy as np
import torch

RATE = 22050


def hum(text: str, hz: float, seconds_per_letter: float = 0.06) -> np.ndarray:
    """A buzz whose length follows the text, with a gap in each word's place: float32 at 22,050 Hz."""
    pieces = []
    for word in text.split():
        n = round(RATE * seconds_per_letter * max(2, len(word)))
        t = np.arange(n) / RATE
        voiced = sum(np.sin(2 * np.pi * hz * k * t) / k for k in range(1, 12))
        pieces += [0.08 * voiced * np.hanning(n) ** 0.3, np.zeros(RATE // 40)]
    return np.concatenate(pieces).astype(np.float32)


def piper_model(folder: Path, pitches_hz: tuple[float, ...], names: tuple[str, ...] = ()) -> Path:
    """A Piper file (input, input_lengths, scales[, sid]) whose speaker n buzzes at its pitch, as long as the text."""
    import onnx
    from onnx import TensorProto, helper

    hop, many = 400, len(pitches_hz) > 1
    inputs = [
        helper.make_tensor_value_info("input", TensorProto.INT64, [1, "phonemes"]),
        helper.make_tensor_value_info("input_lengths", TensorProto.INT64, [1]),
        helper.make_tensor_value_info("scales", TensorProto.FLOAT, [3]),
    ]
    if many:
        inputs.append(helper.make_tensor_value_info("sid", TensorProto.INT64, [1]))
    constants = {
        "hop": np.array(hop, dtype=np.float32),
        "zero": np.array(0.0, dtype=np.float32),
        "one": np.array(1.0, dtype=np.float32),
        "index1": np.array([1], dtype=np.int64),
        "pitches": np.array([2 * np.pi * hz / RATE for hz in pitches_hz], dtype=np.float32),
        "gain": np.array(0.1, dtype=np.float32),
        "sharp": np.array(6.0, dtype=np.float32),
        "shape": np.array([1, 1, -1], dtype=np.int64),
    } | ({} if many else {"sid0": np.array([0], dtype=np.int64)})
    node = helper.make_node
    nodes = [
        node("Cast", ["input_lengths"], ["count"], to=TensorProto.FLOAT),
        node("Gather", ["scales", "index1"], ["stretch"]),
        node("Mul", ["count", "stretch"], ["stretched"]),
        node("Mul", ["stretched", "hop"], ["samples1"]),
        node("ReduceMax", ["samples1"], ["samples"], keepdims=0),
        node("Range", ["zero", "samples", "one"], ["time"]),
        node("Gather", ["pitches", "sid" if many else "sid0"], ["step"]),
        node("Mul", ["time", "step"], ["phase"]),
        node("Sin", ["phase"], ["sine"]),
        node("Mul", ["sine", "sharp"], ["steep"]),
        node("Tanh", ["steep"], ["square"]),  # a square wave has the harmonics that a pitch tracker looks for
        node("Mul", ["square", "gain"], ["quiet"]),
        node("Reshape", ["quiet", "shape"], ["output"]),
    ]
    graph = helper.make_graph(
        nodes,
        "piper",
        inputs,
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 1, "samples"])],
        [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "voice.onnx"
    onnx.save(model, str(path))
    letters = "_^$ abcdefghijklmnopqrstuvwxyz.,?!'"
    settings = {
        "audio": {"sample_rate": RATE},
        "espeak": {"voice": "en-us"},
        "phoneme_type": "text",
        "num_symbols": len(letters),
        "num_speakers": len(pitches_hz),
        "speaker_id_map": {name: i for i, name in enumerate(names)},
        "phoneme_id_map": {letter: [i] for i, letter in enumerate(letters)},
    }
    (folder / "voice.onnx.json").write_text(json.dumps(settings), encoding="utf-8")
    return path


def vits_folder(folder: Path, speakers: int = 1) -> Path:
    """A VITS model with random weights in the library's layout."""
    from transformers import VitsConfig, VitsModel, VitsTokenizer

    letters = ["_", *" abcdefghijklmnopqrstuvwxyz'-"]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps({letter: i for i, letter in enumerate(letters)}), encoding="utf-8")
    VitsTokenizer(str(folder / "vocab.json"), pad_token="_", unk_token="_", phonemize=False).save_pretrained(folder)
    torch.manual_seed(0)
    config = VitsConfig(
        vocab_size=len(letters),
        hidden_size=16,
        num_hidden_layers=1,
        ffn_dim=16,
        flow_size=16,
        spectrogram_bins=9,
        upsample_initial_channel=16,
        upsample_rates=[8, 8, 4],
        upsample_kernel_sizes=[16, 16, 8],
        resblock_kernel_sizes=[3],
        resblock_dilation_sizes=[[1]],
        prior_encoder_num_flows=2,
        prior_encoder_num_wavenet_layers=1,
        posterior_encoder_num_wavenet_layers=1,
        duration_predictor_num_flows=2,
        duration_predictor_filter_channels=16,
        depth_separable_num_layers=1,
        num_speakers=speakers,
        speaker_embedding_size=8 if speakers > 1 else 0,
        sampling_rate=16000,
    )
    VitsModel(config).save_pretrained(folder)
    return folder


def speecht5_folders(folder: Path) -> tuple[Path, Path, Path]:
    """(model, vocoder, x-vector file) of a SpeechT5 with random weights; its tokenizer is trained on a few words."""
    import sentencepiece
    from transformers import (
        SpeechT5Config,
        SpeechT5ForTextToSpeech,
        SpeechT5HifiGan,
        SpeechT5HifiGanConfig,
        SpeechT5Tokenizer,
    )

    folder.mkdir(parents=True, exist_ok=True)
    words = folder / "words.txt"
    words.write_text("\n".join(["they called me today about the garden", "quick brown fox jumps over lazy dog"] * 20))
    sentencepiece.SentencePieceTrainer.train(
        input=str(words), model_prefix=str(folder / "spm_char"), vocab_size=36, model_type="char", minloglevel=2,
        bos_id=0, pad_id=1, eos_id=2, unk_id=3, hard_vocab_limit=False,
    )  # fmt: skip
    model, vocoder = folder / "model", folder / "vocoder"
    SpeechT5Tokenizer(str(folder / "spm_char.model")).save_pretrained(model)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "encoder_layers": 1, "decoder_layers": 1, "num_mel_bins": 8}
    sizes |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    sizes |= {"speech_decoder_prenet_units": 8, "speech_decoder_postnet_units": 8, "speaker_embedding_dim": 12}
    config = SpeechT5Config(vocab_size=64, reduction_factor=2, speech_decoder_postnet_layers=2, **sizes)
    speaker = SpeechT5ForTextToSpeech(config)
    torch.nn.init.constant_(speaker.speech_decoder_postnet.prob_out.bias, -20.0)  # speaks on to its longest
    speaker.save_pretrained(model)
    gan = SpeechT5HifiGanConfig(
        model_in_dim=8, sampling_rate=16000, upsample_initial_channel=16, upsample_rates=[8, 8],
        upsample_kernel_sizes=[16, 16], resblock_kernel_sizes=[3], resblock_dilation_sizes=[[1]],
    )  # fmt: skip
    SpeechT5HifiGan(gan).save_pretrained(vocoder)
    vector = folder / "xvector.npy"
    np.save(vector, np.random.default_rng(0).standard_normal(12).astype(np.float32))
    return model, vocoder, vector


COSY_HZ = {"英文女": 200.0, "英文男": 100.0, "中文女": 180.0, "中文男": 90.0}
_TEMPO = {"slow": 1.3, "normal": 1.0, "fast": 0.75}


def cosy_speech(text: str, speaker: str, instruct: str) -> np.ndarray:
    """What the stand-in model says: a buzz that obeys pitch and speed of the paper's instruction."""
    factor = 0.8 if "low pitch" in instruct else 1.25 if "high pitch" in instruct else 1.0
    tempo = next(value for name, value in _TEMPO.items() if f"{name} speaking rate" in instruct)
    return hum(text, COSY_HZ[speaker] * factor, 0.06 * tempo)


@contextmanager
def cosy_server(
    answers: list[Any] | None = None, methods: tuple[str, ...] = ("POST",)
) -> Iterator[tuple[str, list[Any]]]:
    """A server on loopback that speaks the protocol of CosyVoice's FastAPI server.

    Args:
        answers: for each request in turn, instead of speech: bytes, a status code, "drop" (closes the connection), or
            None = speech. methods: that the route takes.

    Yields:
        Its address and the list of (method, form) that came in.
    """
    asked: list[Any] = []
    script = list(answers or [])
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            """Quiet."""

        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0))).decode()
            form = {key: values[0] for key, values in parse_qs(body).items()}
            if self.path != "/inference_instruct":
                return self._send(404, b'{"detail":"Not Found"}', "application/json")
            if self.command not in methods:
                return self._send(405, b'{"detail":"Method Not Allowed"}', "application/json")
            if set(form) != {"tts_text", "spk_id", "instruct_text"}:
                return self._send(422, b'{"detail":[{"msg":"Field required"}]}', "application/json")
            with lock:
                asked.append((self.command, form))
                answer = script.pop(0) if script else None
            if answer == "drop":
                self.close_connection = True
                return self.connection.close()
            if isinstance(answer, int):
                return self._send(answer, b"Internal Server Error", "text/plain")
            if answer is None:
                speech = cosy_speech(form["tts_text"], form["spk_id"], form["instruct_text"])
                answer = (np.clip(speech, -1, 1) * 32767).astype("<i2").tobytes()
            return self._stream(answer)

        def _send(self, status: int, content: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def _stream(self, content: bytes) -> None:
            self.send_response(200)
            self.send_header("transfer-encoding", "chunked")
            self.end_headers()
            for start in range(0, len(content), 8192):
                piece = content[start : start + 8192]
                self.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
            self.wfile.write(b"0\r\n\r\n")

        do_GET = do_POST = _answer

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


CHECKOUT = '''
"""A stand-in for the repository's module of the same name: the class, its methods, a model that buzzes."""

import numpy as np
import torch

from tests.helpers.voices import COSY_HZ, cosy_speech


class CosyVoice:
    def __init__(self, model_dir):
        self.sample_rate = 22050
        self.model_dir = model_dir

    def list_available_spks(self):
        return list(COSY_HZ)

    def inference_instruct(self, tts_text, spk_id, instruct_text, stream=False, speed=1.0):
        wave = torch.from_numpy(cosy_speech(tts_text, spk_id, instruct_text))
        wave = wave + 1e-3 * torch.randn(wave.shape) + 1e-3 * torch.from_numpy(np.random.rand(len(wave))).float()
        half = len(wave) // 2
        yield {"tts_speech": wave[None, :half]}
        yield {"tts_speech": wave[None, half:]}
'''


def cosy_checkout(folder: Path) -> tuple[Path, Path]:
    """(repository, model folder) of a stand-in for CosyVoice's Python code."""
    package = folder / "CosyVoice" / "cosyvoice" / "cli"
    package.mkdir(parents=True)
    for part in (package, package.parent):
        (part / "__init__.py").write_text("")
    (package / "cosyvoice.py").write_text(CHECKOUT.lstrip(), encoding="utf-8")
    model = folder / "CosyVoice-300M-Instruct"
    model.mkdir()
    return folder / "CosyVoice", model
