"""Topics from a list: the packaged one, or a text, YAML or CSV file of the user's."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from omnichat.schema import SPLITS
from omnichat.synthesis.splits import check_shares, hash_split
from omnichat.synthesis.topics.base import TopicSource, same_topic
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.files import sha256_bytes

PACKAGED_TOPICS = Path(__file__).with_name("everyday.yaml")
_READERS = (".txt", ".yaml", ".yml", ".csv")
_MAX_CHARS = 200  # a longer topic is a text, or a file that is not what its name says


class TopicList(TopicSource):
    """A list in a file.

    Where the file says which split a topic is of (a YAML mapping, a CSV column), that holds. Else the hash of each
    topic decides, see `hash_split`.

    Args:
        path: null = the packaged list. A .txt file has one topic a line (lines that begin with # are comments); a .yaml
            file is a list, or a mapping from train, dev and test to lists; a .csv file has a header.
        column: the CSV column that holds the topic.
        split_column: the CSV column that holds the split; where a CSV lacks it, the hash decides.
        shares: split -> share, for the hash; they sum to 1.
        licence: of the file; unused for the packaged list.
    """

    def __init__(
        self, path: str | None, column: str, split_column: str, shares: Mapping[str, float], licence: str
    ) -> None:
        check_shares("topics.shares", shares)
        self.path = PACKAGED_TOPICS if path is None else Path(path).expanduser()
        self.licence = "Apache-2.0 (part of omnichat)" if path is None else licence
        found = list(_read(self.path, column, split_column))
        self.fixed = any(split is not None for _, split, _ in found)
        self._topics = _split_up(found, dict(shares), self.fixed)

    def topics(self, split: str) -> Sequence[str]:
        """See `TopicSource.topics`."""
        if split not in SPLITS:
            raise one_of("split", split, SPLITS)
        if not self._topics[split]:
            raise UserError(f"topics: {self.path} has no topic for the split {split}")
        return self._topics[split]

    def describe(self) -> dict[str, Any]:
        """Name, licence, hash and counts."""
        name = "packaged everyday topics" if self.path == PACKAGED_TOPICS else self.path.name
        content = json.dumps(self._topics, ensure_ascii=False).encode("utf-8")
        return {
            "name": name,
            "licence": self.licence,
            "topics": {split: len(topics) for split, topics in self._topics.items()},
            "split_rule": "as the list says" if self.fixed else "by the hash of each topic",
            "sha256": sha256_bytes(content),
        }


def _split_up(
    found: Sequence[tuple[str, str | None, str]], shares: Mapping[str, float], fixed: bool
) -> dict[str, list[str]]:
    """Topics of each split, in the file's order. Raises UserError for a topic that two splits have."""
    by_hash = {} if fixed else hash_split((same_topic(topic) for topic, _, _ in found), shares)
    topics: dict[str, list[str]] = {split: [] for split in SPLITS}
    owner: dict[str, tuple[str, str]] = {}
    for topic, split, where in found:
        key = same_topic(topic)
        split = by_hash[key] if split is None else split
        first = owner.get(key)
        if first is None:
            owner[key] = (split, where)
            topics[split].append(topic)
        elif first[0] != split:
            raise UserError(f"{where}: {topic!r} is of {split}, but of {first[0]} at {first[1]}")
    return topics


def _read(path: Path, column: str, split_column: str) -> Iterator[tuple[str, str | None, str]]:
    """(topic, split or None, where it stands) of every entry. Raises UserError naming file and line."""
    if path.suffix.lower() not in _READERS:
        raise UserError(f"topics.path={path}: must be a file that ends in {', '.join(_READERS)}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"topics.path={path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"topics.path={path}: not readable as UTF-8 text ({error})") from None
    if path.suffix.lower() == ".csv":
        entries = _from_csv(path, text, column, split_column)
    elif path.suffix.lower() == ".txt":
        lines = ((line.strip(), f"{path}:{number}") for number, line in enumerate(text.splitlines(), start=1))
        entries = ((line, None, where) for line, where in lines if line and not line.startswith("#"))
    else:
        entries = _from_yaml(path, text)
    count = 0
    for topic, split, where in entries:
        count += 1
        topic = " ".join(topic.split())
        if not topic or not topic.isprintable() or len(topic) > _MAX_CHARS:
            raise UserError(f"{where}: a topic is 1 to {_MAX_CHARS} printable characters, got {topic[:40]!r}")
        if marks := [sign for sign in topic if sign in "{}[]<>|"]:  # what control tokens and markup are made of
            raise UserError(f"{where}: a topic must not hold {marks[0]!r}, got {topic[:40]!r}")
        yield topic, split, where
    if count == 0:
        raise UserError(f"topics.path={path}: holds no topic")


def _from_yaml(path: Path, text: str) -> Iterator[tuple[str, str | None, str]]:
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise UserError(f"{path}: not readable as YAML: {' '.join(str(error).split())}") from None
    groups: Mapping[str | None, Any] = value if isinstance(value, dict) else {None: value}
    for split, topics in groups.items():
        if split is not None and split not in SPLITS:
            raise one_of(f"{path}: split", split, SPLITS)
        if not isinstance(topics, list):
            raise UserError(f"{path}: must be a list of topics, or a mapping from {', '.join(SPLITS)} to lists")
        for number, topic in enumerate(topics, start=1):
            where = f"{path}: {'' if split is None else split + ' '}topic {number}"
            if not isinstance(topic, str):
                raise UserError(f"{where}: must be text, got {topic!r}")
            yield topic, split, where


def _from_csv(path: Path, text: str, column: str, split_column: str) -> Iterator[tuple[str, str | None, str]]:
    reader = csv.DictReader(text.splitlines(keepends=True), strict=True)
    try:
        names = reader.fieldnames or []
        if column not in names:
            raise one_of(f"{path}:1: topics.column", column, names)
        for row in reader:
            where = f"{path}:{reader.line_num}"
            topic = row[column]
            if topic is None or None in row:
                raise UserError(f"{where}: has another number of fields than the header")
            split = row.get(split_column)
            if split_column in names and split not in SPLITS:
                raise one_of(f"{where}: {split_column}", split, SPLITS)
            yield topic, split, where
    except csv.Error as error:
        raise UserError(f"{path}:{reader.line_num}: not readable as CSV: {error}") from None
