"""Tables as Markdown and LaTeX: whatever a name holds, columns stay balanced and braces matched."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnichat.experiments.study_report.sheet import Cell, Column, Group, Sheet, latex_text

HOSTILE = st.text(st.sampled_from(list("ab |<>&_%$#{}\\^~[]\"'-*`\n\t€é漢\u2011\U0001f600\x00")), max_size=12)
CELL = st.builds(
    Cell,
    HOSTILE,
    st.tuples(HOSTILE),
    st.tuples(HOSTILE),
    top=st.booleans(),
    apart=st.booleans(),
    mark=st.sampled_from([None, "better", "worse"]),
    gap=st.booleans(),
)


def unescaped(text: str, sign: str) -> int:
    """How often a sign stands without a backslash of its own before it."""
    return len(re.findall(rf"(?<!\\){re.escape(sign)}", text.replace("\\\\", "")))


def balanced(text: str) -> bool:
    depth = 0
    for sign in re.findall(r"(?<!\\)[{}]", text.replace("\\\\", "")):
        depth += 1 if sign == "{" else -1
        if depth < 0:
            return False
    return depth == 0


@given(HOSTILE)
def test_escaped_text_holds_no_live_sign(text: str) -> None:
    found = latex_text(text)
    plain = re.sub(r"\$\\[a-z]+\$", "", found)
    for sign in "&%#_$":
        assert unescaped(plain, sign) == 0, (text, found)
    assert balanced(found) and "\n" not in found
    assert not re.search(r"(?<!\\)[~^]", found.replace("\\textasciitilde{}", "").replace("\\textasciicircum{}", ""))
    assert all(ord(sign) < 0x180 for sign in found)


@given(st.lists(st.tuples(CELL, CELL, CELL), min_size=1, max_size=4), HOSTILE, HOSTILE)
def test_every_row_has_all_columns(rows: list[tuple[Cell, ...]], title: str, caption: str) -> None:
    columns = (Column("System"), Column(title, numeric=True), Column("A & B_1 %", numeric=True))
    sheet = Sheet("key _%", caption, columns, (Group(title, tuple(rows)),), (title,), number=3)
    for line in (line for line in sheet.markdown().splitlines() if line.startswith("|")):
        assert len(re.findall(r"(?<!\\)\|", line.replace("\\\\", ""))) == 4, line
        assert "<" not in line
    check_latex(sheet.latex(), columns=3)


def check_latex(content: str, columns: int) -> None:
    """The structure that a compiler would check: environments close, braces match, every row has its columns."""
    body = "\n".join(line for line in content.splitlines() if not line.startswith("%"))
    assert balanced(body)
    stack: list[str] = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", body):
        if kind == "begin":
            stack.append(name)
        else:
            assert stack.pop() == name
    assert stack == []
    inside = body[body.index(r"\toprule") + len(r"\toprule") : body.index(r"\bottomrule")]
    rows = [part for part in inside.replace(r"\midrule", "").split("\\\\\n") if part.strip()]
    for row in rows:
        span = re.match(r"\s*\\multicolumn\{(\d+)\}", row)
        width = int(span.group(1)) if span else 1 + unescaped(row, "&")
        assert width == columns, row
        assert not row.lstrip().startswith("[")
    shape = re.search(r"\\begin\{tabular\}\{(\w+)\}", body)
    assert shape is not None and len(shape.group(1)) == columns


def test_golden_table() -> None:
    columns = (Column("System"), Column("F1", numeric=True))
    rows = (
        (Cell("text_LLM", badges=("baseline",)), Cell("0.10", ("[0.05, 0.15]",))),
        (Cell("50 % real"), Cell("0.80", ("[0.70, 0.90]",), top=True, apart=True, mark="better")),
        (Cell("lost"), Cell("failed", gap=True)),
    )
    sheet = Sheet("demo", "A & B", columns, (Group("-Emotion", rows),), number=1)
    assert sheet.markdown().splitlines() == [
        "**Table 1.** A & B",
        "",
        "| System | F1 |",
        "|---|---:|",
        "| *-Emotion* | |",
        "| text_LLM [baseline] | 0.10 [0.05, 0.15] |",
        "| 50 % real | **0.80**† ▲ [0.70, 0.90] |",
        "| lost | *failed* |",
        "",
    ]
    lines = sheet.latex().splitlines()
    assert r"\caption{A \& B}" in lines and r"\begin{tabular}{lr}" in lines
    assert r"text\_LLM {\scriptsize (baseline)} & 0.10 {\scriptsize {[}0.05, 0.15{]}} \\" in lines
    assert (
        r"50 \% real & \textbf{0.80}\textsuperscript{\dag}~$\blacktriangle$ {\scriptsize {[}0.70, 0.90{]}} \\" in lines
    )
    assert r"lost & \emph{failed} \\" in lines


def test_a_row_of_the_wrong_width_is_our_mistake() -> None:
    with pytest.raises(AssertionError):
        Sheet("key", "", (Column("a"), Column("b")), (Group("", ((Cell("one"),),)),))
