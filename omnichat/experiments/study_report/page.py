"""Write the study's report: index.html, report.md, results.json, tables/*.tex and plots/*.svg."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omnichat.evaluation.score import METRICS, ScoreConfig
from omnichat.experiments.report import LICENCES, file_name, render, version
from omnichat.experiments.runs import Row, Run
from omnichat.experiments.samples import Sample, samples
from omnichat.experiments.study_report import sheets
from omnichat.experiments.study_report.arms import ArmTest, Block, TestBook, blocks_of, info, plan_metrics, summary
from omnichat.experiments.study_report.doubts import plan_doubts, study_doubts
from omnichat.experiments.study_report.optimum import Optimum
from omnichat.experiments.study_report.plates import corpus_plates, plan_plates
from omnichat.experiments.study_report.sheet import Sheet
from omnichat.experiments.study_report.study import Plan, Study, read_study
from omnichat.experiments.study_report.svg import Plate
from omnichat.experiments.study_report.words import findings
from omnichat.utils.files import read_json, write_json_atomic, write_text_atomic
from omnichat.utils.progress import progress

SAMPLES = 8
SAMPLE_SYSTEMS = 6  # answers beside one another stay readable


@dataclass(frozen=True, slots=True)
class Section:
    """One script's part of the page."""

    plan: Plan
    main: tuple[Sheet, ...]
    behind: tuple[Sheet, ...]
    plates: tuple[Plate, ...]
    findings: tuple[str, ...]
    doubts: tuple[str, ...]
    figures: tuple[Row, ...] = ()
    tests: tuple[Row, ...] = ()
    optima: tuple[Row, ...] = ()


def write_study(folder: Path, out: Path | None = None, config: ScoreConfig | None = None) -> Path:
    """Write the report of a study folder and return the page's path.

    Args:
        folder: the study, such as studies/demo.
        out: folder of the report; None = <folder>/report.
        config: resamples and seed of tests and of the optimum's interval; no model is loaded.

    Raises:
        UserError: see `read_study`.
    """
    study = read_study(folder)
    out = out if out is not None else folder / "report"
    book = TestBook(config or ScoreConfig(bertscore_model=None))
    cards = sheets.corpus_figures(study)
    sections = []
    with progress(len(study.plans), "report", "script") as bar:
        for plan in study.plans:
            sections.append(_section(plan, book, cards))
            bar.update()
    about_runs = [sheets.ledger_sheet(study), sheets.failures_sheet(study)]
    sections, ledger = _numbered(sections, [sheet for sheet in about_runs if not sheet.empty])
    doubts = study_doubts(study)
    context: dict[str, Any] = {
        "study": study,
        "sections": sections,
        "ledger": ledger,
        "doubts": doubts,
        "short": [(section.plan, section.findings[0]) for section in sections if section.findings],
        "metrics": _metrics(study),
        "notes": _notes(study),
        "licences": LICENCES,
        "version": version(),
        "samples": [],
    }
    files = _write_files(out, sections, ledger)
    write_json_atomic(out / "results.json", _results(study, sections, doubts) | {"files": files})
    write_text_atomic(out / "report.md", render("study_report/study.md.j2", context, autoescape=False))
    context["samples"] = _samples(study)
    write_text_atomic(out / "index.html", render("study_report/study.html.j2", context, autoescape=True))
    return out / "index.html"


def _section(plan: Plan, book: TestBook, cards: dict[str, Row | str]) -> Section:
    if plan.kind == "statistics":
        main = (sheets.corpora_sheet(cards),)
        return Section(plan, main, (), tuple(corpus_plates(cards)), (), tuple(plan_doubts(plan)))
    blocks, metrics = blocks_of(plan), plan_metrics(plan)
    tests = [test for block in blocks for test in book.tests(plan, block, metrics)]
    plates, optima, panels = plan_plates(plan, book)
    main = (sheets.result_sheet(plan, blocks, metrics, tests),)
    return Section(
        plan,
        main,
        (sheets.data_sheet(plan),),
        tuple(plates),
        tuple(findings(plan, blocks, tests, optima, panels)),
        tuple(plan_doubts(plan)),
        tuple(_figures(plan, blocks, metrics)),
        tuple(_test_row(test) for test in tests),
        tuple(_optimum_row(label, fitted) for label, fitted in optima),
    )


def _numbered(sections: Sequence[Section], ledger: Sequence[Sheet]) -> tuple[list[Section], tuple[Sheet, ...]]:
    """Number tables and figures in the page's order."""
    table = figure = 0
    found = []
    for section in sections:
        parts: dict[str, tuple[Sheet, ...]] = {}
        for name in ("main", "behind"):
            numbered = []
            for sheet in getattr(section, name):
                if not sheet.empty:
                    table += 1
                    numbered.append(replace(sheet, number=table))
            parts[name] = tuple(numbered)
        plates = []
        for one in section.plates:
            figure += 1
            plates.append(replace(one, number=figure))
        found.append(replace(section, plates=tuple(plates), main=parts["main"], behind=parts["behind"]))
    return found, tuple(replace(sheet, number=table + 1 + place) for place, sheet in enumerate(ledger))


