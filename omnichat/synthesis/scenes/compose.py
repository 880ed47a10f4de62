"""From clean clips to what one microphone hears, layer by layer: voices, the other speaker, background, then one gain.

One microphone stands for the model's ear. A user's clip is all that it hears while A speaks: A, the end of B's turn
that A interrupts, B's backchannels, the background. The start of a reply that begins before A has ended is never in A's
clip, for it would give the answer away; its time alone says so. B's clips hold B, A's backchannels and the background.

Lengths and positions are counted in samples; a turn's own speech begins `lead` samples into its clip (behind an event
that comes before it) and lasts `dry` samples; a room's end may follow.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from omnichat.audio import effects
from omnichat.schema import Backchannel
from omnichat.synthesis.base import Wave
from omnichat.synthesis.scenes.plan import REPLY, USER, PlannedBackchannel, ScenePlan, speaker_of
from omnichat.utils.errors import UserError

# Of the free part of a turn, a backchannel must leave this share: one that fills a turn is a turn.
_LARGEST_BACKCHANNEL = 0.8


@dataclass(frozen=True, slots=True)
class Layers:
    """The parts of one clip, at the level of the clip: float32 [N] each; their sum is the clip.

    `speech` is the turn's own speaker, `other` the other speaker, `background` the sound.
    """

    speech: Wave
    other: Wave
    background: Wave

    @property
    def heard(self) -> Wave:
        """The sum."""
        return self.speech + self.other + self.background


@dataclass(frozen=True, slots=True)
class Composed:
    """A dialogue as it is heard.

    Attributes:
        waves: clips by key ("h0", "u0", "r0", ..), mono float32, no sample above 0.98.
        start_seconds: when each clip begins, by key; empty where the plan has no times. The times of a variant are
            those of the dialogue that it ends.
        backchannels: those that lie under a turn, by the turn's key.
        layers: the parts of each clip, where they were asked for.
    """

    waves: dict[str, Wave]
    start_seconds: dict[str, float] = field(default_factory=dict)
    backchannels: dict[str, tuple[Backchannel, ...]] = field(default_factory=dict)
    layers: dict[str, Layers] = field(default_factory=dict)


class Stage:
    """One dialogue being composed.

    Args:
        voices: clips by key as the microphone hears each voice (room, line), backchannels ("k0") among them.
        dry: length of each voice's own speech in samples, without the room's end.
        plan: see `ScenePlan`. variants: number of current turns. history_turns: number of turns before them.
    """

    def __init__(
        self,
        voices: Mapping[str, Wave],
        dry: Mapping[str, int],
        plan: ScenePlan,
        variants: int,
        history_turns: int,
        sample_rate: int,
    ) -> None:
        self.plan = plan
        self.rate = sample_rate
        self.dry = dry
        self.voices = voices
        history = [f"h{index}" for index in range(history_turns)]
        self.orders = [[*history, f"{USER}{index}", f"{REPLY}{index}"] for index in range(variants)]
        self.keys = list(dict.fromkeys(key for order in self.orders for key in order))
        for key in self.keys:
            if effects.active_level_db(voices[key], sample_rate) <= effects.SILENCE_DB:
                raise UserError(f"the clip {key} is silent: it cannot be put into a scene")
        self.lead = dict.fromkeys(self.keys, 0)
        self.background: dict[str, Wave] = {}
        self.other: dict[str, Wave] = {}
        self.start: dict[str, int] = {}
        self.said: dict[str, list[Backchannel]] = {}

    def event_keys(self) -> list[str]:
        """The clips that an event belongs to."""
        return [key for key in self.keys if key == self.plan.at or (self.plan.at == USER and key.startswith(USER))]

    def length(self, key: str) -> int:
        """Samples of a clip."""
        return self.lead[key] + len(self.voices[key])

    def put_event_before(self, key: str, event: Wave, gap_sec: float) -> None:
        """Let a clip begin with an event and a pause."""
        assert self.plan.snr_db is not None
        level_db = effects.active_level_db(self.voices[key], self.rate) - self.plan.snr_db
        self.lead[key] = len(event) + round(gap_sec * self.rate)
        self.background[key] = self._at(effects.to_level_db(event, self.rate, level_db), 0, self.length(key))

    def put_event_under(self, key: str, bed: Wave) -> None:
        """Lay an event of the clip's length under it."""
        assert self.plan.snr_db is not None
        self.background[key] = effects.background_at_snr(self.voices[key], bed, self.rate, self.plan.snr_db)

    def set_times(self) -> None:
        """Place the turns in time, where the plan has times: an overlap takes at most half of either turn."""
        if not self.plan.gaps_sec:
            return
        for order in self.orders:
            at = 0
            for number, key in enumerate(order):
                if number > 0:
                    before = order[number - 1]
                    at = self.start[before] + self.lead[before] + self.dry[before] - self.overlap(before, key)
                    at += round(max(0.0, self.plan.gaps_sec[number - 1]) * self.rate)
                self.start[key] = at

    def overlap(self, before: str, key: str) -> int:
        """Samples by which a turn begins before the one before it has ended."""
        if not self.plan.gaps_sec:
            return 0
        number = next(order.index(before) for order in self.orders if before in order)
        planned = round(max(0.0, -self.plan.gaps_sec[number]) * self.rate)
        return min(planned, self.dry[before] // 2, self.dry[key] // 2)

    def let_a_interrupt(self) -> None:
        """Mix the end of B's turn, with the room's end, into the A turn that begins before it is over."""
        for order in self.orders:
            for before, key in itertools.pairwise(order):
                overlap = self.overlap(before, key)
                if overlap and speaker_of(key) == "A":
                    end = self.voices[before][self.dry[before] - overlap :]
                    self.other[key] = self._at(end, 0, self.length(key))

    def put_backchannels(self) -> None:
        """Lay each backchannel under its turn, where neither speaker's other turn is heard; where none fits, none is
        said."""
        for said in self.plan.backchannels:
            for key in self.keys:
                if key == said.under or (said.under == USER and key.startswith(USER)):
                    self._put_backchannel(said, key)

    def _put_backchannel(self, said: PlannedBackchannel, key: str) -> None:
        around = [(order, order.index(key)) for order in self.orders if key in order]  # every variant has the history
        taken = max(self.overlap(order[at - 1], key) if at > 0 else 0 for order, at in around)
        left = max(self.overlap(key, order[at + 1]) for order, at in around)
        free = self.dry[key] - taken - left
        length = self.dry[said.key]
        if length > _LARGEST_BACKCHANNEL * free:
            return
        start = self.lead[key] + taken + round(said.at * (free - length))
        level_db = effects.active_level_db(self.voices[key], self.rate) + said.level_db
        wave = effects.to_level_db(self.voices[said.key], self.rate, level_db)
        total = self.length(key)
        self.other[key] = self.other.get(key, np.zeros(total, np.float32)) + self._at(wave, start, total)
        seconds = round(length / self.rate, 4)
        one = Backchannel(said.speaker, said.text, round(start / self.rate, 4), seconds)
        self.said.setdefault(key, []).append(one)

    def put_loop(self, track: Wave, offset: int, cross_fade: int) -> None:
        """Lay one track under everything, at one gain, each clip where the dialogue has arrived."""
        assert self.plan.snr_db is not None
        speech_db = effects.pooled_level_db([self.voices[key] for key in self.keys], self.rate)
        gain = speech_db - self.plan.snr_db - effects.active_level_db(track, self.rate)
        for order in self.orders:
            at = 0
            for key in order:
                where = self.start[key] if self.plan.gaps_sec else at
                bed = effects.loop(track, self.length(key), offset + where, cross_fade)
                self.background[key] = effects.gain_db(bed, gain)
                at += self.length(key)

    def finish(self, loudness_lufs: float | None, keep_layers: bool) -> Composed:
        """Sum the layers and bring all clips to their level with one factor, at which none clips."""
        layers = {}
        for key in self.keys:
            nothing = np.zeros(self.length(key), np.float32)
            speech = self._at(self.voices[key], self.lead[key], self.length(key))
            layers[key] = Layers(speech, self.other.get(key, nothing), self.background.get(key, nothing))
        waves = {key: layer.heard for key, layer in layers.items()}
        factor = _factor(list(waves.values()), self.rate, loudness_lufs, self.plan.gain_db)
        scaled = {key: (wave_N * np.float32(factor)).astype(np.float32) for key, wave_N in waves.items()}
        kept = {}
        if keep_layers:
            kept = {
                key: Layers(*(part * np.float32(factor) for part in (layer.speech, layer.other, layer.background)))
                for key, layer in layers.items()
            }
        times = {key: round(self.start[key] / self.rate, 4) for key in self.keys} if self.plan.gaps_sec else {}
        backchannels = {key: tuple(sorted(said, key=lambda one: one.start_seconds)) for key, said in self.said.items()}
        return Composed(scaled, times, backchannels, kept)

    def _at(self, wave_N: Wave, start: int, length: int) -> Wave:
        """A silent clip of `length` samples with `wave_N` in it from sample `start` on; what passes the end is cut."""
        out = np.zeros(length, dtype=np.float32)
        part = wave_N[: length - start]
        out[start : start + len(part)] = part
        return out


def _factor(waves: Sequence[Wave], sample_rate: int, loudness_lufs: float | None, gain_db: float) -> float:
    """The one factor for all clips of a dialogue and its variants."""
    change_db = gain_db
    if loudness_lufs is not None:
        now = effects.loudness_lufs(np.concatenate(list(waves)), sample_rate)
        change_db += 0.0 if now is None else loudness_lufs - now
    return effects.safe_gain(waves, 10.0 ** (change_db / 20))
