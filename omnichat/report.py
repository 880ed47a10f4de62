"""`omnichat report`: run folders, or a whole study -> one HTML page."""

from __future__ import annotations

from pathlib import Path

from omnichat.config import ReportRun
from omnichat.experiments.report import write_report
from omnichat.experiments.runs import is_moved_aside, load_runs
from omnichat.experiments.study_report.page import write_study
from omnichat.utils.errors import UserError
from omnichat.utils.files import check_writable


def run(config: ReportRun) -> None:
    """Write the page, results.json and report.md; of a study also LaTeX tables and plots."""
    if config.study is not None:
        _study(config, config.study)
        return
    folders, out = _folders(config)
    check_writable(out, "out")
    baseline = config.baseline
    if baseline is None:
        read = [run for run in load_runs(folders) if run.input == "text"]
        readers = [run.name for run in sorted(read, key=lambda run: "baseline" in run.info)]  # trained ones first
        baseline = readers[0] if readers else None
    page = write_report(folders, out, baseline)
    print(f"report: {page}")


def _study(config: ReportRun, study: str) -> None:
    if config.runs is not None or config.baseline is not None:
        raise UserError("study: a study's plans name its runs and baselines; leave out runs and baseline")
    out = Path(config.out) if config.out is not None else Path(study) / "report"
    if not Path(study).is_dir():
        raise UserError(f"study: {study} is not a folder")
    check_writable(out, "out")
    page = write_study(Path(study), out)
    print(f"report: {page}")
    print(f"next: open {page}; tables for a paper are in {out / 'tables'}, plots in {out / 'plots'}")


def _folders(config: ReportRun) -> tuple[list[Path], Path]:
    if config.runs is None:
        raise UserError("runs is missing: give it as runs=runs/demo, or name a study: study=studies/demo")
    given = [config.runs] if isinstance(config.runs, str) else config.runs
    if not isinstance(given, list) or not given or not all(isinstance(name, str) for name in given):
        raise UserError("runs must be a folder or a list: runs=runs/demo or runs=[runs/demo/words,runs/demo/speech]")
    folders: list[Path] = []
    for path in map(Path, given):
        if not path.is_dir():
            raise UserError(f"runs: {path} is not a folder")
        found = sorted(p.parent for p in path.glob("*/config.yaml"))
        inside = [path] if (path / "config.yaml").is_file() else [run for run in found if not is_moved_aside(run)]
        if not inside:
            raise UserError(f"runs: {path} is no run folder and holds none (no config.yaml)")
        folders += inside
    parent = folders[0].parent
    return folders, Path(config.out) if config.out is not None else parent / "report"
