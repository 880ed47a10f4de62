"""Finding dialogues: the index against reading every dialogue, the folder against its Parquet export."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnichat.chat.browse.findings import count_by, find_rejects
from omnichat.chat.browse.index import CorpusIndex, heard_turn
from omnichat.chat.browse.markup import dialogue_html, head_html, list_html, rejects_html
from omnichat.chat.browse.query import ORDERS, TURNS, Query
from omnichat.chat.browse.view import dialogue_view, list_page, page_place, rejects_page
from omnichat.data.corpus import FINDINGS, MANIFEST, REJECTED, Corpus
from omnichat.data.parquet import export_parquet
from omnichat.schema import EMOTIONS, PITCHES, SCENARIOS, SPEEDS, SPLITS, Dialogue
from omnichat.utils.errors import UserError
from omnichat.utils.files import write_jsonl_atomic
from tests.helpers.browsed import HOSTILE, browsed_corpus


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return browsed_corpus(tmp_path_factory.mktemp("browse") / "made")


@pytest.fixture(scope="module")
def index(folder: Path) -> CorpusIndex:
    return CorpusIndex.open(folder)


def any_of(*choices: str) -> st.SearchStrategy[str | None]:
    return st.sampled_from((None, *choices))


QUERIES = st.builds(
    lambda figure, low, high, order, **rest: Query(
        figure=figure,
        low=None if figure is None else low,
        high=None if figure is None else high,
        order="corpus" if figure is None else order,
        **rest,
    ),
    figure=any_of("words.wer", "turns", "words.wer, highest of a turn"),
    low=st.sampled_from((None, 0.0, 0.02, 0.3)),
    high=st.sampled_from((None, 0.02, 0.3, 4.0)),
    order=st.sampled_from(ORDERS),
    split=any_of(*SPLITS),
    scenario=any_of(*SCENARIOS),
    emotion=any_of("sad", "happy", *EMOTIONS),
    pitch=any_of(*PITCHES),
    speed=any_of(*SPEEDS),
    turn=st.sampled_from(TURNS),
    words=st.sampled_from(
        ("", "station", "TRAIN something", '"really something"', '"something really"', "piano test0-v1")
    ),
)


def asked_for(dialogue: Dialogue, query: Query) -> bool:
    """What `Query` says, read off a dialogue; the figures are looked at by the caller."""
    heard = heard_turn(dialogue)
    part = {
        "any": lambda n: True,
        "heard": lambda n: n == heard,
        "reply": lambda n: n > heard,
        "history": lambda n: n < heard,
    }
    labels = {name: value for name in ("emotion", "pitch", "speed") if (value := getattr(query, name)) is not None}
    fitting = [
        turn
        for number, turn in enumerate(dialogue.turns)
        if part[query.turn](number) and all(getattr(turn.style, name) == value for name, value in labels.items())
    ]
    texts = [turn.text for turn in dialogue.turns] + [dialogue.id, dialogue.topic or ""]
    texts += [dialogue.scene.caption] if dialogue.scene else []
    said = "\n".join(texts).lower()
    return (
        query.split in (None, dialogue.split)
        and query.scenario in (None, dialogue.scenario)
        and (not labels or bool(fitting))
        and all(term in said for term in query.terms())
    )


@given(query=QUERIES)
def test_the_index_finds_what_reading_every_dialogue_finds(index: CorpusIndex, query: Query) -> None:
    found = list(index.find(query))
    expected = [n for n in range(len(index)) if asked_for(index.dialogue(n), query)]
    if query.figure is not None:
        values = index.columns.figures[query.figure]
        low, high = (None if bound is None else np.float32(bound) for bound in (query.low, query.high))
        expected = [n for n in expected if low is None or values[n] >= low]
        expected = [n for n in expected if high is None or values[n] <= high]
        if query.order != "corpus":
            sign = 1 if query.order == "lowest" else -1
            expected.sort(key=lambda n: (np.isnan(values[n]), 0 if np.isnan(values[n]) else sign * values[n]))
    assert found == expected


def test_labels_are_of_one_turn_and_not_of_several(index: CorpusIndex) -> None:
    assert len(index.find(Query(emotion="sad", pitch="low")))
    assert len(index.find(Query(emotion="neutral"))) == len(index)
    assert not len(index.find(Query(emotion="sad", pitch="normal")))  # sad turns are low; the normal ones are neutral


def test_figures_are_those_of_the_checks(index: CorpusIndex) -> None:
    of_dialogue, highest = index.columns.figures["words.wer"], index.columns.figures["words.wer, highest of a turn"]
    rows = [index.findings.row(index.dialogue(n).id.rpartition("-v")[0]) for n in range(len(index))]
    assert sum(row is None for row in rows) == 2  # two variants of the stem that nothing was measured of
    for number, row in enumerate(rows):
        if row is None:
            assert np.isnan(of_dialogue[number])
        else:
            assert of_dialogue[number] == pytest.approx(row["checks"]["words"]["dialogue"]["wer"])
            assert highest[number] == pytest.approx(0.3)  # of the fourth turn


def test_a_packed_corpus_shows_what_its_folder_shows(folder: Path, index: CorpusIndex, tmp_path: Path) -> None:
    export_parquet(Corpus.load(folder, "exists"), tmp_path / "packed", rows_per_shard=4)
    packed = CorpusIndex.open(tmp_path / "packed")
    assert len(packed) == len(index) == 12
    for number in range(len(index)):
        assert dialogue_html(dialogue_view(packed, number)) == dialogue_html(dialogue_view(index, number))
        for turn in range(len(index.dialogue(number).turns)):
            assert packed.recording(number, turn).read_bytes() == index.recording(number, turn).read_bytes()
    assert packed.rejects == index.rejects and head_html(packed) == head_html(index)


def test_pages_part_the_list(index: CorpusIndex) -> None:
    query = Query(figure="words.wer", order="highest")
    pages = [list_page(index, query, number, 5) for number in (1, 2, 3)]
    assert [entry.number for page in pages for entry in page.rows] == list(index.find(query))
    assert [page.pages for page in pages] == [3, 3, 3] and pages[0].total == 12
    assert list_page(index, query, 99, 5) == pages[2] and list_page(index, query, -3, 5) == pages[0]
    assert page_place(0, 7, 5) == (slice(0, 5), 1, 1)


def test_a_page_reads_only_its_own_dialogues(index: CorpusIndex, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []
    get = CorpusIndex.dialogue
    monkeypatch.setattr(CorpusIndex, "dialogue", lambda self, number: read.append(number) or get(self, number))
    list_page(index, Query(words="station"), 2, 5)
    assert read == [5, 6, 7, 8, 9]


def test_a_dialogue_is_shown_with_all_that_is_known_of_it(index: CorpusIndex) -> None:
    view = dialogue_view(index, 0)
    assert [turn.mark for turn in view.turns] == ["history", "history", "heard", "reply"]
    assert view.siblings == (0, 1) and ("words.wer", "0") in view.figures
    assert view.turns[0].heard == "I went to the nation today" and view.turns[1].heard is None
    assert view.turns[2].chips == ("sad", "pitch low", "speed slow") and view.turns[3].figures == (
        ("words.wer", "0.3"),
    )
    assert ("accepted at attempt", "2") in view.facts
    html = dialogue_html(view)
    assert html.count("<audio") == 4 and 'src="recordings/0/2"' in html
    assert "above max_dialogue_wer" in html and "words.wer 0.0625" in html
    assert "a calm piano (loop, speech +5 dB above it)" in dialogue_html(dialogue_view(index, 2))


def test_texts_stay_texts(index: CorpusIndex) -> None:
    number = int(index.find(Query(words="onerror"))[0])
    html = dialogue_html(dialogue_view(index, number)) + list_html(list_page(index, Query(words="onerror"), 1, 5), None)
    assert "<img" not in html and "<script" not in html and "&lt;img" in html
    assert dialogue_view(index, number).turns[-1].words == HOSTILE


def test_rejects_are_found_and_counted(index: CorpusIndex) -> None:
    rejects = index.rejects
    assert count_by(rejects, "stage") == [("script", 7), ("words", 1), ("dropped", 1)]
    assert count_by(rejects, "reason")[0] == ("too short", 7)
    assert len(find_rejects(rejects, None, None, "")) == 9
    assert [r.stage for r in find_rejects(rejects, None, None, "PLAN-0")] == ["words", "script"]
    assert [r.plan for r in find_rejects(rejects, "words", None, "station")] == ["plan-0"]
    assert not find_rejects(rejects, "words", "too short", "")
    page = rejects_page(rejects, 2, 5)
    assert (page.number, page.pages, len(page.rows)) == (2, 2, 4)
    assert "rejected 5 times" in rejects_html(page, count_by(rejects, "stage"), [])


def test_what_cannot_be_heard_is_said_and_not_served(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    index = CorpusIndex.open(copy)
    first, second = (copy / index.dialogue(0).turns[n].audio for n in (0, 1))
    first.unlink()
    outside = shutil.move(second, tmp_path / "elsewhere.flac")
    second.symlink_to(outside)
    index = CorpusIndex.open(copy)
    assert list(index.bad) == [str(first)]
    assert [turn.playable for turn in dialogue_view(index, 0).turns] == [False, False, True, True]
    assert "no such audio file" in dialogue_html(dialogue_view(index, 0))
    for turn, reason in ((0, "no such audio file"), (1, "follow_links=true"), (4, "has 4 turns"), (-1, "has 4 turns")):
        with pytest.raises(UserError, match=reason):
            index.recording(0, turn)
    assert index.recording(0, 1, follow_links=True).read_bytes() == Path(outside).read_bytes()
    for number in (-1, 12):
        with pytest.raises(UserError, match="no dialogue"):
            index.recording(number, 0)


@pytest.mark.parametrize(
    "line", ["[]", '{"id": "x"}', '{"id": "x", "checks": {"words": {"dialogue": 3}}}', "{", '{"id": 3}']
)
def test_a_wrong_line_of_the_checks_is_named(folder: Path, tmp_path: Path, line: str) -> None:
    for name in (MANIFEST, "audio"):
        (tmp_path / name).symlink_to(folder / name)
    (tmp_path / FINDINGS).write_text((folder / FINDINGS).read_text() + line + "\n")
    with pytest.raises(UserError, match=rf"{FINDINGS}:6: "):
        CorpusIndex.open(tmp_path)


def test_a_wrong_line_of_the_rejects_is_named(folder: Path, tmp_path: Path) -> None:
    for name in (MANIFEST, "audio"):
        (tmp_path / name).symlink_to(folder / name)
    write_jsonl_atomic(tmp_path / REJECTED, [{"stage": "words", "plan": "p", "reasons": "none"}])
    with pytest.raises(UserError, match=rf"{REJECTED}:1: "):
        CorpusIndex.open(tmp_path)


def test_checks_that_changed_meanwhile_are_not_shown_as_another_dialogues(folder: Path, tmp_path: Path) -> None:
    for name in (MANIFEST, "audio"):
        (tmp_path / name).symlink_to(folder / name)
    lines = (folder / FINDINGS).read_text().splitlines(keepends=True)
    (tmp_path / FINDINGS).write_text("".join(lines))
    index = CorpusIndex.open(tmp_path)
    (tmp_path / FINDINGS).write_text("".join(reversed(lines)))
    with pytest.raises(UserError, match=r"changed since|not a"):
        dialogue_view(index, 0)


def test_a_corpus_without_checks_has_no_figures_of_them(folder: Path, tmp_path: Path) -> None:
    for name in (MANIFEST, "audio"):
        (tmp_path / name).symlink_to(folder / name)
    index = CorpusIndex.open(tmp_path)
    assert sorted(index.columns.figures) == ["seconds", "turns"] and not index.rejects
    assert dialogue_view(index, 0).figures == ()
    with pytest.raises(UserError, match=r"figure='words.wer' is not valid"):
        index.find(Query(figure="words.wer"))


@pytest.mark.parametrize(
    "wrong",
    [
        {"split": "../etc"},
        {"emotion": "glad"},
        {"turn": "last"},
        {"order": "random"},
        {"words": "x" * 201},
        {"low": 1.0},
        {"order": "lowest"},
        {"figure": "turns", "low": float("nan")},
        {"figure": "turns", "high": "3"},
    ],
)
def test_a_wrong_query_is_refused(wrong: dict) -> None:
    with pytest.raises(UserError):
        Query(**wrong)
    assert replace(Query(), words="x" * 200)
