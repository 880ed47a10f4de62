"""`prepare`: any reader's dialogues -> a corpus folder, every recording checked, every omission counted."""

from __future__ import annotations

import math
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import Tensor

import omnichat
from omnichat.audio.io import MAX_SECONDS, audio_info, resample, save_audio
from omnichat.data.audit import BadAudio, check_recording
from omnichat.data.corpus import MANIFEST, Corpus, check_inside, finish_corpus
from omnichat.data.readers.base import Reader
from omnichat.schema import SPLITS, Dialogue, Scene, Turn
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.files import replace_folder, sha256_bytes, sha256_file, write_jsonl_atomic, write_text_atomic
from omnichat.utils.log import get_logger
from omnichat.utils.progress import progress

log = get_logger(__name__)

NEED_AUDIO = ("all", "user", "none")
ON_BAD_AUDIO = ("raise", "skip")
FORMATS = ("folder", "parquet")
SKIPPED = "skipped.jsonl"  # which dialogues were left out here, and why
ISSUES = "reader_issues.txt"  # what the reader met and left out before
_MAX_RESAMPLING = 20_000_000
Transcribe = Callable[[Sequence["Spoken"]], dict[str, str]]  # recordings -> sha256 -> what a recogniser hears


@dataclass(kw_only=True, slots=True)
class PrepareConfig:
    """How a corpus is prepared.

    Attributes:
        out: folder of the new corpus; an older corpus there is replaced once the new one is whole.
        format: "folder" writes a manifest and a file a recording; "parquet" packs a finished folder as it is.
        name: of the new corpus; None = the reader's.
        splits: which splits to take.
        limit: take the first so many dialogues of each split; None = all.
        sample_rate: Hz of the written files; None = keep each recording's own.
        need_audio: which turns must have a recording: "all", "user" (those that the model hears) or "none" (words
            will do). A dialogue that lacks one is skipped and counted.
        on_bad_audio: what a recording that fails its check does: "raise" stops, "skip" drops its dialogue.
        max_bad_share: "skip" gives up where more than this share of the dialogues with recordings is bad.
        min_sec, max_sec: bounds of a recording's length in seconds.
        max_words_per_sec: a recording with more words a second was cut off or belongs to another turn.
    """

    out: str = "???"  # as in YAML: to be given
    format: str = "folder"
    name: str | None = None
    splits: list[str] = field(default_factory=lambda: list(SPLITS))
    limit: int | None = None
    sample_rate: int | None = 16000
    need_audio: str = "user"
    on_bad_audio: str = "skip"
    max_bad_share: float = 0.05
    min_sec: float = 0.1
    max_sec: float = 60.0
    max_words_per_sec: float = 10.0

    def __post_init__(self) -> None:
        if not self.out:
            raise UserError("out must name the folder of the new corpus")
        if self.format not in FORMATS:
            raise one_of("format", self.format, FORMATS)
        if not self.splits:
            raise UserError(f"splits must name at least one of: {', '.join(SPLITS)}")
        for split in self.splits:
            if split not in SPLITS:
                raise one_of("splits", split, SPLITS)
        if self.limit is not None and self.limit < 1:
            raise UserError(f"limit must be >= 1 or null, got {self.limit}")
        if self.sample_rate is not None and not 4000 <= self.sample_rate <= 192000:
            raise UserError(f"sample_rate must be null or within 4000..192000 Hz, got {self.sample_rate}")
        if self.need_audio not in NEED_AUDIO:
            raise one_of("need_audio", self.need_audio, NEED_AUDIO)
        if self.on_bad_audio not in ON_BAD_AUDIO:
            raise one_of("on_bad_audio", self.on_bad_audio, ON_BAD_AUDIO)
        if not 0 <= self.max_bad_share <= 1:
            raise UserError(f"max_bad_share must lie in [0, 1], got {self.max_bad_share}")
        if not 0 < self.min_sec < self.max_sec <= MAX_SECONDS:
            raise UserError(f"0 < min_sec < max_sec <= {MAX_SECONDS:g} must hold, got {self.min_sec}, {self.max_sec}")
        if not self.max_words_per_sec > 0:
            raise UserError(f"max_words_per_sec must be > 0, got {self.max_words_per_sec}")


