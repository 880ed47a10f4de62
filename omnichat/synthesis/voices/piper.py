"""Piper speaks the words, Praat and NumPy give them a speaker and a style.

One Piper voice (Hansen & Larsen's Piper, a VITS model) becomes several speakers by shifting formants and pitch. Piper
runs without its sampling noise: ONNX Runtime's random operators cannot be seeded for each call, and a corpus must come
out the same on every run. Natural variation comes instead from small seeded jitters of pitch and speed.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch

from omnichat.audio import effects
from omnichat.audio.io import resample
from omnichat.schema import EMOTIONS, PITCHES, SPEEDS, Style
from omnichat.synthesis.base import Voice, Wave
from omnichat.synthesis.voices.prosody import Prosody, colour, resynthesise
from omnichat.utils.assets import resolve_path
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.seeding import numpy_rng

_EXTRA = "speech synthesis needs the extra 'synthesis': pip install omnichat[synthesis]"
_CACHE_CLIPS = 64  # one dialogue's sentences: its variants share them


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeakerPreset:
    """One speaker: factor on formant frequencies (1 = as recorded), median pitch in Hz, gender as it is heard."""

    formant_ratio: float
    median_hz: float
    gender: str | None = None

    def __post_init__(self) -> None:
        if not 0.6 <= self.formant_ratio <= 1.6 or not 50 <= self.median_hz <= 400:
            raise UserError("voice speakers: formant_ratio must be in [0.6, 1.6] and median_hz in [50, 400]")


class PiperPraatVoice(Voice):
    """Piper voice with speaker presets and style.

    Args:
        path: the .onnx model; its .onnx.json lies beside it.
        licence: of the voice, for the data card.
        sample_rate: of the clips, in Hz.
        speech_level_db: common active level of speech in dB re full scale; an emotion's `level_db` is added.
        jitter_st, jitter_speed: standard deviation of the seeded variation of median pitch (semitones) and
            duration (share).
        speakers: name -> SpeakerPreset.
        pitch_st: semitones for low, normal, high. stretch: duration factor for slow, normal, fast.
        emotions: emotion -> Prosody, one for each of the seven.
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
        emotions: Mapping[str, Prosody],
    ) -> None:
        for module in ("piper", "parselmouth"):  # told here, before a worker process begins
            if find_spec(module) is None:
                raise UserError(f"{_EXTRA} (no module {module})")
        for key, got, wanted in (("pitch_st", pitch_st, PITCHES), ("stretch", stretch, SPEEDS)):
            _same_names(f"voice.{key}", got, wanted)
        _same_names("voice.emotions", emotions, EMOTIONS)
        if not speakers:
            raise UserError("voice.speakers is empty; name at least one speaker")
        self.path = path
        self.licence = licence
        self._rate = sample_rate
        self.speech_level_db = speech_level_db
        self.jitter_st = jitter_st
        self.jitter_speed = jitter_speed
        self.presets = dict(speakers)
        self.pitch_st = dict(pitch_st)
        self.stretch = dict(stretch)
        self.emotions = dict(emotions)
        self._piper: Any = None
        self._cache: OrderedDict[tuple[str, float], Wave] = OrderedDict()

    @property
    def speakers(self) -> dict[str, str | None]:
        """Names of the presets and their gender."""
        return {name: preset.gender for name, preset in self.presets.items()}

    @property
    def sample_rate(self) -> int:
        """Rate in Hz of every clip."""
        return self._rate

    def speak(self, text: str, speaker: str, style: Style, seed: int) -> tuple[Wave, int]:
        """See `Voice.speak`. Raises UserError for an unknown speaker, a missing model or text without sounds."""
        if speaker not in self.presets:
            raise one_of("voice speaker", speaker, self.presets)
        preset = self.presets[speaker]
        rng = numpy_rng(seed, "voice", text, speaker)
        prosody = self.emotions[style.emotion or "neutral"]
        median_st = self.pitch_st[style.pitch or "normal"] + self.jitter_st * float(
            np.clip(rng.standard_normal(), -2, 2)
        )
        stretch = self.stretch[style.speed or "normal"]
        wave = resynthesise(
            self._plain(text, stretch),
            self._rate,
            formant_ratio=preset.formant_ratio,
            median_hz=preset.median_hz * 2 ** (median_st / 12),
            stretch=1.0 + self.jitter_speed * float(np.clip(rng.standard_normal(), -2, 2)),
            prosody=prosody,
            seed=int(rng.integers(2**31)),
        )
        wave = colour(wave, self._rate, prosody, rng)
        wave = effects.to_level_db(wave, self._rate, self.speech_level_db + prosody.level_db)
        return effects.fade(effects.guard_peak(wave), self._rate), self._rate

    def describe(self) -> dict[str, Any]:
        """Settings and licence; the whole table of signatures, for it defines what the labels sound like."""
        return {
            "name": "Piper + Praat",
            "model": self.path,
            "licence": self.licence,
            "sample_rate": self._rate,
            "speech_level_db": self.speech_level_db,
            "jitter_st": self.jitter_st,
            "jitter_speed": self.jitter_speed,
            "speakers": {name: asdict(preset) for name, preset in self.presets.items()},
            "pitch_st": self.pitch_st,
            "stretch": self.stretch,
            "emotions": {name: asdict(p) | {"peaks": [list(x) for x in p.peaks]} for name, p in self.emotions.items()},
        }

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the settings only; a worker process loads the model itself."""
        return self.__dict__ | {"_piper": None, "_cache": OrderedDict()}

    def _plain(self, text: str, length_scale: float) -> Wave:
        """Piper's own speech, float32 [N] at this voice's rate, kept for the other variants of the same words."""
        key = (text, length_scale)
        if key not in self._cache:
            if self._piper is None:
                self._piper = _load_piper(self.path)
            from piper.config import SynthesisConfig

            settings = SynthesisConfig(length_scale=length_scale, noise_scale=0.0, noise_w_scale=0.0)
            chunks = [chunk.audio_float_array for chunk in self._piper.synthesize(text, settings)]
            if not chunks:
                raise UserError(f"the voice finds nothing to speak in {text!r}")
            wave = torch.from_numpy(np.concatenate(chunks).astype(np.float32))
            self._cache[key] = resample(wave, self._piper.config.sample_rate, self._rate).numpy()
            if len(self._cache) > _CACHE_CLIPS:
                self._cache.popitem(last=False)
        return self._cache[key]


def _load_piper(path: str) -> Any:
    """Load a voice on one thread: parallelism is over dialogues, and one thread gives the same samples everywhere."""
    try:
        import onnxruntime
        from piper import PiperVoice
        from piper.config import PiperConfig
    except ImportError as error:
        raise UserError(f"{_EXTRA} ({error})") from None
    model = resolve_path(path)
    settings = model.with_name(model.name + ".json")
    for file in (model, settings):
        if not file.is_file():
            raise UserError(f"voice.path: {file}: no such file")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), sess_options=options, providers=["CPUExecutionProvider"])
    return PiperVoice(session=session, config=PiperConfig.from_dict(json.loads(settings.read_text(encoding="utf-8"))))


def _same_names(key: str, got: Mapping[str, Any], wanted: tuple[str, ...]) -> None:
    for name in got:
        if name not in wanted:
            raise one_of(f"{key} entry", name, wanted)
    if missing := [name for name in wanted if name not in got]:
        raise UserError(f"{key} lacks {missing[0]!r}")
