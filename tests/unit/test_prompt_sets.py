"""Which replies of which set are left out where training has met them."""

from __future__ import annotations

import pytest

from omnichat.data.corpus import Corpus
from omnichat.data.outside_set import HeldDialogues, OutsideSet
from omnichat.evaluation_config import EvaluateRun
from omnichat.prompt_sets import PromptSet, leaking, prompt_sets, without
from omnichat.training.data import Source
from omnichat.utils.errors import UserError
from tests.helpers_core import make_kit


def config(leaks: str = "warn") -> EvaluateRun:
    return EvaluateRun(run="run", split="dev", replies="all", leaks=leaks, sets={"b": OutsideSet(path="corpora/b")})


@pytest.fixture(scope="module")
def asked(synthetic: Corpus, real: Corpus) -> list[PromptSet]:
    kit = make_kit([synthetic, real])
    sources = [Source(name, corpus, None) for name, corpus in (("a", synthetic), ("b", real))]
    return prompt_sets(config(), sources, kit.chat)


def trained_on(real: Corpus, *ids: str) -> list[Source]:
    """A source that has some dev dialogues among its training dialogues."""
    met = [dialogue for dialogue in real.iterate("dev") if dialogue.id in ids]
    assert len(met) == len(ids)
    return [Source("met", HeldDialogues(real, "train", met), None)]


def test_what_was_met_is_left_out_of_its_own_set_and_counted(asked: list[PromptSet], real: Corpus) -> None:
    own, outside = asked
    last = outside.prompts[-1].item.dialogue
    met = [row for row, prompt in enumerate(outside.prompts) if prompt.item.dialogue == last]
    assert 0 < len(met) < len(outside.prompts)
    found = leaking(config(), asked, trained_on(real, last))
    assert found == [[], met]
    assert without(config(), own, []) == own
    told, left = (without(config(leaks), outside, met) for leaks in ("warn", "leave_out"))
    assert told.leaks == left.leaks == len(met)
    assert told.prompts == outside.prompts
    assert left.prompts == tuple(prompt for prompt in outside.prompts if prompt.item.dialogue != last)
    assert left.fingerprint() != told.fingerprint() == outside.fingerprint()


def test_a_set_that_may_not_leak_or_has_nothing_else_is_refused(asked: list[PromptSet], real: Corpus) -> None:
    ids = list(dict.fromkeys(prompt.item.dialogue for prompt in asked[1].prompts))
    with pytest.raises(UserError, match=r"leaks=refuse: b\.dev: leak: "):
        leaking(config("refuse"), asked, trained_on(real, ids[0]))
    with pytest.raises(UserError, match=r"leaks=leave_out leaves nothing: b\.dev"):
        leaking(config("leave_out"), asked, trained_on(real, *ids))
