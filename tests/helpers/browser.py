"""Real pages in a real browser: a verb's server as a process, and headless Chromium as the system has it.

    with served("browse", f"data={corpus}") as server, chromium() as browser:
        visit = open_page(browser, server.address)
        visit.page.get_by_label("Words").fill("train")

Chromium is driven over its own protocol by playwright, which brings no browser and needs no network. It is looked for
under the name in OMNICHAT_CHROMIUM, then on the path.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("chromium", "chromium-browser", "google-chrome-stable", "google-chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--autoplay-policy=no-user-gesture-required"]
PATIENCE_MS = 240_000  # a bound against hanging for ever, not a speed that is tested
WIDE, NARROW = (1280, 900), (420, 860)


def chromium_path() -> str | None:
    """Where the system's Chromium is; None where it has none."""
    named = os.environ.get("OMNICHAT_CHROMIUM")
    return shutil.which(named) if named else next(filter(None, map(shutil.which, NAMES)), None)


@contextlib.contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser; the test is skipped, with the reason, where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (extra `dev`)")
    path = chromium_path()
    if path is None:
        pytest.skip("no Chromium on this machine (Debian: apt-get install chromium), or OMNICHAT_CHROMIUM names none")
    with api.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@dataclass
class Served:
    """A verb that serves: its address, its process, and what it has printed so far."""

    address: str
    process: subprocess.Popen[bytes]
    log: Path

    def printed(self) -> str:
        """Standard output and standard error so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")


@contextlib.contextmanager
def served(verb: str, *overrides: str, environment: dict[str, str] | None = None) -> Iterator[Served]:
    """`omnichat <verb> <overrides> port=0` in an empty folder, until it has printed its address; ended by SIGINT."""
    with tempfile.TemporaryDirectory() as work:
        log = Path(work) / "log.txt"
        command = [sys.executable, "-m", "omnichat.cli", verb, *overrides, "port=0"]
        variables = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", **(environment or {})}
        with open(log, "wb") as out:
            process = subprocess.Popen(command, cwd=work, env=variables, stdout=out, stderr=subprocess.STDOUT)
        server = Served("", process, log)
        try:
            server.address = _address(server)
            yield server
        finally:
            process.send_signal(2)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _address(server: Served) -> str:
    until = time.monotonic() + 2 * PATIENCE_MS / 1000
    while (found := re.search(r"https?://\S+", server.printed())) is None:
        if server.process.poll() is not None:
            pytest.fail(f"the server ended with {server.process.returncode} before it served:\n{server.printed()}")
        if time.monotonic() > until:
            pytest.fail(f"the server says no address:\n{server.printed()}")
        time.sleep(0.1)
    return found.group()


@dataclass
class Visit:
    """A page that is open, in a context (cookies, storage) of its own.

    Attributes:
        outside: addresses off this server that the page asked for; every such request is refused.
        errors: what the page's console called an error, and what its scripts threw.
    """

    page: Any
    outside: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


def open_page(
    browser: Any, address: str, size: tuple[int, int] = WIDE, credentials: dict[str, str] | None = None
) -> Visit:
    """Open `address` in a new window of `size` and wait until gradio has built the page."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, http_credentials=credentials, locale="en-US"
    )
    context.set_default_timeout(PATIENCE_MS)
    page = context.new_page()
    visit = Visit(page)
    home = urlsplit(address).netloc

    def decide(route: Any) -> None:
        asked = urlsplit(route.request.url)
        if asked.scheme in ("http", "https", "ws", "wss") and asked.netloc != home:
            visit.outside.append(route.request.url)
            return route.abort()
        route.continue_()

    page.route("**/*", decide)
    page.on("console", lambda told: visit.errors.append(told.text) if told.type == "error" else None)
    page.on("pageerror", lambda error: visit.errors.append(str(error)))
    page.goto(address)
    page.locator(".gradio-container").first.wait_for()
    return visit


def overflow_px(page: Any) -> int:
    """Pixels by which the page is wider than its window; 0 where nothing must be scrolled sideways."""
    return int(page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth"))


def loaded_seconds(page: Any, selector: str) -> float:
    """Length of the recording that an audio element has loaded, seconds; waits for it."""
    element = page.locator(selector).first
    element.wait_for()
    handle = element.element_handle()
    page.wait_for_function("player => player.readyState >= 1 || player.error", arg=handle)
    assert handle.evaluate("player => player.error && player.error.message") is None
    return float(handle.evaluate("player => player.duration"))
