"""Is a corpus what it says it is? Every check is made, and every offender counted; nothing stops at the first."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omnichat.audio.io import audio_info
from omnichat.data.card import PLOTS, summarise
from omnichat.data.corpus import MANIFEST, SECONDS_TOLERANCE, check_inside, parse_dialogue
from omnichat.data.parquet import INDEX
from omnichat.data.parquet_corpus import ParquetCorpus, plain_paths
from omnichat.schema import Dialogue, Turn
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.files import read_json, sha256_file
from omnichat.utils.packed import Recording
from omnichat.utils.progress import progress

LEVELS = ("fast", "full")
CHECKSUMS = "checksums.sha256"
_MAX_WORDS_PER_SEC = 10.0
_SHOWN = 100  # offenders that are kept by name


@dataclass(slots=True)
class Check:
    """One question asked of a corpus.

    Attributes:
        name: what is checked.
        checked: how many things were looked at.
        failed: how many are wrong; `offenders` names the first of them.
        notice: it says how the corpus is; it is no fault.
    """

    name: str
    checked: int = 0
    failed: int = 0
    offenders: list[str] = field(default_factory=list)
    notice: bool = False

    def look(self, fault: str | None) -> None:
        """Count one thing, and what is wrong with it."""
        self.checked += 1
        if fault is not None:
            self.blame(fault)

    def blame(self, fault: str) -> None:
        """Count a fault of what has been looked at."""
        self.failed += 1
        if len(self.offenders) < _SHOWN:
            self.offenders.append(fault)

    @property
    def state(self) -> str:
        """ok, failed, note, or skipped where there was nothing to check."""
        if self.failed:
            return "note" if self.notice else "failed"
        return "ok" if self.checked else "none"


def validate(path: Path, level: str = "fast") -> list[Check]:
    """Check a corpus folder or a Parquet export.

    Args:
        path: the folder.
        level: "fast" reads the headers of the recordings; "full" also every byte, for the hashes.

    Raises:
        UserError: no corpus there at all, or an unknown level.
    """
    if level not in LEVELS:
        raise one_of("verify", level, LEVELS)
    if not path.is_dir():
        raise UserError(f"{path}: no such corpus folder")
    if (path / INDEX).is_file():
        return _validate_export(path, level)
    if not (path / MANIFEST).is_file():
        raise UserError(f"{path}: holds neither {MANIFEST} nor {INDEX}: no corpus folder and no Parquet export")
    manifest, ids = Check("manifest: every line in the schema"), Check("ids: each once")
    dialogues = _read_manifest(path / MANIFEST, manifest, ids)
    return [
        manifest,
        ids,
        _checksums(path, level),
        *_sound(dialogues, lambda turn: path / str(turn.audio), level),
        _scenes(path, dialogues),
        *content_checks(dialogues),
        _card(path, dialogues),
    ]


def _validate_export(path: Path, level: str) -> list[Check]:
    shards = Check("shards: as the index says")
    try:
        corpus = ParquetCorpus.load(path, "full" if level == "full" else "fast")
    except UserError as error:
        shards.look(str(error))
        return [shards]
    shards.checked = len(corpus.index["shards"])
    manifest, ids = Check("rows: every one in the schema"), Check("ids: each once")
    dialogues: list[Dialogue] = []
    seen: set[str] = set()
    for split, ends in corpus.ends.items():
        for number in range(ends[-1] if ends else 0):
            try:
                dialogue = corpus.get(split, number)
            except UserError as error:
                manifest.look(str(error))
                continue
            wrong = dialogue.split != split
            manifest.look(f"{dialogue.id!r} says {dialogue.split}, its shard is of {split}" if wrong else None)
            ids.look(f"{dialogue.id!r} occurs again" if dialogue.id in seen else None)
            seen.add(dialogue.id)
            dialogues.append(dialogue)
    summary = Check("index: its counts are those of the rows")
    counts = summarise([plain_paths(dialogue) for dialogue in dialogues])
    told = corpus.summary()
    for key in ("dialogues", "turns", "recordings"):
        summary.look(None if told[key] == counts[key] else f"{key}: {told[key]} told, {counts[key]} there")
    sound = _sound(dialogues, corpus.path_of, level)
    return [shards, manifest, ids, *sound, *content_checks(list(map(plain_paths, dialogues))), summary]


def _read_manifest(path: Path, manifest: Check, ids: Check) -> list[Dialogue]:
    dialogues: list[Dialogue] = []
    first: dict[str, int] = {}
    with open(path, encoding="utf-8", errors="surrogateescape") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            try:
                dialogue = parse_dialogue(json.loads(line))
            except (ValueError, RecursionError) as error:
                manifest.look(f"{MANIFEST}:{number}: {error}")
                continue
            manifest.look(None)
            again = first.get(dialogue.id)
            ids.look(None if again is None else f"{MANIFEST}:{number}: {dialogue.id!r} stands in line {again}")
            first.setdefault(dialogue.id, number)
            dialogues.append(dialogue)
    if not dialogues and not manifest.failed:
        manifest.blame(f"{MANIFEST}: holds no dialogues")
    return dialogues


def _checksums(root: Path, level: str) -> Check:
    what = "right" if level == "full" else "there"
    check = Check(f"checksums: every file listed, and {what}")
    if not (root / CHECKSUMS).is_file():
        check.look(f"{CHECKSUMS}: no such file")
        return check
    listed: dict[str, str] = {}
    lines = (root / CHECKSUMS).read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        digest, _, name = line.partition("  ")
        try:
            check_inside(name)
        except UserError as error:
            check.look(f"{CHECKSUMS}:{number}: {error}")
            continue
        listed[name] = digest
    with progress(len(listed), "checksums", unit=" files") as bar:
        for name, digest in listed.items():
            fault = None
            if not (root / name).is_file():
                fault = f"{name}: no such file"
            elif (level == "full" or not _is_sound(name)) and sha256_file(root / name) != digest:
                fault = f"{name}: its SHA-256 is another"
            check.look(fault)
            bar.update()
    for file in sorted(root.rglob("*")):
        relative = file.relative_to(root)
        hidden = any(part.startswith(".") for part in relative.parts)
        if file.is_file() and not hidden and relative.as_posix() not in (*listed, CHECKSUMS):
            check.look(f"{relative.as_posix()}: not listed")
    return check


def _is_sound(name: str) -> bool:
    """Whether a file is a recording, whose bytes only the full check reads."""
    return name.startswith("audio/") or not (name.startswith(f"{PLOTS}/") or "/" not in name)


def _sound(dialogues: Sequence[Dialogue], path_of: Any, level: str) -> list[Check]:
    there = Check("recordings: readable, rate and length as the manifest says")
    hashes = Check("recordings: SHA-256 as the manifest says")
    said = Check("recordings: long enough for their words")
    seen: set[str] = set()
    heard = [(d, n, t) for d in dialogues for n, t in enumerate(d.turns) if t.audio is not None]
    with progress(len(heard), "recordings", unit=" turns") as bar:
        for dialogue, number, turn in heard:
            bar.update()
            if turn.audio in seen:
                continue
            seen.add(str(turn.audio))
            where = f"{dialogue.id} turn {number} ({turn.audio})"
            path: Recording = path_of(turn)
            there.look(_header_fault(path, turn, where))
            if level == "full" and turn.sha256 is not None and path.exists():
                hashes.look(_hash_fault(path, turn.sha256, where))
            words, seconds = len(turn.text.split()), turn.seconds or 0.0
            slow = words <= _MAX_WORDS_PER_SEC * seconds + 1
            said.look(None if slow else f"{where}: {words} words in {seconds:.2f} s")
    return [there, hashes, said] if level == "full" else [there, said]


def _header_fault(path: Recording, turn: Turn, where: str) -> str | None:
    try:
        rate, seconds = audio_info(path)
    except UserError as error:
        return f"{where}: {str(error).rpartition(': ')[2]}"
    if rate != turn.sample_rate:
        return f"{where}: {rate} Hz, the manifest says {turn.sample_rate}"
    if abs(seconds - (turn.seconds or 0.0)) > SECONDS_TOLERANCE:
        return f"{where}: {seconds:.3f} s, the manifest says {turn.seconds:.3f}"
    return None


def _hash_fault(path: Recording, digest: str, where: str) -> str | None:
    try:
        return None if sha256_file(path) == digest else f"{where}: its SHA-256 is another"
    except UserError as error:
        return f"{where}: {error}"


def _scenes(root: Path, dialogues: Sequence[Dialogue]) -> Check:
    check = Check("scenes: their recordings are there")
    seen: set[str] = set()
    for dialogue in dialogues:
        if dialogue.scene is None or dialogue.scene.audio is None or dialogue.scene.audio in seen:
            continue
        seen.add(dialogue.scene.audio)
        try:
            audio_info(root / dialogue.scene.audio)
            check.look(None)
        except UserError as error:
            check.look(f"{dialogue.id}: {str(error).removeprefix(f'{root}/')}")
    return check


def content_checks(dialogues: Sequence[Dialogue]) -> list[Check]:
    """What can be asked of dialogues without their files."""
    synthetic = bool(dialogues) and all(dialogue.kind == "synthetic" for dialogue in dialogues)
    return [
        _apart("splits: share no sentence", dialogues, _sentences, notice=not synthetic),
        _apart("splits: share no topic", dialogues, _topics, notice=not synthetic),
        _apart("splits: share no recording of a turn", dialogues, _recordings),
        _variants(dialogues),
        _speakers(dialogues),
        _starts(dialogues),
        *_labels(dialogues),
    ]


def _sentences(dialogue: Dialogue) -> Iterator[str]:
    for turn in dialogue.turns:
        plain = "".join(sign if sign.isalnum() else " " for sign in turn.text.lower())
        yield " ".join(plain.split()) or turn.text


def _topics(dialogue: Dialogue) -> Iterator[str]:
    if dialogue.topic is not None:
        yield dialogue.topic


def _recordings(dialogue: Dialogue) -> Iterator[str]:
    yield from (str(turn.sha256 or turn.audio) for turn in dialogue.turns if turn.audio is not None)


def _apart(name: str, dialogues: Sequence[Dialogue], things: Any, notice: bool = False) -> Check:
    """Whether no thing of a dialogue occurs in two splits: a fault of a corpus that was made, a fact of a real one."""
    check = Check(name, notice=notice)
    owners: dict[str, dict[str, str]] = defaultdict(dict)  # thing -> split -> first dialogue
    for dialogue in dialogues:
        for thing in things(dialogue):
            owners[thing].setdefault(dialogue.split, dialogue.id)
    for thing, splits in owners.items():
        places = ", ".join(f"{split} ({first})" for split, first in splits.items())
        check.look(None if len(splits) < 2 else f"{thing[:80]!r} in {places}")
    return check


def _variants(dialogues: Sequence[Dialogue]) -> Check:
    """A group of variants: the same words and history, different styles, one split, two members at least."""
    check = Check("variants: same words and split, different styles")
    groups: dict[str, list[tuple[Dialogue, int]]] = defaultdict(list)
    for dialogue in dialogues:
        for number, turn in enumerate(dialogue.turns):
            if turn.variant_of is not None:
                groups[turn.variant_of].append((dialogue, number))
    for group, members in groups.items():
        turns = [dialogue.turns[number] for dialogue, number in members]
        history = {tuple((t.speaker, t.text) for t in dialogue.turns[:number]) for dialogue, number in members}
        faults = {
            "one member only": len(members) < 2,
            "several splits": len({dialogue.split for dialogue, _ in members}) > 1,
            "different words": len({turn.text for turn in turns}) > 1,
            "different words before": len(history) > 1,
            "a style twice": len({turn.style for turn in turns}) < len(turns),
        }
        wrong = [fault for fault, is_so in faults.items() if is_so]
        check.look(f"{group}: {', '.join(wrong)}" if wrong else None)
    return check


def _speakers(dialogues: Sequence[Dialogue]) -> Check:
    check = Check("dialogues: two speakers")
    for dialogue in dialogues:
        both = {turn.speaker for turn in dialogue.turns} == {"A", "B"}
        check.look(None if both else f"{dialogue.id}: only {dialogue.turns[0].speaker} speaks")
    return check


def _starts(dialogues: Sequence[Dialogue]) -> Check:
    check = Check("starts: of turns, in order")
    for dialogue in dialogues:
        starts = [turn.start_seconds for turn in dialogue.turns if turn.start_seconds is not None]
        if starts:
            in_order = starts == sorted(starts) and starts[0] >= 0
            check.look(None if in_order else f"{dialogue.id}: {', '.join(f'{start:.2f}' for start in starts)} s")
    return check


def _labels(dialogues: Sequence[Dialogue]) -> Iterator[Check]:
    """Whether the labels of a scenario vary, and whether turns lack one that others carry."""
    for attribute in ("emotion", "pitch", "speed"):
        check = Check(f"labels: {attribute} tells turns apart", notice=True)
        by_scenario: dict[str, list[str | None]] = defaultdict(list)
        for dialogue in dialogues:
            by_scenario[dialogue.scenario] += [getattr(turn.style, attribute) for turn in dialogue.turns]
        for scenario, values in by_scenario.items():
            found = [value for value in values if value is not None]
            if not found:
                continue
            missing, most = len(values) - len(found), max(found.count(value) for value in set(found))
            fault = None
            if most > 0.9 * len(found):
                fault = f"{scenario}: {most / len(found):.0%} of the turns are {max(set(found), key=found.count)}"
            elif missing:
                fault = f"{scenario}: {missing} of {len(values)} turns have none"
            check.look(fault)
        yield check


def _card(root: Path, dialogues: Sequence[Dialogue]) -> Check:
    check = Check("card: its counts are those of the manifest")
    if not (root / "card.json").is_file():
        check.look("card.json: no such file")
        return check
    try:
        card = read_json(root / "card.json")
    except UserError as error:
        check.look(str(error))
        return check
    told: Any = card.get("counts") if isinstance(card, Mapping) else None
    for key, value in summarise(dialogues).items():
        same = isinstance(told, Mapping) and told.get(key) == value
        check.look(None if same else f"{key}: {value} there, the card tells another")
    return check
