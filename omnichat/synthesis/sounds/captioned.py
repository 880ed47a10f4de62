"""Collections of captioned recordings: from rows of any layout to sounds, with a split for each recording."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omnichat.data.audit import BadAudio
from omnichat.schema import SPLITS
from omnichat.synthesis.base import Sound, Wave
from omnichat.synthesis.sounds.base import SoundSource, none_for
from omnichat.synthesis.sounds.keywords import caption_fault, content_words, listed_keywords
from omnichat.synthesis.sounds.recordings import Limits, check_header, read_checked
from omnichat.synthesis.splits import SHARES, check_shares, hash_split
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.files import sha256_bytes
from omnichat.utils.progress import progress

_ARTICLES = {"a", "an", "the", "some", "several", "someone"}


@dataclass(frozen=True, kw_only=True)
class Captions:
    """How rows become captions, keywords and splits.

    Args:
        max_words: a caption with more words is passed over for the recording's next one, and a recording with no
            shorter one is left alone (it is no fault); null = any length. The grammar's frames need short ones.
        ignore: keywords that tell nothing of the sound.
        slot: slot of a writer's templates that the first keyword fills ("mood" for music); null = none: the caption.
        shares: split -> share of the recordings, where the source does not say the splits; they sum to 1.
    """

    max_words: int | None = None
    ignore: list[str] = field(default_factory=list)
    slot: str | None = None
    shares: Mapping[str, float] = field(default_factory=lambda: dict(SHARES))

    def __post_init__(self) -> None:
        if self.max_words is not None and self.max_words < 1:
            raise UserError(f"captions.max_words must be at least 1, got {self.max_words}")
        check_shares("captions.shares", self.shares)


@dataclass(frozen=True, slots=True)
class Entry:
    """One row: where it stands ("file:line"), its recording's name in the source, and what it says of it.

    `keywords` is the text of the keyword column, None where the layout has none; `split` is None where the source does
    not say it.
    """

    where: str
    recording: str
    captions: tuple[str, ...]
    keywords: str | None = None
    split: str | None = None


class CaptionedSource(SoundSource):
    """Base of sources whose recordings have captions in rows.

    One recording is one sound and of one split: no recording of test is heard in train, wherever there are at least as
    many recordings as splits.
    """

    def __init__(self, name: str, licence: str, captions: Captions, limits: Limits) -> None:
        super().__init__(name, limits)
        self.licence = licence
        self.captions = captions
        self._sounds: dict[str, list[Sound]] | None = None
        self._where: dict[str, str] = {}
        self._shared = False  # too few recordings to keep the splits apart
        self.takes_dev = True  # from train, where the source's own splits lack it

    @abstractmethod
    def entries(self) -> Iterator[Entry]:
        """The rows, in order. What cannot be used is noted with `_issue`, and `looked` counts all of them."""

    @abstractmethod
    def content(self, recording: str) -> Path | bytes:
        """The file of a recording, or its bytes. Raises BadAudio where it is not there."""

    @property
    @abstractmethod
    def origin(self) -> str:
        """Where the rows come from, for messages."""

    def sounds(self, split: str) -> list[Sound]:
        """See `SoundSource.sounds`."""
        if split not in SPLITS:
            raise one_of("split", split, SPLITS)
        return none_for(f"{self.name}: {self.origin}", split, self._scan()[split])

    def load(self, name: str, sample_rate: int) -> Wave:
        """See `SoundSource.load`."""
        recording = name.removeprefix(f"{self.name}/")

        def read() -> Wave:
            where = self._where.get(recording, self.origin)
            return read_checked(self.content(recording), where, sample_rate, self.limits)

        return self._waves.get(name, sample_rate, read)

    def describe(self) -> dict[str, Any]:
        """See `SoundSource.describe`."""
        found = self._scan()
        listed = [[sound.name, sound.caption, sound.keywords, split] for split in SPLITS for sound in found[split]]
        rule = "every split hears the same recordings, for there are fewer than splits"
        if not self._shared:
            rule = "no recording is heard in two splits"
        return {
            "name": self.name,
            "licence": self.licence,
            "split_rule": f"{self.name}: {rule}.",
            "recordings": {split: len(sounds) for split, sounds in found.items()},
            "left_out": self.left_out(),
            "sha256": sha256_bytes(json.dumps(listed, ensure_ascii=False).encode("utf-8", "surrogatepass")),
        }

    def _scan(self) -> dict[str, list[Sound]]:
        """Read every row and header once."""
        if self._sounds is None:
            self.issues.clear()
            self.bad.clear()
            self.looked = 0
            rows: dict[str, Entry] = {}
            with progress(None, f"{self.name}: captions", unit="row") as bar:
                for entry in self.entries():
                    bar.update()
                    self._take(entry, rows)
            self._check_share()
            if not rows:
                raise UserError(f"{self.name}: {self.origin}: holds no captioned recording that can be used")
            self._where = {name: entry.where for name, entry in rows.items()}
            self._sounds = self._split_up(rows)
        return self._sounds

    def _take(self, entry: Entry, rows: dict[str, Entry]) -> None:
        """Add a row to those of its recording, or note why not."""
        if reason := _entry_fault(entry):
            self._issue(f"{entry.where}: {reason}", "bad caption")
            return
        first = rows.get(entry.recording)
        if first is None:
            try:
                check_header(self.content(entry.recording), entry.where, self.limits)
            except BadAudio as error:
                self._issue(str(error), error.reason)
                return
            rows[entry.recording] = entry
        elif first.split != entry.split:
            self._issue(
                f"{entry.where}: {entry.recording} is of {entry.split} here, but of {first.split} at {first.where}",
                "in two splits",
            )
        else:
            rows[entry.recording] = replace(first, captions=(*first.captions, *entry.captions))

    def _split_up(self, rows: Mapping[str, Entry]) -> dict[str, list[Sound]]:
        """Sounds of each split, in the order of the rows."""
        shares = self.captions.shares
        open_names = [name for name, entry in rows.items() if entry.split is None]
        splits = hash_split(open_names, shares)
        splits.update({name: entry.split for name, entry in rows.items() if entry.split is not None})
        wanted = [split for split in SPLITS if shares.get(split, 0) > 0]
        self._shared = len(open_names) == len(rows) < len(wanted)
        train = [name for name, split in splits.items() if split == "train"]
        if self.takes_dev and "dev" in wanted and "dev" not in splits.values() and len(train) >= 2:
            # an official split into train and test alone: dev is taken from train
            total = shares.get("train", 0.0) + shares["dev"]
            splits |= hash_split(train, {"train": shares.get("train", 0.0) / total, "dev": shares["dev"] / total})
        found: dict[str, list[Sound]] = {split: [] for split in SPLITS}
        for name, entry in rows.items():
            if (sound := self._sound(name, entry)) is not None:
                for split in wanted if self._shared else [splits[name]]:
                    found[split].append(sound)
        return found

    def _sound(self, recording: str, entry: Entry) -> Sound | None:
        """The sound of a recording; None where no caption is short enough or none has a word to know it by."""
        for text in entry.captions:
            caption = _as_phrase(text)
            if self.captions.max_words is not None and len(caption.split()) > self.captions.max_words:
                continue
            keywords = listed_keywords(entry.keywords or "", self.captions.ignore)
            if not keywords:
                ignored = {word.lower() for word in self.captions.ignore}
                keywords = tuple(word for word in content_words(caption) if word not in ignored)
            if not keywords:
                continue
            words = {"caption": caption}
            if self.captions.slot is not None:
                words[self.captions.slot] = keywords[0]
            return Sound(f"{self.name}/{recording}", caption, keywords, words)
        return None


def _as_phrase(caption: str) -> str:
    """A caption as it stands inside a sentence: "a dog barks" for "A dog barks."."""
    text = " ".join(caption.split()).rstrip(".").strip()
    first = text.split(" ", 1)[0]
    return text[:1].lower() + text[1:] if first.lower() in _ARTICLES or first[1:].islower() else text


def _entry_fault(entry: Entry) -> str | None:
    """What is wrong with a row's captions, or None."""
    faults = (caption_fault(caption) for caption in entry.captions)
    return next((fault for fault in faults if fault), None) if entry.captions else "no caption"


def check_splits(values: Mapping[str, str], key: str) -> None:
    """Raise UserError, naming `key`, unless a mapping's values are splits."""
    for name, split in values.items():
        if split not in SPLITS:
            raise one_of(f"{key}.{name}", split, SPLITS)
