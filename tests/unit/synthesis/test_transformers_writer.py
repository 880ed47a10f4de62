"""Scripts from a model in this process: held to the schema, seeded row by row, kept and continued."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from omnichat.remote.answers import Answer, strict_json
from omnichat.schema import Style
from omnichat.synthesis.base import Rejected
from omnichat.synthesis.writers.contract import answer_schema
from omnichat.utils.errors import UserError
from tests.helpers.scripts import request
from tests.helpers.tiny_llm import tiny_llm, transformers_writer

pytest.importorskip("llguidance")
from omnichat.synthesis.writers.sampling import RowSampler, _nucleus

STYLES = (Style("low", "slow", "happy"), Style("high", "fast", "sad"))
REQUESTS = [request(seed, turns=2, styles=STYLES) for seed in range(3)]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def answers(store: Path) -> list[Answer]:
    return [Answer(**json.loads(path.read_text())["answer"]) for path in sorted(store.glob("??/*.json"))]


def test_even_a_model_that_knows_nothing_keeps_to_the_schema(tmp_path: Path) -> None:
    writer = transformers_writer(max_tokens=900)
    list(writer.write_batch(REQUESTS[:2], tmp_path))
    schema = answer_schema(REQUESTS[0], "heard", 14)
    got = answers(tmp_path)
    whole = [answer for answer in got if answer.finish == "stop"]
    assert whole and all(strict_json(answer.text, schema) for answer in whole)
    assert all(answer.text.startswith('{"topic": "') for answer in got)
    loose = tmp_path / "loose"
    list(transformers_writer(max_tokens=40, constrained=False).write_batch(REQUESTS[:1], loose))
    assert not answers(loose)[0].text.startswith("{"), "without the automata it does not"


def test_what_is_written_is_seeded_kept_and_continued(tmp_path: Path) -> None:
    writer = transformers_writer(max_tokens=60)
    got = list(writer.write_batch(REQUESTS, tmp_path / "a"))
    assert got == [Rejected(("the answer was cut off",))] * 3
    first = answers(tmp_path / "a")
    assert len({answer.text for answer in first}) == 3, "each request's seed gives other words"
    assert all(answer.prompt_tokens > 300 and answer.completion_tokens == 60 for answer in first)
    list(transformers_writer(max_tokens=60).write_batch(REQUESTS, tmp_path / "b"))
    assert answers(tmp_path / "b") == first
    for path in sorted((tmp_path / "b").glob("??/*.json"))[:2]:
        path.unlink()  # a run that was killed after the third
    torch.manual_seed(5)
    list(transformers_writer(max_tokens=60).write_batch(REQUESTS, tmp_path / "b"))
    assert answers(tmp_path / "b") == first
    kept = transformers_writer(max_tokens=60)
    list(kept.write_batch(REQUESTS, tmp_path / "a"))
    assert kept._loaded is None, "nothing is missing, so no model is loaded"
    assert kept.usage(tmp_path / "a")["kept"]["completion_tokens"] == 180
    with pytest.raises(UserError, match=r"gave no valid script: the answer was cut off"):
        writer.write(REQUESTS[0])


def sampler(seeds: list[int], temperature: float = 1.0, top_p: float = 1.0) -> RowSampler:
    return RowSampler(seeds, temperature, top_p, 3, [], 0)


def test_a_row_draws_the_same_whatever_stands_beside_it() -> None:
    ids, scores = torch.zeros(4, 3, dtype=torch.long), torch.randn(4, 50, generator=torch.Generator().manual_seed(1))
    together, alone = sampler([5, 6, 7, 8]), sampler([7])
    for _ in range(3):
        both = together(ids, scores), alone(ids[:1], scores[2:3])
        assert torch.equal(both[0][2], both[1][0])
    assert not torch.equal(sampler([5])(ids[:1], scores[:1]), sampler([6])(ids[:1], scores[:1]))


def test_draws_have_the_probabilities_of_the_softmax() -> None:
    scores = torch.tensor([[2.0, 1.0, 0.0, -1.0]])
    ids = torch.zeros(1, 3, dtype=torch.long)
    for temperature, top_p in ((1.0, 1.0), (0.5, 1.0), (1.0, 0.8)):
        draw = sampler([3], temperature, top_p)
        counts = torch.zeros(4)
        for _ in range(4000):
            counts[draw(ids, scores)[0].argmax()] += 1
        expected = torch.softmax(_nucleus(torch.log_softmax(scores[0] / temperature, -1), top_p), -1)
        assert torch.allclose(counts / 4000, expected, atol=0.03)
    assert expected[2] == expected[3] == 0 < expected[1]
    assert torch.equal(sampler([3], temperature=0.0)(ids, scores), scores)


BAD: list[tuple[dict[str, Any], str]] = [
    ({"path": "./nowhere"}, r"writer\.path='./nowhere': no such folder"),
    ({"path": "asset:gpt"}, r"writer\.path: asset='gpt' is not valid"),
    ({"dtype": "int8"}, r"writer\.dtype='int8'"),
    ({"device": "tpu9x"}, r"writer\.device='tpu9x'"),
    ({"device": "cuda:99"}, r"writer\.device='cuda:99': this machine has"),
    ({"temperature": -1.0}, "temperature must be >= 0"),
    ({"top_p": 0.0}, r"top_p in \(0, 1\]"),
    ({"batch": 0}, r"writer\.batch must be >= 1"),
]


@pytest.mark.parametrize(("changed", "message"), BAD)
def test_settings_that_cannot_work_are_refused_before_anything_loads(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        transformers_writer(**changed)


def test_a_prompt_that_does_not_fit_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a prompt of \d+ tokens and max_tokens=8000 do not fit into the model's 8192"):
        transformers_writer(max_tokens=8000).write(REQUESTS[0])


def test_a_model_without_a_chat_template_is_refused(tmp_path: Path) -> None:
    for path in tiny_llm().iterdir():
        if path.name != "chat_template.jinja":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    with pytest.raises(UserError, match=r"has no chat template"):
        transformers_writer(path=str(tmp_path)).write(REQUESTS[0])
