"""A corpus that stays in its Parquet shards: dialogues and recordings are read where they lie, a few at a time.

`shards.json`, which `export_parquet` writes, says all that is needed before the first draw, so opening a corpus costs
the same whatever it holds.
"""

from __future__ import annotations

import bisect
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, get_args

from omnichat.data.corpus import AnyCorpus, Corpus, OnBadFile, Verify, parse_dialogue
from omnichat.data.parquet import INDEX
from omnichat.data.parquet_index import check_index
from omnichat.schema import SPLITS, Dialogue, Turn
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.files import read_json, sha256_file
from omnichat.utils.packed import PackedFile, open_shard, read_column


def open_corpus(path: str | Path, verify: str = "fast", on_bad_audio: OnBadFile | None = None) -> AnyCorpus:
    """Open a corpus folder, whether its recordings lie there as files or packed in Parquet; `verify` as in both.

    `on_bad_audio` is as in `Corpus.load`; recordings in Parquet are looked at when they are encoded.
    """
    root = Path(path).expanduser()
    packed = (root / INDEX).is_file() or (not (root / "manifest.jsonl").is_file() and (root / "data").is_dir())
    return ParquetCorpus.load(root, verify) if packed else Corpus.load(root, verify, on_bad_audio)


@dataclass(frozen=True, slots=True)
class ParquetCorpus:
    """A folder of shards. `Turn.audio` of its dialogues is `<shard>/<group>/<row>/<path>`, which `path_of` resolves."""

    streamed: ClassVar[bool] = True

    name: str
    root: Path
    kind: str
    stand_in: bool
    index: dict[str, Any]
    shards: dict[str, list[dict[str, Any]]]  # of each split, in order
    ends: dict[str, list[int]]  # split -> number of the dialogue after each shard's last

    @classmethod
    def load(cls, path: str | Path, verify: str = "fast") -> ParquetCorpus:
        """Read the index of an export.

        Args:
            path: the folder.
            verify: "exists" looks whether each shard is there and has its size; "fast" also reads the footers; "full"
                also every byte, for the SHA-256. A recording's hash is checked again when it is encoded.

        Raises:
            UserError: no export, one of another version, or a shard that is missing or not the one of the index.
        """
        root = Path(path).expanduser()
        if verify not in get_args(Verify):
            raise one_of("verify", verify, get_args(Verify))
        if not (root / INDEX).is_file():
            raise UserError(
                f"{root}: holds no {INDEX}; write it with `omnichat prepare source=corpus format=parquet` (shards that "
                "have none are read by `omnichat prepare source=parquet`)"
            )
        index = read_json(root / INDEX)
        check_index(index, root / INDEX)
        shards = {split: [shard for shard in index["shards"] if shard["split"] == split] for split in SPLITS}
        ends = {split: list(itertools.accumulate(shard["rows"] for shard in shards[split])) for split in SPLITS}
        corpus = cls(index["name"], root, index["kind"], index["stand_in"], index, shards, ends)
        corpus.verify(verify)
        return corpus

    def fingerprint(self) -> str:
        """That of the corpus folder that was packed: a run may change from the one to the other."""
        return str(self.index["fingerprint"])

    def count(self, split: str) -> int:
        """Number of dialogues of a split."""
        return self.ends[split][-1] if self.ends[split] else 0

    def get(self, split: str, number: int) -> Dialogue:
        """Dialogue `number` of a split, in the order of the manifest that was packed."""
        if not 0 <= number < self.count(split):
            raise IndexError(
                f"{self.root}: the split {split} has {self.count(split)} dialogues, {number} was asked for"
            )
        which = bisect.bisect_right(self.ends[split], number)
        shard = self.shards[split][which]
        before = self.ends[split][which - 1] if which else 0
        group, row = divmod(number - before, self.index["group_rows"])
        texts = read_column(self.root / shard["file"], group, "dialogue")
        if row >= len(texts):
            raise UserError(f"{self.root / shard['file']}: group {group} has {len(texts)} rows, row {row} is missing")
        return self._dialogue(texts[row], f"{shard['file']}/{group}/{row}")

    def iterate(self, split: str | None = None) -> Iterator[Dialogue]:
        """Every dialogue, split after split, or those of one."""
        for each in SPLITS if split is None else (split,):
            for number in range(self.count(each)):
                yield self.get(each, number)

    def path_of(self, turn: Turn) -> PackedFile:
        """Where the recording of `turn` is. Raises UserError for a turn without one."""
        if turn.audio is None:
            raise UserError(f"{self.root}: the turn {turn.text!r} has no recording")
        folder, shard, group, row, *path = PurePosixPath(turn.audio).parts
        return PackedFile(self.root / folder / shard, int(group), int(row), "/".join(path))

    def summary(self, split: str | None = None) -> dict[str, Any]:
        """Counts of the corpus, or of one split of it; see `Corpus.summary`."""
        return dict(self.index["summary"]["all" if split is None else split])

    def verify(self, verify: str) -> None:
        """Check the shards against the index; see `load`."""
        for shard in self.index["shards"]:
            self._verify_shard(shard, verify)

    def _verify_shard(self, shard: dict[str, Any], verify: str) -> None:
        path = self.root / shard["file"]
        if not path.is_file():
            raise UserError(f"{path}: no such shard, but {INDEX} names it")
        if path.stat().st_size != shard["bytes"]:
            raise UserError(f"{path}: has {path.stat().st_size} bytes, {INDEX} says {shard['bytes']}")
        if verify == "exists":
            return
        file = open_shard(path)
        if missing := {"dialogue", "audio"} - set(file.schema_arrow.names):
            raise UserError(f"{path}: lacks the column {sorted(missing)[0]!r}")
        found = file.metadata
        if found.num_rows != shard["rows"]:
            raise UserError(f"{path}: has {found.num_rows} rows, {INDEX} says {shard['rows']}")
        size = self.index["group_rows"]
        for group in range(found.num_row_groups):
            held, due = found.row_group(group).num_rows, min(size, found.num_rows - group * size)
            if held != due:
                raise UserError(f"{path}: group {group} has {held} rows; by {INDEX}'s group_rows={size} it holds {due}")
        if verify == "full" and sha256_file(path) != shard["sha256"]:
            raise UserError(f"{path}: SHA-256 is not the one in {INDEX}")

    def _dialogue(self, text: str, place: str) -> Dialogue:
        try:
            dialogue = parse_dialogue(json.loads(text))
        except (ValueError, RecursionError, TypeError) as error:
            raise UserError(f"{self.root / place}: not a dialogue: {error}") from None
        turns = tuple(
            turn if turn.audio is None else replace(turn, audio=f"{place}/{turn.audio}") for turn in dialogue.turns
        )
        scene = dialogue.scene
        if scene is not None and scene.audio is not None:
            scene = replace(scene, audio=f"{place}/{scene.audio}")
        return replace(dialogue, turns=turns, scene=scene)


def plain_paths(dialogue: Dialogue) -> Dialogue:
    """A dialogue of an export with the paths of the folder that was packed, which its variants share."""
    turns = tuple(
        turn if turn.audio is None else replace(turn, audio=turn.audio.split("/", 4)[4]) for turn in dialogue.turns
    )
    return replace(dialogue, turns=turns)
