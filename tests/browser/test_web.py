"""`omnichat web` in Chromium, and asked by many clients at once."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from html import unescape
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from omnichat.audio.io import save_audio
from omnichat.chat.base import DecodingConfig, Talker
from omnichat.chat.session import Session
from omnichat.model.pretrained.conversation import Said, read_sound
from tests.helpers.browsed import HOSTILE
from tests.helpers.browser import (
    FLAGS,
    NARROW,
    WIDE,
    Served,
    chromium_path,
    loaded_seconds,
    open_page,
    overflow_px,
    served,
)
from tests.helpers.corpora import synthetic_corpus
from tests.helpers.talkers import small_talker, tone

pytest.importorskip("gradio", reason="the extra `web` is not installed")
SHOTS = os.environ.get("OMNICHAT_SCREENSHOTS")  # a folder that pictures of the page are put into, to be looked at
SPEAKS = all(importlib.util.find_spec(name) is not None for name in ("piper", "parselmouth"))
TOKENS = 12


@pytest.fixture(scope="module")
def talker() -> Talker:
    return small_talker()


@pytest.fixture(scope="module")
def files(talker: Talker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved model, a corpus, recordings and what is none."""
    folder = tmp_path_factory.mktemp("web")
    talker.model.save_pretrained(folder / "model")
    talker.processor.save_pretrained(folder / "model")
    synthetic_corpus(folder / "corpus")
    for number in range(3):
        save_audio(folder / f"turn-{number}.wav", 0.5 * tone(0.8 + 0.3 * number, 200.0 + 90 * number).wave_N, 16_000)
    save_audio(folder / "long.wav", tone(21.0, rate=8_000).wave_N, 8_000)
    with open(folder / "large.wav", "wb") as large:
        large.truncate(2**30)  # a gigabyte, none of which lies on the disk
    for alpha in (0.0, 0.3):
        run = folder / "runs" / f"real-{alpha:g}"
        (run / "checkpoints" / "step-000010").mkdir(parents=True)
        (run / "checkpoints" / "step-000010" / "COMPLETE").touch()
        (run / "config.yaml").write_text(f"chat: {{input: speech}}\nmixture: {{alpha: {alpha}}}\n")
    (folder / "letter.wav").write_text("Dear model, this is no recording.\n" * 100)
    save_audio(folder / "hostile.wav", tone(22.0, rate=8_000).wave_N, 8_000)
    (folder / "hostile.wav").rename(folder / "<img src=x onerror=window.harm=1>.wav")
    return folder


@pytest.fixture(scope="module")
def server(browser: Any, files: Path) -> Iterator[Served]:
    settings = [
        f"run={files / 'model'}",
        f"runs={files / 'runs'}",
        f"examples={files / 'corpus'}",
        "shown_examples=3",
        f"decoding.max_new_tokens={TOKENS}",
        "max_sec=20",
        "max_file_mb=3",
        "uploads_mb=12",
        "queue=6",
        "tabs=30",
        *([] if SPEAKS else ["~voice"]),
    ]
    with served("web", *settings, environment={"OMP_NUM_THREADS": "1"}) as started:
        yield started


@pytest.fixture(scope="module")
def replies(talker: Talker) -> Any:
    """What the model answers to turns, each a file or words, in one dialogue by itself."""

    def ask(*turns: Path | str) -> list[str]:
        session = Session(talker, DecodingConfig(max_new_tokens=TOKENS))
        said = [Said("user", None, turn) if isinstance(turn, str) else Said("user", read_sound(turn)) for turn in turns]
        answers = [session.answer(one) for one in said]
        shown = [answer.words if answer.style is not None else answer.text for answer in answers]
        return [" ".join(text.split()) for text in shown]

    return ask


def send(page: Any, *, file: Path | None = None, words: str = "") -> None:
    """Fill in a turn and send it."""
    if file is not None:
        page.locator("#ot-recording input[type=file]").set_input_files(file)
        page.locator("#ot-recording [data-testid='waveform-controls']").wait_for()
    if words:
        page.locator("#ot-words textarea, #ot-words input").first.fill(words)
    page.locator("#ot-send").click()


