"""`omnichat report`: run folders -> one HTML page."""

from __future__ import annotations

from pathlib import Path

from omnichat.config import ReportRun
from omnichat.experiments.report import write_report
from omnichat.experiments.runs import is_moved_aside, load_runs
from omnichat.utils.errors import UserError
from omnichat.utils.files import check_writable


def run(config: ReportRun) -> None:
    """Write the page, results.json and report.md."""
    folders, out = _folders(config)
    check_writable(out, "out")
    baseline = config.baseline
    if baseline is None:
        read = [run for run in load_runs(folders) if run.input == "text"]
        readers = [run.name for run in sorted(read, key=lambda run: "baseline" in run.info)]  # trained ones first
        baseline = readers[0] if readers else None
    page = write_report(folders, out, baseline)
    print(f"report: {page}")


def _folders(config: ReportRun) -> tuple[list[Path], Path]:
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
