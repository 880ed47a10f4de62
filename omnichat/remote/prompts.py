"""Versioned prompts: a folder of Jinja2 templates, packaged or the user's own, filled in inside the sandbox."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from omnichat.utils.errors import UserError


class PromptFolder:
    """The templates (.md) of one version of prompts.

    Args:
        key: of the setting, for messages: "writer.prompts".
        version: name of a folder in `packaged` (v1), or a folder of the user's own.
        packaged: folder that holds the packaged versions.

    Attributes:
        folder: where the templates are. sha256: over the names and contents of all .md and .jsonl files.

    Raises:
        UserError: no such version or folder.
    """

    def __init__(self, key: str, version: str, packaged: Path) -> None:
        self.key, self.version = key, version
        self.folder = _folder(key, version, packaged)
        self.sha256 = _hash_of(self.folder)
        self._templates = ImmutableSandboxedEnvironment(
            loader=jinja2.FileSystemLoader(self.folder),
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def fill(self, name: str, values: Mapping[str, Any]) -> str:
        """Return the text of template `name`.md with `values`; UserError for one that is missing or faulty."""
        try:
            return self._templates.get_template(f"{name}.md").render(values).strip()
        except jinja2.TemplateNotFound as error:
            raise UserError(f"{self.key}={self.version!r}: {self.folder} has no file {error.name}") from None
        except (jinja2.TemplateError, UnicodeDecodeError) as error:
            line = getattr(error, "lineno", None)
            where = self.folder / f"{name}.md"
            raise UserError(f"{where}{f':{line}' if line else ''}: {' '.join(str(error).split())}") from None


def _folder(key: str, version: str, packaged: Path) -> Path:
    inside = packaged / version
    if version and inside.parent == packaged and inside.is_dir():
        return inside
    own = Path(version).expanduser()
    if version and own.is_dir():
        return own
    names = ", ".join(sorted(path.name for path in packaged.iterdir() if path.is_dir()))
    raise UserError(f"{key}={version!r}: no such version or folder; packaged versions: {names}")


def _hash_of(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in (".md", ".jsonl"):
            digest.update(f"{path.name}\0".encode())
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
