"""`validate` finds each kind of fault, tells all of them, and finds none where there is none."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from omnichat.data.corpus import Corpus, finish_corpus
from omnichat.data.parquet import export_parquet
from omnichat.data.parquet_corpus import open_corpus
from omnichat.data.stats import stats
from omnichat.data.validate import Check, content_checks, validate
from omnichat.schema import Dialogue, Style, Turn
from omnichat.utils.errors import UserError
from tests.helpers.corpora import real_corpus, synthetic_corpus


def distinct(dialogues: list[Dialogue]) -> list[Dialogue]:
    """The helper's corpus says the same in all splits; here every split has its own words."""
    return [
        replace(d, topic=f"topic of {d.split}", turns=tuple(replace(t, text=f"{t.text} {d.split}") for t in d.turns))
        for d in dialogues
    ]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = synthetic_corpus(tmp_path_factory.mktemp("validate") / "made")
    dialogues = distinct(list(Corpus.load(folder).dialogues))
    finish_corpus(folder, dialogues, name="m", kind="synthetic", seed=0, checks={}, licences=[], notes=[], versions={})
    return folder


@pytest.fixture
def folder(template: Path, tmp_path: Path) -> Path:
    shutil.copytree(template, tmp_path / "made")
    return tmp_path / "made"


def failed(checks: list[Check]) -> dict[str, list[str]]:
    return {check.name.partition(":")[0]: check.offenders for check in checks if check.state == "failed"}


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "manifest.jsonl").read_text().splitlines()]


def rewrite(folder: Path, change: Callable[[list[dict[str, Any]]], Any]) -> None:
    found = rows(folder)
    change(found)
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))


@pytest.mark.parametrize("level", ["fast", "full"])
def test_a_sound_corpus_passes_folder_and_export(folder: Path, tmp_path: Path, level: str) -> None:
    checks = validate(folder, level)
    assert failed(checks) == {} and len(checks) >= 14
    assert sum(check.checked for check in checks) > 100
    export_parquet(Corpus.load(folder), tmp_path / "packed", rows_per_shard=3)
    assert failed(validate(tmp_path / "packed", level)) == {}


def test_sharing_is_a_fact_of_a_real_corpus_and_a_fault_of_a_made_one(tmp_path: Path) -> None:
    states = {check.name: check.state for check in validate(real_corpus(tmp_path / "real"))}
    assert states["splits: share no sentence"] == "note"
    assert [name for name, state in states.items() if state == "failed"] == ["splits: share no recording of a turn"]
    made = {check.name: check.state for check in validate(synthetic_corpus(tmp_path / "made"))}
    assert made["splits: share no sentence"] == "failed"


def test_every_fault_is_told_not_only_the_first(folder: Path) -> None:
    audio = sorted((folder / "audio").glob("*.flac"))
    audio[0].unlink()
    audio[1].write_bytes(audio[2].read_bytes())
    audio[3].write_bytes(b"no audio")
    (folder / "stray.txt").write_text("left behind")
    (folder / "card.json").write_text("{}")
    found = failed(validate(folder))
    assert {"checksums", "recordings", "card"} <= set(found)
    assert (
        f"audio/{audio[0].name}: no such file" in found["checksums"] and "stray.txt: not listed" in found["checksums"]
    )
    assert "card.json: its SHA-256 is another" in found["checksums"]
    assert len(found["recordings"]) == 3


def test_full_finds_a_changed_byte_that_fast_does_not(folder: Path) -> None:
    path = sorted((folder / "audio").glob("*.flac"))[0]
    content = bytearray(path.read_bytes())
    content[-10] ^= 1
    path.write_bytes(content)
    assert failed(validate(folder, "fast")) == {}
    assert set(failed(validate(folder, "full"))) == {"checksums", "recordings"}


def test_every_bad_line_and_repeated_id_is_told(folder: Path) -> None:
    def damage(found: list[dict[str, Any]]) -> None:
        found[0]["scenario"] = "party"
        found[1]["turns"][0]["audio"] = "../secret.wav"
        found[3]["id"] = found[2]["id"]

    rewrite(folder, damage)
    with open(folder / "manifest.jsonl", "a") as handle:
        handle.write("{broken\n")
    found = failed(validate(folder))
    assert [line.split(":")[1] for line in found["manifest"]] == ["1", "2", "13"]
    assert found["ids"] == [f"manifest.jsonl:4: {rows_id(folder)!r} stands in line 3"]


