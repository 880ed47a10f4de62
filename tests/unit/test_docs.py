"""The documentation's pages: links and paths lead somewhere, quoted messages are ours, the index has all pages."""

from __future__ import annotations

import ast
import re
from functools import cache

import pytest

from tests.helpers.doc_commands import FENCE, ROOT, commands_of, documents

PAGES = {path.relative_to(ROOT).as_posix(): path for path in documents()}
GAP = "\x00"  # where a message has a value


@cache
def messages() -> tuple[str, ...]:
    """Every text of the package's code with values replaced by GAP, joined as Python joins what stands side by side."""
    found: set[str] = set()
    for path in sorted((ROOT / "omnichat").rglob("*.py")):
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        prose = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}  # docstrings are no messages
        for node in nodes:
            if id(node) in prose:
                continue
            if isinstance(node, ast.JoinedStr):
                parts = (part.value if isinstance(part, ast.Constant) else GAP for part in node.values)
                found.add("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                found.add(node.value)
    return tuple(found)


def is_ours(quoted: str) -> bool:
    """Whether a text of the code says this, whatever stands where the quotation has "..."."""
    pieces = [piece for piece in quoted.split("...") if piece.strip()]
    pattern = re.compile(".*".join(map(re.escape, pieces)), re.DOTALL)
    return sum(len(piece) for piece in pieces) >= 12 and any(pattern.search(text) for text in messages())


def quotations(text: str) -> list[str]:
    return [
        line
        for block in re.findall(r"^```text\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
        for line in block.splitlines()
    ]


def test_quoted_messages_are_what_the_code_says() -> None:
    quoted = quotations(PAGES["docs/TROUBLESHOOTING.md"].read_text(encoding="utf-8"))
    assert len(quoted) > 20
    assert not [line for line in quoted if not is_ours(line)]


@pytest.mark.parametrize("line", ["out of memory on ... in ...: buy more", "...: fill the cache last", "...=...: ..."])
def test_other_messages_are_not(line: str) -> None:
    assert not is_ours(line)


def headings(text: str) -> set[str]:
    """Anchors of a page, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    text = PAGES[name].read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        found = (PAGES[name].parent / file).resolve() if file else PAGES[name]
        assert found.exists(), f"{name}: {target}"
        assert not anchor or anchor in headings(found.read_text(encoding="utf-8")), f"{name}: {target}"


@pytest.mark.parametrize("name", PAGES)
def test_files_that_are_named_are_there(name: str) -> None:
    """Paths of the repository in backticks; those with a placeholder or pattern are looked up as a pattern."""
    text = re.sub(r"^```.*?^```$", "", PAGES[name].read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    lost = []
    for path in re.findall(r"`((?:omnichat|configs|scripts|tests|docs|requirements)/[^`\s:]+)", text):
        pattern = re.sub(r"<\w+>|NAME|\{[^}]*\}|\.\.\.", "*", path).rstrip("/")
        if not any(ROOT.glob(pattern)):
            lost.append(path)
    assert not lost, f"{name}: {lost}"


def test_the_index_has_every_page_once() -> None:
    index = PAGES["docs/README.md"].read_text(encoding="utf-8")
    linked = re.findall(r"^\| \[[^\]]+\]\((\w+\.md)\) \|", index, re.MULTILINE)
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert len(linked) == len(set(linked)) and set(linked) == pages


@pytest.mark.parametrize("name", PAGES)
def test_a_block_says_what_it_is(name: str) -> None:
    inside = False
    for number, line in enumerate(PAGES[name].read_text(encoding="utf-8").splitlines(), 1):
        if fence := FENCE.match(line):
            assert inside or fence[1], f"{name}:{number}: say what the block is: bash, text, json, yaml, python, ..."
            inside = not inside
    assert not inside, f"{name}: a block is not closed"


SHOWN = """\
Say `omnichat train  name=a` or
`make
test`; not `omnichat/cli.py`, nor `omnichat`.

```bash
$ omnichat runs   # lists them
# a comment
omnichat score predictions=a#1 \\
    out=b   # both
```
  ```
  hf auth login
  ```
```text
omnichat/
omnichat report runs=runs
```
```python
make = 1
```

    make indented
"""


def test_commands_are_found_wherever_they_stand() -> None:
    found = [(command.place, command.text, command.whole) for command in commands_of("x.md", SHOWN)]
    assert found == [
        ("x.md:1", "omnichat train name=a", False),
        ("x.md:2", "make test", False),
        ("x.md:6", "omnichat runs", True),
        ("x.md:8", "omnichat score predictions=a#1 out=b", True),
        ("x.md:12", "hf auth login", True),
        ("x.md:16", "omnichat report runs=runs", True),
        ("x.md:22", "make indented", True),
    ]
