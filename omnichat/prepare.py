"""`omnichat prepare`: a corpus as it was released -> a corpus folder."""

from __future__ import annotations

from pathlib import Path

from omnichat.config import PrepareRun
from omnichat.data.prepare import prepare
from omnichat.data.readers.base import Reader
from omnichat.synthesis.base import Voice
from omnichat.synthesis.stand_in import write_stand_in
from omnichat.utils.errors import UserError
from omnichat.utils.files import check_writable
from omnichat.utils.log import get_logger
from omnichat.utils.parts import build_part, check_part

log = get_logger(__name__)


def run(config: PrepareRun) -> None:
    """Read the source, check its audio, write the corpus folder with its data card."""
    if not isinstance(config.source, dict):
        raise UserError("source is missing: choose one from configs/source, e.g. source=dailytalk")
    node = {**config.source, "path": config.path}
    check_part(node, "source", Reader)
    check_writable(Path(config.out), "out")
    if config.stand_in is not None:
        check_writable(Path(config.stand_in.out), "stand_in.out")
        voice = build_part(config.voice or {}, "voice", Voice)
        write_stand_in(config.stand_in, voice)
    corpus = prepare(build_part(node, "source", Reader), config)
    summary = corpus.summary()
    stand_in = " (STAND-IN, not the real corpus)" if summary["stand_in"] else ""
    print(f"{corpus.root}: {summary['dialogues']} dialogues, {summary['hours']:.2f} h{stand_in}")
    print(f"next: omnichat train mixture.sources.dailytalk.path={corpus.root} mixture.alpha=0.2")
