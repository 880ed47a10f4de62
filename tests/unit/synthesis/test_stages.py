"""One corpus, however its making is cut up: stage by stage, in shares, by other processes, after it has grown."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from omnichat.data.corpus import Corpus
from omnichat.data.parquet_corpus import ParquetCorpus
from omnichat.synthesis import pipeline, work
from omnichat.synthesis.checks.suite import CheckSuite
from omnichat.synthesis.engines.ray_data import RayEngine
from omnichat.synthesis.plan import DuplicateConfig, SynthesisConfig
from omnichat.synthesis.scenes.maker import SceneMaker
from omnichat.synthesis.stem import make_stem
from omnichat.synthesis.writers.script_file import ScriptFileWriter
from omnichat.utils.errors import UserError
from omnichat.utils.files import read_json, read_jsonl
from tests.unit.synthesis.test_pipeline import COUNTS, Picky, files, make, sounds, start  # noqa: F401  (fixtures)

BAD = ("the garden", "the schedule", "the phone bill", "the bank loan", "the apple tree", "the camping trip")


@pytest.fixture
def whole(make: Any) -> dict[str, str]:  # noqa: F811
    return files(make("whole", Picky(BAD)).root)


def test_stage_by_stage_gives_the_same_bytes(start: Any, whole: dict[str, str], tmp_path: Path) -> None:  # noqa: F811
    for until in ("plan", "scripts", "speech", "checks", "scenes"):
        made = start("staged", Picky(BAD), until=until)
        assert made.corpus is None and not (tmp_path / "staged").exists()
        folder = tmp_path / ".staged.work"
        assert len(read_jsonl(folder / "plan.jsonl")) == 8
        spoken, finished = len(list(folder.glob("speech/*"))), len(list(folder.glob("stems/*/h0.flac")))
        assert {"plan": 0, "scripts": 0, "speech": 8, "checks": 8, "scenes": 0}[until] == spoken
        assert finished == (8 if until == "scenes" else 0)
    assert files(start("staged", Picky(BAD)).corpus.root) == whole


def test_shares_of_the_work_make_the_whole(
    start: Any,  # noqa: F811
    whole: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for shard in ("2/3", "0/3", "1/3"):
        assert start("shared", Picky(BAD), shard=shard).corpus is None
    assert not (tmp_path / "shared").exists()
    made_anew: list[bool] = []

    def watched(job: Any, parts: Any) -> Any:
        outcome, seconds = make_stem(job, parts)
        made_anew.append(bool(seconds))
        return outcome, seconds

    monkeypatch.setattr(pipeline, "make_stem", watched)
    assert files(start("shared", Picky(BAD)).corpus.root) == whole
    assert made_anew and not any(made_anew), "the last run only puts together"


def test_ray_gives_the_same_bytes(start: Any, whole: dict[str, str]) -> None:  # noqa: F811
    pytest.importorskip("ray")
    assert files(start("ray", Picky(BAD), RayEngine(workers=2)).corpus.root) == whole


def test_a_mistake_inside_ray_is_one_line(start: Any) -> None:  # noqa: F811
    pytest.importorskip("ray")
    with pytest.raises(UserError, match="no Ray cluster answers"):
        start("ray", None, RayEngine(workers=1, address="127.0.0.1:1"))


def test_a_corpus_that_grows_keeps_what_was_made(
    start: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    start("small", until="scenes")
    shutil.copytree(tmp_path / ".small.work", tmp_path / ".large.work")
    anew: Counter[bool] = Counter()

    def watched(job: Any, parts: Any) -> Any:
        result = make_stem(job, parts)
        anew[bool(result[1])] += 1
        return result

    monkeypatch.setattr(pipeline, "make_stem", watched)
    start("large", dialogues=COUNTS | {"emotion": {"train": 6, "test": 2}})
    assert anew == {False: 8, True: 2}


def test_parquet_holds_the_same_dialogues(start: Any) -> None:  # noqa: F811
    folder = start("folder").corpus
    packed = start("packed", format="parquet").corpus
    assert isinstance(packed, ParquetCorpus) and packed.fingerprint() == folder.fingerprint()
    assert [d.id for split in ("train", "test") for d in packed.iterate(split)] == [
        d.id for split in ("train", "test") for d in folder.iterate(split)
    ]


def test_ids_follow_content(make: Any) -> None:  # noqa: F811
    one, other = make("one"), make("other", name="another")
    assert [d.id for d in one.dialogues] == [d.id for d in other.dialogues]
    assert not {d.id for d in one.dialogues} & {d.id for d in make("seed", seed=3).dialogues}


def test_every_reject_is_kept_with_its_reason(start: Any) -> None:  # noqa: F811
    made = start("picky", Picky(BAD), max_attempts=1)
    corpus = made.corpus
    assert isinstance(corpus, Corpus)
    rows = read_jsonl(corpus.root / "rejected.jsonl")
    stages = Counter(row["stage"] for row in rows)
    card = read_json(corpus.root / "card.json")["checks"]
    assert stages["picky"] == stages["dropped"] == card["dropped after all attempts"] >= 1
    assert all(row["reasons"] for row in rows)
    kept = read_jsonl(corpus.root / "checks.jsonl")
    assert {row["id"] for row in kept} == {d.id.rpartition("-v")[0] for d in corpus.dialogues}
    assert set(kept[0]["checks"]) == {"signal", "styles", "picky"}
    assert "rejected.jsonl" in (corpus.root / "checksums.sha256").read_text()


def test_a_corpus_that_will_not_fit_is_refused_before_it_starts(
    start: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=100_000)
    monkeypatch.setattr(work.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(UserError, match=r"GB are needed, 0\.0 GB are free; .*check_disk=false"):
        start("full")
    assert not list(tmp_path.glob(".full.work/stems"))
    assert start("full", check_disk=False).corpus is not None


@pytest.mark.parametrize("shard", ["8/8", "-1/8", "1", "a/b", "1/0", "0/8x"])
def test_a_wrong_shard_is_named(shard: str) -> None:
    with pytest.raises(UserError, match="must be i/n with 0 <= i < n"):
        SynthesisConfig(name="x", out="x", dialogues=COUNTS, shard=shard)


def test_keys_change_with_all_that_sets_a_clip(start: Any) -> None:  # noqa: F811
    made = start("x", until="scenes")
    stem = made.stems[0]
    script = made.scripts[stem.id]
    keys = {work.attempt_key("one", stem, script, 0), work.attempt_key("two", stem, script, 0)}
    keys |= {work.attempt_key("one", stem, script, 1), work.attempt_key("one", made.stems[1], script, 0)}
    assert len(keys) == 4
    assert json.loads(json.dumps(sorted(keys))) == sorted(keys)


def test_a_file_of_scripts_decides_turns_styles_and_sounds(
    tmp_path: Path,
    tone_voice: Any,
    sounds: tuple[Any, Any],  # noqa: F811
) -> None:
    def entry(number: int, scenario: str, **more: Any) -> dict[str, Any]:
        topic = f"parcel number {number}"
        history = [{"speaker": speaker, "text": f"{speaker} says a word on {topic}."} for speaker in "AB"]
        variants = [
            {"style": {"emotion": emotion}, "reply": {"text": f"A dog, and {emotion}, at {topic}."}}
            for emotion in ("happy", "sad")
        ]
        fields = {"topic": topic, "scenario": scenario, "split": "train", "history": history}
        return fields | {"current": f"What now about {topic}?", "variants": variants} | more

    rows = [entry(n, "emotion") for n in range(3)]
    rows += [entry(3, "audio", sound={"caption": "a dog barks", "keywords": ["dog"]})]
    whale = entry(4, "audio", sound={"caption": "a whale", "keywords": ["whale"]})
    for variant in whale["variants"]:
        variant["reply"]["text"] = variant["reply"]["text"].replace("dog", "whale")
    rows.append(whale)
    path = tmp_path / "scripts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    writer = ScriptFileWriter(str(path), "mine", "emotion", "raise", {"train": 1.0}, 14)
    counts = {"emotion": {"train": 5}, "audio": {"train": 5}}
    alike = DuplicateConfig(threshold=1.0)  # these scripts are
    config = SynthesisConfig(name="x", out=str(tmp_path / "x"), workers=1, dialogues=counts, duplicates=alike)
    scenes = SceneMaker(config.scene, *sounds, tone_voice.sample_rate)
    corpus = pipeline.synthesize(config, writer, tone_voice, CheckSuite({}), scenes).corpus
    assert isinstance(corpus, Corpus)
    assert sorted({d.topic for d in corpus.dialogues}) == [f"parcel number {n}" for n in range(4)]
    assert len(corpus.dialogues) == 4 * 2
    assert {d.scene.caption for d in corpus.dialogues if d.scene is not None} == {"a dog barking"}
