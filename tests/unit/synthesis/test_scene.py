"""Background sounds: split parts, ratios, continuity over turns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from omnichat.audio import effects
from omnichat.audio.io import save_audio
from omnichat.synthesis.scene import SceneConfig, SceneLibrary
from omnichat.utils.errors import UserError

RATE = 16000


@pytest.fixture
def library(tmp_path: Path) -> SceneLibrary:
    rng = np.random.default_rng(0)
    loud = np.linspace(0.02, 0.2, 6 * RATE)  # every sample tells where in the recording it was
    save_audio(tmp_path / "animals" / "dog.wav", (loud * np.sign(rng.standard_normal(6 * RATE))), RATE)
    save_audio(tmp_path / "animals" / "zebra.wav", 0.1 * rng.uniform(-1, 1, RATE), RATE)
    for name in ("calm/a_acoustic_1", "calm/a_acoustic_2", "calm/b_electronic_1", "wild/x_acoustic_1"):
        save_audio(tmp_path / "music" / f"{name}.wav", 0.1 * rng.uniform(-1, 1, 3 * RATE), RATE)
    return SceneLibrary(SceneConfig(animals=str(tmp_path / "animals"), music=str(tmp_path / "music")), RATE)


def speech(seconds: float) -> np.ndarray:
    return (0.05 * np.random.default_rng(9).uniform(-1, 1, round(seconds * RATE))).astype(np.float32)


def test_events_are_named_by_what_they_do(library: SceneLibrary) -> None:
    dog, zebra = library.sounds("audio", "train")
    assert (dog.caption, dog.keywords) == ("a dog barking", ("dog", "barking"))
    assert (zebra.caption, zebra.keywords) == ("a zebra", ("zebra",))


def test_a_long_recording_has_a_part_for_training_and_another_for_the_rest(library: SceneLibrary) -> None:
    dog = library.sounds("audio", "train")[0]
    whole = library.load(dog.name)
    cut = round(0.6 * len(whole))
    for split in ("train", "dev", "test"):
        for seed in range(8):
            part = library.excerpt(dog, split, seed, 1.0)
            start = whole.tobytes().find(part.tobytes()) // whole.itemsize
            assert start >= 0, "an excerpt is a stretch of the recording"
            assert start + len(part) <= cut if split == "train" else start >= cut


def test_test_hears_tracks_that_training_does_not(library: SceneLibrary) -> None:
    names = {split: {sound.name for sound in library.sounds("music", split)} for split in ("train", "dev", "test")}
    assert "music/calm/a_acoustic_2.wav" in names["test"] - names["train"]
    assert "music/calm/a_acoustic_1.wav" in names["train"] - names["test"]
    assert names["dev"] == names["train"]
    assert {sound.keywords for sound in library.sounds("music", "test")} == {("calm",), ("wild",)}


@pytest.mark.parametrize("snr_db", [-3.0, 6.0])
def test_event_ratio_and_placement(library: SceneLibrary, snr_db: float) -> None:
    dog, words = library.sounds("audio", "train")[0], speech(2.0)
    under = library.with_event(words, dog, "train", 1, "under", snr_db)
    assert len(under) == len(words)
    background = under - words
    gap_db = effects.active_level_db(words, RATE) - effects.active_level_db(background, RATE)
    assert gap_db == pytest.approx(snr_db, abs=0.3)
    before = library.with_event(words, dog, "train", 1, "before", snr_db)
    assert np.array_equal(before[-len(words) :], words)
    event = before[: len(before) - len(words)]
    assert 1.0 < len(event) / RATE < 2.0
    gap_db = effects.active_level_db(words, RATE) - effects.active_level_db(event, RATE)
    assert gap_db == pytest.approx(snr_db, abs=0.3)


def test_music_goes_on_over_turns_at_one_level(library: SceneLibrary) -> None:
    track = library.sounds("music", "train")[0]
    turns = [speech(1.0), speech(2.5), speech(1.5)]
    mixed = library.with_music(turns, track, 3, -24.0, 10.0)
    beds = np.concatenate([m - t for m, t in zip(mixed, turns, strict=True)])
    whole = library.with_music([np.concatenate(turns)], track, 3, -24.0, 10.0)[0] - np.concatenate(turns)
    assert np.allclose(beds, whole, atol=1e-6), "cut into turns or not, the music is the same"
    assert effects.active_level_db(beds, RATE) == pytest.approx(-34.0, abs=0.5)


def test_missing_folders_are_named(tmp_path: Path) -> None:
    library = SceneLibrary(SceneConfig(animals=str(tmp_path / "none"), music=str(tmp_path)), RATE)
    with pytest.raises(UserError, match=r"animals: .*none: no such folder"):
        library.sounds("audio", "train")
    with pytest.raises(UserError, match=r"music: .* holds no recording"):
        library.sounds("music", "train")
    with pytest.raises(UserError, match="before_share"):
        SceneConfig(before_share=1.5)
