"""The data card as one HTML page that needs nothing else: charts, tables, and dialogues to listen to."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from omnichat.data.card import PLOTS, STAND_IN_NOTE
from omnichat.data.card_plots import figures, plots, rejects, section
from omnichat.data.card_samples import Sample
from omnichat.utils.files import write_text_atomic

CARD_PAGE = "card.html"
_TEMPLATE = "card.html.j2"


def write_plots(folder: Path, card: Mapping[str, Any]) -> list[str]:
    """Write the card's charts into `folder`/plots, in place of older ones; returns their paths below `folder`."""
    for old in (folder / PLOTS).glob("*.svg"):
        old.unlink()
    names = []
    for plot in plots(card):
        names.append(f"{PLOTS}/{plot.name}.svg")
        write_text_atomic(folder / names[-1], plot.svg)
    if not names:
        shutil.rmtree(folder / PLOTS, ignore_errors=True)
    return names


def render_page(card: Mapping[str, Any], samples: Sequence[Sample]) -> str:
    """The page. Whatever the corpus's texts hold is shown as text; the page runs no script and asks no other place."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["told"] = told
    found = plots(card)
    sections = ("amounts", "labels", "lengths", "measured", "rejected")
    context = {
        "card": card,
        "stand_in_note": STAND_IN_NOTE,
        "charts": {name: [Markup(plot.svg) for plot in section(found, name)] for name in sections},
        "samples": samples,
        "thresholds": _thresholds(card["checks"]),
        "measures": _measures(card["checks"]),
        "plain": {key: value for key, value in card["checks"].items() if not isinstance(value, Mapping)},
        "rejected": sum(count for _, count in rejects(card["checks"])[0]),
        "licence_columns": list(dict.fromkeys(key for row in card["licences"] for key in row)),
    }
    return environment.get_template(_TEMPLATE).render(context)


def _thresholds(checks: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """(check, limit's name, limit) of every check that has one."""
    rows: list[tuple[str, str, Any]] = []
    for check, value in checks.items():
        limits = value.get("threshold") if isinstance(value, Mapping) else None
        if limits is None:
            continue
        rows += [(check, name or "limit", limit) for name, limit in figures(limits)]
    return rows


def _measures(checks: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    """(check, figure's name, figure) of all that was measured and is one figure."""
    rows: list[tuple[str, str, Any]] = []
    for check, value in checks.items():
        if isinstance(value, Mapping):
            rows += [(check, name.replace(".", " "), figure) for name, figure in figures(value.get("measured") or {})]
    return rows


def told(value: Any) -> str:
    """A figure as a page shows it."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(told(inner) for inner in value)
    return str(value)
