"""Background sounds: which there are, which split hears which part of them, and how they are mixed.

-Audio: one event recording before or under the current user turn. -Music: one track under the whole dialogue, looped,
each turn carrying on where the one before it stopped. The signal-to-noise ratio is that of active levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from omnichat.audio import effects
from omnichat.audio.io import load_audio
from omnichat.schema import SPLITS
from omnichat.synthesis.base import Sound, Wave
from omnichat.utils.assets import resolve_path
from omnichat.utils.errors import UserError
from omnichat.utils.seeding import numpy_rng

# file stem -> what the animal does, in words that a recogniser knows ("bleating" comes back as "bleeding"); a recording
# that is not listed is captioned by its name alone
ANIMAL_ACTIONS = {
    "cat": "crying",
    "cow": "calling",
    "dog": "barking",
    "duck": "quacking",
    "frog": "croaking",
    "horse": "calling",
    "owl": "hooting",
    "pig": "grunting",
    "rooster": "calling",
    "sheep": "calling",
}
_SUFFIXES = {".wav", ".flac", ".mp3", ".ogg", ".opus"}
_SPLIT_RECORDING_SEC = 4.0  # a recording at least this long has one part for training and another for dev and test
_TRAIN_SHARE = 0.6
_CANDIDATES = 6
SPLIT_RULE = (
    "Animals: every split hears the same recordings; where one lasts at least "
    f"{_SPLIT_RECORDING_SEC:g} s, training hears its first {_TRAIN_SHARE:.0%} and dev and test the rest, else other "
    "signal-to-noise ratios and words only. Music: of each mood's acoustic and of its electronic tracks the last one "
    "is test's alone, where there are at least two; dev hears training's tracks."
)


@dataclass(kw_only=True, slots=True)
class SceneConfig:
    """Where the background sounds are and how loud they get.

    Attributes:
        animals: folder of event recordings, one file an event, named after it.
        music: folder with one folder a mood; file names hold "acoustic" or "electronic".
        event_snr_db, music_snr_db: [lowest, highest] ratio of speech to background; drawn anew for every dialogue.
        before_share: share of -Audio dialogues whose event comes before the words and not under them.
        event_sec: longest event before the words. gap_sec: pause between event and words.
        cross_fade_sec: overlap where a looped recording starts again.
    """

    animals: str = "asset:animals"
    music: str = "asset:music"
    event_snr_db: tuple[float, float] = (0.0, 8.0)
    music_snr_db: tuple[float, float] = (3.0, 10.0)
    before_share: float = 0.5
    event_sec: float = 1.6
    gap_sec: float = 0.1
    cross_fade_sec: float = 0.05

    def __post_init__(self) -> None:
        for key in ("event_snr_db", "music_snr_db"):
            low, high = getattr(self, key)
            if low > high:
                raise UserError(f"synthesis.scene.{key} must be [lowest, highest], got [{low}, {high}]")
        if not 0 <= self.before_share <= 1:
            raise UserError(f"synthesis.scene.before_share must be in [0, 1], got {self.before_share}")
        if self.event_sec <= 0 or self.gap_sec < 0 or self.cross_fade_sec < 0:
            raise UserError("synthesis.scene needs event_sec > 0, gap_sec >= 0 and cross_fade_sec >= 0")


class SceneLibrary:
    """The recordings of a SceneConfig, read at `sample_rate` on first use. Picklable."""

    def __init__(self, config: SceneConfig, sample_rate: int) -> None:
        self.config = config
        self.sample_rate = sample_rate
        self._waves: dict[str, Wave] = {}

    def sounds(self, scenario: str, split: str) -> list[Sound]:
        """The sounds that dialogues of a split may have, in a fixed order.

        Raises:
            UserError: the folder is missing or holds no recording.
        """
        return self._animals() if scenario == "audio" else self._music(split)

    def load(self, name: str) -> Wave:
        """The whole recording of a sound: float32 [N]."""
        if name not in self._waves:
            kind, _, relative = name.partition("/")
            folder = resolve_path(self.config.animals if kind == "animals" else self.config.music)
            self._waves[name] = load_audio(folder / relative, self.sample_rate).numpy()
        return self._waves[name]

    def excerpt(self, sound: Sound, split: str, seed: int, seconds: float) -> Wave:
        """The loudest of a few seeded excerpts from the split's part of a recording; shorter where that part is."""
        wave = self.load(sound.name)
        if len(wave) >= _SPLIT_RECORDING_SEC * self.sample_rate:
            cut = round(len(wave) * _TRAIN_SHARE)
            wave = wave[:cut] if split == "train" else wave[cut:]
        length = min(len(wave), round(seconds * self.sample_rate))
        starts = numpy_rng(seed, "excerpt", sound.name).integers(0, len(wave) - length + 1, size=_CANDIDATES)
        return max((wave[start : start + length] for start in starts), key=effects.rms_db)

    def with_event(self, speech_N: Wave, sound: Sound, split: str, seed: int, placement: str, snr_db: float) -> Wave:
        """Mix an event before or under one turn: float32 [N], longer than the speech where the event comes before."""
        rate = self.sample_rate
        if placement == "under":
            event = self.excerpt(sound, split, seed, len(speech_N) / rate)
            bed = effects.loop(event, len(speech_N), 0, self._cross_fade(event))
            return effects.mix_at_snr(speech_N, effects.fade(bed, rate), rate, snr_db)
        event = effects.fade(self.excerpt(sound, split, seed, self.config.event_sec), rate, 0.01, 0.1)
        level_db = effects.active_level_db(speech_N, rate) - snr_db
        event = effects.to_level_db(event, rate, level_db)
        gap = np.zeros(round(self.config.gap_sec * rate), dtype=np.float32)
        return effects.guard_peak(np.concatenate([event, gap, speech_N]))

    def with_music(
        self, turns: Sequence[Wave], sound: Sound, seed: int, speech_level_db: float, snr_db: float
    ) -> list[Wave]:
        """Lay one track under a dialogue's turns, in their order, without a break and at one gain.

        The ratio holds for the common speech level: a sad turn is quieter against the music than an angry one, as it
        would be in a room.
        """
        track = self.load(sound.name)
        fade = self._cross_fade(track)
        offset = int(numpy_rng(seed, "music", sound.name).integers(0, len(track)))
        gain = speech_level_db - snr_db - effects.active_level_db(track, self.sample_rate)
        mixed = []
        for turn in turns:
            bed = effects.gain_db(effects.loop(track, len(turn), offset, fade), gain)
            mixed.append(effects.guard_peak(turn + bed))
            offset += len(turn)
        return mixed

    def __getstate__(self) -> dict[str, object]:
        """Pickle the settings only."""
        return self.__dict__ | {"_waves": {}}

    def _cross_fade(self, wave_N: Wave) -> int:
        return min(round(self.config.cross_fade_sec * self.sample_rate), len(wave_N) // 2)

    def _animals(self) -> list[Sound]:
        found = []
        for file in _recordings(self.config.animals, "synthesis.scene.animals"):
            animal = file.stem.replace("_", " ").lower()
            action = ANIMAL_ACTIONS.get(animal)
            article = "an" if animal[0] in "aeiou" else "a"
            caption = " ".join(filter(None, (article, animal, action)))
            words = {"animal": animal} | ({"action": action} if action else {})
            # an action that several animals share shows nothing
            telling = action is not None and list(ANIMAL_ACTIONS.values()).count(action) == 1
            keywords = tuple(words.values()) if telling else (animal,)
            found.append(Sound(f"animals/{file.name}", caption, keywords, words))
        return found

    def _music(self, split: str) -> list[Sound]:
        groups: dict[tuple[str, str], list[Path]] = {}
        root = resolve_path(self.config.music)
        for file in _recordings(self.config.music, "synthesis.scene.music"):
            kind = "acoustic" if "acoustic" in file.stem else "electronic"
            groups.setdefault((file.parent.name, kind), []).append(file)
        found = []
        for (mood, kind), files in groups.items():
            if len(files) >= 2:
                files = files[-1:] if split == SPLITS[-1] else files[:-1]
            words = {"mood": mood, "kind": kind}
            for file in files:
                name = f"music/{file.relative_to(root).as_posix()}"
                found.append(Sound(name, f"{mood} {kind} music", (mood,), words))
        return found


def _recordings(folder: str, key: str) -> list[Path]:
    root = resolve_path(folder)
    if not root.is_dir():
        raise UserError(f"{key}: {root}: no such folder")
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not files:
        raise UserError(f"{key}: {root}: holds no recording ({', '.join(sorted(_SUFFIXES))})")
    return files
