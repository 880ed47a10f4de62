"""Who is let in to a page, and what of a corpus can be asked for."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("gradio", reason="the extra `web` is not installed")
httpx = pytest.importorskip("httpx")

from omnichat.chat.address import address_of, listen  # noqa: E402
from omnichat.chat.browse.index import CorpusIndex  # noqa: E402
from omnichat.chat.web.config import PageConfig  # noqa: E402
from omnichat.chat.web.guard import Guard  # noqa: E402
from omnichat.chat.web.recordings import RECORDING_PATHS, part_of, recording_routes  # noqa: E402
from omnichat.chat.web.server import PAGE_PATHS  # noqa: E402
from omnichat.data.corpus import Corpus  # noqa: E402
from omnichat.data.parquet import export_parquet  # noqa: E402
from omnichat.utils.errors import UserError  # noqa: E402
from tests.helpers.browsed import browsed_corpus  # noqa: E402

OURS = "http://127.0.0.1:7860"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return browsed_corpus(tmp_path_factory.mktemp("guard") / "made")


def ask(app, path: str, method: str = "GET", **more) -> httpx.Response:
    """One request to an application in this process."""
    import anyio

    async def asking() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url=OURS) as client:
            return await client.request(method, path, **more)

    return anyio.run(asking)


async def echo(scope, receive, send) -> None:
    """Answers with the number of bytes that came; 499 where the client was cut off."""
    count, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            await send({"type": "http.response.start", "status": 499, "headers": []})
            return await send({"type": "http.response.body", "body": b""})
        count, more = count + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(count).encode()})


def guarded(password: str | None = None, paths: str = PAGE_PATHS) -> Guard:
    return Guard(echo, paths=paths, names=PageConfig().accepted_names(), password=password, max_bytes=100)


def test_a_page_is_answered_under_its_own_names_only() -> None:
    assert ask(guarded(), "/").status_code == 200
    assert ask(guarded(), "/", headers={"Host": "localhost:1"}).status_code == 200
    assert ask(guarded(), "/", headers={"Host": "[::1]:7860"}).status_code == 200
    for foreign in ("evil.example", "127.0.0.1.evil.example", "evil.example:7860", "[::1", ""):
        assert ask(guarded(), "/", headers={"Host": foreign}).status_code == 421, foreign


def test_another_pages_script_is_refused() -> None:
    assert ask(guarded(), "/", headers={"Origin": OURS}).status_code == 200
    for foreign in ("http://evil.example", "null", "http://127.0.0.1:8000", "http://[", ""):
        assert ask(guarded(), "/", headers={"Origin": foreign}).status_code == 403, foreign


def test_a_password_is_asked_for_everything() -> None:
    app = guarded("correct horse")

    def basic(text: str) -> dict[str, str]:
        return {"Authorization": "Basic " + base64.b64encode(text.encode()).decode()}

    refused = ask(app, "/")
    assert refused.status_code == 401 and refused.headers["www-authenticate"].startswith("Basic ")
    assert ask(app, "/nowhere").status_code == 401  # who is not let in learns nothing
    for wrong in (
        basic("me:wrong"),
        basic("correct horse"),
        {"Authorization": "Basic %%%"},
        {"Authorization": "Basic"},
        {"Authorization": b"Basic \xe9"},  # no ASCII
        {"Authorization": b"Bearer \xe9"},
    ):
        assert ask(app, "/", headers=wrong).status_code == 401
    assert ask(app, "/", headers=basic("anyone:correct horse")).status_code == 200
    assert ask(app, "/", headers={"Authorization": "Bearer correct horse"}).status_code == 200
    told = {"Authorization": "Bearer größer".encode()}
    assert ask(guarded("größer"), "/", headers=told).status_code == 200
    assert ask(guarded("größer"), "/", headers=basic("me:größer")).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/gradio_api/upload",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file/etc/passwd",
        "/file=/etc/passwd",
        "/gradio_api/proxy=http://localhost/",
        "/monitoring",
        "/docs",
        "/gradio_api/run/predict",
        "/gradio_api/vibe-code",
        "/recordings/0/../../manifest.jsonl",
        "/recordings/..%2f..%2fmanifest.jsonl/0",
        "/recordings/0/0/x",
        "/recordings/-1/0",
        "/recordings/9999999999/0",
        "/assets/%00",
        "/assets/..%2f..%2fblocks.py",
        "/static/%2e%2e/blocks.py",
    ],
)
def test_a_path_that_the_page_does_not_need_is_not_there(path: str) -> None:
    assert ask(guarded(paths=f"{PAGE_PATHS}|{RECORDING_PATHS}"), path).status_code == 404


def test_a_body_has_a_limit_with_and_without_a_stated_length() -> None:
    async def pieces(count: int):
        for _ in range(count):
            yield b"x" * 10

    assert ask(guarded(), "/", "POST", content=b"x" * 100).text == "100"
    assert ask(guarded(), "/", "POST", content=b"x" * 101).status_code == 413
    assert ask(guarded(), "/", "POST", content=pieces(10)).text == "100"
    assert ask(guarded(), "/", "POST", content=pieces(11)).status_code == 499


def test_answers_say_what_a_browser_may_do_with_them() -> None:
    for answer in (ask(guarded(), "/"), ask(guarded(), "/nowhere")):
        assert "default-src 'self'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.fixture(params=["folder", "packed"])
def index(request: pytest.FixtureRequest, folder: Path, tmp_path: Path) -> Iterator[CorpusIndex]:
    if request.param == "packed":
        export_parquet(Corpus.load(folder, "exists"), tmp_path / "packed")
    yield CorpusIndex.open(folder if request.param == "folder" else tmp_path / "packed")


def test_recordings_are_served_whole_and_in_part(index: CorpusIndex) -> None:
    routes = recording_routes(index, follow_links=False)
    content = index.recording(3, 2).read_bytes()
    whole = ask(routes, "/recordings/3/2")
    assert whole.content == content and whole.headers["content-type"] == "audio/flac"
    part = ask(routes, "/recordings/3/2", headers={"Range": "bytes=10-19"})
    assert part.status_code == 206 and part.content == content[10:20]
    assert part.headers["content-range"] == f"bytes 10-19/{len(content)}"
    assert ask(routes, "/recordings/3/2", headers={"Range": f"bytes={len(content)}-"}).status_code == 416
    for absent in ("12/0", "3/4", "999999999/9999"):
        assert ask(routes, f"/recordings/{absent}").status_code == 404
    assert ask(routes, "/recordings/x/0").status_code == 422


@given(size=st.integers(1, 50), first=st.integers(0, 60), length=st.integers(1, 60))
def test_a_range_is_the_slice(size: int, first: int, length: int) -> None:
    content = bytes(range(size))
    answer = part_of(content, f"bytes={first}-{first + length - 1}", "audio/flac")
    if first >= size:
        assert answer.status_code == 416
    else:
        assert (answer.status_code, answer.body) == (206, content[first : first + length])
    assert part_of(content, f"bytes=-{length}", "audio/flac").body == content[-length:]


@given(st.text(max_size=30))
def test_no_range_header_breaks_the_answer(text: str) -> None:
    assert part_of(b"abcdef", text, "audio/flac").status_code in (200, 206, 416)


def test_a_page_for_other_machines_needs_a_password(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="password_env"):
        PageConfig(host="0.0.0.0")
    for wrong in ({"port": -1}, {"port": 65536}, {"password_env": "not a name"}, {"host": ""}):
        with pytest.raises(UserError):
            PageConfig(**wrong)
    config = PageConfig(host="0.0.0.0", password_env="OMNICHAT_TEST_PASSWORD")
    monkeypatch.delenv("OMNICHAT_TEST_PASSWORD", raising=False)
    with pytest.raises(UserError, match="8 characters"):
        config.password()
    monkeypatch.setenv("OMNICHAT_TEST_PASSWORD", "long enough")
    assert config.password() == "long enough" and config.accepted_names() is None


def test_a_taken_port_is_one_line() -> None:
    with listen("127.0.0.1", 0) as first:
        assert address_of(first) == f"http://127.0.0.1:{first.getsockname()[1]}"
        with pytest.raises(UserError, match="is taken"):
            listen("127.0.0.1", first.getsockname()[1])
    with pytest.raises(UserError, match="host="):
        listen("192.0.2.7", 0)
