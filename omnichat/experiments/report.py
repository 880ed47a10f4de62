"""The report: run folders in; one self-contained HTML page, its Markdown twin and all figures as JSON out."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from omnichat.evaluation.score import METRICS, ScoreConfig
from omnichat.experiments import ablation, plots, tables
from omnichat.experiments.findings import findings, warnings
from omnichat.experiments.outside import outside_table
from omnichat.experiments.plots import Picture, picture
from omnichat.experiments.progress import reply_progress
from omnichat.experiments.runs import Run, find_run, load_runs
from omnichat.experiments.samples import samples
from omnichat.schema import SPLITS
from omnichat.utils.errors import UserError
from omnichat.utils.files import write_json_atomic, write_text_atomic

LICENCES = (
    ("Figures and this page", "made by omnichat (Apache-2.0); the recordings keep the licences of their corpora"),
    ("DailyTalk", "CC-BY-SA 4.0 (Lee et al. 2023)"),
    ("SmolLM2-135M-Instruct", "Apache-2.0"),
    ("Whisper", "MIT"),
    ("all-MiniLM-L6-v2 (BERTScore)", "Apache-2.0"),
)


def write_report(
    run_folders: Sequence[Path], out: Path, baseline: str | None = None, config: ScoreConfig | None = None
) -> Path:
    """Write `out`/index.html, report.md and results.json from run folders and return the page's path.

    Args:
        run_folders: finished (or running) run folders, in the order of the rows.
        out: folder of the report; made if absent.
        baseline: name of the run that the others are tested against; None leaves the paired tests out.
        config: samples and seed of the paired tests; the default leaves BERTScore out of them, so no model is loaded.

    Raises:
        UserError: no run, a folder that is no run, an unknown baseline, or runs without any figures or predictions.
    """
    runs = load_runs(run_folders)
    against = find_run(runs, baseline) if baseline is not None else None
    split = _report_split(runs)
    config = config or ScoreConfig(bertscore_model=None)
    tests = tables.paired_tests(runs, against, split, config) if against is not None else []
    name = against.name if against is not None else None
    context: dict[str, Any] = {
        "runs": runs,
        "split": split,
        "baseline": name,
        "findings": findings(runs, split, tests, name),
        "warnings": warnings(runs, split),
        "runs_table": tables.runs_table(runs, split, tests, name),
        "data_table": tables.data_table(runs),
        "fusion_table": _fusion_table(runs, against, split, config),
        "setup_table": tables.setup_table(runs),
        "outside_table": outside_table(runs),
        "seeds_table": tables.seeds_table(runs, split),
        "tests_table": tables.tests_table(tests) if tests else None,
        "all_table": tables.all_figures_table(runs),
        "metrics": [info for key, info in METRICS.items() if any(r["metric"] == key for x in runs for r in x.metrics)],
        "notes": _notes(runs),
        "licences": LICENCES,
        "version": version(),
    }
    out.mkdir(parents=True, exist_ok=True)
    write_json_atomic(out / "results.json", results(runs))
    write_text_atomic(out / "report.md", render("report.md.j2", context, autoescape=False))
    context |= {"figures": _figures(runs, split), "samples": samples(runs, split), "progress": reply_progress(runs)}
    write_text_atomic(out / "index.html", render("report.html.j2", context, autoescape=True))
    return out / "index.html"


def _fusion_table(runs: Sequence[Run], against: Run | None, split: str, config: ScoreConfig) -> tables.Table | None:
    """What the fusions cost and give, where the runs differ in them; tested where the baseline has one, too."""
    if not ablation.compares_fusions(runs):
        return None
    tests = ablation.fusion_tests(runs, against, split, config) if against is not None else []
    return ablation.fusion_table(runs, split, tests, against.name if against is not None else "")


def results(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Return every metrics row of every run with its run, alpha, input and seed."""
    return [
        row | {"run": r.name, "alpha": r.alpha, "input": r.input, "seed": r.seed} for r in runs for row in r.metrics
    ]


def version() -> str:
    """The installed version of omnichat."""
    return importlib.metadata.version("omnichat") if _installed() else "development tree"


def file_name(key: str) -> str:
    """A name out of a file, which may hold anything, as a file's name or an anchor: letters, digits, - _ and dots."""
    return (
        "".join(sign if sign.isascii() and (sign.isalnum() or sign in "-_.") else "-" for sign in key).lstrip(".")
        or "-"
    )


