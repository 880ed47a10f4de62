"""The data card as a page and its charts: whole, safe, and the same for the same corpus."""

from __future__ import annotations

import base64
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from omnichat.data import card_samples, charts
from omnichat.data.card import lengths
from omnichat.data.card_plots import histograms, plots, rejects
from omnichat.data.corpus import Corpus, finish_corpus
from omnichat.data.parquet import export_parquet
from omnichat.schema import Dialogue
from tests.helpers.corpora import synthetic_corpus

CHECKS: dict[str, Any] = {
    "words": {
        "threshold": {"max_turn_wer": 0.4},
        "measured": {
            "wer": 0.0213,
            "histogram_turns": {"0-0.02": 9, "0.02-0.05": 3},
            "histogram_dialogues": {"0-1": 1},
        },
        "rejected": {"word error rate above max_turn_wer": 4},
    },
    "speakers": {
        "threshold": {"min_within": 0.5},
        "measured": {"within_histogram": {"-0.5-0": 1, "0-0.5": 2}, "between_mean": 0.5},
        "rejected": {},
    },
    "quality": {
        "threshold": 3.0,
        "measured": {"mos": {"mean": 3.5, "histogram": {"1-2": 0, "2-3": 5}}},
        "rejected": {},
    },
    "attempts": 12,
    "scripts written again: too long": 3,
}
EVIL = '<script>alert("1")</script><img src=x onerror=alert(1)> & "quotes" | pipe'


def finish(folder: Path, dialogues: list[Dialogue], **changes: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"name": "made", "kind": "synthetic", "seed": 0, "checks": CHECKS, "notes": ["A note."]}
    given |= {"licences": [{"part": "voice", "licence": "CC0-1.0"}], "versions": {"omnichat": "0"}}
    return finish_corpus(folder, dialogues, **(given | changes))


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, list[Dialogue]]:
    folder = synthetic_corpus(tmp_path / "made")
    return folder, list(Corpus.load(folder).dialogues)


