"""What every script writer keeps: valid scripts, the same for the same request, in order, splits apart."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest
import torch

from omnichat.schema import SPLITS
from omnichat.synthesis.base import Rejected, ScriptRequest, ScriptWriter, script_problems
from omnichat.synthesis.writers.script_file import ScriptFileWriter
from omnichat.utils.files import write_jsonl_atomic
from tests.helpers.fault_proxy import ChatServer
from tests.helpers.scripts import SOUNDS, STYLES, by_seed, grammar, openai_writer, request, script_file_row
from tests.helpers.tiny_llm import transformers_writer

TURNS = (0, 2, 8)
ASKED = [
    ScriptRequest(scenario, split, seed, turns, STYLES, SOUNDS[scenario])
    for scenario in SOUNDS
    for split in SPLITS
    for turns in TURNS
    for seed in range(5)
]


def _number(one: ScriptRequest) -> ScriptRequest:
    """With a seed of its own, by which the fake server knows it again."""
    return ScriptRequest(one.scenario, one.split, ASKED.index(one), one.history_turns, one.styles, one.sound)


REQUESTS = [_number(one) for one in ASKED]


@contextmanager
def _grammar(folder: Path) -> Iterator[ScriptWriter]:
    yield grammar()


@contextmanager
def _file(folder: Path) -> Iterator[ScriptWriter]:
    path = folder / "scripts.jsonl"
    write_jsonl_atomic(path, [script_file_row(one) for one in REQUESTS])
    yield ScriptFileWriter(str(path), "test", "emotion", "raise", {"train": 1.0}, 14)


@contextmanager
def _openai(folder: Path) -> Iterator[ScriptWriter]:
    with ChatServer(by_seed(REQUESTS)) as server:
        yield openai_writer(server.url)


WRITERS: dict[str, Callable[[Path], AbstractContextManager[ScriptWriter]]] = {
    "grammar": _grammar,
    "file": _file,
    "openai": _openai,
}


@pytest.fixture(params=WRITERS)
def writer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ScriptWriter]:
    with WRITERS[request.param](tmp_path) as made:
        yield made


def test_scripts_are_valid_repeatable_and_in_order(writer: ScriptWriter, tmp_path: Path) -> None:
    said: dict[str, set[str]] = {}
    scripts = list(writer.write_batch(REQUESTS, tmp_path / "store"))
    assert len(scripts) == len(REQUESTS)
    for asked, script in zip(REQUESTS, scripts, strict=True):
        assert not isinstance(script, Rejected), script
        assert script_problems(script, asked, max_words=14) == []
        said.setdefault(asked.split, set()).update(script.sentences())
    assert not said["train"] & said["dev"] and not said["train"] & said["test"] and not said["dev"] & said["test"]
    assert list(writer.write_batch(REQUESTS[::-1], tmp_path / "store")) == scripts[::-1]
    assert [writer.write(asked) for asked in REQUESTS[::9]] == scripts[::9]


def test_seeds_vary_the_words(writer: ScriptWriter) -> None:
    asked = [one for one in REQUESTS if (one.scenario, one.split) == ("emotion", "train")]
    scripts = [script.sentences() for script in writer.write_batch(asked, None) if not isinstance(script, Rejected)]
    assert len({tuple(sentences) for sentences in scripts}) == len(asked)


def test_no_request_no_script(writer: ScriptWriter, tmp_path: Path) -> None:
    assert list(writer.write_batch([], tmp_path / "store")) == []


def test_a_batch_can_be_left_early(writer: ScriptWriter, tmp_path: Path) -> None:
    scripts = writer.write_batch(REQUESTS, tmp_path / "store")
    first = next(scripts)
    scripts.close()  # type: ignore[attr-defined]
    assert next(iter(writer.write_batch(REQUESTS, tmp_path / "store"))) == first


def test_description_is_fit_for_a_card(writer: ScriptWriter) -> None:
    facts = writer.describe()
    assert {"name", "licence"} <= set(facts) and json.loads(json.dumps(facts)) == facts
    assert "127.0.0.1" not in json.dumps(facts), "where a server stands changes no word"


def test_a_model_that_knows_nothing_is_rejected_and_not_believed(tmp_path: Path) -> None:
    """The one writer that cannot be made to write well here: whatever it gives is a script or counted reasons."""
    torch.set_num_threads(1)
    asked = [request(seed, turns=0, styles=STYLES[:1]) for seed in range(2)]
    source = transformers_writer(max_tokens=300, top_p=1.0)
    got = list(source.write_batch(asked, tmp_path))
    for one, script in zip(asked, got, strict=True):
        problems = list(script.reasons) if isinstance(script, Rejected) else script_problems(script, one, 14)
        assert isinstance(script, Rejected) == bool(problems)
    assert list(source.write_batch(asked, tmp_path)) == got
    texts = [json.loads(path.read_text())["answer"] for path in tmp_path.glob("??/*.json")]
    assert len(texts) == 2 and all(json.loads(text["text"]) for text in texts if text["finish"] == "stop")
    assert {"name", "licence"} <= set(source.describe())