@dataclass(frozen=True, slots=True)
class Spoken:
    """A recording of the new corpus: its file, that file's SHA-256 and its length in seconds."""

    path: Path
    sha256: str
    seconds: float


@dataclass(slots=True)
class _Tally:
    """What was left out, and why."""

    read: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    rows: list[dict[str, Any]] = field(default_factory=list)
    bad: int = 0

    def skip(self, dialogue: Dialogue, reason: str, message: str) -> None:
        self.reasons[reason] += 1
        self.rows.append({"dialogue": dialogue.id, "split": dialogue.split, "reason": reason, "message": message})


def prepare(reader: Reader, config: PrepareConfig, transcribe: Transcribe | None = None) -> Corpus:
    """Write what `reader` yields as a corpus folder and return it.

    The folder is made beside `out` and moved there when it is whole: a kill leaves the old corpus, or none. Which
    dialogues were skipped, and why, stands in skipped.jsonl, what the reader met in reader_issues.txt; the counts stand
    in the data card. With `transcribe`, what it hears of each recording becomes the turn's `asr_text`.

    Raises:
        UserError: nothing is left, too much is bad, `out` holds something that is not a corpus, or (on_bad_audio=raise)
            a recording that fails its check, named.
    """
    if config.out == "???":
        raise UserError("out is missing: name the folder of the new corpus")
    out = Path(config.out).expanduser()
    if out.is_file() or (out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).is_file()):
        raise UserError(f"out={config.out!r} exists and is not a corpus folder; choose another")
    if out.is_dir() and out.resolve() == reader.root.resolve():
        raise UserError(f"out={config.out!r} is the folder that is read; choose another")
    tally = _Tally()
    with _work_folder(out) as folder:
        writer = _AudioWriter(reader, folder, config)
        kept = []
        with progress(None, f"prepare {reader.name}", unit=" dialogues") as bar:
            for dialogue in _chosen(reader, config):
                tally.read += 1
                if (done := _prepare_one(dialogue, writer, config, tally)) is not None:
                    kept.append(done)
                bar.update()
        _judge(reader, config, kept, tally)
        if transcribe is not None:
            kept = _transcribed(kept, folder, transcribe)
        if tally.rows:
            rows = [row | {"message": row["message"].replace(f"{reader.root}/", "")} for row in tally.rows]
            write_jsonl_atomic(folder / SKIPPED, rows)
        if issues := _issues(reader):
            write_text_atomic(folder / ISSUES, "".join(issue + "\n" for issue in issues))
            log.warning("%s: the reader met %d irregularities, the first: %s", reader.name, len(issues), issues[0])
        name = config.name if config.name is not None else reader.name
        finish_corpus(
            folder,
            kept,
            name=name,
            kind=reader.kind,
            seed=None,
            checks=_checks(config, tally, kept),
            licences=[{"part": reader.name, "licence": reader.licence}],
            notes=_notes(reader, config),
            versions={"omnichat": omnichat.__version__} | {part: version(part) for part in ("soundfile", "torchaudio")},
        )
        replace_folder(folder, out)
    for reason, count in tally.reasons.most_common():
        log.warning("%s: skipped %d of %d dialogues: %s", reader.name, count, tally.read, reason)
    return Corpus.load(out, verify="exists")


def _chosen(reader: Reader, config: PrepareConfig) -> Iterator[Dialogue]:
    taken: Counter[str] = Counter()
    for dialogue in reader.dialogues():
        if dialogue.split not in config.splits:
            continue
        taken[dialogue.split] += 1
        if config.limit is None or taken[dialogue.split] <= config.limit:
            yield dialogue


