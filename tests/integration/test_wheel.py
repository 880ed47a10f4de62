"""The built wheel: it carries its configs and data, and works from where it is unpacked."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

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
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {str(path.relative_to(ROOT)) for path in (ROOT / "omnichat").rglob("*") if path.is_file()}
    package = {name for name in package if "__pycache__" not in name and "/.ipynb" not in name}
    assert not package - names
    configs = {f"omnichat/{path.relative_to(ROOT)}" for path in (ROOT / "configs").rglob("*.yaml")}
    assert len(configs) > 20 and not configs - names
    for data in (".html.j2", "grammar.yaml", ".json"):
        assert any(name.endswith(data) for name in names), data


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


def test_it_runs_from_where_it_is_unpacked(wheel: Path, tmp_path: Path) -> None:
    site, work = tmp_path / "site", tmp_path / "work"
    work.mkdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    code = (
        "import omnichat, sys; from omnichat.cli import run; from omnichat.config import config_folder;"
        "print(omnichat.__file__); print(config_folder());"
        "sys.exit(run(['--help']) or run(['train', 'experiment=smoke', '--cfg', 'job']) or run(['train', '--help']))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=work, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == [str(site / "omnichat/__init__.py"), str(site / "omnichat/configs")]
    assert "alpha:" in done.stdout and "sharechatx" in done.stdout
    assert not list(work.iterdir())
