"""The corpus folder: what is written is read back, and every fault is a one-line error that names its place."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from omnichat.audio.io import audio_info, save_audio
from omnichat.data.card import summarise
from omnichat.data.corpus import Corpus, finish_corpus
from omnichat.schema import (
    EMOTIONS,
    KINDS,
    PITCHES,
    PLACEMENTS,
    SCENARIOS,
    SPEEDS,
    SPLITS,
    Backchannel,
    Dialogue,
    Scene,
    Speaker,
    Style,
    Turn,
    dialogue_from_json,
    dialogue_to_json,
)
from omnichat.utils.errors import UserError

RATE = 8000


def tone(folder: Path, name: str, seconds: float = 0.5, hz: float = 220.0) -> str:
    wave = 0.3 * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE)) / RATE)
    save_audio(folder / "audio" / f"{name}.flac", wave, RATE)
    return f"audio/{name}.flac"


def turn(folder: Path, speaker: str, text: str, name: str, emotion: str = "neutral", **fields: str) -> Turn:
    path = folder / "audio" / f"{name}.flac"
    if not path.exists():
        tone(folder, name)
    rate, seconds = audio_info(path)
    return Turn(speaker, text, Style(emotion=emotion), f"audio/{name}.flac", rate, seconds, **fields)


def variants(folder: Path) -> list[Dialogue]:
    """Two variants that share their history, and one dialogue of the test split."""
    history = turn(folder, "A", "I called the office.", "h0"), turn(folder, "B", "What did they say?", "h1")
    dialogues = []
    for number, emotion in enumerate(("happy", "sad")):
        heard = turn(folder, "A", "They gave me an answer.", f"v{number}", emotion, variant_of="s")
        reply = turn(folder, "B", f"Reply {number}.", f"r{number}", emotion)
        dialogues.append(Dialogue(f"s-v{number}", "s", "synthetic", "emotion", "train", (*history, heard, reply)))
    other = turn(folder, "A", "It rains.", "o0"), turn(folder, "B", "So it does.", "o1")
    return [*dialogues, Dialogue("o-v0", "s", "synthetic", "audio", "test", other, scene=Scene("rain", snr_db=0.0))]


def finish(folder: Path, dialogues: list[Dialogue], **changes: object) -> dict:
    settings = {
        "name": "small",
        "kind": "synthetic",
        "seed": 0,
        "checks": {"wer": {"threshold": 0.05, "rejected": 2}, "scripts": 5},
        "licences": [{"part": "voice", "licence": "CC0-1.0"}],
        "notes": ["made by a test"],
        "versions": {"omnichat": "0"},
    }
    return finish_corpus(folder, dialogues, **(settings | changes))


def test_written_corpus_reads_back_equal_with_hashes_of_the_files(tmp_path: Path) -> None:
    dialogues = variants(tmp_path)
    finish(tmp_path, dialogues)
    corpus = Corpus.load(tmp_path, verify="full")
    bare = [replace(d, turns=tuple(replace(t, sha256=None) for t in d.turns)) for d in corpus.dialogues]
    assert bare == dialogues
    for dialogue in corpus.dialogues:
        for each in dialogue.turns:
            assert each.sha256 == hashlib.sha256(corpus.path_of(each).read_bytes()).hexdigest()


def test_checksums_cover_every_other_file_and_hold(tmp_path: Path) -> None:
    finish(tmp_path, variants(tmp_path))
    lines = dict(reversed(line.split("  ")) for line in (tmp_path / "checksums.sha256").read_text().splitlines())
    files = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()} - {"checksums.sha256"}
    assert set(lines) == files
    for name, digest in lines.items():
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest


def test_recordings_shared_by_variants_count_once(tmp_path: Path) -> None:
    card = finish(tmp_path, variants(tmp_path))
    assert card["counts"]["dialogues"] == 3
    assert card["counts"]["turns"] == 10
    assert card["counts"]["recordings"] == 8
    assert card["counts"]["hours"] == pytest.approx(8 * 0.5 / 3600, abs=1e-6)
    assert card["counts"]["labels"]["emotion"] == {"neutral": 4, "happy": 2, "sad": 2}
    assert card["variant_groups"] == 1
    assert [(row["scenario"], row["split"], row["dialogues"]) for row in card["subsets"]] == [
        ("audio", "test", 1),
        ("emotion", "train", 2),
    ]
    assert Corpus.load(tmp_path).summary("train")["recordings"] == 6


def test_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        finish(tmp_path / name, variants(tmp_path / name))
    for file in ("manifest.jsonl", "card.json", "README.md", "checksums.sha256"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert Corpus.load(tmp_path / "a").fingerprint() == Corpus.load(tmp_path / "b").fingerprint()


def test_fingerprint_changes_with_the_audio(tmp_path: Path) -> None:
    finish(tmp_path, variants(tmp_path))
    before = Corpus.load(tmp_path).fingerprint()
    tone(tmp_path, "v0", hz=330.0)
    finish(tmp_path, variants(tmp_path))
    assert Corpus.load(tmp_path).fingerprint() != before


def test_card_names_checks_labels_licences_and_seed_0(tmp_path: Path) -> None:
    finish(tmp_path, variants(tmp_path))
    text = (tmp_path / "README.md").read_text()
    for part in (
        "# small\n",
        "| seed | 0 |",
        "| wer | 0.05 | 2 |",
        "| scripts | 5 |",
        "CC0-1.0",
        "| emotion | happy |",
    ):
        assert part in text
    assert "STAND-IN" not in text


def test_stand_in_says_so_in_the_title(tmp_path: Path) -> None:
    card = finish(tmp_path, [replace(d, stand_in=True) for d in variants(tmp_path)])
    assert card["stand_in"] is True
    assert "STAND-IN for DailyTalk" in (tmp_path / "README.md").read_text().splitlines()[0]
    assert Corpus.load(tmp_path).summary()["stand_in"] is True


def test_hidden_working_files_belong_to_no_corpus(tmp_path: Path) -> None:
    (tmp_path / ".work").mkdir()
    (tmp_path / ".work" / "state.json").write_text("{}")
    finish(tmp_path, variants(tmp_path))
    assert ".work" not in (tmp_path / "checksums.sha256").read_text()


@pytest.mark.parametrize("verify", ["exists", "fast", "full"])
def test_missing_recording_is_named(tmp_path: Path, verify: str) -> None:
    finish(tmp_path, variants(tmp_path))
    (tmp_path / "audio" / "v1.flac").unlink()
    with pytest.raises(UserError, match=r"v1\.flac: no such audio file \(dialogue 's-v1' turn 2\)"):
        Corpus.load(tmp_path, verify)


def test_header_that_disagrees_with_the_manifest_is_refused(tmp_path: Path) -> None:
    finish(tmp_path, variants(tmp_path))
    tone(tmp_path, "v1", seconds=0.7)
    with pytest.raises(UserError, match=r"v1\.flac: lasts 0\.700 s, the manifest says 0\.500 s"):
        Corpus.load(tmp_path)
    soundfile.write(tmp_path / "audio" / "v1.flac", np.zeros(8000), 16000)
    with pytest.raises(UserError, match=r"v1\.flac: sample rate is 16000 Hz, the manifest says 8000 Hz"):
        Corpus.load(tmp_path)


def test_full_check_finds_other_samples_of_the_same_length(tmp_path: Path) -> None:
    finish(tmp_path, variants(tmp_path))
    tone(tmp_path, "v1", hz=440.0)
    Corpus.load(tmp_path, "fast")
    with pytest.raises(UserError, match=r"v1\.flac: SHA-256"):
        Corpus.load(tmp_path, "full")


def test_missing_folder_manifest_and_dialogues(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such corpus folder"):
        Corpus.load(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no manifest\.jsonl"):
        Corpus.load(tmp_path)
    (tmp_path / "manifest.jsonl").write_text("")
    with pytest.raises(UserError, match=r"manifest\.jsonl: holds no dialogues"):
        Corpus.load(tmp_path)
    with pytest.raises(UserError, match=r"verify='fsat'.*did you mean 'fast'"):
        Corpus.load(tmp_path, "fsat")


def test_writer_refuses_what_a_reader_would_refuse(tmp_path: Path) -> None:
    dialogues = variants(tmp_path)
    with pytest.raises(UserError, match="occurs twice"):
        finish(tmp_path, [dialogues[0], dialogues[0]])
    with pytest.raises(UserError, match="no dialogues"):
        finish(tmp_path, [])
    with pytest.raises(UserError, match="kind='sythetic'"):
        finish(tmp_path, dialogues, kind="sythetic")
    lost = replace(dialogues[0], turns=(replace(dialogues[0].turns[0], audio="audio/lost.flac"),))
    with pytest.raises(UserError, match=r"lost\.flac: no such audio file \(dialogue 's-v0'\)"):
        finish(tmp_path, [lost])
    stale = replace(dialogues[0], turns=(replace(dialogues[0].turns[0], sha256="0" * 64),))
    with pytest.raises(UserError, match="SHA-256 is not the one"):
        finish(tmp_path, [stale])
    assert not (tmp_path / "manifest.jsonl").exists()


@pytest.mark.parametrize(
    "path", ["../secret.wav", "/etc/passwd", "audio/../../x.wav", "", "a\nb.wav", "a\0.wav", "x" * 300, "\ud800.wav"]
)
def test_manifest_cannot_read_outside_its_folder(tmp_path: Path, path: str) -> None:
    row = dialogue_to_json(variants(tmp_path)[2])
    row["turns"][0]["audio"] = path
    (tmp_path / "manifest.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(UserError, match=r"manifest\.jsonl:1: the audio path"):
        Corpus.load(tmp_path)


def test_torn_last_line_is_passed_over_and_a_torn_middle_line_is_not(tmp_path: Path) -> None:
    finish(tmp_path, variants(tmp_path))
    lines = (tmp_path / "manifest.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "manifest.jsonl").write_text("".join(lines[:2]) + lines[2][:40])
    assert len(Corpus.load(tmp_path).dialogues) == 2
    (tmp_path / "manifest.jsonl").write_text(lines[0] + lines[1][:40] + "\n" + lines[2])
    with pytest.raises(UserError, match=r"manifest\.jsonl:2: not a JSON object"):
        Corpus.load(tmp_path)


def test_repeated_id_names_both_lines(tmp_path: Path) -> None:
    finish(tmp_path, variants(tmp_path))
    lines = (tmp_path / "manifest.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "manifest.jsonl").write_text("".join([*lines, lines[0]]))
    with pytest.raises(UserError, match=r"manifest\.jsonl:4: the id 's-v0' already stands in line 1"):
        Corpus.load(tmp_path)


TEXT = st.text(min_size=1, max_size=12).filter(str.strip)
STYLES = st.builds(
    Style,
    st.none() | st.sampled_from(PITCHES),
    st.none() | st.sampled_from(SPEEDS),
    st.none() | st.sampled_from(EMOTIONS),
)
SECONDS = st.floats(0.01, 600.0)
SAID = st.lists(st.tuples(TEXT, st.floats(0.0, 0.5), st.floats(0.01, 0.5)), max_size=2)
TURNS = st.builds(
    lambda speaker, text, style, audio, group, start, said: Turn(
        speaker,
        text,
        style,
        *(audio or (None, None, None)),
        variant_of=group,
        start_seconds=start,
        backchannels=tuple(  # inside of the turn, whatever its length
            Backchannel("B" if speaker == "A" else "A", words, *(x * (audio[2] if audio else 1.0) for x in times))
            for words, *times in said
        ),
    ),
    st.sampled_from(["A", "B"]),
    TEXT,
    STYLES,
    st.none() | st.tuples(TEXT, st.sampled_from([8000, 16000]), SECONDS),
    st.none() | TEXT,
    st.none() | st.floats(0.0, 100.0),
    SAID,
)
SCENES = st.builds(Scene, TEXT, st.sampled_from(PLACEMENTS), st.none() | st.floats(-5.0, 30.0))
DIALOGUES = st.builds(
    Dialogue,
    TEXT,
    TEXT,
    st.sampled_from(KINDS),
    st.sampled_from(SCENARIOS),
    st.sampled_from(SPLITS),
    st.lists(TURNS, min_size=1, max_size=4).map(tuple),
    st.just({}) | st.builds(lambda voice: {"A": Speaker(voice, "female"), "B": Speaker("x")}, TEXT),
    st.none() | SCENES,
    st.just("en"),
    st.none() | TEXT,
    st.booleans(),
)


@settings(max_examples=150, deadline=None)
@given(DIALOGUES)
def test_dialogue_survives_json(dialogue: Dialogue) -> None:
    assert dialogue_from_json(json.loads(json.dumps(dialogue_to_json(dialogue)))) == dialogue


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


def paths(value: object, here: tuple = ()) -> list[tuple]:
    """Every place in a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here, *(place for key, item in inner for place in paths(item, (*here, key)))]


