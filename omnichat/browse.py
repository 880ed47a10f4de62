"""`omnichat browse`: a corpus as a web page."""

from __future__ import annotations

from omnichat.chat.browse.index import CorpusIndex
from omnichat.chat.browse.settings import BrowseConfig
from omnichat.utils.errors import UserError


def run(config: BrowseConfig) -> None:
    """Serve the page until Ctrl-C."""
    try:
        from omnichat.chat.web.browse_page import browse_app  # here: gradio is of an extra, and takes a second
        from omnichat.chat.web.server import address_of, listen, serve
    except ModuleNotFoundError as error:
        if error.name not in ("gradio", "fastapi", "uvicorn"):
            raise
        raise UserError(f"browse needs {error.name}, which is not installed: pip install omnichat[web]") from None
    config.password()  # before the corpus is read: what is wrong is said at once
    with listen(config) as listening:
        index = CorpusIndex.open(config.data, config.verify)
        app = browse_app(index, config)
        address = address_of(listening)
        serve(app, listening, lambda: print(f"{index.corpus.name}: {address}   (Ctrl-C ends it)", flush=True))
    print(f"next: omnichat data stats path={config.data}")
