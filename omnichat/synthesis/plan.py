"""What a corpus shall hold: its config, and the plan of every dialogue, balanced before a word is written."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from omnichat.schema import EMOTIONS, PITCHES, SPEEDS, SPLITS, Style
from omnichat.synthesis.base import ScriptRequest, ScriptWriter, Sound, Voice
from omnichat.synthesis.scenes.config import SceneConfig
from omnichat.synthesis.scenes.maker import SceneMaker
from omnichat.synthesis.scenes.plan import ScenePlan
from omnichat.synthesis.topics.base import TopicSource
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.log import get_logger
from omnichat.utils.seeding import derive_seed, python_rng

log = get_logger(__name__)

SCENARIOS = ("emotion", "audio", "music")
STAGES = ("plan", "scripts", "speech", "checks", "scenes", "corpus")
FORMATS = ("folder", "parquet")


@dataclass(kw_only=True, slots=True)
class DuplicateConfig:
    """When two scripts are one.

    Attributes:
        threshold: highest Jaccard similarity of two scripts' word n-grams, estimated by MinHash; 1 = only equal scripts
            are refused.
        ngram: words in an n-gram.
    """

    threshold: float = 0.7
    ngram: int = 3

    def __post_init__(self) -> None:
        if not 0 < self.threshold <= 1:
            raise UserError(f"duplicates.threshold must be in (0, 1], got {self.threshold}")
        if self.ngram < 1:
            raise UserError(f"duplicates.ngram must be >= 1, got {self.ngram}")


@dataclass(kw_only=True, slots=True)
class SynthesisConfig:
    """A corpus to be made.

    Attributes:
        name: of the corpus; also `Dialogue.source`. out: its folder; replaced when the new one is whole.
        seed: all randomness derives from it. workers: processes; any number gives the same corpus.
        dialogues: scenario -> split -> number of dialogues, each of which becomes `variants_per_dialogue` lines.
        variants_per_dialogue: styles in which the current words are spoken, 1 to 7, each in another emotion.
        history_turns: number of turns before the current one (even) -> probability.
        user_voices, model_voices: speakers of the voice that play A and B; drawn for each dialogue.
        max_attempts: how often a dialogue is written and spoken before it is dropped.
        max_words: longest sentence of a script.
        script_tries: how often a writer is asked anew within an attempt before the dialogue is dropped.
        duplicates: which scripts are too much alike.
        scene: background sounds, rooms, lines, overlaps.
        until: the last stage to run: plan, scripts, speech, checks, scenes or corpus. A later run goes on from there.
        shard: "i/n" = make only every n-th dialogue, from the i-th on (i from 0), and no corpus: n runs share the work,
            and the same command without it puts the corpus together. None = all.
        format: "folder" (a file a recording) or "parquet" (shards with the audio inside).
        check_disk: refuse to start where the corpus will not fit.
    """

    name: str
    out: str
    seed: int = 0
    workers: int = 2
    dialogues: dict[str, Any] = field(default_factory=dict)
    variants_per_dialogue: int = 3
    history_turns: dict[int, float] = field(default_factory=lambda: {4: 0.3, 6: 0.35, 8: 0.35})
    user_voices: list[str] = field(default_factory=lambda: ["ada"])
    model_voices: list[str] = field(default_factory=lambda: ["joe"])
    max_attempts: int = 4
    max_words: int = 14
    script_tries: int = 50
    duplicates: DuplicateConfig = field(default_factory=DuplicateConfig)
    scene: SceneConfig = field(default_factory=SceneConfig)
    until: str = "corpus"
    shard: str | None = None
    format: str = "folder"
    check_disk: bool = True

    def __post_init__(self) -> None:
        for key, low in (("workers", 1), ("max_attempts", 1), ("max_words", 3), ("script_tries", 1)):
            if getattr(self, key) < low:
                raise UserError(f"{key} must be >= {low}, got {getattr(self, key)}")
        if not 1 <= self.variants_per_dialogue <= len(EMOTIONS):
            raise UserError(f"variants_per_dialogue must be 1 to {len(EMOTIONS)}, got {self.variants_per_dialogue}")
        for scenario, splits in self.dialogues.items():
            if scenario not in SCENARIOS:
                raise one_of("dialogues scenario", scenario, SCENARIOS)
            if not isinstance(splits, dict):
                raise UserError(f"dialogues.{scenario} must be split -> number of dialogues, got {splits!r}")
            for split, count in splits.items():
                if not isinstance(count, int):
                    raise UserError(f"dialogues.{scenario}.{split} must be a whole number, got {count!r}")
                if split not in SPLITS:
                    raise one_of(f"dialogues.{scenario} split", split, SPLITS)
                if count < 0:
                    raise UserError(f"dialogues.{scenario}.{split} must be >= 0, got {count}")
        if not any(count for splits in self.dialogues.values() for count in splits.values()):
            raise UserError("dialogues asks for no dialogue; e.g. dialogues.emotion.train=100")
        for turns, share in self.history_turns.items():
            if turns < 0 or turns % 2 or share < 0:
                raise UserError(f"history_turns: even numbers >= 0 with shares >= 0, got {turns}: {share}")
        if abs(sum(self.history_turns.values()) - 1) > 1e-6:
            raise UserError(f"history_turns must sum to 1, got {sum(self.history_turns.values()):g}")
        for key, choices in (("until", STAGES), ("format", FORMATS)):
            if getattr(self, key) not in choices:
                raise one_of(key, getattr(self, key), choices)
        self.shard_numbers()
        if not self.user_voices or not self.model_voices or set(self.user_voices) & set(self.model_voices):
            raise UserError("user_voices and model_voices must be non-empty and share no voice")

    def check_voice(self, voice: Voice) -> None:
        """Raise UserError if the voice lacks one of the speakers."""
        for key in ("user_voices", "model_voices"):
            for name in getattr(self, key):
                if name not in voice.speakers:
                    raise one_of(f"{key}", name, voice.speakers)

    def shard_numbers(self) -> tuple[int, int]:
        """(i, n) of `shard`; (0, 1) without one. Raises UserError for anything but 0 <= i < n."""
        if self.shard is None:
            return 0, 1
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", self.shard)
        if match is None or not int(match[1]) < int(match[2]):
            raise UserError(f"shard={self.shard!r} must be i/n with 0 <= i < n, e.g. shard=0/8 to shard=7/8")
        return int(match[1]), int(match[2])


@dataclass(frozen=True, slots=True)
class Stem:
    """The plan of one dialogue and its variants."""

    id: str
    scenario: str
    split: str
    history_turns: int
    styles: tuple[Style, ...]
    user_voice: str
    model_voice: str
    scene: ScenePlan = field(default_factory=ScenePlan)
    topic: str | None = None

    def request(self, seed: int) -> ScriptRequest:
        """What a writer is asked for, with the writer's seed."""
        return ScriptRequest(
            self.scenario, self.split, seed, self.history_turns, self.styles, self.scene.sound, self.topic
        )


