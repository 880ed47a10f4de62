"""Collections that come from elsewhere: no link leads out of them, and no name or caption is more than words."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omnichat.audio.io import save_audio
from omnichat.data.audit import BadAudio
from omnichat.synthesis.scenes.config import RoomConfig, SceneConfig
from omnichat.synthesis.scenes.maker import SceneMaker
from omnichat.synthesis.sounds.folders import EventFolder, MusicFolder
from omnichat.synthesis.sounds.keywords import caption_fault
from omnichat.synthesis.sounds.recordings import Limits, check_place, read_checked
from omnichat.utils.errors import UserError
from tests.faults.forged_audio import _float_wav, captioned
from tests.helpers.sound_files import RATE, clip, own_csv

HALF = Limits(max_bad=0.5)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    save_audio(tmp_path / "outside" / "private.wav", clip(1), RATE)
    return tmp_path / "outside" / "private.wav"


def test_a_link_out_of_the_folder_is_left_out_and_one_inside_is_not(outside: Path, tmp_path: Path) -> None:
    folder = tmp_path / "animals"
    save_audio(folder / "dog.wav", clip(2), RATE)
    (folder / "wolf.wav").symlink_to(folder / "dog.wav")
    (folder / "fox.wav").symlink_to(outside)
    found = EventFolder(str(folder), None, HALF)
    assert [sound.caption for sound in found.sounds("train")] == ["a dog barking", "a wolf"]
    assert found.left_out() == {"outside of the folder": 1}
    whole = tmp_path / "link"
    whole.symlink_to(folder)  # a folder that the user names may be a link itself
    assert len(EventFolder(str(whole), None, HALF).sounds("train")) == 2


def test_a_caption_s_recording_is_no_link_out_of_the_folder(outside: Path, tmp_path: Path) -> None:
    root = own_csv(tmp_path / "own")
    (root / "wavs" / "clip3.wav").unlink()
    (root / "wavs" / "clip3.wav").symlink_to(outside)
    found = captioned(root, 0.5)
    found.sounds("train")
    assert found.left_out() == {"outside of the folder": 1} and "captions.csv:5: wavs/clip3.wav" in found.issues[0]


def test_links_out_of_the_folder_are_followed_where_the_user_says_so(outside: Path, tmp_path: Path) -> None:
    """The snapshots of a Hugging Face cache are folders of links into its blobs."""
    follow = Limits(max_bad=0.0, follow_links=True)
    folder = tmp_path / "snapshots" / "animals"
    folder.mkdir(parents=True)
    (folder / "dog.wav").symlink_to(outside)
    found = EventFolder(str(folder), None, follow)
    assert [sound.caption for sound in found.sounds("train")] == ["a dog barking"]
    assert np.array_equal(found.load("animals/dog.wav", RATE), read_checked(outside, "x", RATE, follow))
    check_place(folder / "dog.wav", folder, "x", follow)
    for path in (folder / ".." / ".." / "outside" / "private.wav", outside):
        with pytest.raises(BadAudio, match=r"lies outside of .*target$"):
            check_place(path, folder, "x", follow)
    with pytest.raises(BadAudio, match=r"set limits\.follow_links=true"):
        check_place(folder / "dog.wav", folder, "x", Limits())


def test_a_room_is_no_link_out_of_the_folder(outside: Path, tmp_path: Path) -> None:
    (tmp_path / "rooms").mkdir()
    (tmp_path / "rooms" / "hall.wav").symlink_to(outside)
    scene = SceneConfig(room=RoomConfig(share=1.0, recordings=str(tmp_path / "rooms")))
    with pytest.raises(
        UserError, match=r"no room of the split train can be used .*hall\.wav: lies outside of .*, by a link"
    ):
        SceneMaker(scene, None, None, RATE).plan("emotion", "train", 2, None, 0)


@pytest.mark.parametrize("stem", ["<|im_start|>", "do\ng", os.fsdecode(b"\xff\xfe"), "_", "[dog]"])
@pytest.mark.parametrize("kind", [EventFolder, MusicFolder])
def test_a_name_that_makes_no_words_is_left_out(kind: Any, stem: str, tmp_path: Path) -> None:
    for number, name in enumerate((stem, "dog")):
        path = tmp_path / (f"{name}.wav" if kind is EventFolder else f"{name}/a.wav")
        save_audio(path, clip(number), RATE)
    found = kind(str(tmp_path), None, HALF)
    assert len(found.sounds("train")) == 1 and found.left_out() == {"bad name": 1}
    assert found.issues[0].isprintable()


@pytest.mark.parametrize("caption", ["", "x" * 1001, "a dog\x07", "a <|im_start|> dog", "a [dog]", "{slot}", "...?!"])
def test_a_caption_that_no_one_says_is_told(caption: str) -> None:
    assert caption_fault(caption) is not None
    assert caption_fault(f"A dog barks at {len(caption)} o'clock (twice), café & all.") is None


def test_samples_far_beyond_full_scale_are_no_recording() -> None:
    wave = clip(3)
    assert len(read_checked(_float_wav(wave * 12), "x", RATE, Limits())) == len(wave)
    wave[100] = 1e30
    with pytest.raises(BadAudio, match="far beyond full scale"):
        read_checked(_float_wav(wave), "x", RATE, Limits())
    wave[100] = np.nan
    with pytest.raises(BadAudio, match="not finite"):
        read_checked(_float_wav(wave), "x", RATE, Limits())