def answered(page: Any, count: int, column: int = 0) -> list[str]:
    """The words of all replies of a column, once it has so many."""
    done = page.locator(f"#ot-past-{column} [data-exchange='{count}'][data-state='done']")
    done.wait_for()
    return [" ".join(text.split()) for text in page.locator(f"#ot-past-{column} .ot-answer").all_text_contents()]


def picture(page: Any, name: str) -> None:
    if SHOTS:
        page.screenshot(path=Path(SHOTS) / f"{name}.png", full_page=True)


def test_a_recording_goes_in_and_style_words_picture_and_speech_come_out(
    browser: Any, server: Served, files: Path, replies: Any
) -> None:
    visit = open_page(browser, server.address, WIDE)
    page = visit.page
    send(page, file=files / "turn-0.wav")
    assert answered(page, 1) == replies(files / "turn-0.wav")
    assert page.locator("#ot-past-0 .ot-chips").count() == 1
    drawn = page.locator("#ot-past-0 svg[role=img]")
    assert re.match(r"attention in \d windows of 0\.\d+ s: beats \d+ %", drawn.get_attribute("aria-label"))
    assert page.locator("#ot-past-0 .ot-band").count() == 2 and drawn.bounding_box()["height"] > 60
    assert loaded_seconds(page, "#ot-past-0 .ot-user audio") == pytest.approx(0.8, abs=0.01)
    figures = page.locator("#ot-past-0 .ot-figures").inner_text()
    assert "first token" in figures and "tokens/s" in figures and "prompt" in figures
    if SPEAKS:
        assert loaded_seconds(page, "#ot-past-0 audio.ot-spoken") > 0.1
    page.locator("#ot-recording input[type=file]").wait_for(state="attached")  # the field is empty again
    send(page, words="And what then?")
    assert answered(page, 2) == replies(files / "turn-0.wav", "And what then?")
    assert "of them kept" in page.locator("#ot-past-0 [data-exchange='2'] .ot-figures").inner_text()
    assert overflow_px(page) == 0
    picture(page, "web-wide")
    page.evaluate("document.body.classList.add('dark')")
    picture(page, "web-dark")
    assert not visit.outside and not visit.errors
    page.context.close()


def test_two_tabs_at_once_have_their_own_dialogues(browser: Any, server: Served, files: Path, replies: Any) -> None:
    turns = [files / "turn-1.wav", files / "turn-2.wav"]
    visits = [open_page(browser, server.address, NARROW) for _ in turns]
    for visit, file in zip(visits, turns, strict=True):
        send(visit.page, file=file)
    first = [answered(visit.page, 1) for visit in visits]
    for visit in visits:
        send(visit.page, words="Tell me more.")
    for visit, file, before in zip(visits, turns, first, strict=True):
        assert answered(visit.page, 2) == replies(file, "Tell me more.") and before == replies(file)
        assert overflow_px(visit.page) == 0
    picture(visits[0].page, "web-narrow")
    for visit in visits:
        assert not visit.outside and not visit.errors
        visit.page.context.close()


def test_two_models_beside_each_other_a_second_answer_and_a_new_dialogue(
    browser: Any, server: Served, files: Path, replies: Any
) -> None:
    visit = open_page(browser, server.address, WIDE)
    page = visit.page
    box = page.locator("#ot-other input")
    box.click()
    page.locator(f"[id^='{box.get_attribute('aria-controls')}-option-']").nth(1).click()
    page.locator("#ot-column-1 .ot-model").wait_for()
    send(page, file=files / "turn-0.wav")
    assert answered(page, 1, 0) == answered(page, 1, 1) == replies(files / "turn-0.wav")
    picture(page, "web-beside")
    before = page.locator("#ot-past-1 .ot-user audio").get_attribute("src")
    page.locator("#ot-again").click()
    page.wait_for_function(
        """old => {
            const player = document.querySelector("#ot-past-1 .ot-user audio");
            return player && !player.src.endsWith(old);
        }""",
        arg=before,
    )
    assert answered(page, 1, 0) == answered(page, 1, 1) == replies(files / "turn-0.wav"), "greedy: the same again"
    page.locator("#ot-begin").click()
    page.locator("#ot-past-0 .ot-exchange").wait_for(state="detached")
    page.get_by_text("Dialogues of a corpus").click()
    page.locator("#ot-ask-example").click()
    answered(page, 1, 1)
    assert "2 earlier turns" in page.locator("#ot-past-0 .ot-history").inner_text()
    assert "I am sorry to hear that." in page.locator("#ot-corpus").inner_text()
    assert overflow_px(page) == 0
    picture(page, "web-example")
    assert not visit.outside and not visit.errors
    page.context.close()


