"""Atomic files and the check of an output folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from omnichat.utils.errors import UserError
from omnichat.utils.files import (
    append_lines,
    check_writable,
    read_json,
    read_jsonl,
    replace_folder,
    write_bytes_atomic,
    write_json_atomic,
    write_jsonl_atomic,
)


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_json_atomic(path, {"a": 1})

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("omnichat.utils.files.os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_bytes_atomic(path, b"half")
    assert read_json(path) == {"a": 1} and list(tmp_path.iterdir()) == [path]


def test_what_is_not_json_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            write_json_atomic(tmp_path / "a.json", {"a": value})
    assert not list(tmp_path.iterdir())


def test_a_torn_last_line_is_passed_over_and_any_other_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl_atomic(path, [{"a": 1}, {"a": 2}])
    whole = path.read_bytes()
    for cut in range(len(whole) - len(b'{"a": 2}\n') + 1, len(whole) - 1):
        path.write_bytes(whole[:cut])
        assert read_jsonl(path) == [{"a": 1}]
    path.write_text('{"a": 1}\n{"a": \n{"a": 3}\n')
    with pytest.raises(UserError, match=r"a\.jsonl:2:"):
        read_jsonl(path)
    path.write_text('{"a": 1}\n[2]\n')
    with pytest.raises(UserError, match=r"a\.jsonl:2: expected a JSON object, got list"):
        read_jsonl(path)


def test_appended_lines_come_in_one_write_after_what_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, writes, write = tmp_path / "a.jsonl", [], os.write
    monkeypatch.setattr(os, "write", lambda to, content: writes.append(len(content)) or write(to, content))
    append_lines(path, ["one", "two"])
    with open(path, "ab") as handle:
        handle.write(b"torn")
    long = ["x" * 300] * 300
    append_lines(path, long)
    assert path.read_text().splitlines() == ["one", "two", "torn", *long]
    assert writes == [len("one\ntwo\n"), 1 + 300 * 301]
    monkeypatch.setattr(os, "write", lambda to, content: len(content) - 1)
    with pytest.raises(OSError, match="No space left"):
        append_lines(path, ["three"])
    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(OSError, match="link"):
        append_lines(link, ["four"])


def test_replacing_a_folder(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.txt").write_text(name)
    replace_folder(tmp_path / "new", tmp_path / "old")
    assert [str(p.relative_to(tmp_path)) for p in sorted(tmp_path.rglob("*"))] == ["old", "old/new.txt"]


def test_a_folder_that_can_be_made_is_writable_and_stays_unmade(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b", "out")
    assert not list(tmp_path.iterdir())


def test_a_folder_below_a_file_is_not(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^out=.*file/b: cannot write there"):
        check_writable(tmp_path / "file" / "b", "out")
