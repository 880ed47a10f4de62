"""A table of the study as data, written as Markdown and as LaTeX (booktabs); the page's template writes the HTML."""

from __future__ import annotations

import re
from dataclasses import dataclass

from omnichat.experiments.tables import markdown_text

DASH = "–"
_TEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "[": "{[}",  # after the end of a row a bare bracket would be an argument of it
    "]": "{]}",
    "–": "--",
    "—": "---",
    "…": r"\ldots{}",
    "→": r"$\rightarrow$",
    "▲": r"$\blacktriangle$",
    "▼": r"$\blacktriangledown$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "≤": r"$\leq$",
    "≥": r"$\geq$",
    "−": "$-$",
    "α": r"$\alpha$",
    "‘": "`",
    "’": "'",
    "“": "``",
    "”": "''",
    "†": r"\dag{}",
    "·": r"\textperiodcentered{}",
    "\N{NO-BREAK SPACE}": "~",
}


def latex_text(text: str) -> str:
    """Text on one line with LaTeX's signs escaped; signs that pdfLaTeX cannot set (emoji, controls) become ?."""
    flat = " ".join(text.split(" ")).replace("\n", " ").replace("\t", " ")
    out = []
    for sign in flat:
        if sign in _TEX:
            out.append(_TEX[sign])
        else:
            # utf8 input sets the Latin blocks; others need fonts that a paper's preamble may lack
            out.append(sign if sign.isprintable() and (ord(sign) < 0x180) else "?")
    # -- and --- would become dashes of their own
    return re.sub(r"(?<=-)-(?=-)", "-", "".join(out))


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell.

    Attributes:
        text: the figure or words.
        small: lines below: interval, chance level.
        badges: words in a frame, such as "2 of 3 seeds".
        top: the best mean of its column; no claim by itself.
        apart: the best, and its interval overlaps no other's.
        mark: "better" or "worse" than the baseline by the paired test.
        gap: nothing was measured; the text says why.
        hint: the tooltip.
    """

    text: str
    small: tuple[str, ...] = ()
    badges: tuple[str, ...] = ()
    top: bool = False
    apart: bool = False
    mark: str | None = None
    gap: bool = False
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Column:
    """A column: its title, tooltip, and whether it holds numbers."""

    title: str
    hint: str = ""
    numeric: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Rows under a heading ("" = none)."""

    title: str
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table: `key` names its file and anchor, `caption` says what it shows, `notes` stand below it."""

    key: str
    caption: str
    columns: tuple[Column, ...]
    groups: tuple[Group, ...]
    notes: tuple[str, ...] = ()
    number: int = 0

    def __post_init__(self) -> None:
        assert all(len(row) == len(self.columns) for group in self.groups for row in group.rows)

    @property
    def empty(self) -> bool:
        """Whether it has no row."""
        return not any(group.rows for group in self.groups)

    def markdown(self) -> str:
        """The table in Markdown, its caption above and its notes below."""
        lines = [f"**Table {self.number}.** {markdown_text(self.caption)}", ""]
        lines.append("| " + " | ".join(markdown_text(column.title) for column in self.columns) + " |")
        lines.append("|" + "|".join("---:" if column.numeric else "---" for column in self.columns) + "|")
        for group in self.groups:
            if group.title:
                lines.append("| *" + markdown_text(group.title) + "* |" + " |" * (len(self.columns) - 1))
            lines += ["| " + " | ".join(_markdown_cell(cell) for cell in row) + " |" for row in group.rows]
        lines += ["", *(markdown_text(note) + "  " for note in self.notes)]
        return "\n".join(lines) + "\n"

    def latex(self) -> str:
        """A table environment for booktabs; wide ones are fitted to the line by adjustbox."""
        shape = "".join("r" if column.numeric else "l" for column in self.columns)
        lines = [
            "% needs \\usepackage{booktabs,adjustbox,amssymb,textcomp} and \\usepackage[T1]{fontenc}",
            r"\begin{table}[t]",
            r"\centering\small",
            rf"\caption{{{latex_text(self.caption)}}}",
            rf"\label{{tab:{re.sub(r'[^A-Za-z0-9-]+', '-', self.key)}}}",
            r"\begin{adjustbox}{max width=\linewidth}",
            rf"\begin{{tabular}}{{{shape}}}",
            r"\toprule",
            " & ".join(latex_text(column.title) for column in self.columns) + r" \\",
        ]
        for group in self.groups:
            lines.append(r"\midrule")
            if group.title:
                lines.append(rf"\multicolumn{{{len(self.columns)}}}{{l}}{{\emph{{{latex_text(group.title)}}}}} \\")
            lines += [" & ".join(_latex_cell(cell) for cell in row) + r" \\" for row in group.rows]
        lines += [r"\bottomrule", r"\end{tabular}", r"\end{adjustbox}"]
        if self.notes:
            lines.append(r"\par\smallskip\footnotesize " + " ".join(latex_text(note) for note in self.notes))
        return "\n".join([*lines, r"\end{table}"]) + "\n"


def _markdown_cell(cell: Cell) -> str:
    text = markdown_text(cell.text)
    body = f"*{text}*" if cell.gap and text != DASH else (f"**{text}**" if cell.top else text)
    body += "†" if cell.apart else ""
    body += {"better": " ▲", "worse": " ▼", None: ""}[cell.mark]
    small = "".join(f" {markdown_text(line)}" for line in cell.small)
    return body + small + "".join(f" [{markdown_text(badge)}]" for badge in cell.badges)


def _latex_cell(cell: Cell) -> str:
    text = latex_text(cell.text)
    body = rf"\emph{{{text}}}" if cell.gap and cell.text != DASH else (rf"\textbf{{{text}}}" if cell.top else text)
    body += r"\textsuperscript{\dag}" if cell.apart else ""
    body += {"better": r"~$\blacktriangle$", "worse": r"~$\blacktriangledown$", None: ""}[cell.mark]
    below = [*cell.small, *(f"({badge})" for badge in cell.badges)]
    return body + "".join(rf" {{\scriptsize {latex_text(line)}}}" for line in below)
