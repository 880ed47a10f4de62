"""The study's report: one whole page from plans, ledger and runs, honest about all that is missing."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from omnichat.config import ReportRun
from omnichat.evaluation.bootstrap import Measure, mean_measure
from omnichat.experiments.study_report.arms import Block, TestBook, blocks_of, outside_sets, summary
from omnichat.experiments.study_report.doubts import plan_doubts, study_doubts
from omnichat.experiments.study_report.optimum import fit_optimum, smoother
from omnichat.experiments.study_report.page import write_study
from omnichat.experiments.study_report.series import panels
from omnichat.experiments.study_report.sheets import result_sheet
from omnichat.experiments.study_report.study import Plan, Study, read_study
from omnichat.report import run
from omnichat.utils.errors import UserError
from tests.unit.experiments.studies import QUICK, whole_study, write_ledger, write_plan
from tests.unit.experiments.test_report import Page
from tests.unit.experiments.test_study_sheet import check_latex

EVIL = 'a|b <script>alert("x")</script> & 50% of $x_1$ {\\frac} --!>'


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return whole_study(tmp_path_factory.mktemp("studies") / "demo")


@pytest.fixture(scope="module")
def page(study: Path) -> Path:
    return write_study(study, config=QUICK)


def plan_of(folder: Path, script: str) -> Plan:
    return next(plan for plan in read_study(folder).plans if plan.script == script)


def copy(study: Path, target: Path, *scripts: str) -> Path:
    """The study with some of its plans only, and its runs where they are."""
    (target / "plans").mkdir(parents=True)
    for script in scripts:
        shutil.copy(study / "plans" / f"{script}.json", target / "plans")
    (target / "runs").symlink_to(study / "runs")
    return target


def change(folder: Path, name: str, **fields: Any) -> None:
    path = folder / "plans" / f"{name}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_the_page_is_whole_and_asks_nothing_of_the_network(page: Path) -> None:
    content = page.read_text()
    parsed = Page(content)
    assert parsed.open == []
    assert all(ref.startswith(("data:", "#")) for ref in parsed.references if ref)
    assert "script" not in parsed.tags and "@import" not in content
    ids = re.findall(r'\bid="([^"]+)"', content)
    assert len(ids) == len(set(ids))
    inner = {ref[1:] for ref in parsed.references if ref.startswith("#")} | set(re.findall(r"url\(#([^)]+)\)", content))
    assert inner <= set(ids)
    assert "audio" in parsed.tags


def test_sections_tables_and_figures_come_in_order(page: Path) -> None:
    content = page.read_text()
    order = re.findall(r'<h2 id="script-(\w+)"', content)
    assert order == [
        "corpora", "dailytalk", "sharechatx", "alpha", "scale", "fusion", "windows", "experts", "overlap"
    ]  # fmt: skip
    for kind, place in (("Table", "table"), ("Figure", "figure")):
        numbers = [int(n) for n in re.findall(rf"<figcaption><b>{kind} (\d+)\.</b>", content)]
        assert numbers == list(range(1, len(numbers) + 1)) and len(numbers) > 5, place
    text = " ".join(Page(content).text)
    for words in (
        "Stand-in data", "Random experts", "1 run failed: broken-1", "1 of 11 runs have no figures",
        "CUDA out of memory",
        "The dev split picks alpha = 0.2", "fitted optimum", "Few samples", "Cross-attention: no figures",
    ):  # fmt: skip
        assert words in text, words


def test_files_beside_the_page(page: Path) -> None:
    out = page.parent
    listed = json.loads((out / "results.json").read_text())["files"]
    assert sorted(listed) == sorted(str(p.relative_to(out)) for d in ("tables", "plots") for p in (out / d).iterdir())
    for path in (out / "tables").iterdir():
        content = path.read_text()
        shape = re.search(r"\\begin\{tabular\}\{(\w+)\}", content)
        assert shape is not None
        check_latex(content, len(shape.group(1)))
    markdown = (out / "report.md").read_text()
    for link in re.findall(r"\]\((plots/[^)]+)\)", markdown):
        assert (out / link).read_text().lstrip().startswith("<?xml")
    widths: list[int] = []
    for line in markdown.splitlines():
        if line.startswith("|"):
            widths.append(len(re.findall(r"(?<!\\)\|", line)))
            assert widths[-1] == widths[0], line
        else:
            widths = []


def test_files_of_an_earlier_report_go_and_others_stay(study: Path, tmp_path: Path) -> None:
    folder = copy(study, tmp_path / "study", "experts", "windows")
    out = write_study(folder, config=QUICK).parent
    (out / "tables" / "mine.tex").write_text("mine")
    assert (out / "tables" / "windows-results.tex").is_file()
    (folder / "plans" / "windows.json").unlink()
    write_study(folder, config=QUICK)
    assert not (out / "tables" / "windows-results.tex").exists()
    assert (out / "tables" / "mine.tex").read_text() == "mine"


def test_figures_are_means_of_the_runs_own(page: Path, study: Path) -> None:
    results = json.loads((page.parent / "results.json").read_text())
    rows = results["scripts"]["dailytalk"]["figures"]
    values = []
    for seed in range(2):
        metrics = json.loads((study / "runs" / f"alpha-0.2-s{seed}" / "metrics.json").read_text())
        values += [
            r["value"]
            for r in metrics
            if (r["split"], r["scenario"], r["metric"], r.get("set")) == ("test", "daily", "emotion_f1", None)
        ]
    found = next(
        r
        for r in rows
        if (r["arm"], r["split"], r["scenario"], r["metric"]) == ("OmniChat, + real", "test", "daily", "emotion_f1")
    )
    assert found["seeds"] == values and found["mean"] == pytest.approx(sum(values) / 2)
    tests = results["scripts"]["sharechatx"]["tests"]
    assert {t["arm"] for t in tests} == {"OmniChat, synthetic only", "OmniChat, + real"}
    assert all(t["p_holm"] >= t["p"] > 0 for t in tests)


def test_the_papers_columns_and_rows_keep_their_order(study: Path) -> None:
    plan = plan_of(study, "sharechatx")
    sheet = result_sheet(plan, blocks_of(plan), ["bleu", "rouge_l", "meteor", "emotion_f1"], [])
    assert [c.title for c in sheet.columns] == ["System", "Seeds", "BLEU", "ROUGE-L", "METEOR", "Emotion F1"]
    assert [g.title.split(":")[0] for g in sheet.groups] == [
        "ShareChatX-Emotion",
        "ShareChatX-Audio",
        "ShareChatX-Music",
    ]
    for group in sheet.groups:
        assert [row[0].text for row in group.rows] == ["text LLM", "OmniChat, synthetic only", "OmniChat, + real"]
        for column in range(2, 6):
            assert sum(row[column].top for row in group.rows) >= 1


def test_missing_and_failed_runs_are_no_zeros(study: Path) -> None:
    plan = plan_of(study, "fusion")
    sheet = result_sheet(plan, blocks_of(plan), ["emotion_f1", "bertscore_f1"], [])
    last = sheet.groups[0].rows[-1]
    assert (last[0].text, last[1].text) == ("Cross-attention", "0 of 2")
    assert set(last[1].badges) == {"1 missing", "1 failed"}
    assert [cell.text for cell in last[-2:]] == ["failed", "failed"] and all(cell.gap for cell in last[-2:])
    assert sheet.groups[0].rows[0][-1].text == "–", "scored, but without that metric"
    outside = result_sheet(plan, [Block("elsewhere", dataset="never_heard")], ["emotion_f1"], [])
    assert outside.groups[0].rows[0][-1].text == "not tested"
    assert "0.000" not in sheet.latex().split("Cross-attention")[1]


def test_a_seed_that_is_missing_is_said(study: Path, tmp_path: Path) -> None:
    folder = copy(study, tmp_path / "study", "alpha")
    write_plan(folder, "alpha", [("alpha 0", {"alpha": 0.0}, [("alpha-0-s0", 0), ("lost", 1)])], x="alpha")
    plan = plan_of(folder, "alpha")
    sheet = result_sheet(plan, [Block("")], ["emotion_f1"], [])
    cells = sheet.groups[0].rows[0]
    assert cells[1].text == "1 of 2" and cells[2].badges == ("1 of 2 seeds",)
    text = " ".join(plan_doubts(plan))
    assert "seed 1 missing" in text and "One seed a row" in text
    assert write_study(folder, config=QUICK).is_file()


def test_a_study_of_plans_alone_can_be_read(tmp_path: Path) -> None:
    for script, x in (("alpha", "alpha"), ("fusion", None), ("experts", None), ("dailytalk", None)):
        write_plan(tmp_path, script, [("one", {"alpha": 0.0}, [("lost", 0)]), ("two", {"alpha": 1}, [])], x=x)
    content = write_study(tmp_path, config=QUICK).read_text()
    assert "missing" in content and "no figures (1 missing)" in content
    assert "<audio" not in content


def test_hostile_names_stay_text(study: Path, tmp_path: Path) -> None:
    folder = copy(study, tmp_path / "study", "alpha", "fusion")
    for script in ("alpha", "fusion"):
        path = folder / "plans" / f"{script}.json"
        plan = json.loads(path.read_text())
        plan["arms"][0]["label"] = EVIL
        plan |= {"title": EVIL, "note": EVIL, "baseline": EVIL, "preset": EVIL}
        path.write_text(json.dumps(plan))
    change(folder, "fusion", script="../" + EVIL)
    write_ledger(folder, [{"run": "broken-1", "event": "failed", "error": EVIL}])
    page = write_study(folder, config=QUICK)
    content = page.read_text()
    assert "<script" not in content and "&lt;script&gt;" in content
    assert Page(content).open == []
    assert "<script" not in (page.parent / "report.md").read_text()
    names = [p.name for d in ("tables", "plots") for p in (page.parent / d).iterdir()]
    assert names and all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in names)
    for path in (page.parent / "tables").iterdir():
        shape = re.search(r"\\begin\{tabular\}\{(\w+)\}", path.read_text())
        assert shape is not None
        check_latex(path.read_text(), len(shape.group(1)))


def test_mixed_code_and_data_are_said(study: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    runs = folder / "runs"
    shutil.copytree(study / "runs" / "alpha-0-s0", runs / "a")
    shutil.copytree(study / "runs" / "alpha-0-s1", runs / "b")
    data = json.loads((runs / "b" / "data.json").read_text())
    data["sources"][0]["fingerprint"] = "f" * 64
    (runs / "b" / "data.json").write_text(json.dumps(data))
    info = json.loads((runs / "b" / "run.json").read_text())
    info["versions"]["omnichat"] = "0.2.0"
    (runs / "b" / "run.json").write_text(json.dumps(info))
    write_plan(folder, "dailytalk", [("one", {}, [("a", 0), ("b", 1)])])
    text = " ".join(study_doubts(read_study(folder)))
    assert "Mixed code: the runs were made by 2 versions (0.1.0, 0.2.0)" in text
    assert "Mixed data: source synthetic_emotion" in text


def test_one_dialogue_gives_no_interval_and_no_crash(study: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    shutil.copytree(study / "runs" / "text-s0", folder / "runs" / "a")
    shutil.copytree(study / "runs" / "alpha-0-s0", folder / "runs" / "b")
    for name in ("a", "b"):
        for split in ("dev", "test"):
            path = folder / "runs" / name / "predictions" / f"{split}.jsonl"
            path.write_text(path.read_text().splitlines()[0] + "\n")
    arms = [(name, {"alpha": float(n)}, [(name, 0)]) for n, name in enumerate(("a", "b"))]
    write_plan(folder, "alpha", arms, x="alpha", baseline="a")
    results = json.loads((write_study(folder, config=QUICK).parent / "results.json").read_text())
    assert results["scripts"]["alpha"]["tests"] == [] and results["scripts"]["alpha"]["optima"] == []


def test_a_broken_run_folder_does_not_hide_the_others(study: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    shutil.copytree(study / "runs" / "alpha-0-s0", folder / "runs" / "good")
    shutil.copytree(study / "runs" / "alpha-0-s1", folder / "runs" / "bad")
    (folder / "runs" / "bad" / "metrics.json").write_text("{")
    write_plan(folder, "dailytalk", [("one", {}, [("good", 0)]), ("two", {}, [("bad", 1)])])
    found = read_study(folder)
    assert [arm.state for arm in found.plans[0].arms] == ["done", "failed"]
    assert any("metrics.json" in line for line in study_doubts(found))


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ({"kind": "pie"}, "kind"),
        ({"arms": [{"runs": []}]}, "arms[0]"),
        ({"arms": [{"label": "a"}, {"label": "a"}]}, "two arms"),
        ({"arms": [{"label": "a"}], "baseline": "b"}, "baseline"),
        ({"arms": [{"label": "a", "runs": [{"name": "x"}]}]}, "folder"),
        ({"report_on": "exam"}, "report_on"),
        ([], "expected a JSON object"),
    ],
)
def test_a_damaged_plan_is_named(tmp_path: Path, plan: Any, words: str) -> None:
    (tmp_path / "plans").mkdir()
    (tmp_path / "plans" / "alpha.json").write_text(json.dumps(plan))
    with pytest.raises(UserError, match=r"alpha\.json.*" + re.escape(words)):
        read_study(tmp_path)


def test_no_study_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no plan"):
        read_study(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        read_study(tmp_path / "none")


def test_outside_sets_by_both_spellings(study: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    shutil.copytree(study / "runs" / "alpha-0-s0", folder / "runs" / "a")
    path = folder / "runs" / "a" / "metrics.json"
    rows = [row for row in json.loads(path.read_text()) if not row.get("set")]
    one = {"split": "test", "metric": "emotion_f1", "value": 0.25, "n": 9, "ci95": [0.2, 0.3]}
    rows += [one | {"scenario": "source:box", "set": "box"}, one | {"scenario": "source:bag", "value": 0.75}]
    path.write_text(json.dumps(rows))
    predictions = folder / "runs" / "a" / "predictions"
    shutil.copy(predictions / "test.jsonl", predictions / "plain.test.jsonl")
    write_plan(folder, "alpha", [("a", {"alpha": 0.0}, [("a", 0)])], x="alpha")
    plan = plan_of(folder, "alpha")
    assert set(outside_sets(plan)) == {"box", "bag", "plain"}
    for name, value in (("box", 0.25), ("bag", 0.75)):
        found = summary(plan.arms[0], "test", "emotion_f1", Block("", dataset=name))
        assert found is not None and found.mean == value
    own, scored = (summary(plan.arms[0], "test", "emotion_f1", Block("", dataset=d)) for d in (None, "plain"))
    assert own is not None and scored is not None and own.mean == pytest.approx(scored.mean)
    book = TestBook(QUICK)
    assert book.measure(plan.runs[0], "test", "bleu", Block("", dataset="plain")) is not None
    assert book.measure(plan.runs[0], "test", "bleu", Block("", dataset="box")) is None
    change(folder, "alpha", sets=["box"])
    assert outside_sets(plan_of(folder, "alpha")) == ["box"]


def test_panels_part_what_varies(study: Path) -> None:
    scale = panels(plan_of(study, "scale"))
    assert [p.x for p in scale] == ["dialogues"] and scale[0].logarithmic
    assert [line.label for line in scale[0].series] == ["gold text (T)", "speech (S)"]
    windows = panels(plan_of(study, "windows"))
    assert [p.x for p in windows] == ["queries", "window_sec"]
    assert [[x for x, _ in p.series[0].points] for p in windows] == [[1, 4], [0.34, 2.0]]
    assert panels(plan_of(study, "dailytalk")) != [] and panels(plan_of(study, "experts")) == []


def curve(peak: float, noise: float, items: int = 60) -> list:
    """A parabola in alpha with three seeds, the dialogues' part being the same for all."""
    rng = np.random.default_rng(0)
    shared, rows = rng.normal(0, 0.1, items), np.arange(items)
    names = [f"d{row}" for row in rows]

    def seed(x: float) -> Measure:
        return mean_measure(list(0.6 - (x - peak) ** 2 + shared + rng.normal(0, noise, items)), rows, rows, names)

    return [(x, [seed(x) for _ in range(3)]) for x in (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)]


