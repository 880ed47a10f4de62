"""Finds every command that the documentation shows: fenced and indented blocks, commands in the text, help examples."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
SHELL = ("", "bash", "sh", "shell", "console")  # a fence without a language is a shell block, too
PROGRAMS = ("omnichat", "make", "python", "pip", "hf", "tensorboard", "wandb", "curl")
FENCE = re.compile(r"^\s*```+\s*(\w*)\s*$")


@dataclass(frozen=True, slots=True)
class Command:
    """A command as a reader sees it.

    Args:
        place: file:line, relative to the repository.
        text: the command without its comment, its continued lines joined.
        whole: False for a mention inside a sentence, which may leave out what it does not speak of.
    """

    place: str
    text: str
    whole: bool = True

    @property
    def words(self) -> list[str]:
        """As a shell would split it."""
        return shlex.split(self.text)

    @property
    def file(self) -> str:
        return self.place.rpartition(":")[0]


def documents() -> list[Path]:
    """README, CONTRIBUTING and every page of docs/."""
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands_of(name: str, text: str) -> list[Command]:
    """The commands of one Markdown text, in their order.

    In shell blocks every line is a command; in other blocks, and in indented ones, those lines that begin with one of
    PROGRAMS; in sentences, what stands in backticks and begins with one.
    """
    found: list[tuple[int, str, bool]] = []
    prose: list[str] = []
    language: str | None = None
    begun: tuple[int, str] | None = None  # a command that goes on in the next line
    for number, line in enumerate(text.splitlines(), 1):
        fence = FENCE.match(line)
        prose.append("" if fence or language is not None else line)
        if fence:
            assert begun is None, f"{name}:{number}: the block ends inside a command"
            language = fence[1] if language is None else None
            continue
        plain = _without_comment(line.strip()).removeprefix("$ ")
        shown = language in SHELL or (language != "python" and begun is not None)
        shown |= (language not in (None, "python") or line.startswith("    ")) and _program(plain) in PROGRAMS
        if not shown or not plain:
            continue
        first, start = begun or (number, "")
        joined = f"{start} {plain.rstrip(chr(92)).strip()}".strip()
        begun = (first, joined) if plain.endswith("\\") else None
        if begun is None:
            found.append((first, joined, True))
        prose[-1] = ""
    found += _mentions("\n".join(prose))
    return [Command(f"{name}:{number}", command, whole) for number, command, whole in sorted(found)]


def _mentions(prose: str) -> list[tuple[int, str, bool]]:
    spans = re.finditer(r"`([^`]+)`", prose)
    lines = [(prose.count("\n", 0, span.start()) + 1, " ".join(span[1].split())) for span in spans]
    return [(number, command, False) for number, command in lines if _program(command) in PROGRAMS and " " in command]


def _without_comment(line: str) -> str:
    return "" if line.startswith("#") else re.split(r"\s+#\s", line)[0]


def _program(line: str) -> str:
    """The first word, wherever the program lies; "" if there is none."""
    return line.split(" ")[0].removeprefix(".venv/bin/")


def documented() -> list[Command]:
    """Every command of the documentation."""
    return [
        command
        for path in documents()
        for command in commands_of(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
    ]


def help_examples() -> list[Command]:
    """The examples in `omnichat VERB --help`; what follows two spaces is said about the command."""
    found = []
    for path in sorted((ROOT / "configs").glob("*.yaml")):
        lines = path.read_text(encoding="utf-8").splitlines()
        loaded = yaml.safe_load("\n".join(lines))
        template = loaded.get("hydra", {}).get("help", {}).get("template", "")
        if not template:
            continue
        offset = next(number for number, line in enumerate(lines, 1) if line.strip() == "template: |")
        for number, line in enumerate(template.splitlines(), offset + 1):
            if _program(line.strip()) in PROGRAMS and line.startswith("  "):
                command = _without_comment(re.split(r" {2,}", line.strip())[0])
                found.append(Command(f"{path.relative_to(ROOT).as_posix()}:{number}", command))
    return found