def _prepare_one(dialogue: Dialogue, writer: _AudioWriter, config: PrepareConfig, tally: _Tally) -> Dialogue | None:
    """Check and write one dialogue; None, with its reason in the tally, where it is left out."""
    silent = [n for n, turn in enumerate(dialogue.turns) if turn.audio is None and _needs_audio(turn, config)]
    if silent:
        everything = all(turn.audio is None for turn in dialogue.turns)
        reason = "no recordings" if everything else "a turn without its recording"
        message = f"turns {silent} have no readable recording, need_audio={config.need_audio}"
        if config.on_bad_audio == "raise" and not everything:
            raise UserError(f"dialogue {dialogue.id!r}: {message} (on_bad_audio=skip leaves such dialogues out)")
        tally.skip(dialogue, reason, message)
        return None
    try:
        loaded = [writer.load(turn, f"{dialogue.id} turn {number}") for number, turn in enumerate(dialogue.turns)]
    except BadAudio as error:
        if config.on_bad_audio == "raise":
            raise UserError(
                f"{error} (dialogue {dialogue.id!r}; on_bad_audio=skip leaves such dialogues out)"
            ) from None
        tally.bad += 1
        tally.skip(dialogue, error.reason, str(error))
        return None
    pairs = zip(dialogue.turns, loaded, strict=True)
    turns = tuple(writer.write(turn, sound, dialogue.id, number) for number, (turn, sound) in enumerate(pairs))
    return replace(dialogue, turns=turns, scene=writer.copy_scene(dialogue))


def _transcribed(kept: list[Dialogue], folder: Path, transcribe: Transcribe) -> list[Dialogue]:
    """The dialogues with what a recogniser hears of each recording."""
    spoken: dict[str, Spoken] = {}
    for turn in (turn for dialogue in kept for turn in dialogue.turns):
        if turn.audio is not None and turn.sha256 is not None:
            spoken[turn.sha256] = Spoken(folder / turn.audio, turn.sha256, float(turn.seconds or 0.0))
    heard = transcribe(list(spoken.values()))
    return [
        replace(
            dialogue,
            turns=tuple(
                turn if turn.audio is None else replace(turn, asr_text=heard[str(turn.sha256)])
                for turn in dialogue.turns
            ),
        )
        for dialogue in kept
    ]


def _needs_audio(turn: Turn, config: PrepareConfig) -> bool:
    return config.need_audio == "all" or (config.need_audio == "user" and turn.speaker == "A")


class _AudioWriter:
    """Writes each recording once, however many dialogues share it."""

    def __init__(self, reader: Reader, folder: Path, config: PrepareConfig) -> None:
        self.reader = reader
        self.folder = folder
        self.config = config
        self.written: dict[str, Turn] = {}  # by the reader's path

    def load(self, turn: Turn, where: str) -> tuple[Tensor, int] | None:
        """Read and check; None for a turn without a recording or one that is already written. Raises BadAudio."""
        if turn.audio is None or turn.audio in self.written:
            return None
        wave_N, rate = self.reader.read(turn)
        bounds = {"min_sec": self.config.min_sec, "max_sec": self.config.max_sec}
        limit = self.config.max_words_per_sec
        check_recording(wave_N, rate, turn.text, f"{where} ({turn.audio})", **bounds, max_words_per_sec=limit)
        target = rate if self.config.sample_rate is None else self.config.sample_rate
        step = math.gcd(rate, target)
        if rate // step * (target // step) > _MAX_RESAMPLING:  # the filter bank's size; 44100 -> 16000 takes 70,560
            raise BadAudio("sample rate", f"{where} ({turn.audio}): {rate} Hz cannot be resampled to {target} Hz")
        wave_N = resample(wave_N, rate, target)
        return wave_N / max(1.0, float(wave_N.abs().max())), target  # resampling overshoots at loud edges

    def write(self, turn: Turn, sound: tuple[Tensor, int] | None, dialogue_id: str, number: int) -> Turn:
        """Write what `load` returned; return the turn as it stands in the new corpus."""
        if turn.audio is None:
            return turn
        if sound is not None:
            relative = f"audio/{_safe(dialogue_id)}/{number}.flac"
            path = self.folder / relative
            save_audio(path, *sound)
            rate, seconds = audio_info(path)
            self.written[turn.audio] = replace(
                turn, audio=relative, sample_rate=rate, seconds=seconds, sha256=sha256_file(path)
            )
        done = self.written[turn.audio]
        return replace(turn, audio=done.audio, sample_rate=done.sample_rate, seconds=done.seconds, sha256=done.sha256)

    def copy_scene(self, dialogue: Dialogue) -> Scene | None:
        """Copy the background recording of the scene, if the reader has it as a file."""
        scene = dialogue.scene
        if scene is None or scene.audio is None:
            return scene
        check_inside(scene.audio)
        source = self.reader.root / scene.audio
        if not source.is_file():
            self.reader.issues.append(f"{dialogue.id}: the scene's recording {scene.audio} is absent, left open")
            return replace(scene, audio=None)
        relative = f"audio/scenes/{_safe(str(Path(scene.audio).with_suffix('')))}{source.suffix}"
        target = self.folder / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            shutil.copyfile(source, target)
        return replace(scene, audio=relative)