def test_the_optimum_is_found_and_its_interval_holds_it() -> None:
    sharp, blunt = (fit_optimum(curve(0.4, noise), 300, 0) for noise in (0.05, 0.8))
    assert sharp is not None and blunt is not None
    assert abs(sharp.best - 0.4) < 0.06 and sharp.ci95[0] <= 0.4 <= sharp.ci95[1]
    assert blunt.ci95[1] - blunt.ci95[0] > sharp.ci95[1] - sharp.ci95[0]
    assert sum(sharp.picked.values()) == pytest.approx(1) and (sharp.low <= sharp.high).all()
    assert sharp.seeds == 3
    again = fit_optimum(curve(0.4, 0.05), 300, 0)
    assert again is not None and again.ci95 == sharp.ci95
    assert fit_optimum(curve(0.4, 0.05)[:3], 300, 0) is None


def test_the_fit_keeps_a_constant_and_is_linear() -> None:
    places = np.array([0.0, 0.1, 0.2, 0.5, 1.0])
    grid = np.linspace(0, 1, 21)
    matrix = smoother(places, np.array([0.1, 0.4, 0.5, 0.3, 0.1]), grid)
    assert matrix @ np.full(5, 0.7) == pytest.approx(np.full(21, 0.7))
    flat = smoother(places, np.full(5, 0.3), grid)
    assert flat @ np.full(5, 0.3) == pytest.approx(np.full(21, 0.3))


