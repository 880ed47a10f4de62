"""Scenes of dialogues: drawn as a plan, spoken where somebody must say something more, then composed."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from omnichat.audio import effects
from omnichat.data.audit import BadAudio
from omnichat.schema import SPLITS, Style
from omnichat.synthesis.base import Line, Sound, Wave, names_sound
from omnichat.synthesis.scenes.compose import Composed, Stage
from omnichat.synthesis.scenes.config import SceneConfig
from omnichat.synthesis.scenes.plan import ScenePlan, draw_plan, speaker_of
from omnichat.synthesis.sounds.base import SoundSource
from omnichat.synthesis.sounds.recordings import SUFFIXES, Limits, WaveStore, check_place, read_checked
from omnichat.synthesis.splits import hash_split
from omnichat.utils.assets import resolve_path
from omnichat.utils.errors import UserError
from omnichat.utils.files import sha256_bytes
from omnichat.utils.log import get_logger
from omnichat.utils.seeding import derive_seed, numpy_rng

log = get_logger(__name__)

# What is said without being asked carries no style: it would be a second label.
_BACKCHANNEL_STYLE = Style("normal", "normal", "neutral")
_ROOM_LIMITS = Limits(min_sec=0.001, max_sec=30.0, memory_mb=16.0)
_CANDIDATES = 6  # excerpts of a recording, of which the loudest is heard
_SAFE_NAME = re.compile(r"[^\w./-]")


class SceneMaker:
    """Plans and composes scenes. Picklable; recordings are read on first use, in each process.

    Args:
        config: shares and ranges.
        events: source of -Audio's sounds; None where no such dialogue is made.
        music: source of -Music's sounds; None where no such dialogue is made.
        sample_rate: of all clips, Hz.
    """

    def __init__(
        self, config: SceneConfig, events: SoundSource | None, music: SoundSource | None, sample_rate: int
    ) -> None:
        if events is not None and music is not None and events.name == music.name:
            raise UserError(f"events and music are both called {events.name!r}: give one of them another name")
        self.config = config
        self.sources = {"audio": events, "music": music}
        self.sample_rate = sample_rate
        self._room_waves = WaveStore(_ROOM_LIMITS.memory_mb)
        self._rooms = _rooms_of(config.room.recordings) if config.room.share > 0 else {}

    def deck(self, scenario: str, split: str, seed: int) -> Iterator[Sound] | None:
        """Sounds for the dialogues of a scenario and split, without end and balanced; None where it has no sound."""
        if scenario not in self.sources:
            return None
        return self._source(scenario).deck(split, seed, self.sample_rate)

    def matching(self, wanted: Sound, scenario: str, split: str, rng: random.Random) -> Sound | None:
        """A recording whose keywords occur in what a given script calls the sound; None where there is none."""
        said = " ".join((wanted.caption, *wanted.keywords)).lower()
        fitting = [sound for sound in self._source(scenario).sounds(split) if names_sound(said, sound.keywords)]
        return rng.choice(fitting) if fitting else None

    def plan(self, scenario: str, split: str, history_turns: int, sound: Sound | None, seed: int) -> ScenePlan:
        """Draw the scene of one dialogue: a function of its arguments, of the config and of the folder of rooms."""
        rooms = self._rooms.get(split, [])
        while True:
            plan = draw_plan(self.config, scenario, history_turns, sound, rooms, seed)
            if plan.room is None or plan.room.recording is None:
                return plan
            try:
                self._recorded_room(plan.room.recording)
                return plan
            except BadAudio as error:  # another room in its place, for this dialogue and all that follow
                log.warning("left out: %s", error)
                rooms.remove(plan.room.recording)
                if not rooms:
                    raise UserError(
                        f"scene.room.recordings: no room of the split {split} can be used ({error})"
                    ) from None

    def lines(self, plan: ScenePlan) -> dict[str, Line]:
        """What must be spoken besides the script, by key."""
        return {said.key: Line(said.speaker, said.text, _BACKCHANNEL_STYLE) for said in plan.backchannels}

    def compose(
        self,
        clips: Mapping[str, Wave],
        plan: ScenePlan,
        variants: int,
        split: str,
        seed: int,
        keep_layers: bool = False,
    ) -> Composed:
        """Put a dialogue and its variants into their scene: the same arguments give the same samples.

        Args:
            clips: clean speech by key: "h0", .., "u0", "r0", .., and what `lines` asked for.
            plan: from `plan`. variants: number of "u" and "r" clips.
            split: what part of a recording may be heard. seed: excerpts and simulated rooms derive from it.
            keep_layers: also return the parts of each clip.

        Raises:
            UserError: a clip that is silent.
        """
        history_turns = sum(key.startswith("h") for key in clips)
        voices = {
            key: self._through(clip, plan, speaker_of_clip(key, plan), split, seed) for key, clip in clips.items()
        }
        dry = {key: len(clip) for key, clip in clips.items()}
        stage = Stage(voices, dry, plan, variants, history_turns, self.sample_rate)
        if plan.sound is not None and plan.placement != "loop":
            for key in stage.event_keys():
                self._put_event(stage, key, plan, split, seed)
        stage.set_times()
        stage.let_a_interrupt()
        stage.put_backchannels()
        if plan.sound is not None and plan.placement == "loop":
            track = self._line(self._source_of(plan.sound).heard(plan.sound.name, split, self.sample_rate), plan)
            offset = int(numpy_rng(seed, "music", plan.sound.name).integers(0, len(track)))
            stage.put_loop(track, offset, self._cross_fade(track))
        return stage.finish(self.config.loudness_lufs, keep_layers)

    def recording(self, sound: Sound) -> Wave:
        """The whole recording of a sound, as it lies beside the corpus: float32 [N] in [-1, 1]."""
        return self._source_of(sound).load(sound.name, self.sample_rate).clip(-1.0, 1.0)

    @staticmethod
    def scene_file(sound: Sound) -> str:
        """Where a corpus keeps the recording of a sound, relative to its folder; a name that is safe in any folder."""
        stem = sound.name
        for suffix in SUFFIXES:
            stem = stem[: -len(suffix)] if stem.lower().endswith(suffix) else stem
        safe = _SAFE_NAME.sub("_", stem).replace("..", "_")
        mark = "" if safe == stem else f"-{sha256_bytes(sound.name.encode('utf-8', 'surrogatepass'))[:8]}"
        return f"audio/scenes/{safe}{mark}.flac"

    def describe(self, scenarios: Iterator[str] | set[str]) -> dict[str, dict[str, Any]]:
        """Facts of the sources that dialogues of these scenarios hear, by scenario; all that decides what they hear."""
        found = {name: self._source(name).describe() for name in sorted(set(scenarios) & set(self.sources))}
        if self._rooms:
            found["rooms"] = {
                "name": str(self.config.room.recordings),
                "licence": "the user's own",
                "split_rule": "Rooms: each recorded impulse response is of one split, where there are at least three.",
                "recordings": {split: len(names) for split, names in self._rooms.items()},
                "sha256": sha256_bytes(repr(self._rooms).encode("utf-8", "surrogatepass")),
            }
        return found

    def _put_event(self, stage: Stage, key: str, plan: ScenePlan, split: str, seed: int) -> None:
        assert plan.sound is not None
        rate = self.sample_rate
        if plan.placement == "under":
            length = stage.length(key)
            event = self._line(self._excerpt(plan.sound, split, seed, length / rate), plan)
            stage.put_event_under(key, effects.fade(effects.loop(event, length, 0, self._cross_fade(event)), rate))
        else:
            event = self._line(self._excerpt(plan.sound, split, seed, self.config.event_sec), plan)
            stage.put_event_before(key, effects.fade(event, rate, 0.01, 0.1), self.config.gap_sec)

    def _excerpt(self, sound: Sound, split: str, seed: int, seconds: float) -> Wave:
        """The loudest of a few seeded excerpts from the split's part of a recording; shorter where that part is."""
        wave_N = self._source_of(sound).heard(sound.name, split, self.sample_rate)
        length = min(len(wave_N), round(seconds * self.sample_rate))
        starts = numpy_rng(seed, "excerpt", sound.name).integers(0, len(wave_N) - length + 1, size=_CANDIDATES)
        loudest = max((wave_N[start : start + length] for start in starts), key=effects.rms_db)
        if effects.rms_db(loudest) <= effects.SILENCE_DB:  # long pauses: take the recording's loudest place
            start = max(0, min(int(np.abs(wave_N).argmax()) - length // 2, len(wave_N) - length))
            loudest = wave_N[start : start + length]
        return loudest

    def _through(self, clip_N: Wave, plan: ScenePlan, speaker: str, split: str, seed: int) -> Wave:
        """A voice as the microphone hears it: in the room, over the line. Each speaker stands elsewhere in the room."""
        wave_N = clip_N.astype(np.float32, copy=False)
        if plan.room is not None:
            if plan.room.recording is not None:
                response = self._recorded_room(plan.room.recording)
            else:
                assert plan.room.rt60_sec is not None and plan.room.direct_db is not None
                rng = numpy_rng(derive_seed(seed, "room"), speaker)
                response = effects.simulated_room(rng, self.sample_rate, plan.room.rt60_sec, plan.room.direct_db)
            wave_N = effects.in_room(wave_N, response)
        return self._line(wave_N, plan)

    def _line(self, wave_N: Wave, plan: ScenePlan) -> Wave:
        return effects.band_limit(wave_N, self.sample_rate) if plan.telephone else wave_N

    def _recorded_room(self, name: str) -> Wave:
        assert self.config.room.recordings is not None
        path = resolve_path(self.config.room.recordings) / name

        def read() -> Wave:
            check_place(path, resolve_path(str(self.config.room.recordings)), f"scene.room.recordings: {path}")
            found = read_checked(path, f"scene.room.recordings: {path}", self.sample_rate, _ROOM_LIMITS)
            return effects.recorded_room(found, self.sample_rate)

        return self._room_waves.get(name, self.sample_rate, read)

    def _source(self, scenario: str) -> SoundSource:
        source = self.sources[scenario]
        if source is None:
            raise UserError(
                f"dialogues.{scenario} needs sounds: choose {'events' if scenario == 'audio' else 'music'}=..."
            )
        return source

    def _source_of(self, sound: Sound) -> SoundSource:
        """The source that a sound's name names. Two sources of one name would be one in a corpus folder, too."""
        for source in self.sources.values():
            if source is not None and sound.name.startswith(f"{source.name}/"):
                return source
        raise UserError(f"no source of sounds has {sound.name!r}")

    def _cross_fade(self, wave_N: Wave) -> int:
        return min(round(self.config.cross_fade_sec * self.sample_rate), len(wave_N) // 2)


def speaker_of_clip(key: str, plan: ScenePlan) -> str:
    """Who speaks a clip, a backchannel's too."""
    return next((said.speaker for said in plan.backchannels if said.key == key), None) or speaker_of(key)


def _rooms_of(folder: str | None) -> dict[str, list[str]]:
    """Split -> the recorded rooms of a folder that it hears. Raises UserError where there is none."""
    if folder is None:
        return {}
    root = resolve_path(folder)
    if not root.is_dir():
        raise UserError(f"scene.room.recordings: {root}: no such folder")
    names = sorted(path.relative_to(root).as_posix() for path in _files_below(root))
    if not names:
        raise UserError(f"scene.room.recordings: {root}: holds no recording ({', '.join(SUFFIXES)})")
    if len(names) < len(SPLITS):
        return {split: list(names) for split in SPLITS}
    splits = hash_split(names)
    return {split: [name for name in names if splits[name] == split] for split in SPLITS}


def _files_below(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES]
