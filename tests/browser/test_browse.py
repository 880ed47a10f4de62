"""`omnichat browse` in Chromium."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.helpers.browsed import HOSTILE, browsed_corpus
from tests.helpers.browser import NARROW, WIDE, Served, loaded_seconds, open_page, overflow_px, served

pytest.importorskip("gradio", reason="the extra `web` is not installed")
SHOTS = os.environ.get("OMNICHAT_SCREENSHOTS")  # a folder that pictures of the pages are put into, to be looked at
PASSWORD = "a long password"


@pytest.fixture(scope="module")
def server(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """The page of a corpus of 12 dialogues, five to a page of the list, behind a password."""
    corpus = browsed_corpus(tmp_path_factory.mktemp("browse") / "made")
    settings = [f"data={corpus}", "page_size=5", "password_env=OMNICHAT_TEST_PASSWORD"]
    with served("browse", *settings, environment={"OMNICHAT_TEST_PASSWORD": PASSWORD}) as started:
        yield started


@pytest.fixture
def visit(browser: Any, server: Served) -> Iterator[Any]:
    """The page, opened anew."""
    opened = open_page(browser, server.address, WIDE, {"username": "me", "password": PASSWORD})
    yield opened
    opened.page.context.close()
    assert not opened.outside, "a page must ask no other place"
    assert not opened.errors


def entries(page: Any) -> list[int]:
    """Numbers of the dialogues in the list."""
    return [int(n) for n in page.locator("#oc-list .oc-entry").evaluate_all("all => all.map(e => e.dataset.number)")]


def wait_count(page: Any, text: str) -> None:
    page.locator("#oc-list .oc-count", has_text=text).wait_for()


def choose(page: Any, field: str, value: str) -> None:
    box = page.locator(f"#oc-{field} input")
    box.click()
    options = box.get_attribute("aria-controls")  # those of another field may still be fading out
    page.locator(f"[id^='{options}-option-'][aria-label='{value}']").click()


def picture(page: Any, name: str) -> None:
    if SHOTS:
        page.screenshot(path=Path(SHOTS) / f"{name}.png", full_page=True)


def test_filters_narrow_the_list_and_pages_part_it(visit: Any) -> None:
    page = visit.page
    wait_count(page, "12 dialogues, page 1 of 3")
    assert entries(page) == [0, 1, 2, 3, 4]
    page.locator("#oc-dialogues-next").click()
    wait_count(page, "page 2 of 3")
    assert entries(page) == [5, 6, 7, 8, 9]
    choose(page, "split", "test")
    wait_count(page, "4 dialogues, page 1 of 1")
    choose(page, "emotion", "sad")
    wait_count(page, "2 dialogues, page 1 of 1")
    assert entries(page) == [8, 10]
    choose(page, "emotion", "any")
    choose(page, "split", "any")
    page.locator("#oc-words textarea, #oc-words input").first.fill("piano wonderful")
    wait_count(page, "1 dialogue, page 1 of 1")
    assert entries(page) == [3]
    page.locator("#oc-words textarea, #oc-words input").first.fill("")
    wait_count(page, "12 dialogues, page 1 of 3")
    choose(page, "figure", "words.wer")
    choose(page, "order", "highest first")
    page.locator("#oc-list .oc-entry[data-number='8']").wait_for()
    assert entries(page) == [8, 9, 6, 7, 4]


def test_a_dialogue_opens_and_plays(visit: Any) -> None:
    page = visit.page
    page.locator("#oc-list .oc-entry[data-number='3']").click()
    page.locator("[data-dialogue='3']").wait_for()
    assert page.locator("#oc-dialogue audio").count() == 4
    assert 0.5 < loaded_seconds(page, "[data-dialogue='3'] audio") < 1.5
    player = page.locator("#oc-dialogue audio").nth(2).element_handle()
    player.evaluate("player => { player.volume = 0.1; return player.play(); }")
    page.wait_for_function("player => player.currentTime > 0", arg=player)
    other = page.locator("#oc-dialogue audio").nth(3).element_handle()
    other.evaluate("player => player.play()")
    page.wait_for_function("player => player.paused", arg=player)
    assert page.locator(".oc-heard .oc-chip").all_inner_texts() == ["happy", "pitch high", "speed fast"]
    assert "a calm piano (loop" in page.locator(".oc-scene").inner_text()
    picture(page, "browse-wide")
    page.locator("#oc-dialogue .oc-sibling[data-number='2']").click()
    page.locator("[data-dialogue='2']").wait_for()


def test_a_second_tab_at_once_has_its_own_dialogue_and_filters(visit: Any, browser: Any, server: Served) -> None:
    address = f"{server.address}?dialogue=11"
    second = open_page(browser, address, NARROW, {"username": "you", "password": PASSWORD})
    second.page.locator("[data-dialogue='11']").wait_for()
    second.page.locator("#oc-words textarea, #oc-words input").first.fill("station onerror")
    wait_count(second.page, "1 dialogue, page 1 of 1")
    visit.page.locator("#oc-dialogues-next").click()
    wait_count(visit.page, "12 dialogues, page 2 of 3")
    wait_count(second.page, "1 dialogue, page 1 of 1")
    assert visit.page.locator("[data-dialogue='11']").count() == 0
    words = second.page.locator("[data-dialogue='11'] .oc-reply .oc-words").inner_text()
    assert words.split() == HOSTILE.split()
    assert second.page.evaluate("window.harm") is None, "a corpus's words ran as a script"
    assert overflow_px(second.page) == 0 and overflow_px(visit.page) == 0
    picture(second.page, "browse-narrow")
    assert not second.outside and not second.errors
    second.page.context.close()


def test_rejects_are_listed_with_their_reasons(visit: Any) -> None:
    page = visit.page
    page.get_by_role("tab", name="Rejected (9)").click()
    page.locator("#oc-rejected .oc-count", has_text="9 rejects, page 1 of 2").wait_for()
    choose(page, "reason", "too short (7)")
    page.locator("#oc-rejected .oc-count", has_text="7 rejects, page 1 of 2").wait_for()
    choose(page, "reason", "any")
    choose(page, "stage", "words (1)")
    page.locator("#oc-rejected .oc-count", has_text="1 reject, page 1 of 1").wait_for()
    row = page.locator("#oc-rejected .oc-rejects li").inner_text()
    assert "above max_dialogue_wer" in row and "words.wer 0.0625" in row and "the station" in row
    picture(page, "browse-rejected")


def test_what_a_client_sends_is_no_path(server: Served) -> None:
    with httpx.Client(base_url=server.address, auth=("me", PASSWORD)) as client:
        assert client.get("/recordings/0/0").headers["content-type"] == "audio/flac"
        for path in (
            "/recordings/..%2f..%2fmanifest.jsonl/0",
            "/recordings/%2e%2e/manifest.jsonl",
            "/recordings/12/0",
            "/recordings/0/4",
            "/gradio_api/file=/etc/hostname",
            "/gradio_api/file=manifest.jsonl",
            "/assets/..%2f..%2f..%2fblocks.py",
            "/static/%2e%2e/%2e%2e/%2e%2e/blocks.py",
        ):
            assert client.get(path).status_code == 404, path
        files = {"files": ("../../harm.wav", b"RIFF", "audio/wav")}
        assert client.post("/gradio_api/upload", files=files).status_code == 404
    assert httpx.get(server.address).status_code == 401