def test_a_study_reads_the_same_twice(study: Path, tmp_path: Path) -> None:
    folder = copy(study, tmp_path / "study", "windows")
    one, two = (write_study(folder, tmp_path / name, QUICK) for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_unfinished_runs_have_no_say(study: Path, tmp_path: Path) -> None:
    folder = tmp_path / "study"
    shutil.copytree(study / "runs" / "alpha-0-s0", folder / "runs" / "a")
    info = json.loads((folder / "runs" / "a" / "run.json").read_text())
    write_plan(folder, "dailytalk", [("one", {}, [("a", 0)])])
    for state, event, wanted in (
        ("running", "started", "unfinished"),
        ("failed", "failed", "failed"),
        ("finished", "evaluated", "done"),
        ("finished", "failed", "done"),
    ):
        (folder / "runs" / "a" / "run.json").write_text(json.dumps(info | {"state": state}))
        write_ledger(folder, [{"run": "a", "event": event, "error": "out of disk" if event == "failed" else None}])
        found: Study = read_study(folder)
        assert found.plans[0].arms[0].state == wanted
    assert "a later evaluation failed: a (out of disk)" in " ".join(study_doubts(found))
    assert yaml.safe_load((folder / "runs" / "a" / "config.yaml").read_text())["seed"] == 0


def test_the_verb_takes_a_study_or_runs(study: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = copy(study, tmp_path / "study", "experts")
    run(ReportRun(study=str(folder), out=str(tmp_path / "out")))
    printed = capsys.readouterr().out
    assert f"report: {tmp_path / 'out' / 'index.html'}" in printed and "next: " in printed
    assert (tmp_path / "out" / "index.html").is_file()
    with pytest.raises(UserError, match="leave out runs and baseline"):
        run(ReportRun(study=str(folder), baseline="a"))
    with pytest.raises(UserError, match=r"study: .*none is not a folder"):
        run(ReportRun(study=str(tmp_path / "none")))
    with pytest.raises(UserError, match="runs is missing"):
        run(ReportRun())
