"""Facts that tell a run made today from one made before: which code, which data."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from omnichat import __version__
from omnichat.data.corpus import MANIFEST
from omnichat.data.parquet import INDEX
from omnichat.data.parquet_corpus import open_corpus
from omnichat.utils.errors import UserError
from omnichat.utils.files import sha256_file

PACKAGE = Path(__file__).resolve().parents[2]


def code_facts() -> dict[str, str | None]:
    """{"version", "commit"}: the last commit that touched the package or its configs, with "+" for changes since.

    Commits of documents or tests do not count. The commit is None in an installed package.
    """
    top = PACKAGE.parent
    paths = [PACKAGE.name, "configs"]
    commit: str | None = None
    if (top / ".git").exists():
        try:
            commit = _git(top, "log", "-1", "--format=%h", "--", *paths)
            commit += "+" if _git(top, "status", "--porcelain", "--", *paths) else ""
        except (OSError, subprocess.CalledProcessError):  # no git here, or a checkout of which it knows nothing
            commit = None
    return {"version": __version__, "commit": commit or None}


def _git(top: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(top), *words], capture_output=True, text=True, check=True, timeout=30)
    return done.stdout.strip()


def is_corpus(path: Path) -> bool:
    """Whether a finished corpus is there."""
    return (path / MANIFEST).is_file() or (path / INDEX).is_file()


def data_fingerprints(paths: Mapping[str, Path]) -> dict[str, str]:
    """Source -> fingerprint of its corpus, of those that are there."""
    return {name: _fingerprint(path) for name, path in paths.items() if is_corpus(path)}


def _fingerprint(path: Path) -> str:
    if (path / INDEX).is_file():  # first, as `open_corpus` does: a folder may hold both
        return open_corpus(path, verify="exists").fingerprint()
    return sha256_file(path / MANIFEST)  # as Corpus.fingerprint, without reading the dialogues


def check_corpora(paths: Mapping[str, Path]) -> None:
    """Raise UserError for a corpus that is not there."""
    for name, path in paths.items():
        if not is_corpus(path):
            raise UserError(f"corpus {name}: {path} holds no finished corpus")