def _judge(reader: Reader, config: PrepareConfig, kept: list[Dialogue], tally: _Tally) -> None:
    """Raise UserError where what is left is no corpus to train on."""
    if tally.read == 0:
        raise UserError(f"{reader.root}: no dialogues in the splits {', '.join(config.splits)}")
    reasons = ", ".join(f"{reason}: {count}" for reason, count in tally.reasons.most_common())
    with_audio = tally.bad + len(kept)
    if tally.bad > config.max_bad_share * with_audio:
        first = next(row["message"] for row in tally.rows)
        raise UserError(
            f"{reader.root}: {tally.bad} of {with_audio} dialogues have bad recordings, more than"
            f" max_bad_share={config.max_bad_share:g} ({reasons}; the first: {first})"
        )
    if not kept:
        hint = "; need_audio=none keeps their words" if config.need_audio != "none" else ""
        raise UserError(f"{reader.root}: all {tally.read} dialogues were skipped ({reasons}{hint})")


def _checks(config: PrepareConfig, tally: _Tally, kept: list[Dialogue]) -> dict[str, Any]:
    limits = {
        "too short": f"{config.min_sec:g} s",
        "too long": f"{config.max_sec:g} s",
        "too short for its words": f"{config.max_words_per_sec:g} words/s",
        "no recordings": f"need_audio={config.need_audio}",
        "a turn without its recording": f"need_audio={config.need_audio}",
    }
    names = [*limits, "missing", "unreadable", "truncated", "empty", "not finite", "silent", "sample rate"]
    rows: dict[str, Any] = {
        name: {"threshold": limits.get(name), "dialogues skipped": tally.reasons[name]} for name in names
    }
    return rows | {"dialogues read": tally.read, "dialogues kept": len(kept)}


def _notes(reader: Reader, config: PrepareConfig) -> list[str]:
    rate = "each recording's own rate" if config.sample_rate is None else f"{config.sample_rate} Hz"
    notes = [f"Prepared from {type(reader).__name__}; mono 16-bit FLAC at {rate}."]
    if issues := _issues(reader):
        notes.append(f"The reader met {len(issues)} irregularities: {ISSUES}. The first: {issues[0]}.")
    return notes


def _issues(reader: Reader) -> list[str]:
    """The reader's issues without this machine's folders: the corpus depends on its source alone."""
    return [issue.replace(f"{reader.root}/", "") for issue in reader.issues]


def _safe(name: str) -> str:
    """A file name of ASCII letters, digits, dot, dash and underscore, never hidden; other names keep their hash."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", name)[:80].lstrip(".")
    return plain if plain == name else f"{plain}-{sha256_bytes(name.encode('utf-8', 'surrogatepass'))[:8]}"


@contextmanager
def _work_folder(out: Path) -> Iterator[Path]:
    """A folder beside `out`; gone on failure, and what a killed run left is removed at the start."""
    folder = out.with_name(f".{out.name}.partial")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
