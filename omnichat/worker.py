"""One process of several that `omnichat train` or `evaluate` has started: `python -m omnichat.worker`, see `launch.py`.

It takes the resolved config, whose hash it checks, and leaves `outcome-N.json` for the driver, which alone speaks.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch.distributed import PrefixStore, Store, TCPStore

from omnichat.cli import Ended, expected_ends, quieten
from omnichat.config import SCHEMAS, typed
from omnichat.evaluate import evaluate
from omnichat.train import train
from omnichat.training.liveness import last_word
from omnichat.training.processes import Progress, Setup
from omnichat.utils.errors import UserError
from omnichat.utils.files import sha256_bytes
from omnichat.utils.log import setup_logging

WORK: dict[str, Callable[[Any, Setup], None]] = {"train": train, "evaluate": evaluate}


def main(words: list[str]) -> int:
    """Do this process's part. Returns 0 also for one that was stopped and has saved itself."""
    parser = argparse.ArgumentParser()
    parser.add_argument("verb", choices=tuple(WORK))
    for name in ("config", "sha256", "records", "start"):
        parser.add_argument(name)
    for name in ("driver", "port"):
        parser.add_argument(name, type=int)
    parser.add_argument("command", nargs=argparse.REMAINDER)  # what the user typed after the verb
    given = parser.parse_args(words)
    sys.argv = [f"omnichat {given.verb}", *given.command]
    setup_logging()
    quieten()
    rank, records = int(os.environ["RANK"]), Path(given.records)
    outcome = {"rank": rank, "code": 0, "message": "", "trace": ""}
    try:
        with expected_ends():
            config = read_resolved(given.verb, Path(given.config), given.sha256)
            every_sec = min(1.0, config.launch.timeout_sec / 10)
            progress = Progress(records, rank, every_sec, given.driver, given.start)
            store = shared_store(config.launch.timeout_sec)
            agree(given.sha256, store)
            WORK[given.verb](config, Setup(rank, store, progress, config.launch.count))
            progress.close()
    except Ended as end:
        outcome |= {"code": end.code, "message": end.message}
    except Exception as error:
        outcome |= {"code": 1, "message": f"{type(error).__name__}: {error}", "trace": traceback.format_exc()}
    finally:
        last_word(records / f"outcome-{rank}.json", {**outcome, "time": time.time()}, given.port)
    if torch.distributed.is_initialized() and outcome["code"] in (0, 143, 130):
        torch.distributed.destroy_process_group()
    return 0 if outcome["code"] in (0, 143, 130) else 1


def read_resolved(verb: str, path: Path, sha256: str) -> Any:
    """The verb's config that the driver wrote. Raises UserError if it is not the one that the driver meant."""
    content = path.read_bytes()
    if sha256_bytes(content) != sha256:
        raise UserError(f"{path} has changed since the run was started; start it again")
    return typed(OmegaConf.create(content.decode("utf-8")), SCHEMAS[verb])


def shared_store(timeout_sec: float) -> Store:
    """The key-value store that torchrun keeps for the processes of a run."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    timeout = timedelta(seconds=max(60.0, timeout_sec))
    return PrefixStore("omnichat", TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timeout))


def agree(sha256: str, store: Store) -> None:
    """Raise UserError if this process was started on another config than the first one: nodes must not differ."""
    if os.environ["RANK"] == "0":
        store.set("config", sha256)
    if store.get("config").decode() != sha256:
        raise UserError("the nodes were started with different configs: give all of them the same command")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
