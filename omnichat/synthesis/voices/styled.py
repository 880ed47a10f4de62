"""What voices share whose model speaks plainly: presets of speakers, and the style that is laid over plain speech.

A model gives words; `StyledVoice` gives them a speaker and a style with the signatures of `prosody`: pitch height and
speed by the labels, emotion by movement, timbre and modulation.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from typing import Any

import numpy as np

from omnichat.audio import effects
from omnichat.schema import EMOTIONS, PITCHES, SPEEDS, Style
from omnichat.synthesis.base import ClipFailed, Utterance, Voice, Wave
from omnichat.synthesis.voices.prosody import Analysis, Prosody, analyse, colour, promised_range_st, resynthesise
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.seeding import numpy_rng

EXTRA = "speech synthesis needs the extra 'synthesis': pip install omnichat[synthesis]"
_CACHE_MB = 64.0  # of plain speech: variants share their words, and dialogues of a topic some of their sentences
_ANALYSED = 32  # newest sentences whose analysis is kept, which takes five times the memory of the wave
SPEED_BY = ("praat", "model")
_SHORTEST_SEC = 0.1  # what a sentence cannot be spoken in


@dataclass(frozen=True, kw_only=True, slots=True)
class SpeakerPreset:
    """One speaker of a voice.

    Attributes:
        formant_ratio: factor on formant frequencies; 1 = as the model speaks.
        median_hz: median pitch of style "normal"; None = that of each plain clip.
        gender: as it is heard.
        speaker_id: number, or name, of a speaker of a multi-speaker model; None = the model's only or first one.
        path: a model of this speaker's own; None = the voice's.
        embedding: .npy or .safetensors file with a speaker vector, for models that take one.
        tracker_hz: lowest and highest pitch to look for in plain speech; None = found from each clip.
    """

    formant_ratio: float = 1.0
    median_hz: float | None = None
    gender: str | None = None
    speaker_id: int | str | None = None
    path: str | None = None
    embedding: str | None = None
    tracker_hz: Sequence[float] | None = None

    def __post_init__(self) -> None:
        if not 0.6 <= self.formant_ratio <= 1.6 or not (self.median_hz is None or 50 <= self.median_hz <= 400):
            raise UserError("voice speakers: formant_ratio must be in [0.6, 1.6] and median_hz in [50, 400] or null")
        if self.tracker_hz is not None and not (len(self.tracker_hz) == 2 and self.tracker_hz[0] >= 30):
            raise UserError(f"voice speakers: tracker_hz must be [lowest, highest] from 30 Hz, got {self.tracker_hz}")
        if self.tracker_hz is not None and not self.tracker_hz[0] * 1.5 <= self.tracker_hz[1] <= 1000:
            raise UserError(
                f"voice speakers: tracker_hz must span 1.5 times or more, to 1000 Hz, got {self.tracker_hz}"
            )


@dataclass(slots=True)
class _Plain:
    """Plain speech at `rate_hz`, what is left of its stretch, and its analysis for each speaker so far."""

    wave_N: Wave
    rate_hz: int
    left: float
    analyses: dict[str, Analysis] = field(default_factory=dict)


class StyledVoice(Voice):
    """A model's plain speech with speaker presets and style.

    Args:
        path: the model. licence: of the voice, for the data card.
        sample_rate: of the clips, in Hz.
        speech_level_db: common active level of speech in dB re full scale; an emotion's `level_db` is added.
        jitter_st, jitter_speed: standard deviation of the seeded variation of median pitch (semitones) and
            duration (share).
        speakers: name -> SpeakerPreset.
        pitch_st: semitones for low, normal, high. stretch: duration factor for slow, normal, fast.
        speed_by: "praat" = the plain clip is stretched by overlap-add, exactly; "model" = the model is asked for
            another rate, where it has one: it sounds more natural, but VITS models round the length of every sound up
            and so speak with about half of the contrast that is asked.
        emotions: emotion -> Prosody, one for each of the seven.
    """

    def __init__(
        self,
        *,
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
    ) -> None:
        need_modules("parselmouth")  # told here, before a worker process begins
        for key, got, wanted in (("pitch_st", pitch_st, PITCHES), ("stretch", stretch, SPEEDS)):
            same_names(f"voice.{key}", got, wanted)
        same_names("voice.emotions", emotions, EMOTIONS)
        if speed_by not in SPEED_BY:
            raise one_of("voice.speed_by", speed_by, SPEED_BY)
        if not speakers:
            raise UserError("voice.speakers is empty; name at least one speaker")
        if not 8000 <= sample_rate <= 48000:
            raise UserError(f"voice.sample_rate must be in [8000, 48000] Hz, got {sample_rate}")
        self.path = path
        self.licence = licence
        self._rate = sample_rate
        self.speech_level_db = speech_level_db
        self.jitter_st = jitter_st
        self.jitter_speed = jitter_speed
        self.presets = dict(speakers)
        self.pitch_st = dict(pitch_st)
        self.stretch = dict(stretch)
        self.speed_by = speed_by
        self.emotions = dict(emotions)
        self._models: dict[str, Any] = {}
        self._cache: OrderedDict[tuple[Any, ...], _Plain] = OrderedDict()

    @property
    def speakers(self) -> dict[str, str | None]:
        """Names of the presets and their gender."""
        return {name: preset.gender for name, preset in self.presets.items()}

    @property
    def sample_rate(self) -> int:
        """Rate in Hz of every clip."""
        return self._rate

    def speak(self, text: str, speaker: str, style: Style, seed: int) -> tuple[Wave, int]:
        """See `Voice.speak`. Raises UserError for an unknown speaker or a missing model, ClipFailed for a clip that the
        model did not speak."""
        return self._say(Utterance(text, speaker, style, seed)), self._rate

    def speak_batch(self, lines: Sequence[Utterance]) -> list[Wave]:
        """See `Voice.speak_batch`; a line's `stretch` is obeyed exactly."""
        return [self._say(line) for line in lines]

    def _say(self, line: Utterance) -> Wave:
        """One line, with speaker and style."""
        text, speaker, style, seed = line.text, line.speaker, line.style, line.seed
        if speaker not in self.presets:
            raise one_of("voice speaker", speaker, self.presets)
        preset = self.presets[speaker]
        rng = numpy_rng(seed, "voice", text, speaker)
        prosody = self.emotions[style.emotion or "neutral"]
        shift_st = self.pitch_st[style.pitch or "normal"] + self.jitter_st * _jitter(rng)
        stretch = self.stretch[style.speed or "normal"]
        plain = self._plain(text, speaker, stretch if self.speed_by == "model" else 1.0, seed)
        left = stretch if self.speed_by == "praat" else plain.left
        if speaker not in plain.analyses:
            plain.analyses[speaker] = analyse(plain.wave_N, plain.rate_hz, preset.formant_ratio, preset.tracker_hz)
        wave = resynthesise(
            plain.analyses[speaker],
            self._rate,
            median_hz=preset.median_hz,
            shift_st=shift_st,
            stretch=left * line.stretch * (1.0 + self.jitter_speed * _jitter(rng)),
            prosody=prosody,
            seed=int(rng.integers(2**31)),
        )
        wave = colour(wave, self._rate, prosody, rng)
        wave = effects.to_level_db(wave, self._rate, self.speech_level_db + prosody.level_db)
        return effects.fade(effects.guard_peak(wave), self._rate)

    def promises(self) -> dict[str, dict[str, float]]:
        """Pitch range in semitones and level in dB of each emotion, relative to one another; see `Voice.promises`."""
        return {
            "range_st": {name: round(promised_range_st(prosody), 3) for name, prosody in self.emotions.items()},
            "level_db": {name: prosody.level_db for name, prosody in self.emotions.items()},
        }

    def describe(self) -> dict[str, Any]:
        """Settings and licence; the whole table of signatures, for it defines what the labels sound like."""
        return {
            "name": "speech + Praat",
            "model": self.path,
            "licence": self.licence,
            "sample_rate": self._rate,
            "speech_level_db": self.speech_level_db,
            "jitter_st": self.jitter_st,
            "jitter_speed": self.jitter_speed,
            "speakers": {name: _set_fields(preset) for name, preset in self.presets.items()},
            "pitch_st": self.pitch_st,
            "stretch": self.stretch,
            "speed_by": self.speed_by,
            "emotions": {name: asdict(p) | {"peaks": [list(x) for x in p.peaks]} for name, p in self.emotions.items()},
        }

    def __getstate__(self) -> dict[str, Any]:
        """Pickle the settings only; a worker process loads the models itself."""
        return self.__dict__ | {"_models": {}, "_cache": OrderedDict()}

    @abstractmethod
    def _speak_plain(self, text: str, preset: SpeakerPreset, stretch: float, seed: int) -> tuple[Wave, int, float]:
        """The model's own speech: (float32 [N], its rate in Hz, what is left of `stretch` for overlap-add)."""

    def _plain_key(self, preset: SpeakerPreset, seed: int) -> tuple[Any, ...]:
        """What the plain speech of a text depends on besides the text and the stretch."""
        return (preset.path, preset.speaker_id, preset.embedding, seed)

    def _plain(self, text: str, speaker: str, stretch: float, seed: int) -> _Plain:
        """Plain speech, checked, and kept for the other variants of the same words."""
        preset = self.presets[speaker]
        key = (text, stretch, *self._plain_key(preset, seed))
        if key not in self._cache:
            wave, rate, left = self._speak_plain(text, preset, stretch, seed)
            self._cache[key] = _Plain(check_spoken(wave, rate, text), rate, left)
            while len(self._cache) > 1 and sum(kept.wave_N.nbytes for kept in self._cache.values()) > _CACHE_MB * 1e6:
                self._cache.popitem(last=False)
            for kept in list(self._cache.values())[:-_ANALYSED]:
                kept.analyses.clear()
        self._cache.move_to_end(key)
        return self._cache[key]