def test_models_are_chosen_by_alpha_and_one_that_cannot_be_loaded_says_why(browser: Any, server: Served) -> None:
    visit = open_page(browser, server.address, WIDE)
    page = visit.page

    def choose(name: str, option: str) -> None:
        box = page.locator(f"{name} input")
        box.click()
        page.locator(f"[id^='{box.get_attribute('aria-controls')}-option-']", has_text=option).first.click()

    model = page.locator("#ot-column-0 .ot-model")
    assert "real-0.3" not in model.inner_text()
    choose("#ot-alpha", "0.3")
    model.filter(has_text="real-0.3").wait_for()
    listed = page.locator("#ot-run input")
    listed.click()
    options = page.locator(f"[id^='{listed.get_attribute('aria-controls')}-option-']")
    options.first.wait_for()
    assert ["real-0.3" in text for text in options.all_inner_texts()] == [True]
    page.keyboard.press("Escape")
    send(page, words="Are you there?")
    page.locator("#ot-now-0").get_by_text("experts is empty").wait_for()
    picture(page, "web-broken-model")
    assert "Traceback" not in server.printed()
    choose("#ot-alpha", "any")
    choose("#ot-run", "/model")
    model.filter(has_text="/model").wait_for()
    page.locator("#ot-send").click()
    assert len(answered(page, 1)) == 1, "the page goes on"
    assert not visit.outside
    page.context.close()


def test_what_cannot_be_heard_is_refused_in_a_line(browser: Any, server: Served, files: Path, replies: Any) -> None:
    visit = open_page(browser, server.address, WIDE)
    page = visit.page
    upload = page.locator("#ot-recording input[type=file]")

    def told(pattern: str) -> str:
        toast = page.get_by_test_id("toast-body").filter(has_text=re.compile(pattern))
        toast.first.wait_for()
        text = str(toast.first.inner_text())
        toast.first.get_by_test_id("toast-close").click()
        return text

    page.locator("#ot-send").click()
    told("record or upload a turn, or type its words")
    for file, pattern in (
        (files / "letter.wav", r"letter\.wav: not readable as audio; give a file in WAV"),
        (files / "long.wav", r"long\.wav: 21\.0 s long; at most 20 s are heard"),
        (next(files.glob("<img*")), r"22\.0 s long; at most 20 s are heard"),
    ):
        upload.set_input_files(file)
        page.locator("#ot-recording").get_by_label("Clear").first.wait_for()
        page.locator("#ot-send").click()
        assert "Traceback" not in told(pattern)
        page.locator("#ot-recording").get_by_label("Clear").first.click()
        page.locator("#ot-recording").get_by_label("Clear").first.wait_for(state="detached")  # the field is built anew
        upload.wait_for(state="attached")
    upload.set_input_files(files / "large.wav")
    told("exceed the maximum allowed size")
    assert page.evaluate("window.harm") is None, "a file's name ran as a script"
    picture(page, "web-refused")
    send(page, words=HOSTILE)
    assert answered(page, 1) == replies(HOSTILE), "the page goes on"
    said = page.locator("#ot-past-0 .ot-user .ot-words").inner_text()
    assert said.split() == HOSTILE.split() and page.evaluate("window.harm") is None
    assert not visit.outside
    page.context.close()


