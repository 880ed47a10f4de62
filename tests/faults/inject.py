"""Faults that a process prepares for itself before it runs a verb: each function patches this process alone.

The code under test knows nothing of them: what is patched are the calls that it makes (os.fsync, os.rename, a step).
"""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from omnichat import evaluate, train
from omnichat.data.collate import ClipKey
from omnichat.training import checkpoint, data
from omnichat.training.step import Stepper

Action = Callable[[], None]
WRITES = ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir")  # of the module os, counted by `at_write`


def die() -> None:
    """What kill -9, a power cut or the kernel's memory killer do."""
    os.kill(os.getpid(), signal.SIGKILL)


def ask() -> None:
    """What a scheduler does before it takes the machine away."""
    os.kill(os.getpid(), signal.SIGTERM)


def fill() -> None:
    """What a full disk answers."""
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def refuse() -> None:
    """What a file system that was mounted again read-only answers."""
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def at_step(step: int, where: str, action: Action) -> None:
    """Act in step number `step` (from 0): `begin`, `backward` (gradients there, weights not yet moved) or `end`."""
    take, backward = Stepper.take, Stepper.backward
    inside = False  # a step: the preflight goes backward, too, as if in step 0

    def taken(self: Stepper, now: int, *args: Any, **kwargs: Any) -> Any:
        nonlocal inside
        if now == step and where == "begin":
            action()
        inside = True
        try:
            result = take(self, now, *args, **kwargs)
        finally:
            inside = False
        if now == step and where == "end":
            action()
        return result

    def went_back(self: Stepper, now: int, *args: Any, **kwargs: Any) -> Any:
        result = backward(self, now, *args, **kwargs)
        if inside and now == step and where == "backward":
            action()
        return result

    Stepper.take, Stepper.backward = taken, went_back  # type: ignore[method-assign]


def at_write(number: int, action: Action, counted: list[str] | None = None) -> None:
    """Act before the `number`-th call (from 0), inside checkpoint writes, that changes the disk.

    Args:
        number: of the call.
        action: what happens.
        counted: gets the name of every such call.
    """
    inside = False
    save = checkpoint.save_checkpoint

    def saved(*args: Any, **kwargs: Any) -> Path:
        nonlocal inside
        inside = True
        try:
            return save(*args, **kwargs)
        finally:
            inside = False

    watched = _watch_writes(number, action, counted, lambda: inside)
    checkpoint.save_checkpoint = saved
    checkpoint.save_file = watched("save_file", checkpoint.save_file)


def at_any_write(number: int, action: Action, counted: list[str] | None = None) -> None:
    """Act before the `number`-th call (from 0) of this process that changes the disk; see `at_write`."""
    _watch_writes(number, action, counted, lambda: True)


def _watch_writes(
    number: int, action: Action, counted: list[str] | None, counts: Callable[[], bool]
) -> Callable[[str, Callable[..., Any]], Callable[..., Any]]:
    """Watch the calls of the module os that change the disk, where `counts()`; returns how to watch one more."""
    names = counted if counted is not None else []

    def watched(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watch(*args: Any, **kwargs: Any) -> Any:
            if counts():
                names.append(name)
                if len(names) == number + 1:
                    action()
            return call(*args, **kwargs)

        return watch

    for name in WRITES:
        setattr(os, name, watched(name, getattr(os, name)))
    return watched


def torn_write(number: int) -> None:
    """Die in the middle of the `number`-th tensor file (from 0): half of it is on the disk."""
    save_file, count = checkpoint.save_file, 0

    def half(tensors: dict[str, torch.Tensor], path: Path) -> None:
        nonlocal count
        save_file(tensors, path)
        if count == number:
            with open(path, "rb+") as handle:
                handle.truncate(path.stat().st_size // 2)
                os.fsync(handle.fileno())
            die()
        count += 1

    checkpoint.save_file = half


def at_dev_batch(number: int, action: Action) -> None:
    """Act before the `number`-th batch (from 0) of the run's dev losses."""
    collate, count = train.collate, 0

    def collated(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        if count == number:
            action()
        count += 1
        return collate(*args, **kwargs)

    train.collate = collated  # type: ignore[attr-defined]


def at_decoded_batch(number: int, action: Action, torn: bool = False) -> None:
    """Act when the `number`-th batch (from 0) of replies was kept; `torn`: when half of its line was."""
    kept = evaluate.PartialReplies
    add, count = kept.add, 0

    def added(self: Any, replies: Any) -> None:
        nonlocal count
        before = self.path.stat().st_size
        add(self, replies)
        if count == number:
            if torn:
                os.truncate(self.path, (before + self.path.stat().st_size) // 2)
            action()
        count += 1

    kept.add = added  # type: ignore[method-assign]


def hide_disk_usage() -> None:
    """`shutil.disk_usage` says that all is free, as it does under a quota: a full disk is met by writing only."""
    usage = shutil.disk_usage("/")
    shutil.disk_usage = lambda path: type(usage)(1 << 50, 0, 1 << 50)  # type: ignore[assignment]


class _Poisoned:
    def __init__(self, features: Any, sha256: str) -> None:
        self.features, self.sha256 = features, sha256

    def __call__(self, keys: Sequence[ClipKey]) -> Any:
        heard = self.features(keys)
        bad = [key.sha256 == self.sha256 or self.sha256 == "*" for key in keys]
        return {
            name: [replace(c, x_TD=c.x_TD * torch.nan) if b else c for c, b in zip(clips, bad, strict=True)]
            for name, clips in heard.items()
        }


def poison(sha256: str) -> None:
    """Training hears NaN in one recording (* = in all of them)."""
    collate = data.collate
    data.collate = lambda items, features, *args, **kwargs: collate(  # type: ignore[attr-defined]
        items, _Poisoned(features, sha256), *args, **kwargs
    )
