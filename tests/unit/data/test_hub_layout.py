"""A corpus on its way to the hub: `load_dataset` reads it whole, and the hub's own client brings it to a server."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub.constants
import pytest
import soundfile
import yaml

from omnichat.data.corpus import Corpus
from omnichat.data.hub_layout import push, write_layout
from omnichat.data.parquet import export_parquet
from omnichat.data.parquet_corpus import ParquetCorpus, open_corpus
from omnichat.utils.errors import UserError
from tests.helpers.corpora import synthetic_corpus
from tests.helpers.hub import Hub, running_hub


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus.load(synthetic_corpus(tmp_path_factory.mktemp("made")))


@pytest.fixture
def packed(corpus: Corpus, tmp_path: Path) -> ParquetCorpus:
    export_parquet(corpus, tmp_path / "packed", rows_per_shard=3)
    return ParquetCorpus.load(tmp_path / "packed")


@pytest.fixture(params=["folder", "export"])
def either(request: pytest.FixtureRequest, corpus: Corpus) -> Any:
    return corpus if request.param == "folder" else request.getfixturevalue("packed")


def test_load_dataset_gives_every_split_and_every_recording(either: Any, corpus: Corpus, tmp_path: Path) -> None:
    folder = write_layout(either, tmp_path / "hub")
    found = datasets.load_dataset(str(folder), cache_dir=str(tmp_path / "cache"))
    assert set(found) == {"train", "dev", "test"}
    for split, rows in found.items():
        assert [row["id"] for row in rows] == [dialogue.id for dialogue in corpus.iterate(split)]
        for row, dialogue in zip(rows, corpus.iterate(split), strict=True):
            sounds = {item["path"]: item["bytes"] for item in row["audio"]}
            turns = json.loads(row["dialogue"])["turns"]
            assert [turn["text"] for turn in turns] == [turn.text for turn in dialogue.turns]
            for told, turn in zip(turns, dialogue.turns, strict=True):
                samples, rate = soundfile.read(io.BytesIO(sounds[told["audio"]]))
                assert rate == turn.sample_rate and len(samples) / rate == pytest.approx(turn.seconds, abs=1e-3)


def test_the_layout_trains_as_it_is_and_shows_the_card(either: Any, corpus: Corpus, tmp_path: Path) -> None:
    folder = write_layout(either, tmp_path / "hub")
    assert open_corpus(folder, "full").fingerprint() == corpus.fingerprint()
    text = (folder / "README.md").read_text(encoding="utf-8")
    header = yaml.safe_load(text.split("---\n")[1])
    assert header["language"] == ["en"] and header["size_categories"] == ["n<1K"] and header["license"] == ["other"]
    assert [entry["split"] for entry in header["configs"][0]["data_files"]] == ["train", "dev", "test"]
    assert {"synthetic", "emotion", "music"} <= set(header["tags"])
    charts = [line.partition("](")[2].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    assert charts and all((folder / chart).is_file() for chart in charts)
    assert (folder / "card.html").is_file()
    once = text
    write_layout(open_corpus(folder), tmp_path / "again")
    assert (tmp_path / "again" / "README.md").read_text(encoding="utf-8") == once, "a header is not put on twice"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("HF_TOKEN", "hf_of_a_test")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    with running_hub() as server:
        yield server


def test_push_brings_every_file_and_takes_old_ones_away(corpus: Corpus, hub: Hub, tmp_path: Path) -> None:
    hub.private, hub.files = (
        None,
        {"data/old-00000-of-00001.parquet": b"old", "data/kept.txt": b"old", "notes.md": b"mine"},
    )
    folder = write_layout(corpus, tmp_path / "hub")
    assert push(folder, "me/x", private=True, endpoint=hub.url) == f"{hub.url}/datasets/me/x"
    mine = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert hub.files == mine | {"notes.md": b"mine"}
    assert hub.private is True and hub.tokens == {"Bearer hf_of_a_test"}


def test_a_public_data_set_that_is_there_needs_consent(corpus: Corpus, hub: Hub, tmp_path: Path) -> None:
    hub.private = False
    folder = write_layout(corpus, tmp_path / "hub")
    with pytest.raises(UserError, match=r"me/x: is there and is public; private=false"):
        push(folder, "me/x", private=True, endpoint=hub.url)
    assert hub.files == {}
    push(folder, "me/x", private=False, endpoint=hub.url)
    assert "README.md" in hub.files


@pytest.mark.parametrize(
    ("status", "told"),
    [(401, "log in"), (403, "the hub refuses"), (404, "not on the hub|answers 404"), (400, "400|refused")],
)
def test_a_hub_that_refuses_is_one_line(corpus: Corpus, hub: Hub, tmp_path: Path, status: int, told: str) -> None:
    hub.refuse = status
    with pytest.raises(UserError, match=told) as caught:
        push(write_layout(corpus, tmp_path / "hub"), "me/x", private=True, endpoint=hub.url)
    assert "\n" not in str(caught.value) and "me/x" in str(caught.value)


def test_no_login_no_network_and_no_id_are_told(tmp_path: Path, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="repo='x' is no id of the hub"):
        push(tmp_path, "x", private=True)
    with pytest.raises(UserError, match="cannot be reached"):
        push(tmp_path, "me/x", private=True, endpoint="http://127.0.0.1:9")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="cannot be reached, or HF_HUB_OFFLINE"):
        push(tmp_path, "me/x", private=True, endpoint=hub.url)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with pytest.raises(UserError, match="no login of the hub: run `hf auth login`"):
        push(tmp_path, "me/x", private=True)


def test_a_folder_with_other_things_is_not_replaced(corpus: Corpus, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match=r"thesis\.txt"):
        write_layout(corpus, tmp_path / "mine")
