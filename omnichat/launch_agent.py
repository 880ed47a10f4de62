"""torchrun as a child of the driver: starts this node's workers and writes which of them died, and how, as JSON."""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import get_args_parser, run

from omnichat.training.liveness import last_word


def main(arguments: list[str]) -> int:
    """Run torchrun with `arguments[2:]`; failures go to the file `arguments[0]` or to the store at port `arguments[1]`.

    People read the driver's words.
    """
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    try:
        run(get_args_parser().parse_args(arguments[2:]))
    except ChildFailedError as error:
        failures = [
            {"rank": rank, "pid": failure.pid, "exit": failure.exitcode, "time": failure.timestamp}
            for rank, failure in error.failures.items()
        ]
        last_word(Path(arguments[0]), failures, int(arguments[1]))
        return 1
    except SignalException:
        return 1  # whoever sent the signal knows
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