def plan_corpus(
    config: SynthesisConfig,
    scenes: SceneMaker,
    topics: TopicSource | None = None,
    writer: ScriptWriter | None = None,
) -> list[Stem]:
    """Plan every dialogue: in each scenario and split, emotions, pitches, speeds, sounds and topics occur equally often
    (within one), each drawn without regard to the others. Where a writer's scripts are given, turns, styles, topics and
    what is heard are theirs."""
    stems = []
    for scenario in SCENARIOS:
        for split in SPLITS:
            count = config.dialogues.get(scenario, {}).get(split, 0)
            if count:
                offers = None if writer is None else writer.offers(scenario, split)
                asked = _drawn(config, topics, scenario, split, count) if offers is None else list(offers)[:count]
                if len(asked) < count:
                    log.warning(
                        "the writer has %d scripts for %s, %s; %d were asked for", len(asked), scenario, split, count
                    )
                stems += _plan_split(config, scenes, asked, scenario, split)
    if not stems:
        raise UserError("the writer has no script for any scenario and split that `dialogues` asks for")
    return stems


def _drawn(
    config: SynthesisConfig, topics: TopicSource | None, scenario: str, split: str, count: int
) -> list[ScriptRequest]:
    """Turns, styles and topics of `count` dialogues, balanced."""
    where = (scenario, split)
    emotions = _distinct_sets(config.seed, where, count, config.variants_per_dialogue)
    pitches = _deck(PITCHES, derive_seed(config.seed, "pitch", *where))
    speeds = _deck(SPEEDS, derive_seed(config.seed, "speed", *where))
    turns = _deck_of_shares(config.history_turns, count, derive_seed(config.seed, "history", *where))
    subjects = None if topics is None else _deck(topics.topics(split), derive_seed(config.seed, "topic", *where))
    return [
        ScriptRequest(
            scenario,
            split,
            index,
            turns[index],
            tuple(Style(next(pitches), next(speeds), name) for name in names),
            topic=None if subjects is None else next(subjects),
        )
        for index, names in enumerate(emotions)
    ]


def _plan_split(
    config: SynthesisConfig, scenes: SceneMaker, asked: Sequence[ScriptRequest], scenario: str, split: str
) -> list[Stem]:
    """Give each script that will be asked for its speakers, its sound and its scene."""
    sounds = scenes.deck(scenario, split, derive_seed(config.seed, "sound", scenario, split))
    stems, unheard = [], 0
    for index, request in enumerate(asked):
        stem_id = f"{scenario}-{split}-{index:05d}"
        rng = python_rng(config.seed, "stem", stem_id)
        if request.sound is not None:
            sound: Sound | None = scenes.matching(request.sound, scenario, split, rng)
            if sound is None:
                unheard += 1
                continue
        else:
            sound = None if sounds is None else next(sounds)
        scene_seed = derive_seed(config.seed, "scene", stem_id)
        stems.append(
            Stem(
                id=stem_id,
                scenario=scenario,
                split=split,
                history_turns=request.history_turns,
                styles=request.styles,
                user_voice=rng.choice(config.user_voices),
                model_voice=rng.choice(config.model_voices),
                scene=scenes.plan(scenario, split, request.history_turns, sound, scene_seed),
                topic=request.topic,
            )
        )
    if unheard:
        log.warning("%d scripts of %s, %s ask for a sound that no recording has", unheard, scenario, split)
    return stems


def _distinct_sets(seed: int, where: tuple[str, str], count: int, size: int) -> Iterator[tuple[str, ...]]:
    """`count` sets of `size` distinct emotions; over all sets so far each emotion occurs equally often, within one."""
    rng = python_rng(seed, "emotion", *where)
    used: Counter[str] = Counter()
    for _ in range(count):
        order = list(EMOTIONS)
        rng.shuffle(order)
        names = sorted(order, key=lambda name: used[name])[:size]
        rng.shuffle(names)
        used.update(names)
        yield tuple(names)


def _deck(items: Sequence[Any], seed: int) -> Iterator[Any]:
    """Shuffled packs of `items`, one after another, without end."""
    rng = python_rng(seed, "deck")
    while True:
        pack = list(items)
        rng.shuffle(pack)
        yield from pack


def _deck_of_shares(shares: dict[int, float], count: int, seed: int) -> list[int]:
    """`count` draws from a distribution."""
    rng = python_rng(seed, "shares")
    return rng.choices(list(shares), weights=list(shares.values()), k=count)
