"""`omnichat data`: tables and JSON, exit codes, and one line for every mistake; new sources through `prepare`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from omnichat.data.corpus import Corpus
from tests.helpers.corpora import real_corpus
from tests.helpers.layouts import make_scripts, make_styletalk, make_voxdialogue

Run = Callable[..., Any]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A real corpus; its recordings are made to differ, as those of people do."""
    return real_corpus(tmp_path / "spoken")


def test_validate_tells_every_check_and_the_exit_code(omnichat: Run, corpus: Path) -> None:
    told = omnichat("data", "validate", f"path={corpus}")
    assert told.code == 2 and "share no recording of a turn" in told.out, "the sine waves of two splits are the same"
    assert "1 of 16 checks failed: splits: share no recording of a turn" in told.err and told.err.count("\n") <= 3
    (corpus / "audio" / "r-test0-0.flac").unlink()
    told = omnichat("data", "validate", f"path={corpus}", "--full", "show=1")
    assert told.code == 2 and "audio/r-test0-0.flac: no such file" in told.out
    value = json.loads(omnichat("data", f"path={corpus}", "--json").out)
    assert value["ok"] is False
    assert {row["check"].partition(":")[0] for row in value["checks"] if row["state"] == "failed"} >= {"checksums"}


def test_stats_for_people_and_for_programs(omnichat: Run, corpus: Path) -> None:
    told = omnichat("data", "stats", f"path={corpus}")
    assert told.code == 0 and "daily" in told.out and "a STAND-IN" in told.out and "distinct words" in told.out
    value = json.loads(omnichat("data", "stats", f"path={corpus}", "--json").out)
    assert value["all"]["dialogues"] == Corpus.load(corpus).summary()["dialogues"]


def test_push_into_a_folder_and_mistakes_in_one_line(omnichat: Run, corpus: Path, tmp_path: Path) -> None:
    told = omnichat("data", "push", f"path={corpus}", f"to={tmp_path / 'hub'}")
    assert told.code == 0 and (tmp_path / "hub" / "data").is_dir() and "load_dataset" in told.out
    for arguments, message in (
        (("push", f"path={corpus}"), "push goes to one place"),
        (("push", f"path={corpus}", "to=a", "repo=b/c"), "push goes to one place"),
        (("push", f"path={corpus}", "repo=b"), "repo='b' is no id of the hub"),
        (("validate", f"path={corpus}", "to=a"), "to belongs to the action push"),
        (("validat", f"path={corpus}"), "did you mean 'validate'?"),
        (("stats", "path=nowhere"), "nowhere"),
        (("stats",), "path is missing"),
    ):
        told = omnichat("data", *arguments)
        assert told.code == 2 and message in told.err, (arguments, told.err)
        assert len([line for line in told.err.splitlines() if "error:" in line]) == 1


def test_a_new_word_of_labels_wants_a_plus(omnichat: Run, tmp_path: Path) -> None:
    told = omnichat("prepare", "source=styletalk", "path=x", f"out={tmp_path / 'out'}", "source.labels.emotion.odd=sad")
    assert told.code == 2 and "source.labels.emotion.odd is new: add it with a plus sign" in told.err


@pytest.mark.parametrize(
    ("source", "make", "more", "following"),
    [
        ("voxdialogue", make_voxdialogue, (), "omnichat data stats path="),
        ("voxdialogue", make_voxdialogue, ("source.split=train",), "omnichat train mixture.sources.sharechatx.path="),
        ("voxdialogue", make_scripts, ("source.split=train", "need_audio=none"), "chat.input=text"),
        ("voxdialogue", make_voxdialogue, ("+source.emotions.grumpy=angry",), "omnichat data stats path="),
        (
            "styletalk",
            make_styletalk,
            ("need_audio=none", "+source.labels.emotion.grumpy=angry"),
            "omnichat train mixture.sources.sharechatx.path=",
        ),
    ],
)
def test_each_new_source_is_prepared_and_the_next_command_is_told(
    omnichat: Run, tmp_path: Path, source: str, make: Any, more: tuple[str, ...], following: str
) -> None:
    (tmp_path / "raw").mkdir()
    make(tmp_path / "raw")
    told = omnichat("prepare", f"source={source}", f"path={tmp_path / 'raw'}", f"out={tmp_path / 'out'}", *more)
    assert told.code == 0, told.err
    (line,) = [line for line in told.out.splitlines() if line.startswith("next: ")]
    assert following in line and str(tmp_path / "out") in line
    assert (tmp_path / "out" / "card.html").is_file() and "card.html" in told.out
