"""`omnichat prepare`: a corpus as it was released -> a corpus folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from omnichat.config import PrepareRun
from omnichat.data.card_page import CARD_PAGE
from omnichat.data.corpus import AnyCorpus
from omnichat.data.parquet import export_parquet
from omnichat.data.parquet_corpus import ParquetCorpus
from omnichat.data.prepare import PrepareConfig, Spoken, Transcribe, prepare
from omnichat.data.readers.base import Reader
from omnichat.data.readers.corpus import CorpusFolder
from omnichat.model.systems.base import SeenTurn
from omnichat.model.systems.recogniser import Recogniser
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
    transcribe = recogniser(config)
    if config.stand_in is not None:
        check_writable(Path(config.stand_in.out), "stand_in.out")
        voice = build_part(config.voice or {}, "voice", Voice)
        write_stand_in(config.stand_in, voice)
    reader = build_part(node, "source", Reader)
    corpus: AnyCorpus = pack(reader, config) if config.format == "parquet" else prepare(reader, config, transcribe)
    summary = corpus.summary()
    stand_in = " (STAND-IN, not the real corpus)" if summary["stand_in"] else ""
    print(f"{corpus.root}: {summary['dialogues']} dialogues, {summary['hours']:.2f} h{stand_in}")
    print(f"data card: {corpus.root / CARD_PAGE}")
    print(f"next: {next_command(corpus)}")


def recogniser(config: PrepareRun) -> Transcribe | None:
    """What writes down what is heard, loaded, so that a bad path fails before the work begins; None without `asr`."""
    if config.asr is None:
        return None
    if config.format == "parquet":
        raise UserError("asr: format=parquet packs a corpus as it is; give asr to the call that makes the folder")
    ears = build_part(config.asr, "asr", Recogniser)
    ears.load()

    def transcribe(recordings: Sequence[Spoken]) -> dict[str, str]:
        turns = [SeenTurn("A", audio=each.path, seconds=each.seconds, sha256=each.sha256) for each in recordings]
        return ears.transcripts(turns)

    return transcribe


def next_command(corpus: AnyCorpus) -> str:
    """The command that trains on the corpus as what it is, or looks at it where it has nothing to train on."""
    if not corpus.count("train"):
        return f"omnichat data stats path={corpus.root}"
    words = "" if corpus.summary("train")["recordings"] else " chat.input=text"
    if corpus.kind == "real":
        return f"omnichat train mixture.sources.dailytalk.path={corpus.root} mixture.alpha=0.2{words}"
    return f"omnichat train mixture.sources.sharechatx.path={corpus.root}{words}"


def pack(reader: Reader, config: PrepareRun) -> ParquetCorpus:
    """Write a finished corpus folder as Parquet shards: its dialogues and the bytes of its recordings as they are.

    Raises:
        UserError: another source, or a setting that would change the corpus.
    """
    if not isinstance(reader, CorpusFolder):
        raise UserError(
            "format=parquet packs a finished corpus folder: write that first (format=folder), then give it as "
            "source=corpus path=<folder>"
        )
    plain = PrepareConfig(out=config.out, format=config.format)
    for name in (field.name for field in fields(PrepareConfig)):
        if getattr(config, name) != getattr(plain, name):
            raise UserError(f"{name}={getattr(config, name)}: format=parquet packs a corpus as it is; leave {name} out")
    out = Path(config.out).expanduser()
    export_parquet(reader.corpus, out)
    return ParquetCorpus.load(out)
