"""Sequences and clips -> one padded batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from omnichat.data.feature_cache import EncodedClip, collate_clips
from omnichat.schema import EMOTIONS, PITCHES, SPEEDS, EncodedAudio, Style
from omnichat.text.chat import IGNORE, ChatSequence, Role


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
    """Pad the items into a batch; a recording that several items share (variants share history) is held once.

    `pad_left` is for generation: every prompt then ends at the last position.
    """
    width = max(len(item.sequence) for item in items)
    # By length, too: one recording may be stated in two manifests with lengths that round to other slots.
    styles: dict[tuple[str, float], list[int]] = {}
    clips: dict[tuple[str, float], tuple[int, ClipKey, float, int]] = {}  # -> row, key, seconds, slots
    for item in items:
        for key, clip in zip(item.keys, item.sequence.clips, strict=True):
            clips.setdefault((key.sha256, clip.seconds), (len(clips), key, clip.seconds, clip.slots))
            styles.setdefault((key.sha256, clip.seconds), style_indices(clip.style))
    most_slots = max((slots for _, _, _, slots in clips.values()), default=0)
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
        for key, clip in zip(item.keys, sequence.clips, strict=True):
            row = clips[key.sha256, clip.seconds][0]
            slot += range(row * most_slots, row * most_slots + clip.slots)
        assert sum(is_audio) == sum(clip.slots for clip in sequence.clips), "audio slots != clips' slots"
    streams: dict[str, EncodedAudio] = {}
    if clips:
        assert features is not None, "a batch with recordings needs the experts' features"
        heard = features([key for _, key, _, _ in clips.values()])
        streams = {name: collate_clips(list(encoded)) for name, encoded in heard.items()}
    return Batch(
        ids_BS=torch.tensor(ids),
        labels_BS=torch.tensor(labels),
        roles_BS=torch.tensor(roles, dtype=torch.uint8),
        mask_BS=torch.tensor(mask),
        slot_N=torch.tensor(slot, dtype=torch.int64),
        streams=streams,
        seconds_C=torch.tensor([seconds for _, _, seconds, _ in clips.values()], dtype=torch.float64),
        styles_C3=torch.tensor(list(styles.values()), dtype=torch.int64).view(-1, 3),
        dialogues=[item.dialogue for item in items],
        sources=[item.source for item in items],
    )


def style_indices(style: Style) -> list[int]:
    """[pitch, speed, emotion] as indices into the schema's labels; -100 for an attribute that is not known."""
    pairs = ((style.pitch, PITCHES), (style.speed, SPEEDS), (style.emotion, EMOTIONS))
    return [IGNORE if value is None else choices.index(value) for value, choices in pairs]
