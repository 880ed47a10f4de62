"""The recordings of a corpus over HTTP, addressed by the dialogue's number and the turn's."""

from __future__ import annotations

import re

import fastapi
from fastapi.responses import FileResponse, PlainTextResponse, Response

from omnichat.chat.browse.index import CorpusIndex
from omnichat.utils.errors import UserError
from omnichat.utils.log import get_logger
from omnichat.utils.packed import PackedFile

log = get_logger(__name__)

RECORDING_PATHS = r"/recordings/\d{1,9}/\d{1,4}"
_TYPES = {"flac": "audio/flac", "wav": "audio/wav", "ogg": "audio/ogg", "opus": "audio/ogg", "mp3": "audio/mpeg"}
_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})")


def recording_routes(index: CorpusIndex, follow_links: bool) -> fastapi.FastAPI:
    """An application with `/recordings/<dialogue>/<turn>`; no other part of a request chooses what is read."""
    app = fastapi.FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    def recording(number: int, turn: int, request: fastapi.Request) -> Response:
        """The file as it lies in the corpus, or the part of it that a player asks for."""
        try:
            found = index.recording(number, turn, follow_links)
            content = found.read_bytes() if isinstance(found, PackedFile) else None
        except UserError as error:
            log.info("not served: %s", error)
            return PlainTextResponse("no such recording", status_code=404)
        kind = _TYPES.get(found.name.rpartition(".")[2].lower(), "application/octet-stream")
        if isinstance(found, PackedFile):
            assert content is not None
            return part_of(content, request.headers.get("range"), kind)
        return FileResponse(found, media_type=kind)  # answers ranges by itself

    app.add_api_route("/recordings/{number}/{turn}", recording, methods=["GET"], response_model=None)
    return app


def part_of(content: bytes, wanted: str | None, kind: str) -> Response:
    """`content`, or the bytes of a Range header of one range (RFC 9110, 14); others are passed over, as it allows."""
    headers = {"Accept-Ranges": "bytes"}
    match = _RANGE.fullmatch(wanted.strip()) if wanted is not None else None
    if match is None or match.groups() == ("", ""):
        return Response(content, media_type=kind, headers=headers)
    first, last = match.groups()
    size = len(content)
    begin = int(first) if first else max(0, size - int(last))
    end = min(int(last), size - 1) if first and last else size - 1
    if begin >= size or (first and last and int(last) < begin):
        if begin < size:  # "bytes=5-2" is no range at all
            return Response(content, media_type=kind, headers=headers)
        return Response(status_code=416, headers=headers | {"Content-Range": f"bytes */{size}"})
    headers["Content-Range"] = f"bytes {begin}-{end}/{size}"
    return Response(content[begin : end + 1], status_code=206, media_type=kind, headers=headers)
