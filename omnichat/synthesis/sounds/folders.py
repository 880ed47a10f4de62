"""Folders whose file names say what sounds: events named after themselves, and music in one folder a mood."""

from __future__ import annotations

import json
from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np

from omnichat.data.audit import BadAudio
from omnichat.schema import SPLITS
from omnichat.synthesis.base import Sound, Wave
from omnichat.synthesis.sounds.base import SoundSource, none_for
from omnichat.synthesis.sounds.keywords import caption_fault
from omnichat.synthesis.sounds.recordings import SUFFIXES, Limits, check_header, check_place, read_checked
from omnichat.utils.assets import ASSETS, resolve_path
from omnichat.utils.errors import UserError
from omnichat.utils.files import sha256_bytes

# file stem -> what the animal does, in words that a recogniser knows ("bleating" comes back as "bleeding"); a recording
# that is not listed is captioned by its name alone
ANIMAL_ACTIONS = {
    "cat": "crying",
    "cow": "calling",
    "dog": "barking",
    "duck": "quacking",
    "frog": "croaking",
    "horse": "calling",
    "owl": "hooting",
    "pig": "grunting",
    "rooster": "calling",
    "sheep": "calling",
}
_SPLIT_RECORDING_SEC = 4.0  # a recording at least this long has one part for training and another for dev and test
_TRAIN_SHARE = 0.6


class _Folder(SoundSource):
    """Recordings below one folder."""

    key: str  # config group, for messages

    def __init__(self, name: str, folder: str, licence: str | None, limits: Limits) -> None:
        super().__init__(name, limits)
        self.folder = folder
        self.licence = licence
        self._files: list[Path] | None = None

    @abstractmethod
    def sounds(self, split: str) -> list[Sound]:
        """See `SoundSource.sounds`."""

    @property
    @abstractmethod
    def split_rule(self) -> str:
        """How the splits differ, a sentence."""

    def load(self, name: str, sample_rate: int) -> Wave:
        """See `SoundSource.load`."""
        path = resolve_path(self.folder) / name.partition("/")[2]
        return self._waves.get(name, sample_rate, lambda: read_checked(path, str(path), sample_rate, self.limits))

    def describe(self) -> dict[str, Any]:
        """See `SoundSource.describe`."""
        asset = (
            ASSETS.get(self.folder.removeprefix("asset:").split("/")[0]) if self.folder.startswith("asset:") else None
        )
        root = resolve_path(self.folder)
        sizes = [[path.relative_to(root).as_posix(), path.stat().st_size] for path in self._recordings()]
        return {
            "name": asset.requirement if asset else self.folder,
            "licence": self.licence or (asset.licence if asset else "the user's own"),
            "split_rule": self.split_rule,
            "recordings": {split: len(self.sounds(split)) for split in SPLITS},
            "left_out": self.left_out(),
            "sha256": sha256_bytes(json.dumps(sizes).encode("utf-8", "surrogatepass")),
        }

    def _recordings(self) -> list[Path]:
        """Every usable file, sorted. Raises UserError where there is none."""
        if self._files is None:
            root = resolve_path(self.folder)
            if not root.is_dir():
                raise UserError(f"{self.key}.folder: {root}: no such folder")
            files = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
            if not files:
                raise UserError(f"{self.key}.folder: {root}: holds no recording ({', '.join(SUFFIXES)})")
            self.looked, usable = len(files), []
            for path in files:
                try:
                    self._check_name(path, root)
                    check_place(path, root, str(path), self.limits)
                    check_header(path, str(path), self.limits)
                    usable.append(path)
                except BadAudio as error:
                    self._issue(str(error), error.reason)
            self._check_share()
            self._files = usable
        return self._files

    def _check_name(self, path: Path, root: Path) -> None:
        """Raise BadAudio for a path that is no text, or where no words can be made of what names the sound."""
        name = path.relative_to(root).as_posix()
        if not name.isprintable():
            raise BadAudio("bad name", f"{str(root / name)!r}: a name with characters that are no text")
        if fault := caption_fault(self._named_by(path)):
            raise BadAudio("bad name", f"{path}: its name makes {fault}")

    @abstractmethod
    def _named_by(self, path: Path) -> str:
        """The part of a path that becomes words."""


