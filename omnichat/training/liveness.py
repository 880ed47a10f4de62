"""Where each process of a run is, so that one that hangs can be named: a collective call cannot say."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

from torch.distributed import TCPStore

from omnichat.utils.errors import UserError
from omnichat.utils.files import read_json, write_json_atomic
from omnichat.utils.log import get_logger

log = get_logger(__name__)
SCORING = "score"  # phase of whoever has all that the others made; takes as long as it takes
SETUP = "setup"  # phase before the first step: loading, filling a cache; may take hours


class Progress:
    """Where this process is, for whoever watches it: `rank-N.json` in `folder`, written by a thread of its own.

    The thread writes while the main thread is in a long call, so a record that grows old means a process that stands
    still or is gone, and a record whose `count` does not change one that hangs.

    Args:
        folder: of the records; None records nothing.
        rank: of this process.
        every_sec: between records.
        driver: process id of whoever started us on this machine; when it is gone, this process asks itself to stop.
        start: name of this start on this machine, which no other has, for process ids repeat over nodes.
    """

    def __init__(
        self,
        folder: Path | None = None,
        rank: int = 0,
        every_sec: float = 1.0,
        driver: int | None = None,
        start: str = "",
    ) -> None:
        self.path = folder / f"rank-{rank}.json" if folder is not None else None
        who = {"rank": rank, "pid": os.getpid(), "start": start}
        self._now: dict[str, Any] = {**who, "step": 0, "phase": SETUP, "count": 0, "since": time.time()}
        self._over = threading.Event()
        if self.path is not None:
            self._write()
            threading.Thread(target=self._beat, args=(every_sec, driver), daemon=True).start()

    def at(self, step: int, phase: str) -> None:
        """This process begins `phase` of `step` (from 0)."""
        later = {"step": step, "phase": phase, "count": self._now["count"] + 1, "since": time.time()}
        self._now = {**self._now, **later}  # in one assignment: the thread reads it

    @property
    def step(self) -> int:
        """The step at which this process is."""
        return int(self._now["step"])

    def close(self) -> None:
        """No more records."""
        self._over.set()

    def _beat(self, every_sec: float, driver: int | None) -> None:
        warned = False
        while not self._over.wait(every_sec):
            try:
                self._write()
            except OSError as error:  # a full disk, a file server that is away: the next beat may come through
                if not warned:
                    log.warning("%s: %s; this process goes on", self.path, error.strerror)
                warned = True
            if driver is not None and not alive(driver):
                driver = None
                os.kill(os.getpid(), signal.SIGTERM)

    def _write(self) -> None:
        assert self.path is not None
        temporary = self.path.with_suffix(".tmp")  # without fsync: a record is of use to the living only
        temporary.write_text(json.dumps({**self._now, "beat": time.time()}))
        os.replace(temporary, self.path)


def alive(pid: int) -> bool:
    """Whether a process of this machine runs (a dead one that nobody has waited for yet does not)."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # no /proc: not Linux, or just gone
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return not Path("/proc/self").exists()


def last_word(path: Path, value: Any, port: int) -> None:
    """Leave a JSON value for the driver: in `path` or, where the disk refuses, in the store that it keeps at `port`."""
    try:
        write_json_atomic(path, value)
    except OSError:
        wait = timedelta(seconds=30)
        TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False, timeout=wait).set(
            path.name, json.dumps(value)
        )


def read_whole(paths: Iterable[Path]) -> list[Any]:
    """What JSON files hold, without those that cannot be read this time: just replaced or gone, or a stale handle."""
    found = []
    for path in paths:
        with contextlib.suppress(UserError, OSError):
            found.append(read_json(path))
    return found


def read_records(folder: Path, since: float) -> dict[int, dict[str, Any]]:
    """Rank -> its last record, of those that can be read and are not older than `since` (seconds since 1970)."""
    found = read_whole(sorted(folder.glob("rank-*.json")))
    return {record["rank"]: record for record in found if record["beat"] >= since}


def describe_hang(records: dict[int, dict[str, Any]], timeout_sec: float, now: float) -> str | None:
    """What to say of the processes that hold up the others; None while there are none.

    A process that does not beat stands still. If all beat and none has come further for `timeout_sec`, those that are
    behind hold up the others, which wait for them in a collective call.

    Args:
        records: of all processes, see `Progress`.
        timeout_sec: how long a process may be silent, and all of them without progress.
        now: seconds since 1970.
    """
    late = [record for record in records.values() if now - record["beat"] > timeout_sec]
    if not late:
        latest = max((record["since"] for record in records.values()), default=now)
        if now - latest <= timeout_sec or any(r["phase"] in (SETUP, SCORING) for r in records.values()):
            return None
        least = min(record["count"] for record in records.values())
        late = [record for record in records.values() if record["count"] == least]
    others = [record for record in records.values() if record not in late]
    said = "; ".join(f"rank {record['rank']} does not go on: last seen {where(record, now)}" for record in late)
    if others:
        said += f"; the others wait, rank {others[0]['rank']} {where(others[0], now)}"
    return said


def where(record: dict[str, Any], now: float) -> str:
    """Place and age of a record, in words."""
    begun = f"begun {now - record['since']:.0f} s ago"
    if record["phase"] == SETUP:
        return f"before the first step ({begun})"
    return f"at step {record['step'] + 1} ({record['phase']}, {begun})"
