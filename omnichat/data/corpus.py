"""The corpus folder: written by synthesis and `prepare`, read by training.

<corpus>/manifest.jsonl     one dialogue a line (omnichat.schema)
<corpus>/audio/...          the recordings; paths in the manifest are relative to the corpus folder
<corpus>/checks.jsonl       what the checks measured on each dialogue, and
<corpus>/rejected.jsonl     what they refused: a corpus from synthesis has both
<corpus>/card.json          data card for programs
<corpus>/README.md          data card for people, with its charts in plots/
<corpus>/card.html          data card as a page, with dialogues to listen to
<corpus>/checksums.sha256   of every other file
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal, Protocol, get_args

from omnichat.audio.io import audio_info
from omnichat.data.card import PLOTS, build_card, render_card, summarise
from omnichat.data.card_page import CARD_PAGE, render_page, write_plots
from omnichat.data.card_samples import samples
from omnichat.schema import KINDS, SPLITS, Dialogue, Turn, dialogue_from_json, dialogue_to_json
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.files import (
    iterate_jsonl,
    read_json,
    sha256_bytes,
    sha256_file,
    write_bytes_atomic,
    write_json_atomic,
    write_text_atomic,
)
from omnichat.utils.packed import Recording

MANIFEST = "manifest.jsonl"
REJECTED = "rejected.jsonl"  # scripts and attempts that were refused, and dialogues that were given up, with reasons
FINDINGS = "checks.jsonl"  # what the checks measured on each dialogue and clip
Verify = Literal["exists", "fast", "full"]
OnBadFile = Callable[[Path, str | None, UserError], None]
SECONDS_TOLERANCE = 0.01  # between manifest and header: seconds are often stored rounded


def finish_corpus(
    folder: Path,
    dialogues: Sequence[Dialogue],
    *,
    name: str,
    kind: str,
    seed: int | None,
    checks: Mapping[str, Any],
    licences: Sequence[Mapping[str, Any]],
    notes: Sequence[str],
    versions: Mapping[str, str],
) -> dict[str, Any]:
    """Make a corpus of a folder whose audio files are in place; the manifest is written last, so a kill leaves none.

    The result depends on the arguments and the files alone: no clock, no host. Hidden files and folders (names with a
    leading dot) are working state and belong to no corpus.

    Args:
        folder: the corpus folder, with every file that `Turn.audio` and `Scene.audio` name below it.
        dialogues: in the order of the manifest; a missing `Turn.sha256` is filled in.
        name, kind: of the corpus; kind is "synthetic" or "real".
        seed: that made it, None where nothing was drawn.
        checks: {check: {"threshold": .., "measured": .., "rejected": ..} or a plain number}, shown as tables.
        licences: [{"part": .., "licence": .., ...}].
        notes: sentences for the reader of the card.
        versions: {part: version} of everything that made the corpus.

    Returns:
        The data card as written to card.json.

    Raises:
        UserError: no dialogues, an id given twice, a path that leaves the folder, a missing file, or a file whose hash
            is not the one that its turn states.
    """
    if kind not in KINDS:
        raise one_of("kind", kind, KINDS)
    if not dialogues:
        raise UserError(f"{folder}: no dialogues to write")
    hashes = {path: sha256_file(folder / path) for path in _files_below(folder)}
    done = _with_hashes(folder, dialogues, hashes)
    card = build_card(
        done, name=name, kind=kind, seed=seed, checks=checks, licences=licences, notes=notes, versions=versions
    )
    lines = [json.dumps(dialogue_to_json(dialogue), ensure_ascii=False, allow_nan=False) for dialogue in done]
    manifest = "".join(line + "\n" for line in lines).encode("utf-8")
    write_json_atomic(folder / "card.json", card)
    write_text_atomic(folder / "README.md", render_card(card))
    cards = ["card.json", "README.md", CARD_PAGE, *write_plots(folder, card)]
    write_text_atomic(folder / CARD_PAGE, render_page(card, samples(done, folder)))
    hashes |= {path: sha256_file(folder / path) for path in cards}
    hashes[MANIFEST] = sha256_bytes(manifest)
    sums = "".join(f"{digest}  {path}\n" for path, digest in sorted(hashes.items()))
    write_text_atomic(folder / "checksums.sha256", sums)
    write_bytes_atomic(folder / MANIFEST, manifest)
    return card


class AnyCorpus(Protocol):
    """What training asks of a corpus, whether it is held in memory or read where it lies."""

    @property
    def streamed(self) -> bool:
        """Whether its dialogues are read anew at every access."""

    @property
    def name(self) -> str:
        """Name on the card."""

    @property
    def root(self) -> Path:
        """Its folder."""

    @property
    def kind(self) -> str:
        """synthetic or real."""

    @property
    def stand_in(self) -> bool:
        """Whether it takes a real corpus's place in a demonstration."""

    def fingerprint(self) -> str:
        """Hash of all dialogues and, through theirs, of the recordings."""

    def count(self, split: str) -> int:
        """Number of dialogues of a split."""

    def get(self, split: str, number: int) -> Dialogue:
        """One dialogue of a split, by its number in the manifest's order."""

    def iterate(self, split: str | None = None) -> Iterator[Dialogue]:
        """Every dialogue, or those of one split, in order."""

    def path_of(self, turn: Turn) -> Recording:
        """Where the recording of `turn` is. Raises UserError for a turn without one."""

    def summary(self, split: str | None = None) -> dict[str, Any]:
        """Counts of the corpus, or of one split of it."""


