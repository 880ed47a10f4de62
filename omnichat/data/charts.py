"""Small charts as SVG text: bars, stacked bars, histograms. No library, no script; light and dark by the viewer's wish.

Every chart is 440 units wide, so that it can be read on a telephone; text is escaped; equal input gives equal bytes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape as _escape

WIDTH = 440
_LEFT, _RIGHT = 74, 62  # of stacked bars: room for the rows' names, and for their totals
_PLOT = 120  # height of a histogram's columns
_BIN = re.compile(r"(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)-(-?\d+(?:\.\d+)?(?:e[+-]?\d+)?)")
_STYLE = (
    ".chart{font:12px system-ui,-apple-system,'Segoe UI',Roboto,Arial,sans-serif}"
    ".chart .h{font-size:13px;font-weight:600;fill:#1d2127}.chart .t{fill:#1d2127}.chart .s{fill:#5c6570}"
    ".chart .a{stroke:#c9ced6;stroke-width:1}.chart .b{fill:#2a6fc9}.chart .r{fill:#c4543a}.chart .k{fill:#edeff2}"
    "@media (prefers-color-scheme:dark){.chart .h,.chart .t{fill:#e4e7eb}.chart .s{fill:#9aa4b0}"
    ".chart .a{stroke:#454d58}.chart .b{fill:#5c9ee8}.chart .r{fill:#e8806a}.chart .k{fill:#2a3038}}"
)
Colour = tuple[str, str]  # of an area, and of text on it
SPLITS: tuple[Colour, ...] = (("#2a6fc9", "#fff"), ("#e39b2d", "#1d2127"), ("#23966f", "#fff"))
ORDER: tuple[Colour, ...] = (("#a9cbf0", "#1d2127"), ("#4f8fd6", "#fff"), ("#1f4f91", "#fff"))  # low, normal, high
EMOTIONS: tuple[Colour, ...] = (
    ("#8a94a0", "#fff"),
    ("#e8b21f", "#1d2127"),
    ("#3b76c9", "#fff"),
    ("#cf4436", "#fff"),
    ("#df74ad", "#1d2127"),
    ("#7a58c7", "#fff"),
    ("#4b9a58", "#fff"),
)


def stacked_bars(
    title: str,
    rows: Sequence[tuple[str, Sequence[float]]],
    series: Sequence[str],
    colours: Sequence[Colour],
    unit: str = "",
    shares: bool = False,
) -> str:
    """Horizontal bars of one or more parts, a row each, with a legend.

    Args:
        title: above the chart; also its name for screen readers.
        rows: (name, a value for each series).
        series, colours: names of the parts, in order, and their colours.
        unit: after each total.
        shares: every bar is 100 % and its parts carry their shares; totals are shown all the same.
    """
    room = WIDTH - _LEFT - _RIGHT
    most = max((sum(values) for _, values in rows), default=0.0) or 1.0
    legend, y = _legend(series, colours, 42)
    parts = [*legend]
    for name, values in rows:
        total = sum(values)
        scale = room / (total or 1.0) if shares else room / most
        parts.append(_text(0, y + 15, _short(name, 11), "t"))
        x = float(_LEFT)
        for label, value, (fill, ink) in zip(series, values, colours, strict=False):
            width = value * scale
            if width <= 0:
                continue
            share = f"{value / total:.0%}"
            tip = escape(f"{name}, {label}: {_amount(value)}{unit} ({share})")
            parts.append(
                f'<rect x="{x:.1f}" y="{y}" width="{max(width - 1, 0.5):.1f}" height="22" rx="2" fill="{fill}">'
                f"<title>{tip}</title></rect>"
            )
            if width >= 32:
                parts.append(
                    f'<text x="{x + width / 2 - 0.5:.1f}" y="{y + 15}" text-anchor="middle" fill="{ink}">{share}</text>'
                )
            x += width
        parts.append(_text((WIDTH - _RIGHT + 6) if shares else x + 5, y + 15, f"{_amount(total)}{unit}", "s"))
        y += 30
    return _chart(title, y, parts)


def bars(title: str, rows: Sequence[tuple[str, int]]) -> str:
    """Horizontal bars under their names, for names as long as a sentence."""
    most = max((value for _, value in rows), default=0) or 1
    room = WIDTH - 60
    parts = []
    y = 34
    for name, value in rows:
        parts.append(
            f'<text x="0" y="{y + 10}" class="t"><title>{escape(name)}</title>{escape(_short(name, 70))}</text>'
            f'<rect x="0" y="{y + 16}" width="{room}" height="10" rx="2" class="k"/>'
            f'<rect x="0" y="{y + 16}" width="{max(1.0, room * value / most):.1f}" height="10" rx="2" class="r"/>'
        )
        parts.append(_text(WIDTH - 52, y + 25, _amount(value), "s"))
        y += 40
    return _chart(title, y, parts)


def histogram(title: str, counts: Mapping[str, int], caption: str = "") -> str:
    """Columns of counts. Keys "low-high" are edges of neighbouring bins; any other keys are names below the columns."""
    total = sum(counts.values()) or 1
    most = max(counts.values(), default=0) or 1
    step = WIDTH / max(1, len(counts))
    base = 48 + _PLOT
    parts = []
    edges = [_BIN.fullmatch(key) for key in counts]
    for number, (key, count) in enumerate(counts.items()):
        x, height = number * step, _PLOT * count / most
        tip = escape(f"{key}: {count} ({count / total:.1%})")
        parts.append(
            f'<rect x="{x + 1:.1f}" y="{base - height:.1f}" width="{max(step - 2, 1):.1f}" height="{height:.1f}" rx="1"'
            f' class="b"><title>{tip}</title></rect>'
        )
        if count and step >= 24:
            parts.append(_text(x + step / 2, base - height - 4, _amount(count), "s", "middle"))
        if not all(edges):
            parts.append(_text(x + step / 2, base + 15, _short(key, max(2, int(step / 7))), "s", "middle"))
    parts.append(f'<line x1="0" y1="{base}" x2="{WIDTH}" y2="{base}" class="a"/>')
    ends = [match.groups() for match in edges if match is not None]
    if len(ends) == len(counts) and ends:
        marks = [*(low for low, _ in ends), ends[-1][1]]
        every = max(1, -(-38 * len(marks) // WIDTH))
        last = len(marks) - 1
        for number, mark in enumerate(marks):
            if number == last or (number % every == 0 and last - number >= every):
                anchor = "start" if number == 0 else "end" if number == last else "middle"
                parts.append(_text(number * step, base + 15, mark, "s", anchor))
    if caption:
        parts.append(_text(0, base + 32, _short(caption, 72), "s"))
    return _chart(title, base + (40 if caption else 22), parts)


def escape(text: str) -> str:
    """Text as XML can hold it: signs of control have no place there."""
    return _escape("".join(sign if sign.isprintable() else " " for sign in text))


def _legend(series: Sequence[str], colours: Sequence[Colour], y: int) -> tuple[list[str], int]:
    """The legend's parts, and where the rows below it begin."""
    parts, x = [], 0.0
    for name, (fill, _) in zip(series, colours, strict=False):
        width = 20 + 6.8 * len(name)
        if x + width > WIDTH:
            x, y = 0.0, y + 18
        parts.append(f'<rect x="{x:.1f}" y="{y - 10}" width="11" height="11" rx="2" fill="{fill}"/>')
        parts.append(_text(x + 15, y, name, "s"))
        x += width + 8
    return parts, y + 12


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    where = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}"{where}>{escape(text)}</text>'


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _amount(value: float) -> str:
    """1234 as 1,234; 0.0312 as 0.031; 12.25 as 12.2."""
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:,.1f}" if value >= 10 else f"{value:.2g}"


def _chart(title: str, height: float, parts: Sequence[str]) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="chart" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}"'
        f' height="{height:.0f}" role="img" aria-label="{escape(title)}"><style>{_STYLE}</style>'
        f"{_text(0, 14, title, 'h')}{''.join(parts)}</svg>\n"
    )
