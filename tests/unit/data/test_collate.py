"""Items -> one batch: padding on either side, recordings held once, every slot at its own window."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from omnichat.data.collate import ClipKey, Item, collate
from omnichat.encoders.base import EncodedClip
from omnichat.text.chat import IGNORE, ChatSequence, Clip, Role

A, T, W = int(Role.AUDIO), int(Role.TEMPLATE), int(Role.WORDS)
ASKED: list[list[str]] = []


def features(keys: Sequence[ClipKey]) -> dict[str, list[EncodedClip]]:
    """One frame a letter of the hash, its value the letter's number."""
    ASKED.append([key.sha256 for key in keys])
    return {
        name: [
            EncodedClip(torch.tensor([[float(ord(c))] * 2 for c in key.sha256]), torch.arange(len(key.sha256)) / rate)
            for key in keys
        ]
        for name, rate in (("fast", 10.0), ("slow", 5.0))
    }


def item(name: str, roles: list[int], clips: list[tuple[str, int]], seconds: float = 1.0) -> Item:
    ids = [99 if role == A else 10 + place for place, role in enumerate(roles)]
    labels = [token if role == W else IGNORE for token, role in zip(ids, roles, strict=True)]
    made = [Clip(turn, seconds * slots, slots) for turn, (_, slots) in enumerate(clips)]
    keys = tuple(ClipKey(sha, Path(sha)) for sha, _ in clips)
    return Item(name, "source", ChatSequence(ids, labels, roles, made, []), keys)


ONE = item("one", [T, A, A, T, A, W, W], [("xy", 2), ("z", 1)])
TWO = item("two", [A, A, A, W], [("abc", 3)])
SHARES = item("shares", [T, A, A, A, W], [("xy", 2), ("q", 1)])
WORDS = item("words", [T, W], [])


def test_slots_point_at_their_windows() -> None:
    """By hand: clips in order of appearance are xy, z, abc, q; the most slots of one are 3, so row r begins at 3 r."""
    batch = collate([ONE, TWO, SHARES], features)
    assert ASKED[-1] == ["xy", "z", "abc", "q"], "xy is asked for once: the words before it are the same"
    assert batch.place_C2.tolist() == [[0, 1], [0, 4], [1, 0], [2, 3]]
    assert batch.slot_N.tolist() == [0, 1, 3, 6, 7, 8, 0, 1, 9]
    assert batch.seconds_C.tolist() == [2.0, 1.0, 3.0, 1.0] and batch.seconds_C.dtype == torch.float64
    assert int(batch.audio_BS.sum()) == len(batch.slot_N)
    assert batch.streams["fast"].x_BTD[:, :, 0].tolist() == [[120, 121, 0], [122, 0, 0], [97, 98, 99], [113, 0, 0]]
    assert batch.streams["slow"].mask_BT.sum(1).tolist() == [2, 1, 3, 1]


def test_a_recording_after_other_words_is_another_clip() -> None:
    """A fusion may be conditioned on the words before a clip, so one row cannot serve two contexts."""
    later = item("later", [T, T, A, A, W], [("xy", 2)])
    batch = collate([ONE, later], features, pad_left=True)
    assert ASKED[-1] == ["xy", "z", "xy"]
    assert batch.place_C2.tolist() == [[0, 1], [0, 4], [1, 4]], "the left padding counts"


def test_a_recording_whose_length_is_stated_twice_differently_keeps_both() -> None:
    """The fusion counts windows from the seconds: a shared row would give one sequence the next clip's windows."""
    longer = item("longer", [T, A, A, A, W], [("xy", 3)])
    batch = collate([ONE, longer], features)
    assert batch.seconds_C.tolist() == [2.0, 1.0, 3.0]
    assert batch.slot_N.tolist() == [0, 1, 3, 6, 7, 8]


@pytest.mark.parametrize("left", [False, True])
def test_padding_is_on_the_side_that_was_asked_for(left: bool) -> None:
    batch = collate([ONE, TWO, WORDS], features, pad_left=left)
    assert batch.ids_BS.shape == (3, 7)
    for row, each in enumerate((ONE, TWO, WORDS)):
        s = each.sequence
        n = len(s)
        own = slice(7 - n, 7) if left else slice(0, n)
        padded, valid = [False] * (7 - n), [True] * n
        assert batch.mask_BS[row].tolist() == (padded + valid if left else valid + padded)
        assert batch.labels_BS[row, own].tolist() == s.labels and batch.roles_BS[row, own].tolist() == s.roles
        heard = [0 if role == A else token for token, role in zip(s.ids, s.roles, strict=True)]
        assert batch.ids_BS[row, own].tolist() == heard, "the audio marker has no embedding"
        outside = ~batch.mask_BS[row]
        assert (batch.ids_BS[row, outside] == 0).all() and (batch.labels_BS[row, outside] == IGNORE).all()
        assert (batch.roles_BS[row, outside] == T).all()
    assert batch.dialogues == ["one", "two", "words"] and batch.sources == ["source"] * 3


def test_words_alone_ask_for_no_features() -> None:
    batch = collate([WORDS, WORDS], None)
    assert batch.streams == {} and batch.slot_N.numel() == 0 and batch.seconds_C.numel() == 0


def test_wrong_slots_are_our_mistake_and_loud() -> None:
    wrong = item("wrong", [A, A, W], [("xy", 3)])
    with pytest.raises(AssertionError, match="audio slots"):
        collate([wrong], features)
    with pytest.raises(AssertionError, match="features"):
        collate([ONE], None)


def test_moving_keeps_everything() -> None:
    batch = collate([ONE, TWO], features)
    moved = batch.to("cpu")
    assert torch.equal(moved.ids_BS, batch.ids_BS) and moved.dialogues == batch.dialogues
    assert torch.equal(moved.streams["fast"].x_BTD, batch.streams["fast"].x_BTD)
