"""What every engine keeps: all results, no trace of who made them, and no waiting for the dead."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from omnichat.synthesis.engines.base import Engine
from omnichat.synthesis.engines.local import LocalEngine
from omnichat.synthesis.engines.ray_data import RayEngine
from omnichat.utils.errors import UserError

ENGINES: dict[str, Callable[[], Engine]] = {
    "one": lambda: LocalEngine(1),
    "two": lambda: LocalEngine(2),
    "ray": lambda: RayEngine(2),
}


def add(job: int, shared: int) -> tuple[int, int]:
    if job == 99:
        raise UserError("99 is not to be had")
    return job, job + shared


def die(job: int, shared: int) -> int:
    if job == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return job


@pytest.mark.parametrize(  # Ray is also met by test_stages.py, on a corpus
    "name", [pytest.param(name, marks=pytest.mark.campaign) if name == "ray" else name for name in ENGINES]
)
def test_results_are_those_of_the_function_round_after_round(name: str) -> None:
    if name == "ray":
        pytest.importorskip("ray")
    with ENGINES[name]().start(add, 100) as run:
        assert sorted(run(list(range(20)))) == [(n, n + 100) for n in range(20)]
        assert sorted(run([5])) == [(5, 105)]
        assert list(run([])) == []
        with pytest.raises(UserError, match=r"^99 is not to be had$"):
            list(run([1, 99, 2]))


def test_a_dead_worker_is_told_and_not_waited_for() -> None:
    with pytest.raises(UserError, match="a worker process died"), LocalEngine(2).start(die, 0) as run:
        list(run(list(range(6))))
