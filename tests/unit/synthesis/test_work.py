"""The work folder believes nothing that is not whole, its own and in its place, and touches nothing that is not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omnichat.synthesis.work import HASHES, OUTCOME, read_value, read_whole, remove, write_value, write_whole

FILES = {"h0.flac": b"sound", "u0.flac": b"another"}


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    write_whole(tmp_path / "stems" / "key", FILES, {OUTCOME: {"text": "Hello there."}})
    return tmp_path / "stems" / "key"


def test_what_was_written_is_read(entry: Path) -> None:
    found = read_whole(entry)
    assert found is not None and json.loads(found.pop(OUTCOME)) == {"text": "Hello there."} and found == FILES
    assert read_whole(entry, ["u0.flac"]) == {"u0.flac": b"another"}
    assert read_whole(entry.with_name("other")) is None


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_bit_of_any_file_is_noticed(data: Any, tmp_path: Path) -> None:
    folder = tmp_path / "stems" / "bits"
    remove(folder)
    write_whole(folder, FILES, {OUTCOME: {"text": "Hello there."}})
    path = folder / data.draw(st.sampled_from([*FILES, OUTCOME, HASHES]))
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    before = {**FILES, OUTCOME: (folder / OUTCOME).read_bytes()}
    path.write_bytes(bytes(content))
    found = read_whole(folder)
    assert (found is None and not folder.exists()) or found == before  # a space more in the JSON changes nothing


def test_an_entry_under_another_s_name_is_none(entry: Path) -> None:
    other = entry.with_name("other")
    entry.rename(other)
    assert read_whole(other) is None and not other.exists()


@pytest.mark.parametrize("what", ["file", "entry", "outside file"])
def test_a_link_is_removed_and_what_it_leads_to_is_not(what: str, entry: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    entry.rename(outside)
    if what == "entry":
        entry.symlink_to(outside)
    else:
        write_whole(entry, FILES)
        (entry / "h0.flac").unlink()
        (entry / "h0.flac").symlink_to(outside / "h0.flac")
    before = {path.name: path.read_bytes() for path in outside.iterdir()}
    assert read_whole(entry) is None
    assert not entry.exists() and not entry.is_symlink()
    assert {path.name: path.read_bytes() for path in outside.iterdir()} == before


def test_a_file_in_an_entry_s_place_makes_room(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("x")
    assert read_whole(tmp_path / "key") is None
    write_whole(tmp_path / "key", FILES)
    assert read_whole(tmp_path / "key") == FILES and sorted(tmp_path.iterdir()) == [tmp_path / "key"]


@pytest.mark.parametrize("forged", ["", "[]", "{", '{"value": {"ada": 2.5}}', "digit", "renamed", "link", "folder"])
def test_a_kept_value_is_believed_only_as_it_was_kept(forged: str, tmp_path: Path) -> None:
    path = tmp_path / "calibration" / "key.json"
    write_value(path, {"ada": 1.5})
    assert read_value(path) == {"ada": 1.5}
    if forged == "digit":
        path.write_text(path.read_text().replace("1.5", "2.5"))
    elif forged == "renamed":
        path.rename(path.with_name("another.json"))
        path = path.with_name("another.json")
    elif forged in ("link", "folder"):
        path.rename(tmp_path / "key.json")
        path.mkdir() if forged == "folder" else path.symlink_to(tmp_path / "key.json")
    else:
        path.write_text(forged)
    assert read_value(path) is None
    write_value(path, {"ada": 1.5})
    assert read_value(path) == {"ada": 1.5} and not path.is_symlink()