def _installed() -> bool:
    try:
        importlib.metadata.version("omnichat")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def render(template: str, context: dict[str, Any], autoescape: bool) -> str:
    """Fill in a template of this folder (its path below it); a name that is not in the context is an error."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["markdown"] = tables.markdown_text
    environment.filters["file_name"] = file_name
    return environment.get_template(template).render(context)


def _report_split(runs: Sequence[Run]) -> str:
    """The split that the tables show: test where any run has it, else dev, else train."""
    for split in reversed(SPLITS):
        if any(split in run.predictions or any(row["split"] == split for row in run.metrics) for run in runs):
            return split
    raise UserError(f"{', '.join(str(run.folder) for run in runs)}: no run has predictions or metrics yet")


def _notes(runs: Sequence[Run]) -> list[str]:
    """The libraries' signatures and versions behind the figures, each once."""
    titles = {key: info.title for key, info in METRICS.items()}
    found = [
        f"{titles.get(row['metric'], row['metric'])}: {row['note']}"
        for run in runs
        for row in run.metrics
        if row.get("note") and not row["metric"].endswith("_chance")
    ]
    return list(dict.fromkeys(found))


def _figures(runs: Sequence[Run], split: str) -> dict[str, list[Picture]]:
    """Draw every figure for which there is data, by section."""
    found: dict[str, list[Picture]] = {"curves": [], "alpha": [], "labels": [], "experts": []}
    logged = [run for run in runs if run.steps]
    if logged:
        alt = "Training and dev loss by optimiser step for each run"
        caption = "Loss by step: faint, each step; line, moving average; markers, the dev split."
        found["curves"].append(picture(plots.loss_curves(logged), alt, caption))
    drawn = [run for run in logged if any(isinstance(row.get("alpha_realised"), int | float) for row in run.steps)]
    if drawn:
        alt = "Realised share of real dialogues by optimiser step for each run"
        caption = "Realised alpha with its 95 % interval; dotted, the asked share."
        found["alpha"].append(picture(plots.alpha_realised(drawn), alt, caption))
    found["alpha"] += _alpha_curves(runs, split)
    sources = _distinct_sources(runs)
    if sources:
        alt = "Shares of pitch, speed and emotion labels in the training turns of each source"
        found["labels"].append(picture(plots.corpus_labels(sources), alt, "Labels of the training turns, by source."))
    labelled = [
        run
        for run in runs
        if any(p.reference.style and p.reference.style.emotion for p in run.predictions.get(split, ()))
    ]
    if labelled:
        alt = "Share of replies with each emotion, reference and runs"
        caption = f"Emotion of the replies on the {split} split: reference beside each run."
        found["labels"].append(picture(plots.reply_labels(labelled, split), alt, caption))
        alt = "Confusion matrix of the reply's emotion for each run"
        caption = "Reply emotion: counts, coloured by the share of the reference's row."
        found["labels"].append(picture(plots.confusions(labelled, split), alt, caption))
    for run in runs:
        mass = plots.expert_mass(run.predictions.get(split, ()))
        if mass:
            alt = f"Mean attention mass of each expert by scenario, {run.name}"
            caption = "Mean attention mass by scenario; dotted, equal shares."
            found["experts"].append(picture(plots.expert_bars(run.name, mass), alt, caption))
    return found


def _alpha_curves(runs: Sequence[Run], split: str) -> list[Picture]:
    if len({run.alpha for run in runs if run.alpha is not None}) < 2:
        return []
    found = []
    for metric in ("emotion_f1", "bleu"):
        points = [
            (run.name, run.alpha, row) for run in runs if run.alpha is not None and (row := run.metric(split, metric))
        ]
        if len(points) > 1:
            title = METRICS[metric].title
            alt = f"{title} on the {split} split against alpha"
            found.append(picture(plots.alpha_curve(points, title), alt, f"{title} against alpha, 95 % intervals."))
    return found


def _distinct_sources(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Each corpus once (by name and manifest), where it states its labels."""
    found: dict[tuple[Any, Any], dict[str, Any]] = {}
    for run in runs:
        for source in run.sources:
            if any(plots.source_labels(source, attribute, "train") for attribute in ("pitch", "speed", "emotion")):
                found.setdefault((source["name"], source.get("fingerprint")), source)
    return list(found.values())
