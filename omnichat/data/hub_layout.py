"""A corpus as the hub shows it and `datasets.load_dataset` reads it: shards, splits, a card with its header."""

from __future__ import annotations

import os
import re
import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml

from omnichat.data.card import PLOTS
from omnichat.data.corpus import AnyCorpus, Corpus
from omnichat.data.hub import check_repo, login, upload
from omnichat.data.parquet import BESIDE, INDEX, check_replaceable, export_parquet
from omnichat.schema import SPLITS
from omnichat.utils.files import read_json, replace_folder, write_text_atomic

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_LICENCES = {  # what a card may say -> the hub's id
    "apache-2.0": "apache-2.0",
    "mit": "mit",
    "cc0-1.0": "cc0-1.0",
    "cc-by-4.0": "cc-by-4.0",
    "cc-by-sa-4.0": "cc-by-sa-4.0",
    "cc-by-nc-4.0": "cc-by-nc-4.0",
    "cc-by-nc-sa-4.0": "cc-by-nc-sa-4.0",
    "cc-by-3.0": "cc-by-3.0",
    "cc-by-sa-3.0": "cc-by-sa-3.0",
}


def write_layout(corpus: AnyCorpus, folder: Path, link: bool = False) -> Path:
    """Write the layout into `folder`, in place of an older one, and return it.

    `link` lets it share the shards of an export on the same disk, where a copy would be made for nothing.

    `datasets.load_dataset(str(folder))` then gives every split, and `omnichat train` reads the folder as it is.

    Raises:
        UserError: `folder` holds anything but an export; a recording that is not the manifest's.
    """
    folder = folder.expanduser().resolve()
    if isinstance(corpus, Corpus):
        export_parquet(corpus, folder)
    else:
        _copy_export(corpus, folder, link)
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else f"# {corpus.name}\n"
    write_text_atomic(card, f"---\n{_front_matter(corpus)}---\n\n{_how_to_read(corpus)}{_without_header(text)}")
    return folder


def _copy_export(corpus: AnyCorpus, folder: Path, link: bool) -> None:
    check_replaceable(folder, corpus.root)
    work = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        work.mkdir(parents=True)
        for name in (*BESIDE, INDEX):
            if (corpus.root / name).is_file():
                shutil.copyfile(corpus.root / name, work / name)
        for name in ("data", PLOTS):
            if (corpus.root / name).is_dir():
                shutil.copytree(corpus.root / name, work / name, copy_function=os.link if link else shutil.copyfile)
        replace_folder(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _front_matter(corpus: AnyCorpus) -> str:
    """The YAML header by which the hub files a data set and `datasets` finds its splits."""
    card = read_json(corpus.root / "card.json") if (corpus.root / "card.json").is_file() else {}
    rows = card.get("licences", []) if isinstance(card, dict) else []
    present = [split for split in SPLITS if corpus.count(split)]
    count = sum(corpus.count(split) for split in present)
    languages = sorted({dialogue.language for dialogue in corpus.iterate()})
    scenarios = sorted({dialogue.scenario for dialogue in corpus.iterate()})
    header: dict[str, Any] = {
        "pretty_name": corpus.name,
        "language": languages,
        "license": _licences(str(row.get("licence", "")) for row in rows if isinstance(row, dict)),
        "size_categories": [next((name for limit, name in _SIZES if count < limit), "n>1M")],
        "task_categories": ["text-generation", "text-to-speech", "automatic-speech-recognition"],
        "tags": ["audio", "spoken-dialogue", "omnichat", corpus.kind, *scenarios],
        "configs": [
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"data/{split}-*.parquet"} for split in present],
            }
        ],
    }
    if corpus.stand_in:
        header["tags"].append("stand-in")
    return yaml.safe_dump(header, sort_keys=False, allow_unicode=True)


def _licences(stated: Iterable[str]) -> list[str]:
    """The hub's ids of the licences that a card names; "other" for what is not one of them."""
    found = []
    for text in stated:
        names = [name for name in re.split(r"[\s,;()]+", text.lower()) if name in _LICENCES]
        found += [_LICENCES[name] for name in names] or ["other"]
    return list(dict.fromkeys(found)) or ["other"]


def _how_to_read(corpus: AnyCorpus) -> str:
    present = [split for split in SPLITS if corpus.count(split)]
    return (
        "A row is a dialogue. Column `dialogue` is its JSON: turns with words, style and the path of each recording;\n"
        "column `audio` lists the recordings as `{path, bytes}`, which `soundfile` decodes.\n\n"
        "```python\n"
        "import io, json, datasets, soundfile\n\n"
        f'row = datasets.load_dataset("ORGANISATION/NAME", split="{present[0]}")[0]\n'
        'turns = json.loads(row["dialogue"])["turns"]\n'
        'sound = {item["path"]: item["bytes"] for item in row["audio"]}\n'
        'samples, rate = soundfile.read(io.BytesIO(sound[turns[0]["audio"]]))\n'
        "```\n\n"
    )


def _without_header(text: str) -> str:
    """A card without the header and the words that an earlier call put there."""
    if text.startswith("---\n"):
        text = text.partition("\n---\n")[2]
    return text[max(0, text.find("# ")) :]


def push(folder: Path, repo: str, private: bool, endpoint: str | None = None) -> str:
    """Upload a layout to a data set of the hub and return its address. The token is that of the hub's own login.

    Args:
        folder: as `write_layout` made it.
        repo: ORGANISATION/NAME; made if it is not there.
        private: only its owners may see it. A public data set that is there already is refused, then.
        endpoint: of another hub than Hugging Face's; None = HF_ENDPOINT, or that.

    Raises:
        UserError: no login, no right, no way to the hub, or a public data set where a private one is asked for.
    """
    check_repo("repo", repo)
    return upload(
        folder,
        repo,
        "dataset",
        token=login("to=FOLDER writes the files only"),
        private=private,
        message="Add the corpus with its card",
        delete=["data/*", f"{PLOTS}/*"],  # shards and charts of an older form of it
        endpoint=endpoint,
    )
