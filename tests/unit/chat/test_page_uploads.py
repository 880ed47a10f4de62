"""What a page with uploads takes: paths of its own uploads, files that fit, players' requests."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("gradio", reason="the extra `web` is not installed")
httpx = pytest.importorskip("httpx")

from omnichat.chat.talking.sounds import SoundStore  # noqa: E402
from omnichat.chat.web.guard import Guard  # noqa: E402
from omnichat.chat.web.server import PAGE_PATHS  # noqa: E402
from omnichat.chat.web.uploads import SOUND_PATHS, Uploads, sound_routes, upload_paths  # noqa: E402
from tests.unit.chat.test_page_guard import ask, echo  # noqa: E402

HASH = "ab" * 32


def call(named: Any) -> dict[str, Any]:
    return {"data": [named, "words"], "fn_index": 0, "session_hash": "x"}


def file(path: Any, **more: Any) -> dict[str, Any]:
    return {"path": path, "meta": {"_type": "gradio.FileData"}, **more}


def test_a_call_names_uploads_of_this_page_alone(tmp_path: Path) -> None:
    app = Uploads(echo, tmp_path, 100, 1000)
    good = [file(f"{tmp_path}/{HASH}/a b.wav"), {"value": file(f"{tmp_path}/{HASH}/x.wav")}, None, "text", {"a": 1}]
    for named in good:
        body = json.dumps(call(named))
        answer = ask(app, "/gradio_api/queue/join", "POST", content=body)
        assert (answer.status_code, answer.text) == (200, str(len(body))), named
    for path in (
        "/etc/passwd",
        "http://localhost/x.wav",
        "https://example.org/x.wav",
        f"{tmp_path}/../x.wav",
        f"{tmp_path}/{HASH}/../../x.wav",
        f"{tmp_path}/{HASH}/..",
        f"{tmp_path}/{HASH}",
        f"{tmp_path}/x.wav",
        "x.wav",
        "",
        None,
        ["/etc/passwd"],
    ):
        for place in ("/gradio_api/queue/join", "/gradio_api/run/ask", "/gradio_api/queue/join/"):
            answer = ask(app, place, "POST", json=call([{"deep": file(path)}]))
            assert answer.status_code == 400 and "uploaded" in answer.json()["detail"], path
    for broken in (b"{", b"\xff", b"[" * 100_000):
        assert ask(app, "/gradio_api/queue/join", "POST", content=broken).status_code == 400
    assert ask(app, "/gradio_api/queue/join", "POST", content=b" " * 1_000_001).status_code == 413


def test_old_uploads_give_way_to_new_ones(tmp_path: Path) -> None:
    app = Uploads(echo, tmp_path, max_file_bytes=40, max_bytes=100)
    for number in range(5):
        folder = tmp_path / (f"{number}" * 64)
        folder.mkdir()
        (folder / "x.wav").write_bytes(bytes(20))
        os.utime(folder / "x.wav", (number, number))
    assert ask(app, "/gradio_api/upload", "POST", content=bytes(30)).text == "30"
    left = sorted(path.parent.name[0] for path in tmp_path.rglob("*.wav"))
    assert left == ["2", "3", "4"]
    app.make_room()
    assert len(list(tmp_path.rglob("*.wav"))) == 3


def test_uploads_at_once_are_bounded(tmp_path: Path) -> None:
    import anyio

    started = 0

    async def scenario() -> list[int]:
        nonlocal started
        go = anyio.Event()

        async def slow(scope: Any, receive: Any, send: Any) -> None:
            nonlocal started
            started += 1
            await go.wait()
            await echo(scope, receive, send)

        app = Uploads(slow, tmp_path, 10, 100)
        found: list[int] = []

        async def one(client: Any) -> None:
            found.append((await client.post("/gradio_api/upload", content=b"x")).status_code)

        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x")
        async with client, anyio.create_task_group() as group:
            for _ in range(12):
                group.start_soon(one, client)
            while len(found) < 4:
                await anyio.sleep(0.01)
            go.set()
        return found

    found = anyio.run(scenario)
    assert sorted(found) == [200] * 8 + [503] * 4 and started == 8


def test_sounds_are_served_whole_and_in_part_by_name_alone() -> None:
    sounds = SoundStore(1000)
    name = sounds.put(b"RIFFabcdef")
    app = Guard(sound_routes(sounds), paths=f"{PAGE_PATHS}|{SOUND_PATHS}", names=None, password=None, max_bytes=10)
    whole = ask(app, f"/sounds/{name}.wav")
    assert whole.content == b"RIFFabcdef" and whole.headers["content-type"] == "audio/wav"
    part = ask(app, f"/sounds/{name}.wav", headers={"Range": "bytes=4-6"})
    assert part.status_code == 206 and part.content == b"abc"
    for path in (f"/sounds/{'x' * 32}.wav", "/sounds/..%2f..%2fetc%2fpasswd.wav", f"/sounds/{name}", "/sounds/x.wav"):
        assert ask(app, path).status_code == 404


@pytest.mark.parametrize(
    ("path", "there"),
    [
        (f"/gradio_api/file=FOLDER/{HASH}/x.wav", True),
        (f"/gradio_api/file=FOLDER/{HASH}/a%20b.wav", True),
        ("/gradio_api/upload", True),
        ("/gradio_api/upload_progress", True),
        ("/gradio_api/file=/etc/passwd", False),
        (f"/gradio_api/file=FOLDER/{HASH}/../../x", False),
        (f"/gradio_api/file=FOLDER/{HASH}/..%2f..%2fx", False),
        ("/gradio_api/file=FOLDER/x.wav", False),
        ("/gradio_api/file=http://localhost/x.wav", False),
        ("/gradio_api/call/ask", False),
        ("/gradio_api/component_server", False),
        ("/gradio_api/process_recording", False),
    ],
)
def test_paths_that_a_page_with_uploads_needs(tmp_path: Path, path: str, there: bool) -> None:
    app = Guard(echo, paths=f"{PAGE_PATHS}|{upload_paths(tmp_path)}", names=None, password=None, max_bytes=10)
    assert (ask(app, path.replace("FOLDER", str(tmp_path))).status_code == 200) is there
