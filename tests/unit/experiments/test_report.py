"""The report: one page without outside references, honest marks, and the same figures in Markdown and JSON."""

import base64
import html
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import yaml

from omnichat.evaluation.predictions import read_predictions, write_predictions
from omnichat.experiments import plots, tables
from omnichat.experiments.findings import findings, warnings
from omnichat.experiments.report import results, write_report
from omnichat.experiments.runs import Run, load_runs
from omnichat.experiments.samples import choose, samples
from omnichat.utils.errors import UserError
from tests.unit.experiments.builders import PLAIN, make_run

VOID = {"meta", "img", "source", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Collects references and text, and checks that tags close in order."""

    def __init__(self, content: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.references: list[str] = []
        self.text: list[str] = []
        self.tags: list[str] = []
        self.feed(content)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.references += [value or "" for key, value in attrs if key in ("src", "srcset", "href", "data", "action")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another tag"

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    deaf = make_run(root, "words-only", skill=0.0, given="text", alpha=0.0, random_experts=False, steps=60)
    return [deaf, make_run(root, "low", skill=0.5, steps=60), make_run(root, "high", skill=0.95, alpha=0.5, steps=80)]


@pytest.fixture(scope="module")
def runs(folders: list[Path]) -> tuple[Run, ...]:
    return load_runs(folders)


@pytest.fixture(scope="module")
def page(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(folders, tmp_path_factory.mktemp("report"), "words-only", PLAIN)


def test_the_page_is_whole_and_asks_nothing_of_the_network(page: Path) -> None:
    content = page.read_text()
    parsed = Page(content)
    assert parsed.open == []
    assert parsed.references and all(ref.startswith(("data:", "#")) for ref in parsed.references)
    assert "script" not in parsed.tags and "link" not in parsed.tags
    assert "@import" not in content and "url(" not in content
    for svg in re.findall(r"data:image/svg\+xml;base64,([A-Za-z0-9+/=]+)", content):
        drawn = base64.b64decode(svg).decode()
        assert not re.search(r'(href|src)="(?!#|data:)', drawn)


def test_every_section_is_there(page: Path) -> None:
    parsed = Page(page.read_text())
    links = [ref[1:] for ref in parsed.references if ref.startswith("#")]
    assert links == ["runs", "data", "curves", "labels", "experts", "samples", "all", "metrics"]
    for link in links:
        assert f'id="{link}"' in page.read_text()
    text = " ".join(parsed.text)
    for words in ("STAND-IN", "random experts", "Holm", "CC-BY-SA", "nrefs:1"):
        assert words in text
    assert parsed.tags.count("audio") == len(samples_with_audio(parsed))


def samples_with_audio(parsed: Page) -> list[str]:
    return [ref for ref in parsed.references if ref.startswith("data:audio/flac")]


def test_recordings_are_the_files_bytes(page: Path, folders: list[Path]) -> None:
    inside = {base64.b64decode(ref.split(",", 1)[1]) for ref in samples_with_audio(Page(page.read_text()))}
    kept = {path.read_bytes() for path in (folders[0] / "samples").glob("*.flac")}
    assert inside and inside <= kept


def test_results_json_holds_every_row(page: Path, runs: tuple[Run, ...]) -> None:
    rows = json.loads((page.parent / "results.json").read_text())
    assert rows == results(runs) and len(rows) == sum(len(run.metrics) for run in runs)
    assert {(row["run"], row["alpha"], row["input"], row["seed"]) for row in rows} == {
        ("words-only", 0.0, "text", 0),
        ("low", 0.2, "speech", 0),
        ("high", 0.5, "speech", 0),
    }


def test_markdown_tables_are_square_and_agree(page: Path, runs: tuple[Run, ...]) -> None:
    content = (page.parent / "report.md").read_text()
    widths: list[int] = []
    for line in content.splitlines():
        if line.startswith("|"):
            widths.append(len(re.findall(r"(?<!\\)\|", line)))
            assert widths[-1] == widths[0], line
        else:
            widths = []
    for run in runs:
        assert f"{run.metric('test', 'emotion_f1')['value']:.3f}" in content


def test_equal_input_gives_an_equal_page(folders: list[Path], tmp_path: Path) -> None:
    one, two = (write_report(folders[:1], tmp_path / name) for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "plain", steps=20, count=3)
    evil = '<script>alert("x")</script> $\\frac{1}{0}$ | "q" \U0001f600'
    resolved = yaml.safe_load((folder / "config.yaml").read_text()) | {"name": evil}
    (folder / "config.yaml").write_text(yaml.safe_dump(resolved))
    path = folder / "predictions" / "test.jsonl"
    rows = [replace(p, hypothesis=replace(p.hypothesis, text=evil), raw=evil) for p in read_predictions(path)]
    write_predictions(path, rows)
    content = write_report([folder], tmp_path / "out").read_text()
    assert "<script" not in content and html.escape("<script>", quote=False) in content
    assert Page(content).open == []
    assert "<script" not in (tmp_path / "out" / "report.md").read_text()


def test_audio_outside_the_run_folder_is_refused(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "one", steps=20, count=3)
    (tmp_path / "secret.flac").write_bytes(b"secret")
    path = folder / "predictions" / "test.jsonl"
    write_predictions(path, [replace(p, audio_file="../secret.flac") for p in read_predictions(path)])
    with pytest.raises(UserError, match="lies outside the run folder"):
        write_report([folder], tmp_path / "out")


def test_a_missing_recording_is_said(tmp_path: Path) -> None:
    folder = make_run(tmp_path, "one", steps=20, count=3)
    for recording in (folder / "samples").iterdir():
        recording.unlink()
    assert "is missing)" in write_report([folder], tmp_path / "out").read_text()


def test_a_run_without_figures_does_not_stop_the_others(tmp_path: Path) -> None:
    done = make_run(tmp_path, "done", steps=20, count=3)
    young = tmp_path / "young"
    young.mkdir()
    (young / "config.yaml").write_text("name: young\n")
    content = write_report([done, young], tmp_path / "out", "done", PLAIN).read_text()
    assert "young: no metrics.json: it has not been evaluated." in content
    assert "young has no figures on the test split." in content
    with pytest.raises(UserError, match="no run has predictions or metrics yet"):
        write_report([young], tmp_path / "out")


def test_best_is_marked_only_where_intervals_part(runs: tuple[Run, ...]) -> None:
    def row(value: float, low: float, high: float) -> dict:
        return {"value": value, "ci95": [low, high]}

    assert tables.stands_apart(row(0.9, 0.8, 1.0), [row(0.5, 0.4, 0.6), row(0.7, 0.65, 0.79)], "higher")
    assert not tables.stands_apart(row(0.9, 0.8, 1.0), [row(0.7, 0.6, 0.8)], "higher")
    assert tables.stands_apart(row(0.1, 0.0, 0.2), [row(0.5, 0.3, 0.6)], "lower")
    assert not tables.stands_apart(row(0.1, 0.0, 0.2), [], "lower")
    assert not tables.stands_apart({"value": 0.9, "ci95": None}, [row(0.1, 0, 0.2)], "higher")
    table = tables.runs_table(runs, "test", [])
    column = table.columns.index("Emotion F1")
    assert [cells[column].best for cells in table.rows] == [False, False, True]


def test_paired_marks_follow_the_data(runs: tuple[Run, ...]) -> None:
    found = {(t.run, t.metric): t for t in tables.paired_tests(runs, runs[0], "test", PLAIN) if t.scenario == "all"}
    assert found["high", "emotion_f1"].mark == "better"
    assert all(test.p_holm >= test.p for test in found.values())
    back = {(t.run, t.metric): t for t in tables.paired_tests(runs, runs[2], "test", PLAIN) if t.scenario == "all"}
    assert back["words-only", "emotion_f1"].mark == "worse"
    assert back["words-only", "emotion_f1"].difference == -found["high", "emotion_f1"].difference
    failure = replace(found["high", "emotion_f1"], metric="style_parse_failure")
    assert failure.mark == "worse"  # more unparsed styles are no gain


def test_words_say_who_listens(runs: tuple[Run, ...]) -> None:
    deaf, _, good = findings(runs, "test", [], None)
    assert "no evidence that it hears how a turn is spoken" in deaf
    assert "it hears how a turn is spoken" in good and "no evidence" not in good
    config = runs[2].config | {"chat": {"input": "text"}}
    leaky = Run(**{f: getattr(runs[2], f) for f in Run.__dataclass_fields__} | {"config": config})
    assert "something other than the voice gives the style away" in findings([leaky], "test", [], None)[0]
    fields = {f: getattr(leaky, f) for f in Run.__dataclass_fields__}
    tagged = Run(**fields | {"info": runs[2].info | {"baseline": {"style_tags": {"tags": "gold"}}}})
    assert "but tags that say how a turn was spoken" in findings([tagged], "test", [], None)[0]


def test_every_reason_for_doubt_is_said(runs: tuple[Run, ...]) -> None:
    text = "\n".join(warnings(runs, "test"))
    for words in ("Stand-in data: dailytalk_stand_in", "Random weights: beats and mert in low and high", "Few samples"):
        assert words in text
    assert "different numbers of steps" in text and "One seed a recipe" in text
    failed = Run(**{f: getattr(runs[1], f) for f in Run.__dataclass_fields__} | {"info": {"state": "failed"}})
    assert "its state is 'failed'" in "\n".join(warnings([failed], "test"))
    oracle = Run(**{f: getattr(runs[1], f) for f in Run.__dataclass_fields__} | {"info": {"warnings": ["an oracle"]}})
    assert any(said.endswith(": an oracle.") for said in warnings([oracle], "test"))
    off = runs[1].data | {"alpha": 0.9}
    wrong = Run(**{f: getattr(runs[1], f) for f in Run.__dataclass_fields__} | {"data": off})
    assert "alpha was asked as 0.9" in "\n".join(warnings([wrong], "test"))


def test_seeds_are_averaged_with_students_interval(tmp_path: Path) -> None:
    folders = []
    for seed, value in enumerate((0.4, 0.5, 0.6)):
        folder = tmp_path / f"s{seed}"
        folder.mkdir()
        (folder / "config.yaml").write_text(yaml.safe_dump({"name": f"s{seed}", "seed": seed, "mixture": {"alpha": 1}}))
        row = {"split": "test", "scenario": "all", "metric": "emotion_f1", "value": value, "n": 9, "ci95": None}
        (folder / "metrics.json").write_text(json.dumps([row]))
        folders.append(folder)
    table = tables.seeds_table(load_runs(folders), "test")
    # t(0.975, 2) = 4.303; 4.303 * 0.1 / sqrt(3) = 0.248
    assert table is not None and (table.rows[0][2].text, table.rows[0][2].small) == ("0.500", "[0.252, 0.748]")
    assert tables.seeds_table(load_runs(folders[:1]), "test") is None


def test_samples_keep_variants_together_and_cover_scenarios(runs: tuple[Run, ...]) -> None:
    chosen = choose(runs, "test", 5)
    assert len(chosen) == 5 == len(set(chosen))
    rows = {p.key: p for p in runs[0].predictions["test"]}
    assert {rows[name].scenario for name in chosen} == {"emotion", "audio", "music"}
    assert len({rows[name].variant_of for name in chosen[:3]}) == 1
    built = samples(runs, "test", 5)
    assert [answer.who for answer in built[0].answers] == ["reference", "words-only", "low", "high"]
    wrong = [tag for s in built for a in s.answers[1:] for tag in a.tags if tag.right is False]
    assert wrong and all(tag.right is None for s in built for tag in s.answers[0].tags)


def test_attention_mass_is_averaged_by_turn(runs: tuple[Run, ...]) -> None:
    one = next(p for p in runs[0].predictions["test"] if p.attention)
    long = replace(one, attention=((1.0, 0.0, 0.0),) * 30)
    short = replace(one, attention=((0.0, 1.0, 0.0),))
    assert plots.expert_mass([long, short]) == {one.scenario: {"whisper": 0.5, "beats": 0.5, "mert": 0.0}}


def test_the_tables_say_what_alpha_counts_and_what_each_source_gave(runs: tuple[Run, ...]) -> None:
    low = runs[1]
    moved = low.data | {"unit": "second", "schedule": [[0, 1.0], [60, 0.2]], "alpha_dialogues": 0.123}
    sources = [source | {"weight": None, "share": 0.25, "left_out": 3} for source in low.sources]
    run = replace(low, data=moved | {"sources": sources})
    alpha = tables.runs_table([run], "test", []).rows[0][2]
    assert alpha.text == "1 → 0.2" and alpha.small.endswith("of the seconds")
    assert alpha.hint.startswith("real share of the seconds") and "0.123 of the dialogues" in alpha.hint
    table = tables.data_table([run])
    row = dict(zip(table.columns, table.rows[0], strict=True))
    assert row["Weight"].text == "its size" and row["Drawn"].small == "3 left out"
    assert (row["Share"].text, row["Share"].small) == ("0.250", "second")
    assert row["Epochs"].text == "4.61"
