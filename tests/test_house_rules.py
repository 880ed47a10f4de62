"""The house rules that a program can check: arrows between layers, fences around libraries, lengths, unsafe calls."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "omnichat"
FILES = sorted(PACKAGE.rglob("*.py"))
TESTS_AND_SCRIPTS = sorted([*(ROOT / "tests").rglob("*.py"), *(ROOT / "scripts").rglob("*.py")])

LAYERS = {
    **dict.fromkeys(("schema", "utils"), 0),
    **dict.fromkeys(("audio", "text", "remote"), 1),
    **dict.fromkeys(("encoders", "fusion", "data", "evaluation"), 2),
    **dict.fromkeys(("model", "synthesis"), 3),
    **dict.fromkeys(("training", "chat"), 4),
    "experiments": 5,
}
TOP = 6  # the verbs, config and cli: single files at the package's root
FENCES = {  # library -> prefixes of the modules that may import it; "" stands for the verbs at the root
    "hydra": ("",),
    "omegaconf": ("",),
    "accelerate": ("training", ""),
    "peft": ("model",),
    "matplotlib": ("experiments", "evaluation.report"),
    "gradio": ("chat.web",),
    "fastapi": ("chat",),
    "starlette": ("chat",),
    "uvicorn": ("chat",),
}
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60


def parts_of(path: Path) -> tuple[str, ...]:
    """("data", "readers", "base") for omnichat/data/readers/base.py; a package's __init__ is the package."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def layer(parts: tuple[str, ...]) -> int:
    """Layer of a module; a single file at the root that is not the schema is a verb."""
    if not parts:
        return 0  # the package itself: its version
    if parts[0] not in LAYERS and len(parts) > 1:
        pytest.fail(f"omnichat/{parts[0]} is in no layer: add it to LAYERS")
    return LAYERS.get(parts[0], TOP)


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, dotted module) of every import, also those inside functions; relative ones are refused elsewhere."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None and node.level == 0:
            for alias in node.names:
                dotted = f"{node.module}.{alias.name}"
                inside = PACKAGE.parent / Path(*dotted.split("."))
                is_module = inside.with_suffix(".py").is_file() or (inside / "__init__.py").is_file()
                yield node.lineno, dotted if is_module else node.module


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def where(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT)}:{line}"


def arrow_faults(path: Path, tree: ast.AST) -> list[str]:
    own = parts_of(path)
    faults = []
    for line, name in imports(tree):
        target = tuple(name.split("."))
        if target[0] != "omnichat" or len(target) == 1:
            continue
        other = target[1:]
        if layer(other) > layer(own):
            faults.append(f"{where(path, line)}: L{layer(own)} imports {name}, which is L{layer(other)}")
        same_layer = layer(other) == layer(own) not in (0, TOP)
        if same_layer and other[0] != own[0] and other[-1] != "base":
            faults.append(f"{where(path, line)}: imports {name} of its own layer; only {other[0]}.base is open to it")
    return faults


def fence_faults(path: Path, tree: ast.AST) -> list[str]:
    own = ".".join(parts_of(path))
    at_top = layer(parts_of(path)) == TOP
    faults = []
    for line, name in imports(tree):
        for prefix in FENCES.get(library := name.split(".")[0], ()):
            if at_top if prefix == "" else own.startswith(prefix):
                break
        else:
            if library in FENCES:
                faults.append(f"{where(path, line)}: {library} is fenced off here")
    return faults


def call_faults(path: Path, tree: ast.AST) -> list[str]:
    """torch.load without weights_only=True, trust_remote_code=True, a bare strict=False, silent excepts, eval."""
    faults = []
    below_top = layer(parts_of(path)) < TOP
    for node in ast.walk(tree):
        if isinstance(node, ast.ExceptHandler):
            names = [node.type] if not isinstance(node.type, ast.Tuple) else node.type.elts
            broad = node.type is None or any(isinstance(n, ast.Name) and n.id == "BaseException" for n in names)
            silent = all(isinstance(inner, ast.Pass) for inner in node.body)
            reraises = any(isinstance(inner, ast.Raise) for inner in ast.walk(node))
            if silent or (broad and not reraises):
                faults.append(f"{where(path, node.lineno)}: a silent or all-catching except")
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        true = {k.arg for k in node.keywords if isinstance(k.value, ast.Constant) and k.value.value is True}
        false = {k.arg for k in node.keywords if isinstance(k.value, ast.Constant) and k.value.value is False}
        if called == "torch.load" and "weights_only" not in true:
            faults.append(f"{where(path, node.lineno)}: torch.load without weights_only=True")
        if "trust_remote_code" in true:
            faults.append(f"{where(path, node.lineno)}: trust_remote_code=True")
        if "strict" in false and called.endswith("load_state_dict") and not checked_below(tree, node):
            faults.append(f"{where(path, node.lineno)}: a bare strict=False: check missing and unexpected keys")
        if below_top and called == "cfg.get":
            faults.append(f"{where(path, node.lineno)}: {called}: configs are typed objects")
        if called in ("eval", "exec", "pickle.load", "pickle.loads", "os.system"):
            faults.append(f"{where(path, node.lineno)}: {called}")
    return faults


def checked_below(tree: ast.AST, call: ast.Call) -> bool:
    """Whether a load_state_dict's result is kept, so that its missing and unexpected keys can be looked at."""
    kept = (ast.Assign, ast.AnnAssign, ast.NamedExpr, ast.Return)
    return any(isinstance(node, kept) and node.value is call for node in ast.walk(tree))


