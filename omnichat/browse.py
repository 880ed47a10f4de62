"""`omnichat browse`: a corpus as a web page."""

from __future__ import annotations

from omnichat.chat.address import address_of, listen
from omnichat.chat.browse.index import CorpusIndex
from omnichat.chat.browse.settings import BrowseConfig
from omnichat.utils.extras import of_extra


def run(config: BrowseConfig) -> None:
    """Serve the page until Ctrl-C."""
    with of_extra("omnichat browse", "web", "gradio", "fastapi", "uvicorn"):
        from omnichat.chat.web.browse_page import browse_app  # here: gradio takes a second
        from omnichat.chat.web.server import serve
    config.password()  # before the corpus is read: what is wrong is said at once
    with listen(config.host, config.port) as listening:
        index = CorpusIndex.open(config.data, config.verify)
        app = browse_app(index, config)
        address = f"{address_of(listening)}/"
        serve(app, listening, lambda: print(f"{index.corpus.name}: {address}   (Ctrl-C ends it)", flush=True))
    print(f"next: omnichat data stats path={config.data}")
