"""`omnichat data`: is a corpus sound (validate), what is in it (stats), and onto the hub with it (push)."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from omnichat.config import DataRun
from omnichat.data.hub import check_repo
from omnichat.data.hub_layout import push, write_layout
from omnichat.data.parquet_corpus import open_corpus
from omnichat.data.stats import checks_figures, stats
from omnichat.data.validate import Check, validate
from omnichat.schema import EMOTIONS, PITCHES, SPEEDS
from omnichat.utils.errors import UserError
from omnichat.utils.files import check_writable

_COLOURS = {"ok": "green", "failed": "red", "note": "yellow", "none": "dim"}


def run(config: DataRun) -> None:
    """Do what `action` says."""
    path = Path(config.path).expanduser()
    {"validate": _validate, "stats": _stats, "push": _push}[config.action](config, path)


def _validate(config: DataRun, path: Path) -> None:
    """Print every check; UserError where one failed, for the exit code."""
    checks = validate(path, config.verify)
    failed = [check for check in checks if check.state == "failed"]
    if config.json:
        rows = [
            {"check": c.name, "state": c.state, "checked": c.checked, "failed": c.failed, "offenders": c.offenders}
            for c in checks
        ]
        print(json.dumps({"path": str(path), "ok": not failed, "checks": rows}, indent=2, ensure_ascii=False))
    else:
        _print_checks(checks, config.show)
    if failed:
        names = "; ".join(f"{check.name} ({check.failed})" for check in failed)
        raise UserError(f"{path}: {len(failed)} of {len(checks)} checks failed: {names}")
    if not config.json:
        print(f"{path}: sound")


def _print_checks(checks: list[Check], show: int) -> None:
    table = _table("check", "state", "checked", "wrong")
    for check in checks:
        state = Text(check.state, style=_COLOURS[check.state])
        table.add_row(check.name, state, f"{check.checked:,}", f"{check.failed:,}" if check.failed else "")
    console = _console()
    console.print(table)
    for check in checks:
        if check.failed:
            console.print(f"\n{check.name}", markup=False, style=_COLOURS[check.state])
            for offender in check.offenders[:show]:
                console.print(f"  {offender}", markup=False)
            if check.failed > show:
                console.print(f"  and {check.failed - min(show, len(check.offenders)):,} more", markup=False)


def _stats(config: DataRun, path: Path) -> None:
    found = stats(open_corpus(path, "exists"))
    if config.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
        return
    console = _console()
    stand_in = ", a STAND-IN" if found["stand_in"] else ""
    rates = ", ".join(f"{rate} Hz ({count:,})" for rate, count in found["all"]["sample_rates_hz"].items()) or "none"
    console.print(f"{found['name']} ({found['kind']}{stand_in}); recordings by rate: {rates}\n", markup=False)
    console.print(_amounts(found))
    console.print(_labels(found))
    words = found["vocabulary"]
    parts = [f"{words['all']:,} distinct words"]
    for split in ("dev", "test"):
        if split in words and words[split]["unseen_in_training"] is not None:
            parts.append(f"{words[split]['unseen_in_training']:.1%} of {split}'s words never said in training")
    console.print(f"vocabulary: {'; '.join(parts)}\n", markup=False)
    if rows := checks_figures(found["checks"]):
        table = _table("check", "figure", "value", left=2)
        for check, name, value in rows:
            table.add_row(check, name, _told(value))
        console.print(table)


def _amounts(found: dict[str, Any]) -> Table:
    columns = ("dialogues", "turns", "recordings", "hours", "seconds_per_turn", "words_per_turn", "turns_per_dialogue")
    table = _table("scenario", "split", *(name.replace("_per_", "/") for name in columns), left=2)
    for row in [*found["subsets"], {"scenario": "all", "split": "", **found["all"]}]:
        table.add_row(row["scenario"], row["split"], *(_told(row[name]) for name in columns))
    return table


def _labels(found: dict[str, Any]) -> Table:
    table = _table("scenario", "split", "label", *EMOTIONS, left=3)
    for row in [*found["subsets"], {"scenario": "all", "split": "", **found["all"]}]:
        for attribute, order in (("emotion", EMOTIONS), ("pitch", PITCHES), ("speed", SPEEDS)):
            counts = row["labels"][attribute]
            total = sum(counts.values())
            if total:
                cells = [f"{counts.get(label, 0) / total:.0%}" for label in order]
                if attribute != "emotion":
                    cells = [f"{label} {cell}" for label, cell in zip(order, cells, strict=True)]
                table.add_row(row["scenario"], row["split"], attribute, *cells)
    return table


def _push(config: DataRun, path: Path) -> None:
    if (config.repo is None) == (config.to is None):
        raise UserError("push goes to one place: repo=ORGANISATION/NAME on the hub, or to=FOLDER, which stays here")
    corpus = open_corpus(path, "full")
    if config.to is not None:
        check_writable(Path(config.to), "to")
        folder = write_layout(corpus, Path(config.to))
        print(f"{folder}: {sum(corpus.count(split) for split in ('train', 'dev', 'test'))} dialogues")
        print(f'next: datasets.load_dataset("{folder}"), or omnichat data push path={path} repo=ORGANISATION/NAME')
        return
    assert config.repo is not None
    check_repo("repo", config.repo)
    # beside the corpus: a folder for temporary files may be small, and shards on the same disk need no copy
    with tempfile.TemporaryDirectory(prefix=".omnichat-push-", dir=path.resolve().parent) as work:
        address = push(write_layout(corpus, Path(work) / "layout", link=True), config.repo, config.private)
    print(f"{address} ({'private' if config.private else 'public'})")
    print(f'next: datasets.load_dataset("{config.repo}")')


def _table(*titles: str, left: int = 1) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, title in enumerate(titles):
        table.add_column(title, justify="left" if number < left or title in ("state", "figure") else "right")
    return table


def _console() -> Console:
    """A terminal's own width; in a pipe nothing is cut."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(width=400, highlight=False)


def _told(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: ""}[value]
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)
