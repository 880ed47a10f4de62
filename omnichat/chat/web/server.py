"""Serves a page of gradio behind the guard, until Ctrl-C."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable

import fastapi
import gradio as gr
import uvicorn

from omnichat.chat.announced import AnnouncedServer
from omnichat.chat.web.config import PageConfig
from omnichat.chat.web.guard import App, Guard
from omnichat.utils.log import get_logger

log = get_logger(__name__)

# What a page of gradio asks of its own server where it takes no files; /gradio_api/upload and /gradio_api/file= are
# not among it.
PAGE_PATHS = (
    r"/|/config/?|/theme\.css|/manifest\.json|/favicon\.ico|/robots\.txt|/(assets|static|svelte)/[\w./@~-]+"
    r"|/gradio_api/(app_id|info|startup-events|theme\.css|queue/(join|data)|heartbeat/\w+|reset|cancel)/?"
)
PAGE_BYTES = 1_000_000  # of a request of such a page: words and numbers
GRACE_SEC = 2  # for what is under way at the end; browsers keep a connection open for ever


def page_app(
    routes: fastapi.FastAPI, blocks: gr.Blocks, config: PageConfig, *, css: str, paths: str, max_bytes: int
) -> App:
    """The page with its own `routes` as one application behind the guard.

    Args:
        routes: answered before the page's own paths.
        css: style sheet, beside gradio's.
        paths: pattern of all paths that are answered.
        max_bytes: of a request's body.
    """
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    app = gr.mount_gradio_app(
        routes,
        blocks,
        path="/",
        server_name=config.host,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        enable_monitoring=False,
        pwa=False,
        mcp_server=False,
        show_error=True,
        max_file_size=max_bytes,
        theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
        css=css,
    )
    return Guard(app, paths=paths, names=config.accepted_names(), password=config.password(), max_bytes=max_bytes)


def serve(app: App, listening: socket.socket, ready: Callable[[], None] = lambda: None) -> None:
    """Answer requests until SIGINT or SIGTERM; `ready` is called once the application has started."""
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, lifespan="on", timeout_graceful_shutdown=GRACE_SEC, ws="none"
    )
    try:
        AnnouncedServer(config, ready).run(sockets=[listening])
    except KeyboardInterrupt:
        log.debug("interrupted")  # uvicorn raises it once it has closed everything
