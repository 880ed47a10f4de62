"""A corpus as sharded Parquet with the audio bytes inside: few large files, for clusters and for sharing.

<folder>/data/<split>-00000-of-00002.parquet     one dialogue a row
<folder>/shards.json                             which shards there are, with rows, bytes and SHA-256; and the counts
<folder>/README.md, plots/, card.html, card.json   the data card
<folder>/checks.jsonl, rejected.jsonl              of a corpus from synthesis: what was measured, and what was refused
Columns: id, source, kind, scenario, split (for filtering), dialogue (the manifest's JSON), audio (the dialogue's
distinct recordings as [{"path", "bytes"}]). `datasets.load_dataset("parquet", data_files=...)` reads it; the bytes are
the files' own and are decoded with soundfile. `data/parquet_corpus.py` trains from it where it lies.
"""

from __future__ import annotations

import json
import math
import shutil
import uuid
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq

from omnichat.data.card import PLOTS
from omnichat.data.card_page import CARD_PAGE
from omnichat.data.corpus import FINDINGS, REJECTED, Corpus
from omnichat.schema import SPLITS, Dialogue, dialogue_to_json
from omnichat.utils.errors import UserError
from omnichat.utils.files import replace_folder, sha256_bytes, sha256_file, write_json_atomic
from omnichat.utils.progress import progress

COLUMNS = ("id", "source", "kind", "scenario", "split", "dialogue")
ROW_GROUP = 16  # dialogues; what a reader decodes at once
INDEX = "shards.json"
INDEX_FORMAT = 1
BESIDE = ("README.md", "card.json", CARD_PAGE, FINDINGS, REJECTED)  # files that are taken over as they are
_OWN = ("data", INDEX, PLOTS, *BESIDE)  # all that an export holds


def export_parquet(corpus: Corpus, folder: Path, rows_per_shard: int = 256) -> list[Path]:
    """Write `corpus` below `folder` and return the shards; an older export there is replaced once this one is whole.

    Raises:
        UserError: `folder` holds anything but an export, or the corpus, or is the current folder; rows_per_shard below
            1; a recording that is not the manifest's.
    """
    if rows_per_shard < 1:
        raise UserError(f"rows_per_shard must be >= 1, got {rows_per_shard}")
    folder = folder.expanduser().resolve()
    check_replaceable(folder, corpus.root)
    schema = _schema()
    work = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.partial")
    (work / "data").mkdir(parents=True)
    shards: list[dict[str, Any]] = []
    try:
        with progress(len(corpus.dialogues), "parquet", unit=" dialogues") as bar:
            for split in SPLITS:
                rows = list(corpus.iterate(split))
                count = math.ceil(len(rows) / rows_per_shard)
                for number in range(count):
                    name = f"data/{split}-{number:05d}-of-{count:05d}.parquet"
                    part = rows[number * rows_per_shard : (number + 1) * rows_per_shard]
                    with pq.ParquetWriter(work / name, schema, compression="none") as writer:  # FLAC is compressed
                        for start in range(0, len(part), ROW_GROUP):
                            group = [_row(corpus, dialogue) for dialogue in part[start : start + ROW_GROUP]]
                            writer.write_table(pa.Table.from_pylist(group, schema=schema))
                            bar.update(len(group))
                    facts = {"bytes": (work / name).stat().st_size, "sha256": sha256_file(work / name)}
                    shards.append({"file": name, "split": split, "rows": len(part), **facts})
        for name in BESIDE:
            if (corpus.root / name).is_file():
                shutil.copyfile(corpus.root / name, work / name)
        for chart in sorted((corpus.root / PLOTS).glob("*.svg")):
            (work / PLOTS).mkdir(exist_ok=True)
            shutil.copyfile(chart, work / PLOTS / chart.name)
        write_json_atomic(work / INDEX, _index(corpus, shards))
        replace_folder(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return [folder / shard["file"] for shard in shards]


def check_replaceable(folder: Path, source: Path) -> None:
    """Raise UserError unless the resolved `folder` may go: it is not there, empty, or an export and nothing else."""
    if source.resolve().is_relative_to(folder):
        raise UserError(f"{folder}: is or holds the corpus itself ({source}); choose another folder")
    if Path.cwd().is_relative_to(folder):
        raise UserError(f"{folder}: is or holds the current folder, which cannot be replaced; name another one")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; choose a folder")
    held = list(folder.iterdir()) if folder.is_dir() else []
    data = folder / "data"
    foreign = [path for path in held if path.name not in _OWN]
    foreign += [path for path in (data.iterdir() if data.is_dir() else ()) if path.suffix != ".parquet"]
    charts = folder / PLOTS
    foreign += [path for path in (charts.iterdir() if charts.is_dir() else ()) if path.suffix != ".svg"]
    if foreign:
        raise UserError(
            f"{folder}: holds {min(foreign).relative_to(folder)}, which is of no export; choose another folder"
        )
    if held and not (folder / INDEX).is_file():
        raise UserError(f"{folder}: is no Parquet export of ours, for it has no {INDEX}; choose another folder")


def _index(corpus: Corpus, shards: list[dict[str, Any]]) -> dict[str, Any]:
    """What a reader must know before it opens a shard."""
    return {
        "format": INDEX_FORMAT,
        "name": corpus.name,
        "kind": corpus.kind,
        "stand_in": corpus.stand_in,
        "fingerprint": corpus.fingerprint(),
        "group_rows": ROW_GROUP,
        "shards": shards,
        "summary": {"all": corpus.summary()} | {split: corpus.summary(split) for split in SPLITS},
    }


def _schema() -> pa.Schema:
    """Arrow schema with the note by which `datasets` knows the audio column; its own decoding would need torchcodec."""
    features = datasets.Features({name: datasets.Value("string") for name in COLUMNS})
    features["audio"] = datasets.List(datasets.Audio(decode=False))
    note = json.dumps({"info": {"features": features.to_dict()}})
    audio = pa.list_(pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
    fields: list[tuple[str, Any]] = [*((name, pa.string()) for name in COLUMNS), ("audio", audio)]
    return pa.schema(fields, metadata={"huggingface": note})


def _row(corpus: Corpus, dialogue: Dialogue) -> dict[str, Any]:
    recordings: dict[str, bytes] = {}
    for turn in dialogue.turns:
        if turn.audio is None or turn.audio in recordings:
            continue
        content = corpus.path_of(turn).read_bytes()
        if turn.sha256 is not None and sha256_bytes(content) != turn.sha256:
            raise UserError(f"{corpus.path_of(turn)}: SHA-256 is not the manifest's (dialogue {dialogue.id!r})")
        recordings[turn.audio] = content
    if dialogue.scene is not None and dialogue.scene.audio is not None:
        recordings[dialogue.scene.audio] = (corpus.root / dialogue.scene.audio).read_bytes()
    head = {name: getattr(dialogue, name) for name in COLUMNS if name != "dialogue"}
    text = json.dumps(dialogue_to_json(dialogue), ensure_ascii=False, allow_nan=False)
    audio = [{"bytes": content, "path": path} for path, content in recordings.items()]
    return head | {"dialogue": text, "audio": audio}