class EventFolder(_Folder):
    """Events: one file each, named after what sounds.

    Every split hears the same recordings, for each is another event; of a long one, training hears one part and dev and
    test another.

    Args:
        folder: folder of the recordings, or the packaged "asset:animals".
        licence: of the recordings; null = the package's, or "the user's own".
        limits: what a recording must be.
    """

    key = "events"

    def __init__(self, folder: str, licence: str | None, limits: Limits) -> None:
        super().__init__("animals", folder, licence, limits)

    def _named_by(self, path: Path) -> str:
        return path.stem.replace("_", " ")

    @property
    def split_rule(self) -> str:
        """See `_Folder.split_rule`."""
        return (
            "Animals: every split hears the same recordings; where one lasts at least "
            f"{_SPLIT_RECORDING_SEC:g} s, training hears its first {_TRAIN_SHARE:.0%} and dev and test the rest, else "
            "other signal-to-noise ratios and words only."
        )

    def sounds(self, split: str) -> list[Sound]:
        """See `SoundSource.sounds`."""
        found = []
        for file in self._recordings():
            animal = file.stem.replace("_", " ").lower()
            action = ANIMAL_ACTIONS.get(animal)
            article = "an" if animal[0] in "aeiou" else "a"
            caption = " ".join(filter(None, (article, animal, action)))
            words = {"animal": animal} | ({"action": action} if action else {})
            # an action that several animals share shows nothing
            telling = action is not None and list(ANIMAL_ACTIONS.values()).count(action) == 1
            keywords = tuple(words.values()) if telling else (animal,)
            name = f"{self.name}/{file.relative_to(resolve_path(self.folder)).as_posix()}"
            found.append(Sound(name, caption, keywords, words))
        return none_for(f"events.folder={self.folder}", split, found)

    def heard(self, name: str, split: str, sample_rate: int) -> Wave:
        """The split's part of a long recording, all of a short one."""
        wave_N = self.load(name, sample_rate)
        if len(wave_N) < _SPLIT_RECORDING_SEC * sample_rate:
            return wave_N
        cut = round(len(wave_N) * _TRAIN_SHARE)
        part = wave_N[:cut] if split == "train" else wave_N[cut:]
        return part if np.abs(part).max() > 0 else wave_N  # a pause is nothing to hear


class MusicFolder(_Folder):
    """Music: one folder a mood; file names hold "acoustic" or else are electronic.

    Of each mood's acoustic and of its electronic tracks the last one is test's alone, where there are at least two.

    Args:
        folder: the folder, or the packaged "asset:music".
        licence: of the tracks; null = the package's, or "the user's own".
        limits: what a track must be.
    """

    key = "music"

    def __init__(self, folder: str, licence: str | None, limits: Limits) -> None:
        super().__init__("music", folder, licence, limits)

    def _named_by(self, path: Path) -> str:
        return path.parent.name

    @property
    def split_rule(self) -> str:
        """See `_Folder.split_rule`."""
        return (
            "Music: of each mood's acoustic and of its electronic tracks the last one is test's alone, where there are "
            "at least two; dev hears training's tracks."
        )

    def sounds(self, split: str) -> list[Sound]:
        """See `SoundSource.sounds`."""
        groups: dict[tuple[str, str], list[Path]] = {}
        for file in self._recordings():
            kind = "acoustic" if "acoustic" in file.stem else "electronic"
            groups.setdefault((file.parent.name, kind), []).append(file)
        root = resolve_path(self.folder)
        found = []
        for (mood, kind), files in groups.items():
            if len(files) >= 2:
                files = files[-1:] if split == SPLITS[-1] else files[:-1]
            words = {"mood": mood, "kind": kind}
            for file in files:
                name = f"{self.name}/{file.relative_to(root).as_posix()}"
                found.append(Sound(name, f"{mood} {kind} music", (mood,), words))
        return none_for(f"music.folder={self.folder}", split, found)
