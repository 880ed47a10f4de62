"""Folders of sounds: captions by file names, split parts, bad recordings, bounded memory."""

from __future__ import annotations

import pickle
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile

from omnichat.audio.io import save_audio
from omnichat.data.audit import BadAudio
from omnichat.synthesis.sounds.folders import EventFolder, MusicFolder
from omnichat.synthesis.sounds.keywords import content_words, listed_keywords
from omnichat.synthesis.sounds.recordings import Limits, WaveStore, check_header, read_checked
from omnichat.utils.errors import UserError
from tests.helpers.sound_files import forged_flac

RATE = 16000


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return 0.1 * np.random.default_rng(seed).uniform(-1, 1, round(seconds * RATE))


@pytest.fixture
def animals(tmp_path: Path) -> EventFolder:
    rng = np.random.default_rng(0)
    loud = np.linspace(0.02, 0.2, 6 * RATE)  # every sample tells where in the recording it was
    save_audio(tmp_path / "animals" / "dog.wav", (loud * np.sign(rng.standard_normal(6 * RATE))), RATE)
    save_audio(tmp_path / "animals" / "zebra.wav", noise(1.0), RATE)
    return EventFolder(str(tmp_path / "animals"), None, Limits())


@pytest.fixture
def music(tmp_path: Path) -> MusicFolder:
    for name in ("calm/a_acoustic_1", "calm/a_acoustic_2", "calm/b_electronic_1", "wild/x_acoustic_1"):
        save_audio(tmp_path / "music" / f"{name}.wav", noise(3.0, len(name)), RATE)
    return MusicFolder(str(tmp_path / "music"), "CC0", Limits())


def test_events_are_named_by_what_they_do(animals: EventFolder) -> None:
    dog, zebra = animals.sounds("train")
    assert (dog.name, dog.caption, dog.keywords) == ("animals/dog.wav", "a dog barking", ("dog", "barking"))
    assert (zebra.caption, zebra.keywords) == ("a zebra", ("zebra",))


def test_a_long_recording_has_a_part_for_training_and_another_for_the_rest(animals: EventFolder) -> None:
    whole = animals.load("animals/dog.wav", RATE)
    cut = round(0.6 * len(whole))
    assert np.array_equal(animals.heard("animals/dog.wav", "train", RATE), whole[:cut])
    for split in ("dev", "test"):
        assert np.array_equal(animals.heard("animals/dog.wav", split, RATE), whole[cut:])
    assert len(animals.heard("animals/zebra.wav", "test", RATE)) == RATE


def test_a_part_that_is_only_a_pause_is_not_chosen(tmp_path: Path) -> None:
    save_audio(tmp_path / "owl.wav", np.concatenate([noise(3.0), np.zeros(3 * RATE)]), RATE)
    assert np.abs(EventFolder(str(tmp_path), None, Limits()).heard("animals/owl.wav", "test", RATE)).max() > 0


def test_test_hears_tracks_that_training_does_not(music: MusicFolder) -> None:
    names = {split: {sound.name for sound in music.sounds(split)} for split in ("train", "dev", "test")}
    assert "music/calm/a_acoustic_2.wav" in names["test"] - names["train"]
    assert "music/calm/a_acoustic_1.wav" in names["train"] - names["test"]
    assert names["dev"] == names["train"]
    assert {sound.keywords for sound in music.sounds("test")} == {("calm",), ("wild",)}
    assert music.describe()["licence"] == "CC0"


def test_a_deck_is_balanced_by_what_a_reply_must_name(music: MusicFolder) -> None:
    dealt = list(islice(music.deck("train", 3, RATE), 40))
    assert Counter(sound.keywords for sound in dealt) == {("calm",): 20, ("wild",): 20}
    assert {sound.name for sound in dealt} == {sound.name for sound in music.sounds("train")}
    assert dealt == list(islice(music.deck("train", 3, RATE), 40))
    assert dealt != list(islice(music.deck("train", 4, RATE), 40))


def test_bad_recordings_are_named_left_out_and_capped(animals: EventFolder, tmp_path: Path) -> None:
    folder = tmp_path / "animals"
    (folder / "cat.wav").write_bytes((folder / "dog.wav").read_bytes()[:20000])  # cut: seen by the header
    save_audio(folder / "cow.wav", np.zeros(RATE), RATE)  # silent: seen when it is read
    (folder / "owl.flac").write_bytes(forged_flac())
    source = EventFolder(str(folder), None, Limits(max_bad=0.7))
    assert [sound.words["animal"] for sound in source.sounds("train")] == ["cow", "dog", "zebra"]
    assert {sound.words["animal"] for sound in islice(source.deck("train", 0, RATE), 30)} == {"dog", "zebra"}
    assert source.left_out() == {"silent": 1, "too long": 1, "truncated": 1}
    assert sorted(line.split(":")[0].rpartition("/")[2] for line in source.issues) == ["cat.wav", "cow.wav", "owl.flac"]
    assert source.describe()["left_out"] == source.left_out()
    with pytest.raises(UserError, match=r"animals: 2 of 5 recordings cannot be used, e\.g\. .*cat\.wav.*max_bad=0\.3"):
        EventFolder(str(folder), None, Limits(max_bad=0.3)).sounds("train")
    strict = EventFolder(str(folder), None, Limits(max_bad=0.5))
    with pytest.raises(UserError, match="animals: 3 of 5 recordings"):
        list(islice(strict.deck("train", 0, RATE), 30))


