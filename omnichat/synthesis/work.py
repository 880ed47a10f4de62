"""The work folder beside a corpus: what is done stays done, whoever did it, and is known by what set it.

<out>.work/                  hidden, beside the corpus
  answers/<key>.json         what a language model wrote (its writer's business)
  calibration/<key>.json     what the checks measured of the speakers before the first dialogue
  speech/<key>/              clean clips, where a run ended after them (until=speech | checks)
  checks/<key>.json          findings, where a run ended after them (until=checks)
  stems/<key>/               a finished attempt: its clips as they are heard, and outcome.json

A key is the hash of all that sets the value, so entries of other settings are never taken, several runs (shard=i/n) can
fill one folder, and nothing needs a lock: an entry appears by one rename, and two of one key are equal.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from omnichat.synthesis.base import Script
from omnichat.synthesis.plan import Stem, SynthesisConfig
from omnichat.utils.errors import UserError
from omnichat.utils.files import (
    fsync_folder,
    read_json,
    replace_folder,
    sha256_bytes,
    sha256_file,
    write_json_atomic,
)
from omnichat.utils.log import get_logger

log = get_logger(__name__)

OUTCOME = "outcome.json"
HASHES = "sha256.json"  # in an entry's folder: its key and the hashes of its files
_SEC_A_TURN = 3.2  # measured over the demo's turns: 2.6 to 3.4 s
_FLAC_SHARE = 0.6  # of 16-bit samples
_KEY_LETTERS = 24


@dataclass(frozen=True, slots=True)
class WorkFolder:
    """Paths inside one work folder."""

    root: Path

    @classmethod
    def beside(cls, out: Path) -> WorkFolder:
        """That of the corpus `out`."""
        return cls(out.with_name(f".{out.name}.work"))

    @property
    def answers(self) -> Path:
        """Where a writer keeps what it was answered."""
        return self.root / "answers"

    @property
    def corpus(self) -> Path:
        """Where the corpus is put together."""
        return self.root / "corpus"

    def calibration(self, key: str) -> Path:
        """File of a calibration."""
        return self.root / "calibration" / f"{key}.json"

    def speech(self, key: str) -> Path:
        """Folder of an attempt's clean clips."""
        return self.root / "speech" / key

    def checks(self, key: str) -> Path:
        """File of an attempt's findings."""
        return self.root / "checks" / f"{key}.json"

    def finished(self, key: str) -> Path:
        """Folder of a finished attempt."""
        return self.root / "stems" / key


def digest(value: Any) -> str:
    """Key of a JSON value."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=_plain)
    return sha256_bytes(text.encode("utf-8", "surrogatepass"))[:_KEY_LETTERS]


def attempt_key(parts: str, stem: Stem, script: Script, attempt: int) -> str:
    """Key of one attempt: of its plan, its words, its number and the digest of all parts that turn these
    into clips."""
    return digest({"parts": parts, "stem": asdict(stem), "script": asdict(script), "attempt": attempt})


def write_whole(folder: Path, files: Mapping[str, bytes], documents: Mapping[str, Any] | None = None) -> None:
    """Make a folder appear with all its files and JSON documents and the hashes of both, or leave the equal one that
    another process has made meanwhile."""
    temporary = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.tmp")
    temporary.mkdir(parents=True)
    hashes = {name: sha256_bytes(content) for name, content in files.items()}
    for name, content in files.items():
        (temporary / name).write_bytes(content)
    for name, value in (documents or {}).items():
        write_json_atomic(temporary / name, value)
        hashes[name] = sha256_file(temporary / name)
    write_json_atomic(temporary / HASHES, {"key": folder.name, "files": hashes})
    fsync_folder(temporary)
    if folder.is_dir():
        shutil.rmtree(temporary)
    else:
        replace_folder(temporary, folder)


def read_whole(folder: Path, names: Sequence[str] | None = None) -> dict[str, bytes] | None:
    """The files of a folder that `write_whole` wrote, all or those of the names; None where it is not there, or
    damaged (it is then removed).

    A link is damage wherever it leads: what lies elsewhere is nobody's to read or to change here.
    """
    if not os.path.lexists(folder):
        return None
    try:
        if folder.is_symlink() or not folder.is_dir():
            raise UserError(f"{folder}: is no folder")
        kept = read_json(folder / HASHES)
        if kept["key"] != folder.name:
            raise UserError(f"{folder}: is the entry {kept['key']!r} under another name")
        hashes = kept["files"]
        wanted = sorted(hashes) if names is None else names
        if strange := [name for name in wanted if "/" in name or (folder / name).is_symlink()]:
            raise UserError(f"{folder / strange[0]}: is no file of this folder")
        files = {name: (folder / name).read_bytes() for name in wanted}
        wrong = [f"{name}: another SHA-256" for name, text in files.items() if hashes.get(name) != sha256_bytes(text)]
    except (OSError, TypeError, KeyError, AttributeError, ValueError) as error:
        wrong = [str(error)]
    if wrong:
        log.warning("%s is damaged and is made again (%s)", folder, _line(wrong[0]))
        remove(folder)
        return None
    return files


def write_value(path: Path, value: Any) -> None:
    """Keep a JSON value with its digest."""
    if os.path.lexists(path) and not path.is_file():
        remove(path)
    write_json_atomic(path, {"digest": digest([path.name, value]), "value": value})


def read_value(path: Path) -> Any:
    """The value that `write_value` kept; None where it is not there, or damaged (it is then removed)."""
    if not os.path.lexists(path):
        return None
    try:
        if path.is_symlink():
            raise UserError(f"{path}: is a link")
        kept = read_json(path)
        if kept["digest"] == digest([path.name, kept["value"]]):
            return kept["value"]
        fault = "its digest is another"
    except (TypeError, KeyError, ValueError) as error:
        fault = str(error)
    log.warning("%s is damaged and is measured again (%s)", path, _line(fault))
    remove(path)
    return None


def remove(path: Path) -> None:
    """Remove a file, a folder, or a link but not what it leads to; nothing where nothing is."""
    if path.is_symlink() or path.is_file():
        path.unlink(missing_ok=True)
    elif path.exists():
        shutil.rmtree(path)


def _line(text: str) -> str:
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())[:300]


def check_disk(config: SynthesisConfig, dialogues: int, sample_rate: int) -> None:
    """Raise UserError where the corpus will not fit beside `config.out`.

    Finished clips become the corpus's by hard links, so they lie on the disk once; Parquet shards are a second copy.
    """
    turns = sum(turns * share for turns, share in config.history_turns.items()) + 2 * config.variants_per_dialogue
    needed = dialogues * turns * _SEC_A_TURN * sample_rate * 2 * _FLAC_SHARE
    if config.format == "parquet":
        needed *= 2
    out = Path(config.out).expanduser().absolute()
    nearest = next(path for path in (out, *out.parents) if path.exists())
    free = shutil.disk_usage(nearest).free
    if needed > free:
        raise UserError(
            f"out={config.out}: about {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free; "
            "choose another disk, fewer dialogues, or check_disk=false to start all the same"
        )


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "__dataclass_fields__"):
        return asdict(value)
    if hasattr(value, "tolist"):
        return value.tolist()
    return {"class": type(value).__qualname__, "settings": {k: v for k, v in vars(value).items() if k[0] != "_"}}
