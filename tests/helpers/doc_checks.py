"""Checks a command of the documentation without running it: it composes, its parser takes it, its target is there."""

from __future__ import annotations

import argparse
import runpy
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from typing import Any
from unittest import mock

import pytest
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser

from omnichat.assembly import check_parts
from omnichat.cli import VERBS, _overrides
from omnichat.config import SCHEMAS, TrainRun
from omnichat.experiments.layouts.base import Layout
from omnichat.utils.parts import check_part
from tests.config.composing import FAMILIES, GIVEN, NEEDED, ROOT, config
from tests.helpers.doc_commands import Command


class Unmet(Exception):
    """Nothing here knows how to check the command."""


class _Parsed(Exception):
    """The script's parser has taken its arguments."""


def check(command: Command) -> None:
    """Check a command; raises Unmet where no way to do so is known, and whatever the check itself finds."""
    words = command.words
    while words and ("=" in words[0] or words[0] == "srun"):  # OMP_NUM_THREADS=1 ..., srun ...
        words = words[1:]
    program = words[0].removeprefix(".venv/bin/") if words else ""
    ways = {"omnichat": _omnichat, "make": _make, "python": _python, "pip": _pip}
    if program not in ways or set(words) & {"|", "||", "&&", ";", "&", ">"}:
        raise Unmet
    ways[program](words[1:], command.whole)


def _omnichat(words: list[str], whole: bool) -> None:
    verb, rest = words[0], [word for word in words[1:] if word != "..."]
    assert verb in VERBS, f"no verb {verb!r}"
    if "--help" in rest or (not rest and not whole):
        return
    overrides = _overrides(verb, rest)
    many = [word for word in overrides if word in ("-m", "--multirun")]
    overrides = [word for word in overrides if word not in ("-m", "--multirun")]
    if overrides[-2:] == ["--cfg", "job"]:
        overrides = overrides[:-2]
    assert not (options := [word for word in overrides if word.startswith("-")]), f"no such option: {options}"
    if not whole or "..." in words:  # what is not spoken of
        given = {word.partition("=")[0] for word in overrides}
        overrides += [needed for needed in NEEDED.get(verb, ()) if needed.partition("=")[0] not in given]
    for job in _jobs(overrides) if many else [overrides]:
        check_config(config(verb, job))


def _jobs(overrides: list[str]) -> list[list[str]]:
    """The first and the last job of a sweep."""
    jobs = BasicSweeper.split_arguments(OverridesParser.create().parse_overrides(overrides), None)[0]
    assert len(jobs) > 1, "a sweep of one job"
    return [jobs[0], jobs[-1]]


def check_config(given: Any) -> None:
    """Check every part that a verb's config names against its constructor."""
    assert type(given) in SCHEMAS.values()
    parts = {entry.name: getattr(given, entry.name) for entry in fields(given) if entry.name in FAMILIES}
    if isinstance(given, TrainRun):
        check_parts(given)
        del parts["fusion"]
    for name, node in parts.items():
        if isinstance(node, Mapping) and "_target_" in node:
            check_part(node, name, FAMILIES[name], GIVEN.get(name, ()))
    for name, node in getattr(given, "layouts", {}).items():
        check_part(node, f"layouts.{name}", Layout)


def _make(words: list[str], whole: bool) -> None:
    """The targets are there, and so is what they run."""
    done = subprocess.run(
        ["make", "-n", "-o", ".venv/.installed", "-o", ".parity/.installed", *words],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr.strip()
    for line in done.stdout.splitlines():
        inner = line.rpartition("|| ")[2]
        if ".venv/bin/omnichat " in inner or ".venv/bin/python scripts/" in inner:
            check(Command("Makefile", inner))


def _python(words: list[str], whole: bool) -> None:
    if words[:1] == ["-c"]:
        compile(words[1], "<documentation>", "exec")
        return
    if not words or not words[0].startswith("scripts/"):
        raise Unmet
    script = ROOT / words[0]
    assert script.is_file(), f"no such file: {words[0]}"
    source = script.read_text(encoding="utf-8")
    assert "import argparse" in source or "omnichat.study import main" in source, "would run: it has no parser"
    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", _parse_all),
        mock.patch.object(argparse.ArgumentParser, "error", _refuse),
        mock.patch.object(argparse.ArgumentParser, "parse_known_args", _parse_known),
        mock.patch.object(sys, "argv", words),
        mock.patch.object(sys, "path", [str(ROOT / "scripts"), *sys.path]),
        pytest.raises(_Parsed),
    ):
        runpy.run_path(str(script), run_name="__main__")


_REAL = argparse.ArgumentParser.parse_known_args


def _parse_all(self: argparse.ArgumentParser, *given: Any, **named: Any) -> None:
    _, unknown = _REAL(self, *given, **named)
    if unknown:
        _refuse(self, f"unrecognized arguments: {unknown}")
    raise _Parsed


def _parse_known(self: argparse.ArgumentParser, *given: Any, **named: Any) -> None:
    _, unknown = _REAL(self, *given, **named)
    assert all("=" in word for word in unknown), f"neither option nor override: {unknown}"
    raise _Parsed


def _refuse(self: argparse.ArgumentParser, message: str) -> None:
    raise ValueError(message)


def _pip(words: list[str], whole: bool) -> None:
    """What is to be installed is ours, with an extra that is there, or one of the packages that we name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    named = {
        requirement.split(">")[0].split("[")[0].strip()
        for group in (project["dependencies"], *extras.values())
        for requirement in group
    }
    asked = [word for word in words[1:] if not word.startswith("-")]
    assert words[0] == "install" and asked
    for word in asked:
        name, _, wanted = word.rstrip("]").partition("[")
        if name in ("omnichat", "."):
            assert set(filter(None, wanted.split(","))) <= set(extras), f"{word}: the extras are {sorted(extras)}"
        else:
            assert name in named, f"{word} stands in no list of pyproject.toml"
