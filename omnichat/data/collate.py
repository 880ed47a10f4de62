"""Sequences and clips -> one padded batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from omnichat.data.feature_cache import EncodedClip, collate_clips
from omnichat.data.packing import pack_rows
from omnichat.schema import EMOTIONS, PITCHES, SPEEDS, EncodedAudio, Style
from omnichat.text.chat import IGNORE, ChatSequence, Clip, Role
from omnichat.utils.packed import Recording


@dataclass(frozen=True, slots=True)
class ClipKey:
    """A recording: hash of its file, and where the file is."""

    sha256: str
    path: Recording


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
    """A padded batch of B rows with C different clips. A row is a sequence, or several if the batch is packed.

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
        dialogues: ids of the sequences in row-major order, for logs.
        sources: source of every sequence.
        position_BS: int64, of a packed batch: the position inside its own sequence, which begins at 0; 0 in padding.
        teacher: the same sequences in the same rows for the teacher, with words in place of audio; for distillation.
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
    position_BS: Tensor | None = None
    teacher: Batch | None = None

    @property
    def audio_BS(self) -> Tensor:
        """Bool, True where a window of audio stands."""
        return self.roles_BS == int(Role.AUDIO)

    def pin_memory(self) -> Batch:
        """Put every tensor where a device can fetch it by itself; a DataLoader calls this."""
        return self._mapped(lambda tensor: tensor.pin_memory())

    def to(self, device: Any) -> Batch:
        """Move every tensor to a device."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> Batch:
        """With every tensor changed."""
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        for name, value in values.items():
            if isinstance(value, Tensor):
                values[name] = change(value)
        values["streams"] = {
            name: EncodedAudio(*[change(getattr(stream, f.name)) for f in fields(stream)])
            for name, stream in self.streams.items()
        }
        if self.teacher is not None:
            values["teacher"] = self.teacher._mapped(change)
        return Batch(**values)


def collate(items: Sequence[Item], features: Features | None, pad_left: bool = False, pack: int = 0) -> Batch:
    """Pad the items into a batch; a recording that several items share, after the same words, is held once.

    Variants of a dialogue share its history. After other words it is another clip, for a fusion may look at them.

    `pad_left` is for generation: every prompt then ends at the last position. `pack` is `loader.pack`: how many
    positions of several items share a row; 0 gives every item its own.
    """
    assert not (pad_left and pack), "prompts are not packed"
    rows = [[items[i] for i in row] for row in pack_rows([item.sequence.positions for item in items], pack)]
    batch = _batch_of(rows, features, pad_left, packed=pack > 0)
    if all(item.sequence.teacher is not None for item in items):
        teachers = [[_for_teacher(item) for item in row] for row in rows]
        batch.teacher = _batch_of(teachers, None, pad_left, packed=pack > 0)
    return batch


def _for_teacher(item: Item) -> Item:
    assert item.sequence.teacher is not None
    return Item(item.dialogue, item.source, item.sequence.teacher, ())


def _batch_of(rows: list[list[Item]], features: Features | None, pad_left: bool, packed: bool) -> Batch:
    width = max(sum(len(item.sequence) for item in row) for row in rows)
    items = [item for row in rows for item in row]

    def padded(values: Callable[[ChatSequence], Sequence[int]], fill: int) -> Tensor:
        lines = []
        for row in rows:
            line = [value for item in row for value in values(item.sequence)]
            pad = [fill] * (width - len(line))
            lines.append(pad + line if pad_left else line + pad)
        return torch.tensor(lines)

    held = _held_clips(rows, width, pad_left)
    streams: dict[str, EncodedAudio] = {}
    if held:
        assert features is not None, "a batch with recordings needs the experts' features"
        heard = features([clip.key for clip in held.values()])
        streams = {name: collate_clips(list(encoded)) for name, encoded in heard.items()}
    return Batch(
        ids_BS=padded(_spoken_ids, 0),
        labels_BS=padded(lambda sequence: sequence.labels, IGNORE),
        roles_BS=padded(lambda sequence: sequence.roles, int(Role.TEMPLATE)).to(torch.uint8),
        mask_BS=padded(lambda sequence: [1] * len(sequence), 0).bool(),
        slot_N=torch.tensor(_slots(items, held), dtype=torch.int64),
        streams=streams,
        seconds_C=torch.tensor([each.clip.seconds for each in held.values()], dtype=torch.float64),
        place_C2=torch.tensor([each.place for each in held.values()], dtype=torch.int64).view(-1, 2),
        styles_C3=torch.tensor([style_indices(each.clip.style) for each in held.values()]).long().view(-1, 3),
        dialogues=[item.dialogue for item in items],
        sources=[item.source for item in items],
        position_BS=padded(lambda sequence: range(len(sequence)), 0) if packed else None,
    )


def _spoken_ids(sequence: ChatSequence) -> list[int]:
    """The ids with 0 at AUDIO positions: their marker has no embedding."""
    return [0 if role == Role.AUDIO else token for token, role in zip(sequence.ids, sequence.roles, strict=True)]


def _held_clips(rows: list[list[Item]], width: int, pad_left: bool) -> dict[tuple[Any, ...], _Held]:
    """Every different clip of a batch, in order of appearance."""
    held: dict[tuple[Any, ...], _Held] = {}
    for number, row in enumerate(rows):
        begin = width - sum(len(item.sequence) for item in row) if pad_left else 0
        for item in row:
            for which, key, clip, start in _clips_of(item):
                held.setdefault(which, _Held(len(held), key, clip, (number, begin + start)))
            begin += len(item.sequence)
    return held


def _slots(items: list[Item], held: dict[tuple[Any, ...], _Held]) -> list[int]:
    """`Batch.slot_N` of items in row-major order."""
    most_slots = max((each.clip.slots for each in held.values()), default=0)
    slot: list[int] = []
    for item in items:
        audio = sum(role == Role.AUDIO for role in item.sequence.roles)
        assert audio == sum(clip.slots for clip in item.sequence.clips), "audio slots != clips' slots"
        for which, _, clip, _ in _clips_of(item):
            first = held[which].row * most_slots
            slot += range(first, first + clip.slots)
    return slot


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
