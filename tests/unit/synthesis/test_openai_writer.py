"""The writer behind a chat server: every fault is survived or told in one line, nothing is paid or kept twice."""

from __future__ import annotations

import importlib
import json
import logging
import sys
import time
from itertools import chain, repeat
from pathlib import Path

import pytest

from omnichat.synthesis.base import Rejected, Script, ScriptRequest
from omnichat.utils.errors import UserError
from tests.helpers.fault_proxy import FAULTS, ChatServer, FaultProxy, behind, completion
from tests.helpers.scripts import answer_of, by_seed, grammar, openai_writer, request

pytest.importorskip("openai")
REQUESTS = [request(seed, scenario, split="dev") for seed, scenario in enumerate(["emotion", "audio", "music"] * 4)]
RIGHT = [grammar().write(one) for one in REQUESTS]


def patience(fault: str) -> dict[str, float]:
    """Limits under which the fault is one."""
    return {"timeout_sec": 1.0 if fault in ("slow", "drip") else 60.0, "max_response_bytes": 100_000}


def kept(store: Path) -> list[Path]:
    return sorted(store.glob("??/*.json"))


def test_scripts_come_in_the_order_of_the_requests_and_are_paid_once(tmp_path: Path) -> None:
    with ChatServer(by_seed(REQUESTS)) as server:
        writer = openai_writer(server.url)
        assert list(writer.write_batch(REQUESTS, tmp_path)) == RIGHT
        assert len(server.bodies) == len(REQUESTS)
        again = openai_writer(server.url)
        assert list(again.write_batch(REQUESTS, tmp_path)) == RIGHT
        assert len(server.bodies) == len(REQUESTS), "what is kept is not asked for"
    paid = {"answers": 12, "prompt_tokens": 1200, "completion_tokens": 600, "cost": 0.0024, "currency": "USD"}
    assert writer.usage(tmp_path) == again.usage(tmp_path) == {"kept": paid, "paid": paid}
    assert json.loads((tmp_path / "usage.json").read_text()) == {"kept": paid, "paid": paid}
    body = server.bodies[0]
    assert body["response_format"]["json_schema"]["strict"] is True and body["seed"] == 0
    assert [message["role"] for message in body["messages"]] == ["system", "user", "assistant", "user"]


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_survived_and_never_kept(fault: str, tmp_path: Path) -> None:
    faults = chain([None, fault, fault], repeat(None))
    server = ChatServer(by_seed(REQUESTS[:5]))
    with behind(FaultProxy(server.url, faults, slow_sec=3.0), server) as proxy:
        writer = openai_writer(proxy.url, limits=patience(fault))
        assert list(writer.write_batch(REQUESTS[:5], tmp_path)) == RIGHT[:5]
    assert proxy.made[fault] == 2 and proxy.made["passed"] >= 5
    assert len(kept(tmp_path)) == 5 and "spoilt" not in "".join(path.read_text() for path in kept(tmp_path))
    assert writer.usage(tmp_path)["kept"]["answers"] == 5


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_that_stays_broken_ends_the_run_with_one_line(fault: str, tmp_path: Path) -> None:
    server = ChatServer(by_seed(REQUESTS))
    with behind(FaultProxy(server.url, [None, None, fault], slow_sec=3.0), server) as proxy:
        writer = openai_writer(proxy.url, limits={**patience(fault), "tries": 2}, concurrency=1)
        got: list[object] = []
        with pytest.raises(UserError, match=r"failed \d+ times.*are kept, and the same command continues") as error:
            got.extend(writer.write_batch(REQUESTS, tmp_path))
    assert "\n" not in str(error.value)
    assert len(kept(tmp_path)) == 2
    with ChatServer(by_seed(REQUESTS)) as well:
        assert list(openai_writer(well.url).write_batch(REQUESTS, tmp_path)) == RIGHT
        assert len(well.bodies) == len(REQUESTS) - 2, "it asks for what is missing only, also at another address"


def test_the_breaker_opens_after_failures_in_a_row_over_all_requests(tmp_path: Path) -> None:
    server = ChatServer(by_seed(REQUESTS))
    with behind(FaultProxy(server.url, [None, "500"], hold_sec=0.02), server) as proxy:
        writer = openai_writer(proxy.url, limits={"breaker": 5, "tries": 100})
        with pytest.raises(UserError, match="failed 5 times in a row, the last time with: HTTP 500"):
            list(writer.write_batch(REQUESTS, tmp_path))
        assert 5 <= proxy.made["500"] <= 5 + 3, "at most those under way come on top"


