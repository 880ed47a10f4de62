"""Bad recordings: each kind is found before memory is asked for, listed, and its dialogues are left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from omnichat.data.corpus import Corpus
from omnichat.data.parquet_corpus import open_corpus
from omnichat.data.quarantine import Quarantine, ReducedCorpus, left_out
from omnichat.encoders.base import AudioEncoder
from omnichat.schema import SPLITS
from omnichat.text.chat import ChatConfig
from omnichat.training.features import (
    CacheConfig,
    fill_missing,
    heard_clips,
    leave_out_bad,
    open_caches,
    recordings,
    wait_for_others,
)
from omnichat.training.items import Source
from omnichat.utils.errors import UserError
from omnichat.utils.files import sha256_file
from tests.helpers.cached import beats
from tests.helpers_core import RATE, make_corpus


def forged(path: Path) -> None:
    """A small FLAC file whose header claims 2^36 - 1 samples."""
    content = bytearray(path.read_bytes())
    content[21] |= 0x0F
    content[22:26] = b"\xff\xff\xff\xff"
    path.write_bytes(content)


def not_a_number(path: Path) -> None:
    """As long as the manifest says, but of NaN; a WAV file under the old name."""
    frames = soundfile.info(str(path)).frames
    soundfile.write(str(path), np.full(frames, np.nan, dtype=np.float32), RATE, subtype="FLOAT", format="WAV")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, "no such audio file"),
    "truncated": (lambda path: path.write_bytes(path.read_bytes()[:30]), "not readable as audio"),
    "empty file": (lambda path: path.write_bytes(b""), "not readable as audio"),
    "no samples": (lambda path: soundfile.write(str(path), np.zeros(0), RATE), r"lasts 0\.000 s|not readable as audio"),
    "wrong rate": (lambda path: soundfile.write(str(path), np.zeros(RATE), 2 * RATE), "sample rate is 16000 Hz"),
    "forged header": (forged, r"lasts \d{6,}\.\d+ s|not readable as audio"),
    "not a number": (not_a_number, "SHA-256"),
    "another recording": (lambda path: soundfile.write(str(path), 0.5 * soundfile.read(str(path))[0], RATE), "SHA-256"),
}


def heard_file(corpus: Corpus, number: int) -> Path:
    """The file of the first turn of training dialogue `number`, which the model hears."""
    return corpus.path_of(corpus.get("train", number).turns[0])


def caching(folder: Path, **changed: object) -> CacheConfig:
    return CacheConfig(dir=str(folder / "cache"), **{"on_bad_audio": "skip", "max_bad": 0.5, **changed})


def usable(folder: Path, config: CacheConfig, experts: dict[str, AudioEncoder]) -> list[Source]:
    """What a run does before it builds its model: load, leave out, fill the cache, leave out."""
    quarantine = config.quarantine()
    corpus = open_corpus(folder, on_bad_audio=quarantine.take if quarantine is not None else None)
    sources = [Source("made", corpus, 1.0)]
    sources = leave_out_bad(sources, quarantine, recordings(sources))
    return fill_missing(experts, open_caches(experts, config), sources, ChatConfig(), config)


@pytest.fixture
def corpus(tmp_path: Path) -> Corpus:
    return make_corpus(tmp_path / "made", count=5, dev=1)


@pytest.mark.parametrize("mode", ["auto", "online"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_dialogues_that_need_a_bad_recording_are_left_out(
    tmp_path: Path, corpus: Corpus, damage: str, mode: str
) -> None:
    wrong = heard_file(corpus, 1)
    needs = [d.id for d in corpus.dialogues if any(corpus.path_of(turn) == wrong for turn in d.turns)]
    DAMAGE[damage][0](wrong)
    (source,) = usable(tmp_path / "made", caching(tmp_path, mode=mode), {"beats": beats()})
    assert [d.id for d in source.corpus.iterate()] == [d.id for d in corpus.dialogues if d.id not in needs]
    assert left_out(source.corpus) == len(needs) > 0
    (line,) = listed(tmp_path)
    assert line["path"] == str(wrong) and wrong.name in line["reason"] and len(line["sha256"]) == 64
    assert wrong not in heard_clips([source], ChatConfig()).values()


@pytest.mark.parametrize("damage", DAMAGE)
def test_by_default_the_first_bad_recording_is_an_error(tmp_path: Path, corpus: Corpus, damage: str) -> None:
    wrong = heard_file(corpus, 1)
    DAMAGE[damage][0](wrong)
    with pytest.raises(UserError, match=rf"{wrong.name}: .*({DAMAGE[damage][1]})") as error:
        usable(tmp_path / "made", caching(tmp_path, on_bad_audio="raise"), {"beats": beats()})
    assert "\n" not in str(error.value)


def test_nan_under_its_own_hash_is_found_when_it_is_read(tmp_path: Path, corpus: Corpus) -> None:
    """A manifest that was made of a recording of NaN."""
    wrong = heard_file(corpus, 1)
    before = sha256_file(wrong)
    not_a_number(wrong)
    manifest = tmp_path / "made" / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace(before, sha256_file(wrong)))
    usable(tmp_path / "made", caching(tmp_path), {"beats": beats()})
    assert "not finite" in listed(tmp_path)[0]["reason"]


def test_too_many_bad_recordings_stop_the_run_and_are_listed(tmp_path: Path, corpus: Corpus) -> None:
    count = sum(len(d.turns) for d in corpus.dialogues)
    for number in (0, 1):
        heard_file(corpus, number).unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"2 of \d+ recordings cannot be used, more than cache\.max_bad=0\.01") as error:
        usable(tmp_path / "made", caching(tmp_path, max_bad=0.01), {"beats": beats()})
    assert "no such audio file" in str(error.value) and "quarantine.jsonl lists them" in str(error.value)
    assert len(listed(tmp_path)) == 2 < 0.5 * count


def test_too_many_that_only_the_encoding_finds_stop_the_run(tmp_path: Path, corpus: Corpus) -> None:
    not_a_number(heard_file(corpus, 1))
    with pytest.raises(UserError, match=r"1 of \d+ recordings cannot be used"):
        usable(tmp_path / "made", caching(tmp_path, max_bad=0.01), {"beats": beats()})


def test_a_file_that_was_put_back_is_used_again(tmp_path: Path, corpus: Corpus) -> None:
    wrong = heard_file(corpus, 1)
    content = wrong.read_bytes()
    for spoil in (not_a_number, Path.unlink):
        spoil(wrong)
        assert left_out(usable(tmp_path / "made", caching(tmp_path), {"beats": beats()})[0].corpus)
        wrong.write_bytes(content)
        (source,) = usable(tmp_path / "made", caching(tmp_path), {"beats": beats()})
        assert source.corpus.fingerprint() == corpus.fingerprint() and listed(tmp_path) == []


def test_a_waiting_rank_leaves_out_the_same(tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    not_a_number(heard_file(corpus, 1))
    (first,) = usable(tmp_path / "made", caching(tmp_path), {"beats": beats()})
    monkeypatch.setattr("omnichat.training.features.rank", lambda: 1)
    (second,) = usable(tmp_path / "made", caching(tmp_path), {"beats": beats()})
    assert second.corpus.fingerprint() == first.corpus.fingerprint() != corpus.fingerprint()


def test_a_waiting_rank_does_not_trust_an_old_list(
    tmp_path: Path, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, experts = caching(tmp_path), {"beats": beats()}
    wrong = heard_file(corpus, 1)
    quarantine = config.quarantine()
    assert quarantine is not None
    quarantine.take(wrong, sha256_file(wrong), UserError("of an earlier run"))
    quarantine.write()
    monkeypatch.setattr("omnichat.utils.waiting.PATIENCE_SEC", 0.0)
    with pytest.raises(UserError, match="has waited"):
        clips = {sha256_file(wrong): wrong}
        wait_for_others(open_caches(experts, config), clips, experts, config.quarantine())


def test_a_reduced_corpus_numbers_what_is_left(corpus: Corpus) -> None:
    out = {"train": [0, 2, 3], "dev": [], "test": []}
    names = [corpus.get("train", number).id for number in out["train"]]
    reduced = ReducedCorpus(corpus, out, names)
    for split in SPLITS:
        kept = [d for n, d in enumerate(corpus.iterate(split)) if n not in out[split]]
        assert [reduced.get(split, number) for number in range(reduced.count(split))] == kept
        assert list(reduced.iterate(split)) == kept
    assert reduced.summary("train")["dialogues"] == corpus.count("train") - 3
    assert reduced.fingerprint() != corpus.fingerprint()
    with pytest.raises(IndexError):
        reduced.get("train", reduced.count("train"))


def test_a_corpus_of_which_nothing_remains_is_named(tmp_path: Path, corpus: Corpus) -> None:
    quarantine = Quarantine(tmp_path / "list.jsonl", 1.0)
    for path in recordings([Source("made", corpus, 1.0)]):
        quarantine.take(path, None, UserError(f"{path}: bad"))
    with pytest.raises(UserError, match="every dialogue needs a recording that cannot be used"):
        quarantine.without_bad(corpus)


@pytest.mark.parametrize(("name", "value"), [("on_bad_audio", "ignore"), ("max_bad", -0.1), ("max_bad", 1.5)])
def test_a_bad_setting_is_named(name: str, value: object) -> None:
    with pytest.raises(UserError, match=rf"cache\.{name}"):
        CacheConfig(**{name: value})


def listed(folder: Path) -> list[dict[str, str]]:
    """Lines of the list of bad recordings."""
    file = folder / "cache" / "quarantine.jsonl"
    return [json.loads(text) for text in file.read_text().splitlines()]
