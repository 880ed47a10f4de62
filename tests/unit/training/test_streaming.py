"""Training from Parquet is training from the folder: the same batches, with flat memory and an index made once."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from omnichat.data.audit import BadAudio
from omnichat.data.batching import LoaderConfig, Place
from omnichat.data.collate import Batch
from omnichat.data.corpus import AnyCorpus, Corpus, finish_corpus
from omnichat.data.mixture import MixtureConfig
from omnichat.data.parquet import export_parquet
from omnichat.data.parquet_corpus import ParquetCorpus
from omnichat.schema import Dialogue, Turn
from omnichat.text.chat import ChatConfig
from omnichat.training import items as items_module
from omnichat.training.data import Source, TrainingData
from omnichat.training.items import HeldItems, StreamedItems, index_key, load_items, open_index
from omnichat.utils import waiting
from omnichat.utils.errors import UserError
from tests.helpers_core import HashFeatures, Kit, make_kit

MEMORY_MB = 12.0  # that a corpus of a hundred times the dialogues may cost; its dialogues in memory would take more


@pytest.fixture
def packed(synthetic: Corpus, tmp_path: Path) -> ParquetCorpus:
    export_parquet(synthetic, tmp_path / "packed", rows_per_shard=3)
    return ParquetCorpus.load(tmp_path / "packed")


def stream(kit: Kit, corpora: list[AnyCorpus], folder: Path, workers: int = 0, **mixture: Any) -> Iterator[Batch]:
    sources = [Source(corpus.name, corpus, 1.0) for corpus in corpora]
    config = MixtureConfig(index_dir=str(folder), **mixture)
    loader = LoaderConfig(batch_tokens=500, pool=8, workers=workers)
    return TrainingData(sources, config, kit.chat, loader, HashFeatures(), 3).batches(Place(), 0, 1)


def same(one: Batch, other: Batch) -> bool:
    tensors = ("ids_BS", "labels_BS", "roles_BS", "mask_BS", "slot_N", "seconds_C", "place_C2", "styles_C3")
    return (
        one.dialogues == other.dialogues
        and one.sources == other.sources
        and all(torch.equal(getattr(one, name), getattr(other, name)) for name in tensors)
        and all(torch.equal(one.streams[name].x_BTD, other.streams[name].x_BTD) for name in one.streams)
    )


@pytest.mark.parametrize("unit", ["dialogue", "turn", "second", "token"])
def test_the_same_batches_from_either_form(
    synthetic: Corpus, real: Corpus, packed: ParquetCorpus, tmp_path: Path, unit: str
) -> None:
    kit = make_kit([synthetic, real])
    held = stream(kit, [synthetic, real], tmp_path, alpha=0.4, unit=unit)
    streamed = stream(kit, [packed, real], tmp_path, alpha=0.4, unit=unit)
    assert all(same(a, b) for a, b in islice(zip(held, streamed, strict=True), 12))


def test_a_data_worker_reads_the_same(synthetic: Corpus, packed: ParquetCorpus, tmp_path: Path) -> None:
    kit = make_kit([synthetic])
    here = list(islice(stream(kit, [packed], tmp_path), 6))
    there = list(islice(stream(kit, [packed], tmp_path, workers=1), 6))
    assert all(same(a, b) for a, b in zip(here, there, strict=True))


def test_facts_and_totals_agree(synthetic: Corpus, packed: ParquetCorpus, tmp_path: Path) -> None:
    chat = make_kit([synthetic], ChatConfig(target="both")).chat
    held = load_items(Source("made", synthetic, 1.0), chat, "train", tmp_path)
    streamed = load_items(Source("made", packed, 1.0), chat, "train", tmp_path)
    assert isinstance(held, HeldItems) and isinstance(streamed, StreamedItems)
    assert len(held) == len(streamed) > synthetic.count("train"), "both speakers are played"
    assert (held.facts == streamed.facts).all() and held.totals == streamed.totals
    assert held.facts["positions"][int(held.totals["longest"])] == held.facts["positions"].max()
    again = pickle.loads(pickle.dumps(streamed.facts[3]))
    assert again == held.facts[3]
    for number in range(len(held)):
        assert streamed[number].sequence == held[number].sequence
        assert [key.sha256 for key in streamed[number].keys] == [key.sha256 for key in held[number].keys]


def test_an_index_is_made_once_for_its_key(
    synthetic: Corpus, packed: ParquetCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = Source("made", packed, 1.0)
    chat = make_kit([synthetic]).chat
    load_items(source, chat, "train", tmp_path / "index")
    kept = list((tmp_path / "index").iterdir())
    with monkeypatch.context() as patch:
        patch.setattr(items_module, "_items_of", None)  # a second making would fail
        load_items(source, make_kit([synthetic]).chat, "train", tmp_path / "index")
    assert list((tmp_path / "index").iterdir()) == kept, "nothing else is left there"
    others = [
        make_kit([synthetic], ChatConfig(target="A")).chat,
        make_kit([synthetic], ChatConfig(input="text")).chat,
        make_kit([synthetic], queries=2).chat,
    ]
    keys = {index_key(packed, each, "train") for each in (chat, *others)} | {index_key(packed, chat, "dev")}
    assert len(keys) == 5


def test_an_index_lies_below_its_folder_whatever_the_corpus_is_called(
    synthetic: Corpus, packed: ParquetCorpus, tmp_path: Path
) -> None:
    source = Source("made", replace(packed, name="../../a b/" + "x" * 300), 1.0)
    made = open_index(source, make_kit([synthetic]).chat, "train", tmp_path / "index")
    assert made.resolve().parent == (tmp_path / "index").resolve() and made.is_dir()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("where", ["item", "features"])
def test_a_users_mistake_comes_from_a_data_worker_as_one_line(
    synthetic: Corpus, monkeypatch: pytest.MonkeyPatch, where: str, workers: int
) -> None:
    def bad(*_: Any) -> Any:
        raise BadAudio("torn", "clip.flac: cut off")

    if where == "item":
        monkeypatch.setattr(HeldItems, "__getitem__", bad)
    else:
        monkeypatch.setattr(HashFeatures, "__call__", bad)
    with pytest.raises(UserError) as caught:
        next(stream(make_kit([synthetic]), [synthetic], Path("unused"), workers))
    assert str(caught.value) == "clip.flac: cut off"


def test_a_stale_index_is_named(synthetic: Corpus, packed: ParquetCorpus, tmp_path: Path) -> None:
    streamed = load_items(Source("made", packed, 1.0), make_kit([synthetic]).chat, "train", tmp_path)
    streamed.facts = streamed.facts.copy()
    streamed.facts["positions"] += 1
    with pytest.raises(UserError, match=r"not the index of dialogue 'made-0-v0' as it is now; delete that folder"):
        streamed[0]


def test_another_rank_waits_for_the_first(
    synthetic: Corpus, packed: ParquetCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(waiting, "PATIENCE_SEC", 0.05)
    monkeypatch.setattr(waiting, "POLL_SEC", 0.01)
    chat, source = make_kit([synthetic]).chat, Source("made", packed, 1.0)
    with pytest.raises(UserError, match=r"rank 1 has waited .* same mixture\.index_dir"):
        load_items(source, chat, "train", tmp_path)
    monkeypatch.setenv("RANK", "0")
    load_items(source, chat, "train", tmp_path)
    monkeypatch.setenv("RANK", "1")
    assert len(load_items(source, chat, "train", tmp_path)) == synthetic.count("train")


def text_corpus(folder: Path, count: int) -> Path:
    """A Parquet corpus of `count` dialogues of words, each with words of its own."""
    folder.mkdir()
    dialogues = []
    for number in range(count):
        turns = (Turn("A", f"Do you know the number {number} of them all?"), Turn("B", f"It is {number * 7919}."))
        dialogues.append(Dialogue(f"d{number}", "made", "synthetic", "emotion", "train", turns))
    finish_corpus(
        folder, dialogues, name="made", kind="synthetic", seed=0, checks={}, licences=[], notes=[], versions={}
    )
    export_parquet(Corpus.load(folder), folder / "packed", rows_per_shard=256)
    return folder / "packed"


def peak_mb(corpus: Path, index: Path) -> float:
    """Peak resident size of a process that opens a corpus and draws 50 batches."""
    code = f"""
from itertools import islice
from pathlib import Path
from omnichat.data.parquet_corpus import open_corpus
from omnichat.text.chat import ChatConfig
from tests.helpers_core import make_kit
from tests.unit.training.test_streaming import stream
corpus = open_corpus({str(corpus)!r})
kit = make_kit([], ChatConfig(input="text"))
batches = list(islice((b.ids_BS.shape for b in stream(kit, [corpus], Path({str(index)!r}))), 50))
assert len(batches) == 50
status = Path("/proc/self/status").read_text()  # getrusage's peak may be that of the process which started this one
print(int(status.partition("VmHWM:")[2].split()[0]) / 1024)
"""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    return float(done.stdout.split()[-1])


@pytest.mark.campaign  # some minutes
def test_memory_stays_flat_as_a_corpus_grows(tmp_path: Path) -> None:
    """Also while the index is made."""
    small, large = text_corpus(tmp_path / "small", 100), text_corpus(tmp_path / "large", 10_000)
    grown = peak_mb(large, tmp_path / "index") - peak_mb(small, tmp_path / "index")
    assert grown < MEMORY_MB, f"{grown:.1f} MB more for 100 times the dialogues"
