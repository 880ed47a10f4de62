"""Sequences and clips -> one padded batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omnichat.data.feature_cache import EncodedClip, collate_clips
from omnichat.schema import EMOTIONS, PITCHES, SPEEDS, EncodedAudio, Style
from omnichat.text.chat import IGNORE, ChatSequence, Clip, Role


@dataclass(frozen=True, slots=True)
class ClipKey:
    """A recording: hash of its file, and where the file is."""

    sha256: str
    path: Path


@dataclass(frozen=True, slots=True)
class Item:
    """One sequence with the recordings of its clips, in order."""

    dialogue: str
    source: str
    sequence: ChatSequence
    keys: tuple[ClipKey, ...]


Features = Callable[[Sequence[ClipKey]], Mapping[str, list[EncodedClip]]]  # what every expert heard in each clip


@dataclass(slots=True)
class Batch:
    """A padded batch of B sequences with C different clips.

    Attributes:
        ids_BS: int64; 0 at AUDIO and padding positions.
        labels_BS: int64, -100 where not supervised (not shifted).
        roles_BS: uint8, Role values.
        mask_BS: bool, True = not padding.
        slot_N: int64, for the N AUDIO positions in row-major order: row of the flattened [C * slots, D] windows.
        streams: expert -> features of the C clips; empty if there are none.
        seconds_C: float64, lengths of the clips.
        place_C2: int64, row and position of each clip's first slot, where it stands first.
        styles_C3: int64, how each clip is spoken: index of its pitch, speed and emotion; -100 where not labelled.
        dialogues: ids, for logs.
        sources: source of every row.
    """

    ids_BS: Tensor
    labels_BS: Tensor
    roles_BS: Tensor
    mask_BS: Tensor
    slot_N: Tensor
    streams: dict[str, EncodedAudio]
    seconds_C: Tensor
    place_C2: Tensor
    styles_C3: Tensor
    dialogues: list[str]
    sources: list[str]

    @property
    def audio_BS(self) -> Tensor:
        """Bool, True where a window of audio stands."""
        return self.roles_BS == int(Role.AUDIO)

    def to(self, device: Any) -> Batch:
        """Move every tensor to a device."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in values.items():
            if isinstance(value, Tensor):
                values[name] = value.to(device, non_blocking=True)
        values["streams"] = {name: stream.to(device, non_blocking=True) for name, stream in self.streams.items()}
        return Batch(**values)


def collate(items: Sequence[Item], features: Features | None, pad_left: bool = False) -> Batch:
    """Pad the items into a batch; a recording that several items share, after the same words, is held once.

    Variants of a dialogue share its history. After other words it is another clip, for a fusion may look at them.

    `pad_left` is for generation: every prompt then ends at the last position.
    """
    width = max(len(item.sequence) for item in items)
    clips: dict[tuple[Any, ...], _Held] = {}
    for row, item in enumerate(items):
        left = width - len(item.sequence) if pad_left else 0
        for which, key, clip, start in _clips_of(item):
            clips.setdefault(which, _Held(len(clips), key, clip, (row, left + start)))
    most_slots = max((held.clip.slots for held in clips.values()), default=0)
    ids, labels, roles, mask = [], [], [], []
    slot: list[int] = []
    for item in items:
        sequence, pad = item.sequence, width - len(item.sequence)
        left, right = (pad, 0) if pad_left else (0, pad)
        is_audio = [role == Role.AUDIO for role in sequence.roles]
        own_ids = [0 if heard else token for token, heard in zip(sequence.ids, is_audio, strict=True)]
        ids.append([0] * left + own_ids + [0] * right)
        labels.append([IGNORE] * left + sequence.labels + [IGNORE] * right)
        roles.append([int(Role.TEMPLATE)] * left + sequence.roles + [int(Role.TEMPLATE)] * right)
        mask.append([False] * left + [True] * len(sequence) + [False] * right)
        for which, _, clip, _ in _clips_of(item):
            first = clips[which].row * most_slots
            slot += range(first, first + clip.slots)
        assert sum(is_audio) == sum(clip.slots for clip in sequence.clips), "audio slots != clips' slots"
    streams: dict[str, EncodedAudio] = {}
    if clips:
        assert features is not None, "a batch with recordings needs the experts' features"
        heard = features([held.key for held in clips.values()])
        streams = {name: collate_clips(list(encoded)) for name, encoded in heard.items()}
    return Batch(
        ids_BS=torch.tensor(ids),
        labels_BS=torch.tensor(labels),
        roles_BS=torch.tensor(roles, dtype=torch.uint8),
        mask_BS=torch.tensor(mask),
        slot_N=torch.tensor(slot, dtype=torch.int64),
        streams=streams,
        seconds_C=torch.tensor([held.clip.seconds for held in clips.values()], dtype=torch.float64),
        place_C2=torch.tensor([held.place for held in clips.values()], dtype=torch.int64).view(-1, 2),
        styles_C3=torch.tensor([style_indices(held.clip.style) for held in clips.values()]).long().view(-1, 3),
        dialogues=[item.dialogue for item in items],
        sources=[item.source for item in items],
    )


@dataclass(frozen=True, slots=True)
class _Held:
    """A clip of a batch: its row among the clips, its recording, and where it stands first (row, position)."""

    row: int
    key: ClipKey
    clip: Clip
    place: tuple[int, int]


def _clips_of(item: Item) -> Iterator[tuple[tuple[Any, ...], ClipKey, Clip, int]]:
    """(what tells it from other clips, recording, clip, first position) of every clip of a sequence.

    The length is part of it: one recording may be stated in two manifests with lengths that round to other slots.
    """
    sequence = item.sequence
    audio = (place for place, role in enumerate(sequence.roles) if role == Role.AUDIO)
    for key, clip in zip(item.keys, sequence.clips, strict=True):
        start = next(audio, 0)
        for _ in range(clip.slots - 1):
            next(audio, 0)  # that slots and audio positions agree is checked where they are counted
        yield (key.sha256, clip.seconds, tuple(sequence.ids[:start])), key, clip, start


def style_indices(style: Style) -> list[int]:
    """[pitch, speed, emotion] as indices into the schema's labels; -100 for an attribute that is not known."""
    pairs = ((style.pitch, PITCHES), (style.speed, SPEEDS), (style.emotion, EMOTIONS))
    return [IGNORE if value is None else choices.index(value) for value, choices in pairs]