def test_the_microphone_is_heard(browser: Any, server: Served) -> None:
    fake = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]  # a beep each second
    opened = browser.browser_type.launch(executable_path=chromium_path(), args=[*FLAGS, *fake])
    visit = open_page(opened, server.address, NARROW)
    recorder = visit.page.locator("#ot-recording")
    recorder.get_by_role("button", name="Record audio").click()
    recorder.locator(".record-button").first.click()
    visit.page.wait_for_timeout(1500)
    with visit.page.expect_response(re.compile("/gradio_api/upload")):
        recorder.locator(".stop-button").first.click()
    recorder.locator("[data-testid='waveform-controls']").wait_for()
    visit.page.wait_for_timeout(1000)  # the field takes the upload's name
    visit.page.locator("#ot-send").click()
    answered(visit.page, 1)
    assert 0.3 < loaded_seconds(visit.page, "#ot-past-0 .ot-user audio") < 20
    picture(visit.page, "web-microphone")
    assert not visit.outside and not visit.errors
    opened.close()


def ask(address: str, fn: int, name: str, run: str, words: str) -> str | None:
    """One client over HTTP: its reply's words, None where it was refused because of the queue."""
    body = {"data": [None, words, run, "", ""], "fn_index": fn, "session_hash": name}
    with httpx.Client(base_url=address, timeout=600) as client:
        joined = client.post("/gradio_api/queue/join", json=body)
        if joined.status_code == 503:
            return None
        assert joined.status_code == 200, joined.text
        found: list[str] = []
        with client.stream("GET", "/gradio_api/queue/data", params={"session_hash": name}) as events:
            for line in events.iter_lines():
                message = json.loads(line[6:]) if line.startswith("data: ") else {}
                found += re.findall(r'data-state="done".*?ot-answer">(.*?)</p>', "\n".join(strings(message)), re.DOTALL)
                if message.get("msg") == "process_completed":
                    assert message["success"], message
                    return " ".join(unescape(found[-1]).split())
    raise AssertionError("the stream ended early")


def strings(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [text for part in inner for text in strings(part)]


def test_twenty_clients_at_once_are_answered_or_refused_and_never_mixed_up(
    server: Served, files: Path, replies: Any
) -> None:
    config = httpx.get(f"{server.address}config").json()
    fn = next(entry["id"] for entry in config["dependencies"] if entry["api_name"] == "ask")
    said = [f"Client number {number} says hello." for number in range(20)]
    run = f"{files.name}/model"
    with ThreadPoolExecutor(20) as pool:
        found = list(pool.map(lambda n: ask(server.address, fn, f"client{n}", run, said[n]), range(20)))
    answers = {number: reply for number, reply in enumerate(found) if reply is not None}
    assert 7 <= len(answers) < 20, "one that is answered and six that wait; no room for all"
    for number, reply in answers.items():
        assert [reply] == replies(said[number])
    late = [ask(server.address, fn, f"client{n}", run, said[n]) for n, reply in enumerate(found) if reply is None]
    assert late == [replies(said[n])[0] for n, reply in enumerate(found) if reply is None]


def test_what_a_client_sends_is_no_path_and_no_flood(server: Served, files: Path) -> None:
    with httpx.Client(base_url=server.address) as client:
        sent = client.post("/gradio_api/upload", files={"files": ("../../../harm.wav", b"RIFF", "audio/wav")})
        (path,) = sent.json()
        assert re.search(r"omnichat-web-[^/]+/[0-9a-f]{64}/harm\.wav$", path)
        assert client.get(f"/gradio_api/file={path}").content == b"RIFF"
        for outside in ("/etc/hostname", f"{path}/../../../x", str(files / "turn-0.wav"), "http://127.0.0.1:1/x.wav"):
            assert client.get(f"/gradio_api/file={outside}").status_code == 404
            named = {"path": outside, "meta": {"_type": "gradio.FileData"}}
            body = {"data": [named, "", "", "", ""], "fn_index": 0, "session_hash": "x"}
            assert client.post("/gradio_api/queue/join", json=body).status_code == 400
        assert client.get("/sounds/..%2f..%2fetc%2fhostname.wav").status_code == 404
    place = urlsplit(server.address)
    for length in (5_000_000, 10**9):
        connection = http.client.HTTPConnection(place.hostname or "", place.port or 0, timeout=120)
        connection.putrequest("POST", "/gradio_api/upload")
        connection.putheader("Content-Type", "multipart/form-data; boundary=x")
        connection.putheader("Content-Length", str(length))
        connection.endheaders()
        assert connection.getresponse().status == 413
        connection.close()
