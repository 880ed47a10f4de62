"""The training sequences of a source: held in memory, or made anew from a corpus that is read where it lies.

Of a streamed corpus only an index is kept, a memory-mapped file with a few numbers for each sequence. It is made once
for a corpus, a chat format and a fusion, and shared by all runs.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shutil
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from omnichat.data.collate import ClipKey, Item
from omnichat.data.corpus import AnyCorpus
from omnichat.schema import Dialogue
from omnichat.text.chat import ChatFormat, ChatSequence
from omnichat.utils.errors import UserError
from omnichat.utils.files import fsync_folder, read_json, write_json_atomic
from omnichat.utils.log import get_logger, rank
from omnichat.utils.progress import progress
from omnichat.utils.waiting import Patience

log = get_logger(__name__)
FACTS = np.dtype(
    [
        ("dialogue", "<u8"),  # number in the split
        ("sequence", "<u4"),  # of the dialogue's sequences
        ("positions", "<u4"),  # of a batch's budget
        ("turns", "<u4"),  # of the dialogue
        ("seconds", "<f8"),  # of its recorded turns
        ("heard_sec", "<f8"),  # of the clips in the sequence
        ("slots", "<u4"),  # that these take
    ]
)
SUMMED = ("positions", "turns", "seconds", "heard_sec", "slots")
_META = "meta.json"
_FORMAT = 1
_PROBES = 4  # dialogues whose sequences are part of an index's key
_SLOTS_UNTIL_SEC = 60.0  # lengths up to which the fusion's slots are part of it, every 10 ms
_CHUNK = 1024  # sequences written at a time


@dataclass(slots=True)
class Source:
    """One corpus with its share of the mixture."""

    name: str
    corpus: AnyCorpus
    weight: float | None

    @property
    def kind(self) -> str:
        """synthetic or real: what the corpus itself says."""
        return self.corpus.kind


class Items(Protocol):
    """The sequences of one source, by number.

    Attributes:
        facts: array [N] of FACTS.
        totals: sums of its columns in SUMMED, and "longest": number of the sequence with most positions.
    """

    facts: np.ndarray
    totals: dict[str, float]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Item: ...


def make_item(source: Source, dialogue: Dialogue, sequence: ChatSequence) -> Item:
    """A sequence with the files of its clips."""
    keys = []
    for clip in sequence.clips:
        turn = dialogue.turns[clip.turn]
        if turn.sha256 is None:
            raise UserError(f"{source.corpus.root}: dialogue {dialogue.id!r} turn {clip.turn} lacks sha256")
        keys.append(ClipKey(turn.sha256, source.corpus.path_of(turn)))
    return Item(dialogue.id, source.name, sequence, tuple(keys))


def load_items(source: Source, chat: ChatFormat, split: str, index_dir: Path) -> Items:
    """The sequences of a split; `index_dir` is where the indexes of streamed corpora are."""
    if source.corpus.streamed:
        return StreamedItems(source, chat, split, open_index(source, chat, split, index_dir))
    return HeldItems(source, chat, split)


class HeldItems:
    """Sequences in memory: `Items` of a corpus folder."""

    def __init__(self, source: Source, chat: ChatFormat, split: str) -> None:
        self.items: list[Item] = []
        facts = []
        for item, fact in _items_of(source, chat, split):
            self.items.append(item)
            facts.append(fact)
        self.facts = np.array(facts, dtype=FACTS)
        self.totals = _totals(self.facts)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Item:
        return self.items[index]


class StreamedItems:
    """Sequences that are read and tokenised whenever they are asked for: `Items` of a streamed corpus."""

    def __init__(self, source: Source, chat: ChatFormat, split: str, index: Path) -> None:
        self.source, self.chat, self.split, self.index = source, chat, split, index
        self.facts = _map(index)
        self.totals: dict[str, float] = read_json(index / _META)["totals"]

    def __len__(self) -> int:
        return len(self.facts)

    def __getitem__(self, index: int) -> Item:
        fact = self.facts[index]
        dialogue = self.source.corpus.get(self.split, int(fact["dialogue"]))
        sequences = self.chat.sequences(dialogue)
        number = int(fact["sequence"])
        if number >= len(sequences) or sequences[number].positions != fact["positions"]:
            raise UserError(f"{self.index}: not the index of dialogue {dialogue.id!r} as it is now; delete that folder")
        return make_item(self.source, dialogue, sequences[number])

    def __getstate__(self) -> dict[str, Any]:
        return {"parts": (self.source, self.chat, self.split, self.index)}  # the map is opened again over there

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(*state["parts"])  # type: ignore[misc]


def open_index(source: Source, chat: ChatFormat, split: str, index_dir: Path) -> Path:
    """The folder of a source's index, made first where there is none; under a launcher rank 0 does, others wait.

    Raises:
        UserError: a dialogue that the chat format refuses, or a rank that waits in vain.
    """
    name = re.sub(r"[^\w.-]", "_", source.corpus.name)[:60]  # for the eye; the key tells corpora apart
    folder = index_dir / f"{name}-{split}-{index_key(source.corpus, chat, split)[:16]}"
    if (folder / _META).is_file():
        return folder
    if rank() != 0:
        _wait_for(folder)
        return folder
    work = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.partial")
    work.mkdir(parents=True)
    try:
        count = 0
        with (
            open(work / "facts.bin", "wb") as handle,
            progress(source.corpus.count(split), f"index {source.name}", unit="dialogue") as bar,
        ):
            chunk: list[tuple[float, ...]] = []
            last = -1.0
            for _, fact in _items_of(source, chat, split):
                chunk.append(fact)
                count += 1
                if len(chunk) == _CHUNK:
                    handle.write(np.array(chunk, dtype=FACTS).tobytes())
                    chunk = []
                if fact[0] != last:
                    last = fact[0]
                    bar.update(1)
            handle.write(np.array(chunk, dtype=FACTS).tobytes())
        write_json_atomic(work / _META, {"sequences": count, "totals": _totals(_map(work))})
        folder.parent.mkdir(parents=True, exist_ok=True)
        try:
            work.rename(folder)
        except OSError:  # another run was faster; what it made has the same key
            if not (folder / _META).is_file():
                raise
        fsync_folder(folder.parent)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return folder


def index_key(corpus: AnyCorpus, chat: ChatFormat, split: str) -> str:
    """SHA-256 of all that sets an index: corpus, chat config, tokenizer, slots, and how the first dialogues come out.

    The last also tells versions of the code apart.
    """
    probes = [
        [asdict(sequence) for sequence in chat.sequences(corpus.get(split, number))]
        for number in range(min(_PROBES, corpus.count(split)))
    ]
    slots: Callable[[float], int] | None = chat.slots
    described = {
        "format": _FORMAT,
        "corpus": corpus.fingerprint(),
        "split": split,
        "chat": asdict(chat.config),
        "teacher": chat.teacher,
        "tokenizer": chat.tokenizer.backend_tokenizer.to_str(),
        "template": chat.tokenizer.chat_template,
        "slots": [slots(n / 100) for n in range(1, round(_SLOTS_UNTIL_SEC * 100))] if slots is not None else None,
        "probes": probes,
    }
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _items_of(source: Source, chat: ChatFormat, split: str) -> Iterator[tuple[Item, tuple[float, ...]]]:
    """Every sequence of a split with its facts, in the order of the manifest."""
    for number, dialogue in enumerate(source.corpus.iterate(split)):
        seconds = sum(turn.seconds or 0.0 for turn in dialogue.turns if turn.audio is not None)
        for which, sequence in enumerate(chat.sequences(dialogue)):
            heard = sum(clip.seconds for clip in sequence.clips)
            slots = sum(clip.slots for clip in sequence.clips)
            fact = (number, which, sequence.positions, len(dialogue.turns), seconds, heard, slots)
            yield make_item(source, dialogue, sequence), fact


def _totals(facts: np.ndarray) -> dict[str, float]:
    """Exactly rounded sums, so that they do not depend on how the facts came; read a chunk at a time."""
    chunks = [facts[start : start + _CHUNK] for start in range(0, len(facts), _CHUNK)]
    sums = {name: math.fsum(x for chunk in chunks for x in chunk[name].tolist()) for name in SUMMED}
    peaks = [(int(chunk["positions"].max()), -number) for number, chunk in enumerate(chunks)]
    first = -max(peaks)[1] * _CHUNK if peaks else 0
    longest = first + int(facts["positions"][first : first + _CHUNK].argmax()) if peaks else -1
    return sums | {"longest": longest}


def _map(index: Path) -> np.ndarray:
    size = (index / "facts.bin").stat().st_size
    if size == 0:  # nothing to map
        return np.empty(0, dtype=FACTS)
    return np.memmap(index / "facts.bin", dtype=FACTS, mode="r", shape=(size // FACTS.itemsize,))


def _wait_for(folder: Path) -> None:
    patience = Patience(str(folder), "every node must see the same mixture.index_dir")
    while not (folder / _META).is_file():
        patience.sleep(sum(path.stat().st_size for path in folder.parent.glob(f".{folder.name}.*.partial/facts.bin")))