def _write_files(out: Path, sections: Sequence[Section], ledger: Sequence[Sheet]) -> list[str]:
    """Write tables as LaTeX and plots as SVG and return their paths; those of an earlier report that are no more go."""
    files = {}
    for sheet in [*(s for section in sections for s in (*section.main, *section.behind)), *ledger]:
        files[f"tables/{file_name(sheet.key)}.tex"] = sheet.latex()
    for one in (one for section in sections for one in section.plates):
        files[f"plots/{file_name(one.key)}.svg"] = one.file
    for name in ("tables", "plots"):
        (out / name).mkdir(parents=True, exist_ok=True)
    for name in _earlier_files(out):
        if name not in files:
            (out / name).unlink(missing_ok=True)
    for name, content in files.items():
        write_text_atomic(out / name, content)
    return list(files)


def _earlier_files(out: Path) -> list[str]:
    """The tables and plots that the report in this folder wrote, by its own list; nothing else is ever removed."""
    if not (out / "results.json").is_file():
        return []
    value = read_json(out / "results.json")
    listed = value.get("files", []) if isinstance(value, dict) else []
    return [name for name in listed if re.fullmatch(r"(tables|plots)/[^/]+\.(tex|svg)", str(name))]


def _figures(plan: Plan, blocks: Sequence[Block], metrics: Sequence[str]) -> list[Row]:
    """Every figure of the plan's table, on both of its splits, as rows of results.json."""
    rows: list[Row] = []
    for arm in plan.arms:
        for split in dict.fromkeys((plan.pick_on, plan.report_on)):
            for block in blocks:
                for metric in metrics:
                    value = summary(arm, split, metric, block)
                    if value is None:
                        continue
                    head = {"arm": arm.label, "split": split, "scenario": block.scenario, "set": block.dataset}
                    rows.append(head | {"metric": metric, "mean": value.mean, "ci95": value.ci95, "n": value.n})
                    rows[-1]["seeds"] = list(value.values)
    return rows


def _test_row(test: ArmTest) -> Row:
    head = {"arm": test.arm, "scenario": test.block.scenario, "metric": test.metric, "p_holm": test.p_holm}
    return head | dataclasses.asdict(test.test)


def _optimum_row(label: str, fitted: Optimum) -> Row:
    row = {"series": label, "best": fitted.best, "ci95": fitted.ci95, "best_value": fitted.best_value}
    picked = {f"{x:g}": share for x, share in fitted.picked.items()}
    return row | {"picked": picked, "seeds": fitted.seeds, "grid": fitted.grid.tolist(), "fit": fitted.fit.tolist()}


def _results(study: Study, sections: Sequence[Section], doubts: Sequence[str]) -> Row:
    scripts = {}
    for section in sections:
        arms = [
            {
                "label": arm.label,
                "keys": arm.keys,
                "runs": [{"name": r.name, "seed": r.seed, "state": r.state, "why": r.why} for r in arm.runs],
            }
            for arm in section.plan.arms
        ]
        scripts[section.plan.script] = {
            "title": section.plan.title,
            "kind": section.plan.kind,
            "baseline": section.plan.baseline,
            "arms": arms,
            "figures": section.figures,
            "tests": section.tests,
            "optima": section.optima,
            "findings": section.findings,
            "warnings": section.doubts,
        }
    return {"study": study.folder.name, "preset": study.preset, "warnings": list(doubts), "scripts": scripts}


def _metrics(study: Study) -> list[Any]:
    shown = dict.fromkeys(
        metric for plan in study.plans if plan.kind not in ("statistics", "attention") for metric in plan_metrics(plan)
    )
    return [info(metric) for metric in shown if info(metric).meaning]


def _notes(study: Study) -> list[str]:
    """The libraries' signatures and versions behind the figures, each once."""
    found = [
        f"{info(row['metric']).title}: {row['note']}"
        for plan in study.plans
        for run in plan.runs
        for row in run.metrics
        if row.get("note") and row["metric"] in METRICS and not row["metric"].endswith("_chance")
    ]
    plain = [note.replace("; one dialogue: its interval is unknown", "") for note in found]
    return [note for note in dict.fromkeys(plain) if not note.endswith("one dialogue: its interval is unknown")]


def _samples(study: Study) -> list[Sample]:
    """Sample replies of the first seed of the main tables' systems."""
    main = [plan for plan in study.plans if plan.script in ("sharechatx", "dailytalk") and plan.runs]
    order = main or list(study.plans)
    named: dict[Path, Run] = {}
    split = order[0].report_on
    for plan in order:
        if plan.report_on != split or len(named) >= SAMPLE_SYSTEMS:
            continue
        for arm in plan.arms:
            runs = [run for run in arm.counted if run.predictions.get(split)]
            if runs and len(named) < SAMPLE_SYSTEMS and arm.label not in [run.name for run in named.values()]:
                named.setdefault(runs[0].folder, replace(runs[0], name=arm.label))
    return samples(list(named.values()), split, SAMPLES, heats=False) if named else []
