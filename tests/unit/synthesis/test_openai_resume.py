"""A writer killed by SIGKILL goes on where it was: nothing that was kept is asked again, and no word differs."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from tests.helpers.fault_proxy import ChatServer, FaultProxy, behind
from tests.helpers.scripts import by_seed, grammar, openai_writer, request

pytest.importorskip("openai")
REQUESTS = [request(seed, scenario) for seed, scenario in enumerate(["emotion", "audio", "music"] * 6)]
CONCURRENCY = 2


def _work(url: str, store: Path) -> None:
    for _ in openai_writer(url, concurrency=CONCURRENCY).write_batch(REQUESTS, store):
        time.sleep(0.001)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_killed_again_and_again_it_asks_only_for_what_is_missing(tmp_path: Path) -> None:
    server = ChatServer(by_seed(REQUESTS))
    with behind(FaultProxy(server.url, [None, "500", "truncated", None], hold_sec=0.03), server) as proxy:
        kills = 0
        for goal in (3, 6, 10, 13):
            worker = multiprocessing.get_context("fork").Process(target=_work, args=(proxy.url, tmp_path))
            worker.start()
            while proxy.made["passed"] < goal + kills and worker.is_alive():
                time.sleep(0.005)
            assert worker.is_alive(), "it must be killed in the middle of its work"
            os.kill(worker.pid or 0, signal.SIGKILL)
            worker.join()
            kills += 1
            for path in tmp_path.glob("??/*.json"):
                json.loads(path.read_text())  # whole, whenever the kill came
        time.sleep(0.2)  # for what the killed one had under way to leave the proxy
        writer = openai_writer(proxy.url, concurrency=CONCURRENCY)
        assert list(writer.write_batch(REQUESTS, tmp_path)) == [grammar().write(one) for one in REQUESTS]
        assert len(REQUESTS) <= proxy.made["passed"] <= len(REQUESTS) + kills * CONCURRENCY
        asked = proxy.made["passed"]
        assert len(list(openai_writer(proxy.url).write_batch(REQUESTS, tmp_path))) == len(REQUESTS)
        assert proxy.made["passed"] == asked
    usage = writer.usage(tmp_path)
    assert usage["kept"]["answers"] == len(REQUESTS) <= usage["paid"]["answers"] <= asked
