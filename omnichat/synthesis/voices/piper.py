"""Piper speaks the words, Praat and NumPy give them a speaker and a style.

One Piper voice (Hansen & Larsen's Piper, a VITS model) becomes several speakers by shifting formants and pitch, and a
multi-speaker one, or several files, gives each preset a voice of its own. Piper runs without its sampling noise: ONNX
Runtime's random operators cannot be seeded for each call, and a corpus must come out the same on every run. Natural
variation comes instead from small seeded jitters of pitch and speed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from omnichat.synthesis.base import ClipFailed, Wave
from omnichat.synthesis.voices.piper_vocoder import SplitSession
from omnichat.synthesis.voices.prosody import Prosody
from omnichat.synthesis.voices.styled import EXTRA, SpeakerPreset, StyledVoice, need_modules
from omnichat.utils.assets import resolve_path
from omnichat.utils.errors import UserError, one_of

_VOCODERS = ("float32", "bfloat16")


class PiperPraatVoice(StyledVoice):
    """Piper voices with speaker presets and style.

    Args:
        path: the .onnx model; its .onnx.json lies beside it. A preset may name a `path` of its own, and of a
            multi-speaker model a `speaker_id` (a number, or a name of the model's speaker_id_map).
        vocoder: "float32" = all of the model by ONNX Runtime; "bfloat16" = its vocoder by torch (`piper_vocoder`), in
            0.68 of the time on processors with bfloat16 units, much slower on others.
        licence, sample_rate, speech_level_db, jitter_st, jitter_speed, speakers, pitch_st, stretch, speed_by,
            emotions: see `StyledVoice`.
    """

    def __init__(
        self,
        path: str,
        licence: str,
        sample_rate: int,
        speech_level_db: float,
        jitter_st: float,
        jitter_speed: float,
        speakers: Mapping[str, SpeakerPreset],
        pitch_st: Mapping[str, float],
        stretch: Mapping[str, float],
        speed_by: str,
        emotions: Mapping[str, Prosody],
        vocoder: str = "float32",
    ) -> None:
        need_modules("piper")
        if vocoder not in _VOCODERS:
            raise one_of("voice.vocoder", vocoder, _VOCODERS)
        if vocoder == "bfloat16":
            need_modules("onnx")
        self.vocoder = vocoder
        super().__init__(
            path=path,
            licence=licence,
            sample_rate=sample_rate,
            speech_level_db=speech_level_db,
            jitter_st=jitter_st,
            jitter_speed=jitter_speed,
            speakers=speakers,
            pitch_st=pitch_st,
            stretch=stretch,
            speed_by=speed_by,
            emotions=emotions,
        )
        for name, preset in self.presets.items():
            model = preset.path or path
            if preset.embedding is not None:
                raise UserError(f"voice.speakers.{name}.embedding: a Piper model takes a speaker_id, no vector")
            if not model.startswith("asset:"):  # the user's own file: a mistake is told before a worker begins
                _speaker_number(f"voice.speakers.{name}", preset, _settings(resolve_path(model)))

    def describe(self) -> dict[str, Any]:
        """See `StyledVoice.describe`."""
        return super().describe() | {"name": "Piper + Praat", "vocoder": self.vocoder}

    def _plain_key(self, preset: SpeakerPreset, seed: int) -> tuple[Any, ...]:
        return (preset.path, preset.speaker_id)  # without noise, no seed

    def _speak_plain(self, text: str, preset: SpeakerPreset, stretch: float, seed: int) -> tuple[Wave, int, float]:
        """Piper's own speech in its own tempo."""
        from piper.config import SynthesisConfig

        path = preset.path or self.path
        if path not in self._models:
            self._models[path] = _load_piper(resolve_path(path), self.vocoder)
        piper, raw = self._models[path]
        number = _speaker_number("voice.speakers", preset, raw)
        settings = SynthesisConfig(speaker_id=number, length_scale=stretch, noise_scale=0.0, noise_w_scale=0.0)
        chunks = [chunk.audio_float_array for chunk in piper.synthesize(text, settings)]
        if not chunks:
            raise ClipFailed("the voice finds nothing to speak", repr(text))
        return np.concatenate(chunks).astype(np.float32), int(piper.config.sample_rate), 1.0


def _speaker_number(key: str, preset: SpeakerPreset, raw: Mapping[str, Any]) -> int | None:
    """The model's number of a preset's speaker, None for a model with one. Raises UserError for one it lacks."""
    count, names = int(raw.get("num_speakers", 1)), raw.get("speaker_id_map") or {}
    wanted = preset.speaker_id
    if wanted is None:
        return None if count <= 1 else int(raw.get("default_speaker_id", 0))
    if isinstance(wanted, str) and not wanted.isdigit():
        if wanted not in names:
            raise one_of(f"{key}.speaker_id", wanted, names or range(count))
        return int(names[wanted]) if count > 1 else None
    if not 0 <= int(wanted) < count:
        raise UserError(f"{key}.speaker_id={wanted} is not valid; the model has {count} speaker(s), 0 to {count - 1}")
    return int(wanted) if count > 1 else None


def _settings(model: Path) -> dict[str, Any]:
    """The .onnx.json beside a model. Raises UserError if one of the two is missing or the JSON is none of Piper's."""
    file = model.with_name(model.name + ".json")
    for path in (model, file):
        if not path.is_file():
            raise UserError(f"voice.path: {path}: no such file")
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file}: not JSON ({error})") from None
    if not isinstance(raw, dict) or not {"audio", "espeak", "phoneme_id_map", "num_symbols"} <= set(raw):
        raise UserError(f"{file}: not the settings of a Piper voice (audio, espeak, phoneme_id_map, num_symbols)")
    return raw


def _load_piper(model: Path, vocoder: str = "float32") -> tuple[Any, dict[str, Any]]:
    """Load a voice on one thread: parallelism is over dialogues, and one thread gives the same samples everywhere."""
    try:
        import onnxruntime
        from piper import PiperVoice
        from piper.config import PiperConfig
    except ImportError as error:
        raise UserError(f"{EXTRA} ({error})") from None
    raw = _settings(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    try:
        if vocoder == "bfloat16":
            session: Any = SplitSession(model, options)
        else:
            session = onnxruntime.InferenceSession(str(model), sess_options=options, providers=["CPUExecutionProvider"])
        return PiperVoice(session=session, config=PiperConfig.from_dict({"num_speakers": 1} | raw)), raw
    except UserError:
        raise
    except Exception as error:  # ONNX Runtime's errors have no common class of their own
        raise UserError(f"{model}: not a Piper voice ({str(error).splitlines()[0]})") from None