def check_spoken(wave_N: Wave, sample_rate: int, text: str, max_seconds: float = 120.0) -> Wave:
    """Return a model's clip as float32 if it can be speech: finite, neither too short nor too long, not silent.

    Raises:
        ClipFailed: it cannot.
    """
    wave = np.asarray(wave_N, dtype=np.float32)
    if wave.ndim != 1:
        raise ClipFailed("the voice gave no mono clip", f"shape {wave.shape} for {text!r}")
    if not np.isfinite(wave).all():
        raise ClipFailed("the voice gave samples that are not finite", repr(text))
    seconds = len(wave) / sample_rate
    if seconds < _SHORTEST_SEC or seconds > max_seconds:
        raise ClipFailed("the voice gave a clip of no possible length", f"{seconds:.2f} s for {text!r}")
    if effects.rms_db(wave) <= -100.0:
        raise ClipFailed("the voice gave silence", repr(text))
    return wave


def need_modules(*modules: str) -> None:
    """Raise UserError that names the extra if one of `modules` is not installed."""
    for module in modules:
        if find_spec(module) is None:
            raise UserError(f"{EXTRA} (no module {module})")


def same_names(key: str, got: Mapping[str, Any], wanted: Sequence[str]) -> None:
    """Raise UserError unless the mapping has exactly the names wanted."""
    for name in got:
        if name not in wanted:
            raise one_of(f"{key} entry", name, wanted)
    if missing := [name for name in wanted if name not in got]:
        raise UserError(f"{key} lacks {missing[0]!r}")


def _set_fields(preset: SpeakerPreset) -> dict[str, Any]:
    """What a preset says, without what it leaves open."""
    fields = {key: list(value) if key == "tracker_hz" and value else value for key, value in asdict(preset).items()}
    return {key: value for key, value in fields.items() if value is not None}


def _jitter(rng: np.random.Generator) -> float:
    return float(np.clip(rng.standard_normal(), -2, 2))
