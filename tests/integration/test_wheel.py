"""The built wheel: it carries its configs and data, and works from where it is unpacked."""

from __future__ import annotations

import importlib.metadata
import inspect
import os
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from omnichat import __version__

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built by the backend that pyproject.toml names, without asking a package index."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    done = subprocess.run([*command, "--wheel-dir", str(folder), str(ROOT)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


def test_it_holds_every_file_of_the_package_and_every_config(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    names = set(archive.namelist())
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "omnichat").rglob("*") if path.is_file()}
    package = {name for name in package if "__pycache__" not in name and "/.ipynb" not in name}
    assert not package - names
    configs = {f"omnichat/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert len(configs) > 20 and not configs - names
    for data in (".html.j2", ".md.j2", "grammar.yaml", "topics/everyday.yaml", ".json", "prompts/v1/system.md", ".txt"):
        assert any(name.endswith(data) for name in names), data
    assert all(archive.read(name) == (ROOT / name).read_bytes() for name in package & names)


def test_it_holds_nothing_else(wheel: Path) -> None:
    info = f"omnichat-{__version__}.dist-info/"
    foreign = [n for n in zipfile.ZipFile(wheel).namelist() if not n.startswith(("omnichat/", info))]
    assert not foreign
    assert wheel.stat().st_size < 2_000_000, "no audio, no weights"


def test_metadata(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    info = f"omnichat-{__version__}.dist-info"
    metadata = archive.read(f"{info}/METADATA").decode()
    assert "Requires-Python: >=3.11" in metadata and "License-Expression: Apache-2.0" in metadata
    assert "Provides-Extra: synthesis" in metadata
    required = [line for line in metadata.splitlines() if line.startswith("Requires-Dist:") and "extra ==" not in line]
    assert not [line for line in required if "piper" in line or "parselmouth" in line], "GPL parts are optional"
    assert "omnichat = omnichat.cli:main" in archive.read(f"{info}/entry_points.txt").decode()


def core_distributions() -> set[str]:
    """Names of the distributions that the wheel needs without any extra, with all that these need."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    waiting = [Requirement(line) for line in project["dependencies"]]
    done: set[tuple[str, str]] = set()
    while waiting:
        asked = waiting.pop()
        for extra in ("", *asked.extras):
            key = (canonicalize_name(asked.name), extra)
            if key in done:
                continue
            done.add(key)
            for line in importlib.metadata.requires(asked.name) or ():
                inner = Requirement(line)
                if inner.marker is None or inner.marker.evaluate({"extra": extra}):
                    waiting.append(inner)
    return {name for name, _ in done}


def modules_of(distribution: importlib.metadata.Distribution) -> set[str]:
    """Top-level modules by the files of a distribution; some state none, or an empty list, in their metadata."""
    paths = [path for path in distribution.files or () if path.parts[0] != ".."]
    names = {path.parts[0] if len(path.parts) > 1 else inspect.getmodulename(path.name) for path in paths}
    return {name for name in names if name is not None and name.isidentifier()}


def absent_without_extras() -> list[str]:
    """Top-level modules of this environment that an installation of the wheel alone does not have."""
    core = core_distributions()
    wanted: set[str] = set()
    others: set[str] = set()
    for distribution in importlib.metadata.distributions():
        name = canonicalize_name(distribution.metadata["Name"])
        (wanted if name in core else others).update(modules_of(distribution))
    return sorted(others - wanted - {"omnichat", *sys.stdlib_module_names})


BARE = """
import importlib, pkgutil, sys

class Bare:
    # A finder that does not see what is absent.

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in ABSENT else self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = [Bare(finder) for finder in sys.meta_path]
import omnichat
from omnichat.cli import run
from omnichat.config import config_folder

print(omnichat.__file__)
print(config_folder())
code = run(["--help"]) or run(["train", "experiment=smoke", "--cfg", "job"]) or run(["train", "--help"])
modules = [module.name for module in pkgutil.walk_packages(omnichat.__path__, "omnichat.")]
failed, waiting = [], []
for name in modules:
    try:
        importlib.import_module(name)
    except Exception as error:
        needs = next((words for prefix, words in OF_EXTRAS.items() if name.startswith(prefix)), ())
        said = any(word in str(error) for word in needs)
        (waiting if said else failed).append(f"{name}: {type(error).__name__}: {error}")
print(f"met {len(modules) - len(failed)} modules, {len(waiting)} of them of an extra")
print("".join(f"FAILED {line}\\n" for line in failed))
sys.exit(code or bool(failed))
"""


# Modules that nothing imports before an extra is asked for, and what they must name where it is not installed.
OF_EXTRAS = {
    "omnichat.chat.web.": ("gradio", "fastapi", "uvicorn"),
    "omnichat.chat.announced": ("uvicorn",),
    "omnichat.chat.server.": ("fastapi", "starlette", "uvicorn"),
    "omnichat.remote.": ("omnichat[writers]",),
    "omnichat.evaluation.judge.openai": ("omnichat[writers]",),
    "omnichat.synthesis.writers.": ("omnichat[writers]",),
}


def test_it_runs_from_where_it_is_unpacked_without_any_extra(wheel: Path, tmp_path: Path) -> None:
    """Verbs compose, and every module imports or names its extra, where nothing but the wheel's own needs is there."""
    absent = absent_without_extras()
    assert {"piper", "parselmouth", "openai", "pytest"} <= set(absent) and not {"torch", "hydra", "yaml"} & set(absent)
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
        modules = {name for name in archive.namelist() if name.endswith(".py")} - {"omnichat/__init__.py"}
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    code = f"ABSENT = {absent!r}\nOF_EXTRAS = {OF_EXTRAS!r}\n{BARE}"
    done = subprocess.run([sys.executable, "-c", code], cwd=work, env=environment, capture_output=True, text=True)
    told = "".join(line for line in done.stdout.splitlines(keepends=True) if line.startswith("FAILED"))
    assert done.returncode == 0, told + done.stderr
    assert done.stdout.splitlines()[:2] == [str(site / "omnichat/__init__.py"), str(site / "omnichat/configs")]
    assert "alpha:" in done.stdout and "sharechatx" in done.stdout
    assert f"met {len(modules)} modules" in done.stdout, "every file is a module of a package"
    assert not list(work.iterdir())