def test_concurrency_has_its_bound_and_uses_it() -> None:
    server = ChatServer(by_seed(REQUESTS))
    with behind(FaultProxy(server.url, [None, "500", None, "drop", None], hold_sec=0.05), server) as proxy:
        assert list(openai_writer(proxy.url, concurrency=3).write_batch(REQUESTS, None)) == RIGHT
    assert proxy.peak == 3


def test_retry_after_is_honoured_and_capped() -> None:
    server = ChatServer(by_seed(REQUESTS))
    for most, low, high in ((10.0, 0.05, 5.0), (0.0, 0.0, 5.0)):
        with behind(FaultProxy(server.url, ["429", None]), server) as proxy:
            begin = time.monotonic()
            openai_writer(proxy.url, limits={"max_retry_after_sec": most}).write(REQUESTS[0])
            assert low <= time.monotonic() - begin < high
        server = ChatServer(by_seed(REQUESTS))


def test_a_stopped_run_goes_on_where_it_was(tmp_path: Path) -> None:
    with ChatServer(by_seed(REQUESTS)) as server:
        first = openai_writer(server.url).write_batch(REQUESTS, tmp_path)
        assert [next(first), next(first)] == RIGHT[:2]
        first.close()
        asked = len(server.bodies)
        assert list(openai_writer(server.url).write_batch(REQUESTS, tmp_path)) == RIGHT
        assert len(kept(tmp_path)) == len(REQUESTS) <= len(server.bodies) <= len(REQUESTS) + 3
    assert asked < len(REQUESTS) + 1


