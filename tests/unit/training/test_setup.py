"""What processes tell each other beside the trainer: that all are there, and that one was asked to stop."""

from __future__ import annotations

import signal
import threading
import time

import pytest
from torch.distributed import HashStore

from omnichat.training.processes import Setup
from omnichat.utils.errors import UserError


def two() -> list[Setup]:
    store = HashStore()
    return [Setup(rank, store, count=2) for rank in range(2)]


def test_the_first_waits_for_all_and_the_others_for_nobody() -> None:
    first, second = two()
    seen: list[bool] = []
    waiting = threading.Thread(target=lambda: seen.append(first.all_here("end")))
    waiting.start()
    time.sleep(0.3)
    assert not seen
    assert second.all_here("end")
    waiting.join(20)
    assert seen == [True]


def test_a_stop_of_one_is_known_to_all_and_ends_the_wait() -> None:
    first, second = two()
    assert first.stopped() is None
    second.say_stopped(signal.SIGINT)
    assert first.stopped() is signal.SIGINT
    assert not first.all_here("end")


def test_a_mistake_in_the_first_reaches_the_others() -> None:
    first, second = two()

    def refuse() -> None:
        raise UserError("leaks=refuse")

    for setup in (first, second):
        with pytest.raises(UserError, match="leaks=refuse"):
            setup.main_says(refuse)


def test_one_process_waits_for_nobody() -> None:
    alone = Setup()
    alone.say_stopped(signal.SIGTERM)
    assert alone.stopped() is None and alone.all_here("end") and alone.main_says(lambda: 3) == 3