class Page(HTMLParser):
    """Tags with their attributes, and the text between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_holds_what_it_shows_and_asks_no_other_place(made: tuple[Path, list[Dialogue]]) -> None:
    folder, dialogues = made
    finish(folder, dialogues)
    page = Page((folder / "card.html").read_text(encoding="utf-8"))
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "link", "iframe", "object", "embed", "img", "form"}
    addresses = [value for _, attributes in page.tags for key in ("src", "href") if (value := attributes.get(key))]
    assert addresses and all(address.startswith(("#", "data:audio/")) for address in addresses)
    assert not [key for _, attributes in page.tags for key in attributes if key.startswith("on")]
    anchors = {attributes.get("id") for _, attributes in page.tags}
    assert {address[1:] for address in addresses if address.startswith("#")} <= anchors
    for told in (
        "Word error rate of a turn",
        "max_turn_wer",
        "CC0-1.0",
        "A note.",
        "too long",
        "It was really something.",
    ):
        assert told in page.text
    assert len([tag for tag, _ in page.tags if tag == "svg"]) == len(list((folder / "plots").glob("*.svg"))) == 14


def test_players_hold_the_corpus_s_own_bytes(made: tuple[Path, list[Dialogue]]) -> None:
    folder, dialogues = made
    finish(folder, dialogues)
    page = Page((folder / "card.html").read_text(encoding="utf-8"))
    heard = [attributes["src"] or "" for tag, attributes in page.tags if tag == "audio"]
    files = {path.read_bytes() for path in (folder / "audio").rglob("*.flac")}
    assert heard and all(base64.b64decode(source.partition(",")[2]) in files for source in heard)
    for scenario in ("emotion", "music"):
        assert scenario in page.text
    assert "a calm piano (loop, 5 dB)" in page.text and "The same words in 2 styles" in page.text


def test_markup_in_texts_is_text(made: tuple[Path, list[Dialogue]]) -> None:
    folder, dialogues = made
    evil = []
    for dialogue in dialogues:
        scene = None if dialogue.scene is None else replace(dialogue.scene, caption=EVIL)
        turns = tuple(replace(turn, text=f"{EVIL} {turn.text}") for turn in dialogue.turns)
        evil.append(replace(dialogue, turns=turns, scene=scene, topic=EVIL))
    checks = {EVIL: {"threshold": {EVIL: EVIL}, "measured": {EVIL: 1.0, "histogram": {EVIL: 2}}, "rejected": {EVIL: 2}}}
    finish(folder, evil, name=EVIL, checks=checks, notes=[EVIL], licences=[{EVIL: EVIL}], versions={EVIL: EVIL})
    text = (folder / "card.html").read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "img"} & {tag for tag, _ in page.tags}
    assert "<script" not in text and 'alert("1")' in page.text
    for chart in (folder / "plots").glob("*.svg"):
        names = {element.tag.rpartition("}")[2] for element in ElementTree.parse(chart).iter()}
        assert names <= {"svg", "style", "text", "rect", "line", "title"}


def test_the_same_corpus_gives_the_same_card_and_old_charts_go(made: tuple[Path, list[Dialogue]]) -> None:
    folder, dialogues = made

    def content() -> dict[str, bytes]:
        return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

    finish(folder, dialogues)
    first = content()
    finish(folder, dialogues)
    assert content() == first
    assert "plots/rejected.svg" in first and "plots/words-turns.svg" in first
    finish(folder, dialogues, checks={})
    assert set(first) - set(content()) == {
        f"plots/{name}.svg"
        for name in ("rejected", "scripts-rejected", "words-turns", "words-dialogues", "speakers-within", "quality-mos")
    }


def test_markdown_shows_every_chart_that_is_there(made: tuple[Path, list[Dialogue]]) -> None:
    folder, dialogues = made
    finish(folder, dialogues)
    shown = re.findall(r"^!\[.*\]\((.*)\)$", (folder / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert sorted(shown) == sorted(p.relative_to(folder).as_posix() for p in (folder / "plots").glob("*.svg"))


def test_checksums_and_the_export_take_page_and_charts_along(made: tuple[Path, list[Dialogue]], tmp_path: Path) -> None:
    folder, dialogues = made
    finish(folder, dialogues)
    sums = (folder / "checksums.sha256").read_text(encoding="utf-8")
    assert "  card.html\n" in sums and sums.count("  plots/") == 14
    export_parquet(Corpus.load(folder), tmp_path / "packed")
    export_parquet(Corpus.load(folder), tmp_path / "packed")  # also over an older one
    for name in ("card.html", "README.md", "plots/hours.svg"):
        assert (tmp_path / "packed" / name).read_bytes() == (folder / name).read_bytes()


def test_the_page_keeps_its_budget(made: tuple[Path, list[Dialogue]], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, dialogues = made
    size = max(path.stat().st_size for path in (folder / "audio").rglob("*.flac"))
    monkeypatch.setattr(card_samples, "PAGE_BYTES", 4 * size)  # two scenarios: two recordings each
    finish(folder, dialogues)
    page = Page((folder / "card.html").read_text(encoding="utf-8"))
    assert 2 <= len([tag for tag, _ in page.tags if tag == "audio"]) <= 5
    assert "in the corpus only" in page.text


def test_words_alone_make_a_card_too(tmp_path: Path, made: tuple[Path, list[Dialogue]]) -> None:
    (tmp_path / "words").mkdir()
    blank = {"audio": None, "sample_rate": None, "seconds": None, "sha256": None}
    silent = [replace(d, turns=tuple(replace(t, **blank) for t in d.turns)) for d in made[1]]
    finish(tmp_path / "words", silent, checks={})
    page = Page((tmp_path / "words" / "card.html").read_text(encoding="utf-8"))
    assert "Listen" not in page.text and not (tmp_path / "words" / "plots" / "hours.svg").exists()


def test_histograms_are_found_wherever_a_check_puts_them() -> None:
    found = dict(histograms(CHECKS["quality"]))
    assert found == {"measured.mos.histogram": {"1-2": 0, "2-3": 5}}
    assert dict(histograms({"measured": {"histogram_x": {}, "histogram_y": {"a": "b"}, "z": {"1-2": 3}}})) == {}


def test_rejects_are_in_order_of_their_number() -> None:
    takes, scripts = rejects(CHECKS | {"silent": {"threshold": None, "dialogues skipped": 9}})
    assert takes == [("silent", 9), ("words: word error rate above max_turn_wer", 4)]
    assert scripts == [("too long", 3)]


def test_lengths_count_every_turn_once(made: tuple[Path, list[Dialogue]]) -> None:
    found = lengths(made[1])
    distinct = {turn.audio for dialogue in made[1] for turn in dialogue.turns}
    assert sum(found["Seconds of a turn"].values()) == len(distinct) == sum(found["Words of a turn"].values())
    assert sum(found["Turns of a dialogue"].values()) == len(made[1]) == found["Turns of a dialogue"]["4-5"]


names = st.text(max_size=90)
counts = st.dictionaries(names, st.integers(0, 10**9), max_size=30)
bins = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30, unique=True).map(sorted)


@given(title=names, found=counts, edges=bins)
@settings(max_examples=60, deadline=None)
def test_charts_are_xml_whatever_their_texts(title: str, found: dict[str, int], edges: list[float]) -> None:
    binned = {f"{low:g}-{high:g}": number for number, (low, high) in enumerate(pairwise(edges))}
    rows = [(name, [float(n), n / 3, 0.0]) for name, n in found.items()]
    for svg in (
        charts.bars(title, list(found.items())),
        charts.histogram(title, found),
        charts.histogram(title, binned),
        charts.stacked_bars(title, rows, ["a", "b", "c"], charts.SPLITS, " h"),
        charts.stacked_bars(title, rows, ["a", "b", "c"], charts.ORDER, shares=True),
    ):
        root = ElementTree.fromstring(svg)
        for box in root.iter("{http://www.w3.org/2000/svg}rect"):
            assert float(box.attrib["x"]) >= -0.1 and float(box.attrib["x"]) + float(box.attrib["width"]) <= 441


def test_a_card_without_any_figures_has_no_charts_of_them() -> None:
    card = {"subsets": [], "labels_by_scenario": {}, "lengths": {}, "checks": {}}
    assert plots(card) == []
