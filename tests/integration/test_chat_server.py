"""Script writer and judge, and a real chat server: `transformers serve` with the packaged model, behind a proxy."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from itertools import chain, repeat
from pathlib import Path

import pytest

from omnichat.evaluation.judge.verdict import REASONS
from omnichat.remote.answers import AnswerStore
from omnichat.schema import Style
from omnichat.synthesis.base import Rejected, Script
from omnichat.utils.llm_files import local_llm
from tests.helpers.fault_proxy import FaultProxy
from tests.helpers.judging import openai_judge
from tests.helpers.scripts import openai_writer, request
from tests.unit.evaluation.builders import build

pytest.importorskip("uvicorn")
pytestmark = pytest.mark.slow
ASKED = request(5, turns=0, styles=(Style("high", "fast", "happy"),), topic="the garden")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """(address, the model's name) of the server."""
    model, port = local_llm("asset:smollm2"), _free_port()
    log = tmp_path_factory.mktemp("serve") / "log"
    code = "from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-c", code, "serve", model, "--host", "127.0.0.1", "--port", str(port)]
    with open(log, "wb") as out:
        server = subprocess.Popen(
            [*command, "--device", "cpu", "--dtype", "float32"],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", server, log)
        yield f"http://127.0.0.1:{port}/v1", model
    finally:
        server.terminate()
        server.wait(timeout=60)


def _wait_for(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(600):
        assert server.poll() is None, log.read_text(errors="replace")[-2000:]
        try:
            opener.open(address, timeout=5).close()
            return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"the server does not answer: {log.read_text(errors='replace')[-2000:]}")


def test_a_script_is_asked_of_a_real_server(
    served: tuple[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Through dropped and failed requests to an answer, whose tokens are counted, though it ignores the schema."""
    url, model = served
    faults = chain(["drop", "500", "truncated"], repeat(None))
    with FaultProxy(url, faults) as proxy, caplog.at_level(logging.WARNING, logger="omnichat"):
        settings = {"model": model, "examples": 0, "max_tokens": 160, "limits": {"timeout_sec": 300.0}}
        (got,) = openai_writer(proxy.url, **settings).write_batch([ASKED], tmp_path)
        assert proxy.made == {"drop": 1, "500": 1, "truncated": 1, "passed": 1}
        again = openai_writer(proxy.url, **settings)
        assert list(again.write_batch([ASKED], tmp_path)) == [got] and proxy.made["passed"] == 1
    assert isinstance(got, Script) or (isinstance(got, Rejected) and got.reasons)
    (path,) = tmp_path.glob("??/*.json")
    answer = json.loads(path.read_text())["answer"]
    assert answer["text"].strip() and answer["prompt_tokens"] > 300 and 0 < answer["completion_tokens"] <= 160
    kept = again.usage(tmp_path)["kept"]
    assert (kept["answers"], kept["completion_tokens"]) == (1, answer["completion_tokens"])
    if answer["finish"] == "stop" and isinstance(got, Rejected):
        assert "do not keep to the JSON schema" in caplog.text


def test_an_answer_that_ignores_the_schema_changes_what_is_asked_for(
    served: tuple[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """This server knows no response_format and says so to nobody; asked for two words it ends of its own accord."""
    url, model = served
    for name in ("emotion", "audio", "music", "system"):
        (tmp_path / f"{name}.md").write_text("Say only: Good morning.")
    with FaultProxy(url, [None]) as proxy, caplog.at_level(logging.WARNING, logger="omnichat"):
        writer = openai_writer(
            proxy.url, model=model, prompts=str(tmp_path), max_tokens=100, temperature=0.0, concurrency=1
        )
        got = list(writer.write_batch([ASKED, request(6, turns=0)], tmp_path / "store"))
        kinds = [body["response_format"]["type"] for body in proxy.bodies]
    assert got == [Rejected(("the answer is not a JSON object",))] * 2
    assert kinds[0] == "json_schema" and "json_object" in kinds[1:]
    assert caplog.text.count("going on with json_object") == 1


def test_a_reply_is_judged_by_a_real_server(served: tuple[str, str], tmp_path: Path) -> None:
    """A model as small as this grades badly; its answer is a score or is counted as none, and is paid once."""
    url, model = served
    asked = [build("a", scenario="daily", hypothesis="How nice!", history=())]
    with FaultProxy(url, chain(["drop", "500"], repeat(None))) as proxy:
        settings = {"model": model, "max_tokens": 40, "samples": 1, "limits": {"timeout_sec": 300.0}}
        judge = openai_judge(proxy.url, **settings)
        got = judge.judge(asked, AnswerStore(tmp_path, judge.prices))
        assert proxy.made == {"drop": 1, "500": 1, "passed": 1}
    assert len(got[0].samples) + len(got[0].reasons) == 1 and set(got[0].reasons) <= set(REASONS)
    again = openai_judge("http://127.0.0.1:9/v1", **settings)
    store = AnswerStore(tmp_path, again.prices)
    assert again.judge(asked, store) == got
    paid = store.usage()["paid"]
    assert paid["answers"] == 1 and paid["prompt_tokens"] > 400 and 0 < paid["completion_tokens"] <= 40
    assert paid["cost"] == pytest.approx((paid["prompt_tokens"] + 2 * paid["completion_tokens"]) / 1e6, abs=1e-6)