def rows_id(folder: Path) -> str:
    return json.loads((folder / "manifest.jsonl").read_text().splitlines()[2])["id"]


def all_turns(change: Callable[[int, Turn], dict[str, Any]]) -> Callable[[Dialogue], Dialogue]:
    return lambda d: replace(d, turns=tuple(replace(turn, **change(n, turn)) for n, turn in enumerate(d.turns)))


FAULTS: list[tuple[str, str, Callable[[Dialogue], Dialogue]]] = [
    ("splits: share no sentence", "in train", all_turns(lambda n, t: {"text": "So."} if n == 3 else {})),
    ("splits: share no topic", "'one' in train", lambda d: replace(d, topic="one")),
    ("splits: share no recording", "in train", all_turns(lambda n, t: {"sha256": "0" * 64})),
    ("variants:", "different words", lambda d: all_turns(lambda n, t: {"text": f"{t.text} {d.id}"})(d)),
    ("variants:", "a style twice", all_turns(lambda n, t: {"style": Style()})),
    ("variants:", "one member only", lambda d: all_turns(lambda n, t: {"variant_of": t.variant_of and d.id})(d)),
    ("variants:", "several splits", all_turns(lambda n, t: {"variant_of": t.variant_of and "all"})),
    ("dialogues: two", "only A speaks", lambda d: replace(d, turns=d.turns[:1])),
    ("starts:", "s", all_turns(lambda n, t: {"start_seconds": 9.0 - n})),
    ("labels: emotion", "have none", all_turns(lambda n, t: {"style": Style()} if n == 0 else {})),
    ("labels: pitch", "100% of the turns are low", all_turns(lambda n, t: {"style": Style(pitch="low")})),
]


@pytest.mark.parametrize(("check", "told", "change"), FAULTS, ids=lambda value: value if isinstance(value, str) else "")
def test_each_fault_of_the_content_is_found(template: Path, check: str, told: str, change: Any) -> None:
    dialogues = list(Corpus.load(template).dialogues)
    assert {c.state for c in content_checks(dialogues)} <= {"ok", "none"}
    (found,) = [c for c in content_checks([change(d) for d in dialogues]) if c.name.startswith(check)]
    assert found.failed and any(told in offender for offender in found.offenders), found.offenders


def test_an_export_with_a_changed_shard_or_count_is_told(folder: Path, tmp_path: Path) -> None:
    export_parquet(Corpus.load(folder), tmp_path / "packed")
    index = tmp_path / "packed" / "shards.json"
    value = json.loads(index.read_text())
    value["summary"]["all"]["turns"] += 1
    index.write_text(json.dumps(value))
    assert failed(validate(tmp_path / "packed")) == {"index": ["turns: 49 told, 48 there"]}
    shard = next((tmp_path / "packed" / "data").glob("*.parquet"))
    shard.write_bytes(shard.read_bytes() + b"x")
    assert list(failed(validate(tmp_path / "packed"))) == ["shards"]


def test_what_is_no_corpus_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such corpus folder"):
        validate(tmp_path / "absent")
    with pytest.raises(UserError, match="no corpus folder and no Parquet export"):
        validate(tmp_path)
    with pytest.raises(UserError, match="verify='deep'"):
        validate(tmp_path, "deep")


def test_stats_of_folder_and_export_agree(folder: Path, tmp_path: Path) -> None:
    export_parquet(Corpus.load(folder), tmp_path / "packed")
    one, two = stats(open_corpus(folder)), stats(open_corpus(tmp_path / "packed"))
    assert one == two
    assert one["all"]["dialogues"] == 12 == sum(row["dialogues"] for row in one["subsets"])
    assert one["all"]["turns_per_dialogue"] == 4.0 and one["all"]["sample_rates_hz"] == {"16000": 36}
    assert one["vocabulary"]["test"]["unseen_in_training"] == pytest.approx(1 / 5.75, abs=0.06)  # "test" in every turn
    assert json.loads(json.dumps(one)) == one