@pytest.mark.parametrize("damage", ["torn", "empty", "altered", "foreign", "not json", "wrong types"])
def test_a_kept_answer_that_cannot_be_trusted_is_asked_again(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with ChatServer(by_seed(REQUESTS)) as server:
        list(openai_writer(server.url).write_batch(REQUESTS[:3], tmp_path))
        victim, other, _ = kept(tmp_path)
        content = victim.read_bytes()
        kept_answer = json.loads(content)
        kept_answer["answer"]["prompt_tokens"] = [1]
        victim.write_bytes(
            {
                "torn": content[: len(content) // 2],
                "empty": b"",
                "altered": content.replace(b'"finish": "stop"', b'"finish": "stpo"'),
                "foreign": other.read_bytes(),
                "not json": b"\xff\x00",
                "wrong types": json.dumps(kept_answer).encode(),
            }[damage]
        )
        with caplog.at_level(logging.WARNING, logger="omnichat"):
            assert list(openai_writer(server.url).write_batch(REQUESTS[:3], tmp_path)) == RIGHT[:3]
        assert "asking again" in caplog.text
        assert len(server.bodies) == 4 and victim.read_bytes() == content
    assert json.loads((tmp_path / "usage.json").read_text())["paid"]["answers"] == 4, "the second asking costs again"


def test_a_torn_ledger_line_is_mended_and_counted_out(tmp_path: Path) -> None:
    with ChatServer(by_seed(REQUESTS)) as server:
        list(openai_writer(server.url).write_batch(REQUESTS[:3], tmp_path))
        with open(tmp_path / "usage.jsonl", "ab") as ledger:
            ledger.write(b'{"key": "abc", "pro')
        list(openai_writer(server.url).write_batch(REQUESTS[:4], tmp_path))
        writer = openai_writer(server.url)
        assert writer.usage(tmp_path)["paid"]["answers"] == 4


@pytest.mark.parametrize("refusal", [400, 422])
def test_response_format_falls_back_where_it_is_refused(refusal: int, caplog: pytest.LogCaptureFixture) -> None:
    good = by_seed(REQUESTS)

    def reply(body: dict) -> object:
        kind = body.get("response_format", {}).get("type")
        return (refusal, {}, b'{"error": "response_format?"}') if kind in ("json_schema", "json_object") else good(body)

    with ChatServer(reply) as server, caplog.at_level(logging.WARNING, logger="omnichat"):
        assert list(openai_writer(server.url).write_batch(REQUESTS, None)) == RIGHT
        kinds = [body.get("response_format", {}).get("type") for body in server.bodies]
        assert kinds == ["json_schema", "json_object", *[None] * len(REQUESTS)], "found out once, by one request"
        assert caplog.text.count("going on with") == 2
        with pytest.raises(UserError, match=f"HTTP {refusal}.*response_format"):
            openai_writer(server.url, response_format="json_schema").write(REQUESTS[0])


def test_response_format_falls_back_where_it_is_ignored(caplog: pytest.LogCaptureFixture) -> None:
    with (
        ChatServer(by_seed(REQUESTS, lambda text: f"Sure! Here it is:\n```json\n{text}\n```")) as server,
        caplog.at_level(logging.WARNING, logger="omnichat"),
    ):
        assert list(openai_writer(server.url, concurrency=1).write_batch(REQUESTS, None)) == RIGHT
        kinds = [body["response_format"]["type"] for body in server.bodies]
    assert kinds[0] == "json_schema" and kinds[-1] == "json_object"
    assert caplog.text.count("going on with json_object") == 1


def test_answers_that_are_no_scripts_are_kept_and_rejected_with_reasons(tmp_path: Path) -> None:
    texts = ["no JSON here", "{}", '{"topic": "\\ud800"', "<think>hm</think>"]
    ends = ["stop", "stop", "length", "content_filter"]

    def reply(body: dict) -> object:
        return completion(texts[body["seed"]], ends[body["seed"]])

    with ChatServer(reply) as server:
        for _ in range(2):
            got = list(openai_writer(server.url, response_format="none").write_batch(REQUESTS[:4], tmp_path))
            assert all(isinstance(one, Rejected) for one in got)
            assert [one.reasons[0] for one in got if isinstance(one, Rejected)] == [
                "the answer is not a JSON object",
                "the answer lacks a field",
                "the answer was cut off",
                "the answer was withheld",
            ]
        assert len(server.bodies) == 4, "an answer that was paid is not asked again for being bad"
        with pytest.raises(UserError, match="gave no valid script: the answer is not a JSON object"):
            openai_writer(server.url).write(REQUESTS[0])


def test_the_key_goes_into_the_header_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UserError, match=r"api_key_env: the environment variable MY_KEY is not set"):
        openai_writer("http://127.0.0.1:1/v1", api_key_env="MY_KEY")
    monkeypatch.setenv("MY_KEY", "sk-very-secret")
    good = by_seed(REQUESTS)
    with ChatServer(good) as server, caplog.at_level(logging.DEBUG, logger="omnichat"):
        writer = openai_writer(server.url, api_key_env="MY_KEY")
        list(writer.write_batch(REQUESTS[:2], tmp_path))
        assert server.headers[0]["authorization"] == "Bearer sk-very-secret"
        server.reply = lambda body: (401, {}, b'{"error": {"message": "Incorrect API key provided: sk-very-secret"}}')
        with pytest.raises(UserError, match=r"HTTP 401: .*provided: \(key\)") as error:
            list(writer.write_batch(REQUESTS, tmp_path))
    everything = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    for place in (everything, str(error.value), caplog.text, json.dumps(writer.describe())):
        assert "sk-very-secret" not in place


def test_a_wrong_model_or_key_ends_at_once() -> None:
    with ChatServer(lambda body: (404, {}, b'{"error": "no such model"}')) as server:
        with pytest.raises(UserError, match=r"HTTP 404.*no such model"):
            list(openai_writer(server.url).write_batch(REQUESTS, None))
        assert len(server.bodies) == 1


def test_what_decides_an_answer_is_in_its_key_and_the_address_is_not(tmp_path: Path) -> None:
    changes: list[dict] = [{}, {"model": "other"}, {"temperature": 0.5}, {"examples": 0}, {"reply_style": "heard"}]
    with ChatServer(lambda body: completion("{}")) as server:
        for number, changed in enumerate(changes, start=1):
            list(openai_writer(server.url, response_format="none", **changed).write_batch(REQUESTS[:1], tmp_path))
            assert len(kept(tmp_path)) == number
        list(openai_writer(server.url, response_format="none").write_batch([request(99)], tmp_path))
        assert len(kept(tmp_path)) == len(changes) + 1


def test_replies_in_the_style_that_was_heard() -> None:
    script = grammar().write(REQUESTS[0])
    with ChatServer(lambda body: completion(json.dumps(answer_of(script, "heard")))) as server:
        got = openai_writer(server.url, reply_style="heard").write(REQUESTS[0])
        assert "emotion" not in str(
            server.bodies[0]["response_format"]["json_schema"]["schema"]["properties"]["replies"]
        )
    assert isinstance(got, Script) and [v.reply.style for v in got.variants] == [v.style for v in got.variants]


BAD = [
    ({"base_url": "ftp://x"}, "base_url='ftp://x' must be like"),
    ({"base_url": "http://me:pw@127.0.0.1/v1"}, "must hold no password"),
    ({"response_format": "jsn"}, "response_format='jsn' is not valid"),
    ({"concurrency": 0}, "concurrency must be >= 1"),
    ({"max_tokens": 0}, "max_tokens must be >= 1"),
    ({"max_tokens_field": "tokens"}, "max_tokens_field='tokens'"),
    ({"prompts": "v999"}, "no such version or folder; packaged versions: v1"),
    ({"prompts": "../v1"}, "no such version or folder"),
    ({"examples": -1}, "examples must be >= 0"),
    ({"reply_style": "any"}, "reply_style='any'"),
    ({"model": " "}, "model must name a model"),
    ({"extra_body": {"seed": 1}}, "must not hold 'seed'"),
    ({"limits": {"tries": 0}}, "limits.tries must be >= 1"),
    ({"limits": {"timeout_sec": 0.0}}, "limits.timeout_sec must be > 0"),
]


@pytest.mark.parametrize(("changed", "message"), BAD)
def test_settings_that_cannot_work_are_refused_before_anything_is_asked(changed: dict, message: str) -> None:
    settings = {"url": "http://127.0.0.1:1/v1", **changed}
    url = settings.pop("base_url", settings.pop("url"))
    settings.pop("url", None)
    with pytest.raises(UserError, match=message) as error:
        openai_writer(url, **settings)
    assert "\n" not in str(error.value)


def test_a_request_may_carry_more_fields() -> None:
    asked: list[ScriptRequest] = [REQUESTS[0]]
    with ChatServer(by_seed(asked)) as server:
        openai_writer(server.url, extra_body={"chat_template_kwargs": {"enable_thinking": False}}).write(asked[0])
        assert server.bodies[0]["chat_template_kwargs"] == {"enable_thinking": False}


def test_a_disk_that_is_full_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("omnichat.remote.answers.write_bytes_atomic", full)
    with (
        ChatServer(by_seed(REQUESTS)) as server,
        pytest.raises(UserError, match=r"an answer cannot be kept: No space left on device"),
    ):
        list(openai_writer(server.url).write_batch(REQUESTS, tmp_path))


@pytest.mark.parametrize(
    ("module", "library", "message"),
    [
        ("remote.chat_client", "openai", "a chat server is asked by openai, which is missing"),
        ("remote.chat_client", "tenacity", "a chat server is asked by tenacity, which is missing"),
        ("synthesis.writers.sampling", "llguidance", "writer=transformers needs llguidance.*"),
    ],
)
def test_a_missing_extra_is_told_in_one_line(
    module: str, library: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name == library or name.startswith(f"{library}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    monkeypatch.delitem(sys.modules, f"omnichat.{module}", raising=False)
    with pytest.raises(UserError, match=rf"^{message}: pip install 'omnichat\[writers\]'$"):
        importlib.import_module(f"omnichat.{module}")


def test_a_ledger_that_is_a_link_is_not_written_through(tmp_path: Path) -> None:
    (tmp_path / "private").write_text("mine\n")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "usage.jsonl").symlink_to(tmp_path / "private")
    with ChatServer(by_seed([request()])) as server, pytest.raises(UserError, match=r"usage\.jsonl: the ledger cannot"):
        list(openai_writer(server.url).write_batch([request()], tmp_path / "store"))
    assert (tmp_path / "private").read_text() == "mine\n"


def test_figures_of_a_ledger_that_are_none_are_counted_out(tmp_path: Path) -> None:
    from omnichat.remote.answers import AnswerStore, Prices

    lines = ['{"prompt": Infinity, "completion": 1}', "[" * 5000, '{"prompt": 3, "completion": 4}']
    (tmp_path / "usage.jsonl").write_text("\n".join(lines) + "\n")
    assert AnswerStore(tmp_path, Prices()).usage()["paid"]["prompt_tokens"] == 3