@dataclass(frozen=True, slots=True)
class Corpus:
    """A corpus folder whose manifest has been read and checked: an AnyCorpus in memory.

    `name` is the card's, or the folder's where there is no card.
    """

    streamed: ClassVar[bool] = False

    name: str
    root: Path
    dialogues: tuple[Dialogue, ...]
    by_split: dict[str, tuple[Dialogue, ...]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        by_split = {split: tuple(d for d in self.dialogues if d.split == split) for split in SPLITS}
        object.__setattr__(self, "by_split", by_split)

    @property
    def kind(self) -> str:
        """synthetic or real."""
        return self.dialogues[0].kind

    @property
    def stand_in(self) -> bool:
        """Whether it takes a real corpus's place in a demonstration."""
        return any(dialogue.stand_in for dialogue in self.dialogues)

    @classmethod
    def load(cls, path: str | Path, verify: str = "fast", on_bad_audio: OnBadFile | None = None) -> Corpus:
        """Read a corpus folder.

        Args:
            path: the folder.
            verify: "exists" looks only whether each audio file is there; "fast" also compares its header's rate and
                length with the manifest; "full" also its SHA-256.
            on_bad_audio: told (path, the manifest's SHA-256, error) of each audio file that is missing or wrong; None:
                the first is an error.

        Raises:
            UserError: missing folder, no manifest, `manifest.jsonl:LINE: reason`, no dialogues, or an audio file that
                is missing or is not the one that the manifest describes.
        """
        root = Path(path).expanduser()
        if verify not in get_args(Verify):
            raise one_of("verify", verify, get_args(Verify))
        if not root.is_dir():
            raise UserError(f"{root}: no such corpus folder")
        if not (root / MANIFEST).is_file():
            raise UserError(f"{root}: holds no {MANIFEST}; a corpus is written by `omnichat synthesize` or `prepare`")
        dialogues = tuple(dialogue for _, dialogue in read_manifest(root / MANIFEST))
        if not dialogues:
            raise UserError(f"{root / MANIFEST}: holds no dialogues")
        card = read_json(root / "card.json") if (root / "card.json").is_file() else {}
        name = card.get("name", root.resolve().name) if isinstance(card, dict) else root.resolve().name
        corpus = cls(name=str(name), root=root, dialogues=dialogues)
        corpus.verify(verify, on_bad_audio)
        return corpus

    def count(self, split: str) -> int:
        """Number of dialogues of a split."""
        return len(self.by_split[split])

    def get(self, split: str, number: int) -> Dialogue:
        """Dialogue `number` of a split, in the order of the manifest."""
        return self.by_split[split][number]

    def iterate(self, split: str | None = None) -> Iterator[Dialogue]:
        """Every dialogue, or those of one split, in the order of the manifest."""
        yield from self.dialogues if split is None else self.by_split[split]

    def path_of(self, turn: Turn) -> Path:
        """Where the recording of `turn` is. Raises UserError for a turn without one."""
        if turn.audio is None:
            raise UserError(f"{self.root}: the turn {turn.text!r} has no recording")
        return self.root / turn.audio

    def fingerprint(self) -> str:
        """SHA-256 of the manifest; it covers the audio through the hashes that the manifest holds."""
        return sha256_file(self.root / MANIFEST)

    def summary(self, split: str | None = None) -> dict[str, Any]:
        """Counts of the corpus, or of one split of it.

        Returns:
            {"dialogues", "turns", "recordings", "hours", "kind", "stand_in", "labels": {"pitch": {value: count}, ..}}.
        """
        return summarise(list(self.iterate(split))) | {"kind": self.kind, "stand_in": self.stand_in}

    def verify(self, verify: str, on_bad_audio: OnBadFile | None = None) -> None:
        """Check the audio files against the manifest; see `load`."""
        seen: set[str] = set()
        for dialogue in self.dialogues:
            for number, turn in enumerate(dialogue.turns):
                if turn.audio is not None and turn.audio not in seen:
                    seen.add(turn.audio)
                    try:
                        _verify_turn(self.root, turn, f"dialogue {dialogue.id!r} turn {number}", verify)
                    except UserError as error:
                        if on_bad_audio is None:
                            raise
                        on_bad_audio(self.root / turn.audio, turn.sha256, error)


def read_manifest(path: Path) -> Iterator[tuple[int, Dialogue]]:
    """Yield (line number, dialogue). Every malformed line and repeated id raises UserError with `FILE:LINE: reason`."""
    first: dict[str, int] = {}
    for line, value in iterate_jsonl(path):
        try:
            dialogue = parse_dialogue(value)
        except UserError as error:
            raise UserError(f"{path}:{line}: {error}") from None
        if dialogue.id in first:
            raise UserError(f"{path}:{line}: the id {dialogue.id!r} already stands in line {first[dialogue.id]}")
        first[dialogue.id] = line
        yield line, dialogue


def parse_dialogue(value: Any) -> Dialogue:
    """One object of a manifest, which may come from anywhere: in the schema, and with no path that leaves its folder.

    Raises:
        UserError: what is wrong with it.
    """
    try:
        dialogue = dialogue_from_json(value)
        scene = () if dialogue.scene is None else (dialogue.scene,)
        for holder in (*dialogue.turns, *scene):
            if holder.audio is not None:
                check_inside(holder.audio)
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except RecursionError:
        raise UserError("lists or objects lie in each other too deep") from None
    except UnicodeEncodeError:
        raise UserError("it holds half a surrogate pair or bytes that are not UTF-8") from None
    except OverflowError:
        raise UserError("it holds a number that is too large") from None
    except TypeError as error:  # a value that cannot be compared with a label
        raise UserError(f"a field is of the wrong type: {error}") from None
    return dialogue


def check_inside(path: str, what: str = "audio path") -> None:
    """Raise UserError unless `path` is a plain relative path that stays below its folder, so that no manifest reads
    other files and no message breaks into lines."""
    parts = PurePosixPath(path)
    if parts.is_absolute() or ".." in parts.parts or not parts.parts:
        raise UserError(f"the {what} {path[:80]!r} must be relative to the corpus folder and stay inside it")
    if not path.isprintable() or max(len(part.encode("utf-8")) for part in parts.parts) > 255 or len(path) > 1000:
        raise UserError(f"the {what} {path[:80]!r} holds a control character, or is or has too long a name")


def _files_below(folder: Path) -> list[str]:
    own = {MANIFEST, "card.json", "README.md", CARD_PAGE, "checksums.sha256"}
    files = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        hidden = any(part.startswith(".") for part in relative.parts)
        chart = relative.parts[0] == PLOTS and path.suffix == ".svg"
        if path.is_file() and not hidden and not chart and str(relative) not in own:
            files.append(relative.as_posix())
    return files


def _with_hashes(folder: Path, dialogues: Sequence[Dialogue], hashes: Mapping[str, str]) -> list[Dialogue]:
    """The dialogues with the hash of every recording filled in; UserError where ids, paths or hashes are wrong."""
    done, ids = [], set()
    for dialogue in dialogues:
        if dialogue.id in ids:
            raise UserError(f"{folder}: the dialogue id {dialogue.id!r} occurs twice")
        ids.add(dialogue.id)
        if dialogue.scene is not None and dialogue.scene.audio is not None:
            _hash_of(folder, dialogue.scene.audio, hashes, dialogue.id)
        turns = [
            turn if turn.audio is None else replace(turn, sha256=_checked_hash(folder, turn, hashes, dialogue.id))
            for turn in dialogue.turns
        ]
        done.append(replace(dialogue, turns=tuple(turns)))
    return done


def _hash_of(folder: Path, audio: str, hashes: Mapping[str, str], dialogue_id: str) -> str:
    check_inside(audio)
    if audio not in hashes:
        raise UserError(f"{folder / audio}: no such audio file (dialogue {dialogue_id!r})")
    return hashes[audio]


def _checked_hash(folder: Path, turn: Turn, hashes: Mapping[str, str], dialogue_id: str) -> str:
    assert turn.audio is not None
    found = _hash_of(folder, turn.audio, hashes, dialogue_id)
    if turn.sha256 is not None and turn.sha256 != found:
        raise UserError(f"{folder / turn.audio}: the file's SHA-256 is not the one of dialogue {dialogue_id!r}")
    return found


def _verify_turn(root: Path, turn: Turn, where: str, verify: str) -> None:
    assert turn.audio is not None and turn.seconds is not None
    path = root / turn.audio
    if not path.is_file():
        raise UserError(f"{path}: no such audio file ({where})")
    if verify == "exists":
        return
    rate, seconds = audio_info(path)
    if rate != turn.sample_rate:
        raise UserError(f"{path}: sample rate is {rate} Hz, the manifest says {turn.sample_rate} Hz ({where})")
    if abs(seconds - turn.seconds) > SECONDS_TOLERANCE:
        raise UserError(f"{path}: lasts {seconds:.3f} s, the manifest says {turn.seconds:.3f} s ({where})")
    if verify == "full" and turn.sha256 is not None and sha256_file(path) != turn.sha256:
        raise UserError(f"{path}: SHA-256 is not the manifest's ({where})")