@settings(max_examples=300, deadline=None)
@given(DIALOGUES, st.data())
def test_line_with_junk_somewhere_is_read_or_refused_with_its_place(tmp_path_factory, dialogue, data) -> None:
    row = dialogue_to_json(dialogue)
    place = data.draw(st.sampled_from(paths(row)[1:]))
    target = row
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = data.draw(JUNK)
    folder = tmp_path_factory.mktemp("junk")
    (folder / "manifest.jsonl").write_text(json.dumps({**dialogue_to_json(dialogue), "id": "first"}) + "\n")
    with open(folder / "manifest.jsonl", "a") as handle:
        handle.write(json.dumps(row) + "\n")
    try:
        Corpus.load(folder)
    except UserError as error:
        message = str(error)
        assert "\n" not in message
        assert "manifest.jsonl:1: " in message or "manifest.jsonl:2: " in message or "no such audio file" in message


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=30).filter(lambda x: x.strip() and not x.strip().startswith("{")))
def test_line_that_is_no_object_is_named(tmp_path_factory, line: str) -> None:
    line = " ".join(line.splitlines()).strip() or "x"
    folder = tmp_path_factory.mktemp("line")
    (folder / "manifest.jsonl").write_text(line + "\n", encoding="utf-8", errors="surrogatepass")
    with pytest.raises(UserError, match=r"manifest\.jsonl:1: "):
        Corpus.load(folder)


def test_summary_of_nothing_is_zero() -> None:
    assert summarise([]) == {
        "dialogues": 0,
        "turns": 0,
        "recordings": 0,
        "hours": 0.0,
        "labels": {"pitch": {}, "speed": {}, "emotion": {}},
    }
