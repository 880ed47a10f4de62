"""The partial file of a decoding: what was kept is found again, and nothing of another decoding or of half a line."""

from __future__ import annotations

from pathlib import Path

import pytest

from omnichat.evaluation.partial import PartialReplies


def filled(path: Path) -> Path:
    with PartialReplies(path, "k") as partial:
        assert partial.done == {}
        partial.add({3: 'Yes\n"quoted"\u2028', 1: ""})
        partial.add({0: "é"})
    return path


def test_what_was_kept_is_found_again(tmp_path: Path) -> None:
    path = filled(tmp_path / "predictions" / ".dev.partial.jsonl")
    with PartialReplies(path, "k") as partial:
        assert partial.done == {3: 'Yes\n"quoted"\u2028', 1: "", 0: "é"}
        partial.add({2: "more"})
    assert PartialReplies(path, "k").done[2] == "more"
    partial.remove()
    assert not path.exists()


def test_another_key_starts_anew(tmp_path: Path) -> None:
    path = filled(tmp_path / "p")
    assert PartialReplies(path, "other").done == {}
    assert PartialReplies(path, "k").done == {}, "the replies under the first key are gone"


@pytest.mark.parametrize("cut", range(1, 25))
def test_a_torn_line_is_cut_off(tmp_path: Path, cut: int) -> None:
    path = filled(tmp_path / "p")
    path.write_bytes(path.read_bytes()[:-cut])
    with PartialReplies(path, "k") as partial:
        assert partial.done == {3: 'Yes\n"quoted"\u2028', 1: ""}
        partial.add({0: "again"})
    assert PartialReplies(path, "k").done[0] == "again"


@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe\n", b"[]\n", b'{"key": "k"}\n{"replies": [[1]]}\n', b'{"key": "k"}\n{}\n']
)
def test_a_damaged_file_is_begun_again(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "p"
    path.write_bytes(content)
    assert PartialReplies(path, "k").done == {}
    assert path.read_bytes() == b'{"key": "k"}\n'


def test_files_of_other_processes_are_read_and_left_alone(tmp_path: Path) -> None:
    other = filled(tmp_path / "other")
    other.write_bytes(other.read_bytes()[:-3])  # being written at this moment
    before = other.read_bytes()
    with PartialReplies(tmp_path / "mine", "k") as partial:
        partial.add({7: "mine"})
        partial.include([other, tmp_path / "none"])
        assert partial.done == {3: 'Yes\n"quoted"\u2028', 1: ""}
    assert other.read_bytes() == before
    again = PartialReplies(tmp_path / "mine", "k2")
    again.include([other])
    assert again.done == {}, "replies under another key are no use"