def test_missing_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"events\.folder: .*none: no such folder"):
        EventFolder(str(tmp_path / "none"), None, Limits()).sounds("train")
    with pytest.raises(UserError, match=r"music\.folder: .* holds no recording"):
        MusicFolder(str(tmp_path), None, Limits()).sounds("train")


def test_memory_is_bounded_and_does_not_travel() -> None:
    store, reads = WaveStore(1.0), []

    def read(name: str) -> np.ndarray:
        reads.append(name)
        return np.full(100_000, len(reads), dtype=np.float32)  # 0.4 MB

    for name in "abacabd":
        first = store.get(name, RATE, lambda name=name: read(name))
        assert store.bytes <= 1e6 and not first.flags.writeable
    assert reads == ["a", "b", "c", "b", "d"], "the last two are kept, the one not used for longest goes"
    assert store.get("d", 8000, lambda: read("d")) is not store.get("d", RATE, lambda: read("d"))
    large = WaveStore(0.0)
    assert large.get("x", RATE, lambda: read("x")) is large.get("x", RATE, lambda: read("x"))
    assert pickle.loads(pickle.dumps(store)).bytes == 0


@pytest.mark.parametrize("packed", [False, True])
def test_headers_are_checked_before_memory_is_asked_for(packed: bool, tmp_path: Path) -> None:
    save_audio(tmp_path / "good.wav", noise(1.0), RATE)
    save_audio(tmp_path / "short.wav", noise(0.01), RATE)
    soundfile.write(tmp_path / "wide.wav", np.zeros((100, 64)), RATE)
    good = (tmp_path / "good.wav").read_bytes()
    wrong = {
        "short": ((tmp_path / "short.wav").read_bytes(), "too short"),
        "wide": ((tmp_path / "wide.wav").read_bytes(), "forged header"),
        "half": (good[: len(good) // 2], "truncated"),
        "flac": (forged_flac(), "too long"),
        "empty": (b"", "unreadable"),
        "text": (b"version https://git-lfs.github.com/spec/v1\n", "unreadable"),
    }
    for name, (content, reason) in wrong.items():
        path = tmp_path / f"x-{name}"
        path.write_bytes(content)
        for check in (check_header, lambda r, w, limits: read_checked(r, w, RATE, limits)):
            with pytest.raises(BadAudio, match=r"^list\.csv:7: ") as error:
                check(content if packed else path, "list.csv:7", Limits())
            assert error.value.reason == reason, name
    nan = np.full(RATE, np.nan, dtype=np.float32)
    soundfile.write(tmp_path / "nan.wav", nan, RATE, subtype="FLOAT")
    recording = (tmp_path / "nan.wav").read_bytes() if packed else tmp_path / "nan.wav"
    check_header(recording, "x", Limits())
    with pytest.raises(BadAudio, match="not finite"):
        read_checked(recording, "x", RATE, Limits())
    heard = read_checked(good if packed else tmp_path / "good.wav", "x", 8000, Limits())
    assert heard.shape == (8000,) and heard.dtype == np.float32


def test_limits_are_checked() -> None:
    for wrong, key in (
        ({"min_sec": 0.0}, "min_sec"),
        ({"max_bad": 2.0}, "max_bad"),
        ({"memory_mb": -1.0}, "memory_mb"),
    ):
        with pytest.raises(UserError, match=key):
            Limits(**wrong)


def test_keywords_say_what_is_heard() -> None:
    assert content_words("A dog barks while a man is speaking in the background") == ("dog", "barks", "man", "speaking")
    assert content_words("There is a loud sound") == ()
    aspects = "['low quality', 'sustained strings melody', 'sad', 'soft female vocal', 'ballad']"
    wanted = ("sad", "ballad", "sustained strings melody", "soft female vocal")
    assert listed_keywords(aspects, ["Low  Quality"]) == wanted
    assert listed_keywords("[\"drummer's groove\", 'rock']") == ("rock", "drummer's groove")
    assert listed_keywords("rain;thunder storm;rain") == ("rain", "thunder storm")
    assert listed_keywords("Bell, Church") == ("bell", "church")
    assert listed_keywords("[') ' [' (") == () and listed_keywords("") == ()