def length_faults(path: Path, tree: ast.AST) -> list[str]:
    faults = []
    lines = len(path.read_text(encoding="utf-8").splitlines())
    if lines > MAX_FILE_LINES:
        faults.append(f"{where(path, 1)}: {lines} lines, at most {MAX_FILE_LINES}")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > MAX_FUNCTION_LINES:
                faults.append(
                    f"{where(path, node.lineno)}: {node.name} has {length} lines, at most {MAX_FUNCTION_LINES}"
                )
    return faults


def docstring_faults(path: Path, tree: ast.Module) -> list[str]:
    """Public modules, classes and functions (not methods that a base documents) have a docstring."""
    faults = [] if ast.get_docstring(tree) else [f"{where(path, 1)}: the module has no docstring"]
    for node in tree.body:
        public = isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_")
        if public and not ast.get_docstring(node):
            faults.append(f"{where(path, node.lineno)}: {node.name} has no docstring")
    return faults


# Spelled in parts, so that this file does not break its own rule.
PLACES = re.compile(
    "|".join(
        [
            r"(?<![\w.$}])/" + "work/",
            r"(?<![\w.$}])/" + r"(?:home|root|Users)/\w",
            "(?<![\\w.$}])/" + "tmp/",
            "pypi" + r"\.org",
            "python" + r"hosted\.org",
        ]
    )
)


def text_files() -> list[Path]:
    suffixes = {".py", ".yaml", ".yml", ".toml", ".md", ".json", ".html", ".jinja", ".cfg", ".txt"}
    folders = [ROOT / name for name in ("omnichat", "configs", "scripts", "tests", "docs", ".ci")]
    files = [path for folder in folders for path in folder.rglob("*") if path.suffix in suffixes]
    files += [path for path in ROOT.iterdir() if path.is_file() and not path.name.startswith(".git")]
    return sorted(path for path in files if "__pycache__" not in path.parts)


@pytest.mark.parametrize("check", [arrow_faults, fence_faults, call_faults, length_faults, docstring_faults])
def test_package_keeps_the_rule(check) -> None:
    assert len(FILES) > 10
    faults = [fault for path in FILES for fault in check(path, parse(path))]
    assert not faults, "\n" + "\n".join(faults)


def test_test_and_script_files_are_short_enough() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in TESTS_AND_SCRIPTS}
    faults = [f"{where(path, 1)}: {count} lines" for path, count in lengths.items() if count > MAX_FILE_LINES]
    assert not faults, "\n" + "\n".join(faults)


def test_no_relative_imports_and_no_star() -> None:
    faults = []
    for path in FILES:
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ImportFrom) and (node.level > 0 or any(a.name == "*" for a in node.names)):
                faults.append(where(path, node.lineno))
    assert not faults, "\n" + "\n".join(faults)


def test_modules_do_not_import_each_other_in_a_circle() -> None:
    graph: dict[str, set[str]] = {}
    for path in FILES:
        tree = parse(path)
        top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        own = ".".join(("omnichat", *parts_of(path)))
        graph[own] = {name for _, name in imports(top) if name.split(".")[0] == "omnichat"} - {own, "omnichat"}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join([*trail[trail.index(module) :], module])
        if module not in done:
            for other in sorted(graph.get(module, ())):
                visit(other, (*trail, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())


def test_no_machine_paths_or_registry_hosts() -> None:
    faults = []
    for path in text_files():
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1):
            if PLACES.search(line):
                faults.append(f"{where(path, number)}: {line.strip()[:100]}")
    assert not faults, "\n" + "\n".join(faults)


BAD = {
    "omnichat/encoders/x.py": ("from omnichat.model.llm import LLM", arrow_faults),
    "omnichat/fusion/x.py": ("import omnichat.encoders.whisper", arrow_faults),
    "omnichat/utils/x.py": ("def f():\n    from omnichat.training import loss", arrow_faults),
    "omnichat/training/x.py": ("from hydra.utils import instantiate", fence_faults),
    "omnichat/train.py": ("import peft", fence_faults),
    "omnichat/model/x.py": ("import matplotlib.pyplot as plt", fence_faults),
    "omnichat/audio/x.py": ("import torch\ntorch.load('x')", call_faults),
    "omnichat/audio/y.py": ("torch.load('x', weights_only=False)", call_faults),
    "omnichat/audio/z.py": ("try:\n    f()\nexcept ValueError:\n    pass", call_faults),
    "omnichat/model/y.py": ("m.load_state_dict(s, strict=False)", call_faults),
    "omnichat/model/z.py": ("f(trust_remote_code=True)", call_faults),
}
GOOD = {
    "omnichat/fusion/x.py": ("from omnichat.encoders.base import StreamSpec", arrow_faults),
    "omnichat/model/x.py": ("import peft\nfrom omnichat.fusion.mix_former import MixFormer", fence_faults),
    "omnichat/train.py": ("import hydra\nimport accelerate", fence_faults),
    "omnichat/audio/x.py": ("torch.load('x', weights_only=True)", call_faults),
    "omnichat/model/y.py": ("found = m.load_state_dict(s, strict=False)", call_faults),
}


@pytest.mark.parametrize("name", BAD)
def test_rules_catch_what_they_forbid(name: str) -> None:
    code, check = BAD[name]
    assert check(ROOT / name, ast.parse(code))


@pytest.mark.parametrize("name", GOOD)
def test_rules_allow_what_they_allow(name: str) -> None:
    code, check = GOOD[name]
    assert check(ROOT / name, ast.parse(code)) == []


def test_place_rule_catches_paths_and_spares_addresses() -> None:
    assert PLACES.search("open('/" + "tmp/x')")
    assert PLACES.search("see /" + "home/someone/runs")
    assert not PLACES.search("https://arxiv.org/abs/2501.01384 and ../shared/data and $HOME/work/x")
