"""The factory as a whole, with a voice of tones: reproducible, resumable, balanced, honest about what it rejects."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omnichat.audio.io import load_audio, save_audio
from omnichat.data.corpus import Corpus
from omnichat.schema import EMOTIONS
from omnichat.synthesis import pipeline
from omnichat.synthesis.checks.base import Check, Clip, Finding
from omnichat.synthesis.checks.signal import SignalCheck
from omnichat.synthesis.checks.styles import StyleCheck
from omnichat.synthesis.checks.suite import CheckSuite
from omnichat.synthesis.engines.base import Engine
from omnichat.synthesis.pipeline import synthesize
from omnichat.synthesis.plan import SynthesisConfig
from omnichat.synthesis.scenes.config import BackchannelConfig, OverlapConfig, RoomConfig, SceneConfig
from omnichat.synthesis.scenes.maker import SceneMaker
from omnichat.synthesis.sounds.base import SoundSource
from omnichat.synthesis.sounds.captioned import Captions
from omnichat.synthesis.sounds.captions import CaptionFiles
from omnichat.synthesis.sounds.folders import EventFolder, MusicFolder
from omnichat.synthesis.sounds.recordings import Limits
from omnichat.synthesis.stem import make_stem
from omnichat.synthesis.tally import Made
from omnichat.synthesis.writers.grammar import GrammarWriter
from omnichat.utils.errors import UserError
from omnichat.utils.files import read_json, sha256_file
from tests.helpers.sound_files import audiocaps

RATE = 16000
COUNTS = {"emotion": {"train": 4, "test": 2}, "audio": {"train": 1}, "music": {"test": 1}}


class Picky(Check):
    """Rejects a dialogue whose first clip says one of the given topics: a fault that new words cure."""

    name = "picky"

    def __init__(self, bad: tuple[str, ...] = (), all_of_them: bool = False) -> None:
        self.bad = bad
        self.all_of_them = all_of_them

    def examine(self, clips: Sequence[Clip]) -> Finding:
        rejected = self.all_of_them or any(word in clips[0].text for word in self.bad)
        return Finding(["says a bad word"] if rejected else [], [{} for _ in clips])

    def thresholds(self) -> dict[str, float]:
        return {}

    def summarise(self, findings: Sequence[Finding]) -> dict[str, Any]:
        return {"dialogues": len(findings)}


@pytest.fixture
def sounds(tmp_path: Path) -> tuple[EventFolder, MusicFolder]:
    rng = np.random.default_rng(0)
    save_audio(tmp_path / "animals" / "dog.wav", 0.1 * rng.uniform(-1, 1, RATE), RATE)
    save_audio(tmp_path / "music" / "calm" / "x_acoustic_1.wav", 0.1 * rng.uniform(-1, 1, 3 * RATE), RATE)
    events = EventFolder(str(tmp_path / "animals"), None, Limits())
    return events, MusicFolder(str(tmp_path / "music"), None, Limits())


@pytest.fixture
def start(tmp_path: Path, tone_voice: Any, sounds: tuple[EventFolder, MusicFolder]) -> Any:
    events, music = sounds

    def run(
        out: str,
        check: Check | None = None,
        engine: Engine | None = None,
        heard: SoundSource = events,
        retakes: dict[str, Any] | None = None,
        **changes: Any,
    ) -> Made:
        settings = {"name": "tones", "workers": 1, "dialogues": COUNTS, "history_turns": {2: 1.0}}
        config = SynthesisConfig(out=str(tmp_path / out), **(settings | changes))
        limits = {"min_seconds": 0.1, "max_seconds": 20.0, "min_level_db": -40.0, "max_level_db": 0.0}
        checks: dict[str, Check | None] = {
            "signal": SignalCheck(**limits, max_clipped=0.0, min_active=0.1),
            "styles": StyleCheck(1.05, 1.05),
        }
        if check is not None:
            checks[check.name] = check
        writer = GrammarWriter(None, {e: e for e in EMOTIONS})
        scenes = SceneMaker(config.scene, heard, music, tone_voice.sample_rate)
        return synthesize(config, writer, tone_voice, CheckSuite(checks, **(retakes or {})), scenes, None, engine)

    return run


@pytest.fixture
def make(start: Any) -> Any:
    def run(*args: Any, **kwargs: Any) -> Corpus:
        corpus = start(*args, **kwargs).corpus
        assert isinstance(corpus, Corpus)
        return corpus

    return run


def files(root: Path) -> dict[str, str]:
    return {str(p.relative_to(root)): sha256_file(p) for p in sorted(root.rglob("*")) if p.is_file()}


def test_corpus_is_whole_and_says_what_it_is(make: Any, tmp_path: Path) -> None:
    corpus = make("a")
    assert Corpus.load(corpus.root, verify="full").fingerprint() == corpus.fingerprint()
    assert len(corpus.dialogues) == 8 * 3
    sentences: dict[str, set[str]] = {}
    groups: dict[str, list] = {}
    for dialogue in corpus.dialogues:
        assert [turn.speaker for turn in dialogue.turns] == ["A", "B", "A", "B"]
        assert (dialogue.scene is None) == (dialogue.scenario == "emotion")
        if dialogue.scene is not None:
            assert dialogue.scene.audio is not None and (corpus.root / dialogue.scene.audio).is_file()
        sentences.setdefault(dialogue.split, set()).update(turn.text for turn in dialogue.turns)
        groups.setdefault(str(dialogue.turns[-2].variant_of), []).append(dialogue)
    assert not sentences["train"] & sentences["test"]
    for members in groups.values():
        assert len(members) == 3
        assert len({m.turns[-2].text for m in members}) == 1
        assert len({m.turns[-2].style.emotion for m in members}) == 3
        assert len({m.turns[-2].sha256 for m in members}) == 3
        assert len({tuple(t.audio for t in m.turns[:-2]) for m in members}) == 1, "variants share their history"
        assert all(m.turns[-1].style == m.turns[-2].style for m in members), "the reply mirrors the heard style"
    card = read_json(corpus.root / "card.json")
    assert card["checks"]["styles"]["measured"]["in_order"] is True
    assert card["checks"]["attempts rejected"] == 0
    assert not list(tmp_path.glob(".*work"))


def test_workers_do_not_change_a_byte_and_the_seed_changes_all(make: Any) -> None:
    one, two, other = make("one"), make("two", workers=2), make("other", seed=1)
    assert files(one.root) == files(two.root)
    audio = [{t.sha256 for d in corpus.dialogues for t in d.turns} for corpus in (one, other)]
    assert not audio[0] & audio[1]


def test_a_killed_run_goes_on_and_ends_in_the_same_bytes(
    make: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = make("whole")
    done = 0

    def dies(job: Any, parts: Any) -> Any:
        nonlocal done
        done += 1
        if done == 4:
            raise KeyboardInterrupt
        return make_stem(job, parts)

    monkeypatch.setattr(pipeline, "make_stem", dies)
    with pytest.raises(KeyboardInterrupt):
        make("cut")
    assert not (tmp_path / "cut").exists(), "no half corpus"
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / ".cut.work" / "stems").rglob("*.flac")}
    assert kept
    again = []
    monkeypatch.setattr(pipeline, "make_stem", lambda job, parts: again.append(r := make_stem(job, parts)) or r)
    assert files(make("cut").root) == files(whole.root)
    assert sum(1 for _, seconds in again if not seconds) == 3, "what was done is not done again"


def test_other_settings_start_afresh(make: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def dies(job: Any, parts: Any) -> Any:
        make_stem(job, parts)
        raise KeyboardInterrupt

    monkeypatch.setattr(pipeline, "make_stem", dies)
    with pytest.raises(KeyboardInterrupt):
        make("x", seed=5)
    monkeypatch.setattr(pipeline, "make_stem", make_stem)
    assert files(make("x").root) == files(make("y").root)
    shutil.rmtree(tmp_path / "y")


def test_rejected_dialogues_are_written_again_and_counted(make: Any) -> None:
    first = make("plain")
    bad = tuple({d.topic for d in first.dialogues if d.scenario == "emotion" and d.split == "train" and d.topic})[:2]
    corpus = make("picky", Picky(bad))
    assert len(corpus.dialogues) == len(first.dialogues)
    assert not any(word in d.turns[0].text for d in corpus.dialogues for word in bad)
    # balance survives: a rewritten dialogue keeps its planned styles
    styles = [[d.turns[-2].style for d in each.dialogues] for each in (first, corpus)]
    assert styles[0] == styles[1]
    checks = read_json(corpus.root / "card.json")["checks"]
    assert checks["picky"]["rejected"]["says a bad word"] == checks["attempts rejected"] >= 2


def test_a_corpus_without_a_single_good_dialogue_is_an_error(make: Any) -> None:
    with pytest.raises(UserError, match=r"no dialogue of 'tones' passed .* picky: says a bad word \(16\)"):
        make("none", Picky(all_of_them=True), max_attempts=2)


def test_scene_is_heard_where_it_should_be(make: Any) -> None:
    corpus = make("a")
    by_scenario = {d.scenario: d for d in corpus.dialogues}
    music = by_scenario["music"]
    quiet = load_audio(corpus.path_of(by_scenario["emotion"].turns[0]), RATE).numpy()
    heard = load_audio(corpus.path_of(music.turns[0]), RATE).numpy()

    def noise(wave: np.ndarray) -> float:
        spectrum = np.abs(np.fft.rfft(wave)) ** 2 / len(wave)
        return float(spectrum[-len(spectrum) // 4 :].mean())  # tones end far below, noise does not

    assert noise(heard) > 3 * noise(quiet)


def test_a_voice_without_the_speaker_is_named(make: Any) -> None:
    with pytest.raises(UserError, match=r"user_voices='adda' is not valid .did you mean 'ada'"):
        make("a", user_voices=["adda"])


def test_people_talk_at_once_and_the_manifest_says_when(make: Any) -> None:
    scene = SceneConfig(
        placements={"between": 1.0},
        room=RoomConfig(share=0.5),
        overlap=OverlapConfig(share=1.0, turn_share=0.5),
        backchannel=BackchannelConfig(share=1.0, turn_share=1.0, words=["Mm."]),
        telephone_share=0.5,
    )
    corpus = make("together", scene=scene, history_turns={4: 1.0})
    assert files(corpus.root) == files(make("again", scene=scene, history_turns={4: 1.0}, workers=2).root)
    early = said = 0
    for dialogue in corpus.dialogues:
        for before, turn in itertools.pairwise(dialogue.turns):
            assert before.start_seconds is not None and turn.start_seconds is not None and before.seconds is not None
            early += turn.start_seconds < before.start_seconds + before.seconds - 0.7
            assert turn.start_seconds > before.start_seconds
        for turn in dialogue.turns[:-1]:
            said += len(turn.backchannels)
            assert all(one.speaker != turn.speaker for one in turn.backchannels)
        assert not dialogue.turns[-1].backchannels
        assert dialogue.scene is None or dialogue.scene.placement == (
            "between" if dialogue.scenario == "audio" else "loop"
        )
    assert early > 0 and said > 3 * len(corpus.dialogues)


def test_a_collection_with_bad_recordings_gives_a_sound_corpus(make: Any, tmp_path: Path) -> None:
    root = audiocaps(tmp_path / "audiocaps")
    save_audio(root / "audio" / "train" / "3.wav", np.zeros(RATE), RATE)  # silent: its header says nothing
    (root / "audio" / "train" / "Y-train1_x.wav").write_bytes(b"RIFF")
    source = CaptionFiles(
        name="audiocaps", licence="MIT", path=str(root), csv={"train": "train.csv"}, audio=".",
        files=["{youtube_id}", "Y{youtube_id}", "{youtube_id}_{start_time}", "{audiocap_id}"], caption=["caption"],
        keywords=None, unique="audiocap_id", split=None, split_values={}, captions=Captions(),
        limits=Limits(max_bad=0.5),
    )  # fmt: skip
    corpus = make("caps", heard=source, dialogues={"audio": {"train": 4}}, max_words=30)
    captions = {dialogue.scene.caption for dialogue in corpus.dialogues if dialogue.scene is not None}
    assert captions and captions <= {"a dog barks once near a river", "a dog barks often near a river"}
    kept = {path.name for path in (corpus.root / "audio" / "scenes").rglob("*.flac")}
    assert kept and kept <= {"-train0_x.flac", "-train2_x_30.flac"}
    assert source.left_out() == {"silent": 1, "unreadable": 1}
    assert any(row == {"part": "events", "source": "audiocaps", "licence": "MIT"}
               for row in read_json(corpus.root / "card.json")["licences"])  # fmt: skip
