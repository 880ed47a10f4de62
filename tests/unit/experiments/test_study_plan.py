"""Arms and runs of the study: what is one run, what is shared, what is refused, what is left to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from omnichat.experiments.study.arms import (
    Arm,
    Row,
    RunSpec,
    all_specs,
    merged,
    plan_json,
    run_name,
    settings_of,
    specs_of,
    words_of,
)  # fmt: skip
from omnichat.experiments.study.ledger import Facts, Ledger
from omnichat.experiments.study.presets import PRESETS
from omnichat.experiments.study.rows import ROWS, rows_of
from omnichat.experiments.study.work import DONE, EVALUATE, TRAIN, Composed, estimate, refuse_changed, task_of
from omnichat.utils.errors import UserError

BASE = {"experiment": "smoke", "mixture.alpha": "0", "trainer.steps": "4", "mixture.sources.real.path": "r"}
CODE = {"version": "1", "commit": "c"}


def row(script: str, *arms: Arm, pick_on: str | None = None, seeds: tuple[int, ...] = (0, 1)) -> Row:
    return Row(script, script, "table", arms, seeds, (), pick_on=pick_on)


@given(st.dictionaries(st.sampled_from("abcdef"), st.text("xyz0", max_size=3), min_size=2), st.randoms())
def test_a_runs_name_depends_on_settings_alone_and_on_all_of_them(settings: dict[str, str], random: object) -> None:
    items = list(settings.items())
    random.shuffle(items)  # type: ignore[attr-defined]
    name = run_name(settings, BASE, 0)
    assert run_name(dict(items), BASE, 0) == name != run_name(settings, BASE, 1)
    for key in settings:
        assert run_name(settings | {key: "other"}, BASE, 0) != name


def test_later_settings_win_and_a_tilde_takes_all_below_away() -> None:
    assert merged({"a": "1", "b.c": "2"}, {"a": "3", "+b.c": "4"}) == {"a": "3", "+b.c": "4"}
    assert merged({"b.c.d": "2", "b.cc": "1"}, {"~b.c": ""}) == {"b.cc": "1", "~b.c": ""}
    assert words_of(merged({"b.c.d": "2"}, {"~b.c": ""}, {"x": "1"})) == ["~b.c", "x=1"]
    assert settings_of(["a.b=1=2", "~c"]) == {"a.b": "1=2", "~c": ""}


@pytest.mark.parametrize("word", ["plain", "a b=1", "=3", "$x=1"])
def test_a_setting_that_is_no_override_is_named(word: str) -> None:
    with pytest.raises(UserError, match="--set"):
        settings_of([word])


def test_scripts_that_ask_for_one_run_share_it_with_all_that_they_evaluate() -> None:
    alpha = row("alpha", Arm("0", {}, sets=("second",)), Arm("0.2", {"mixture.alpha": "0.2"}), pick_on="dev")
    fusion = row("fusion", Arm("mix", {"mixture.alpha": "0.2"}), Arm("stack", {"fusion": "stack"}))
    specs = all_specs([alpha, fusion], BASE, {})
    assert len(specs) == 6, "three arms with two seeds, one of them in both scripts"
    by_name = {spec.name: spec for spec in specs}
    plus = specs_of(fusion, fusion.arms[0], BASE, {})[0]
    assert by_name[plus.name].evaluations == {("test", ""), ("dev", "")}
    zero = specs_of(alpha, alpha.arms[0], BASE, {})[0]
    assert by_name[zero.name].evaluations == {("test", ""), ("dev", ""), ("test", "second")}
    assert plus.words[-1] == "seed=0" and "mixture.alpha=0.2" in plus.words and "mixture.alpha=0" not in plus.words


def test_one_run_stands_behind_many_tables() -> None:
    """alpha 0.2 of seed 0 stands behind five tables of the demo, and is made once."""
    preset = PRESETS["demo"]
    using = set()
    for made in rows_of(tuple(ROWS), preset):
        for arm in made.arms:
            for spec in specs_of(made, arm, preset.base, {}):
                if spec.settings == merged(preset.base, {"mixture.alpha": "0.2", "seed": "0"}):
                    using.add((made.script, spec.name))
    assert {script for script, _ in using} == {"alpha", "dailytalk", "sharechatx", "fusion", "experts"}
    assert len({name for _, name in using}) == 1


def test_the_users_settings_reach_every_run_and_change_its_name() -> None:
    asked = row("alpha", Arm("0", {}))
    plain, longer = all_specs([asked], BASE, {}), all_specs([asked], BASE, {"trainer.steps": "9"})
    assert all("trainer.steps=9" in spec.words for spec in longer)
    assert not {spec.name for spec in plain} & {spec.name for spec in longer}


def test_a_plan_has_what_the_report_reads() -> None:
    asked = Row("scale", "T", "curve", (Arm("all", {}, {"dialogues": None}), Arm("few", {"x": "1"}, {"dialogues": 5})),
                (0, 1), ("made",), x="dialogues", baseline="few")  # fmt: skip
    plan = plan_json(asked, "demo", BASE, {}, {"made": Path("../../corpora/made")}, 216)
    assert {"script", "title", "preset", "seeds", "kind", "arms", "corpora", "x", "baseline", "pick_on", "report_on",
            "metrics", "note"} <= set(plan)  # fmt: skip
    assert [arm["keys"]["dialogues"] for arm in plan["arms"]] == [216, 5]
    run = plan["arms"][0]["runs"][0]
    assert run == {"name": run["name"], "seed": 0, "folder": f"runs/{run['name']}"} and plan["seeds"] == [0, 1]
    assert plan["corpora"] == {"made": "../../corpora/made"}


def test_two_arms_of_one_name_and_an_unknown_baseline_are_refused() -> None:
    with pytest.raises(UserError, match="two arms"):
        row("x", Arm("a", {}), Arm("a", {"b": "1"}))
    with pytest.raises(UserError, match="baseline"):
        Row("x", "x", "table", (Arm("a", {}),), (0,), (), baseline="b")


SPEC = RunSpec("r", 0, {"chat.input": "speech", "trainer.steps": "4"}, frozenset({("test", ""), ("dev", "")}))
COMPOSED = Composed("hash", {}, "speech", 4)
FACTS = Facts(tuple(SPEC.words), "hash", {}, CODE)


def test_what_is_left_of_a_run_follows_the_ledger(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.jsonl")

    def left() -> tuple[str, tuple[tuple[str, str], ...]]:
        task = task_of(SPEC, COMPOSED, ledger, CODE, ["limit=3"], {})
        assert not task.changed
        return task.state, task.evaluations

    assert left() == (TRAIN, (("dev", ""), ("test", "")))
    ledger.append("r", "started", FACTS)
    assert left()[0] == TRAIN
    ledger.append("r", "failed", FACTS, error="no")
    assert left()[0] == TRAIN
    ledger.append("r", "finished", FACTS)
    assert left() == (EVALUATE, (("dev", ""), ("test", "")))
    ledger.append("r", "evaluated", FACTS, split="test", set="", evaluation=["limit=4"])
    ledger.append("r", "evaluated", FACTS, split="dev", set="", evaluation=["limit=3"])
    assert left() == (EVALUATE, (("test", ""),)), "other settings of an evaluation are another evaluation"
    ledger.append("r", "evaluated", FACTS, split="test", set="", evaluation=["limit=3"])
    assert left() == (DONE, ())


def test_changed_runs_are_refused_accepted_or_made_anew(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.jsonl")
    ledger.append("r", "finished", FACTS)
    other = {"version": "1", "commit": "d"}

    def task() -> object:
        return task_of(SPEC, Composed("hush", {}, "speech", 4), ledger, other, [], {})

    with pytest.raises(UserError, match=r"r: .*--remake .*--accept code settings"):
        refuse_changed([task()], [], False)  # type: ignore[list-item]
    with pytest.raises(UserError, match="--accept code"):
        refuse_changed([task()], ["settings"], False)  # type: ignore[list-item]
    lines = refuse_changed([task()], ["settings", "code"], False)  # type: ignore[list-item]
    assert len(lines) == 2 and all(line.endswith("(accepted)") for line in lines)
    again = task()
    refuse_changed([again], ["code"], True)  # type: ignore[list-item]
    assert again.again and again.state == TRAIN  # type: ignore[attr-defined]


def test_estimates_come_from_the_ledger_once_it_has_runs(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "l.jsonl")
    task = task_of(SPEC, COMPOSED, ledger, CODE, [], {})
    assert PRESETS["paper"].pace.measured in estimate([task], ledger, PRESETS["paper"].pace)
    assert task.seconds > 1000
    ledger.append("other", "finished", FACTS, hours=4 / 3600)
    ledger.append("other", "evaluated", FACTS, split="test", set="", evaluation=[], hours=3 / 3600)
    assert "measured" in estimate([task], ledger, PRESETS["paper"].pace)
    assert task.seconds == pytest.approx(4 * 1 + 2 * 3)
