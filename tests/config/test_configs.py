"""Every YAML file composes through the typed door, states what its class takes, and explains it."""

from __future__ import annotations

import importlib.util
import inspect
import re
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from hydra.errors import HydraException
from omegaconf import OmegaConf

from omnichat.assembly import check_parts
from omnichat.config import SCHEMAS
from omnichat.utils.parts import check_part, part_class
from tests.config.composing import CONFIGS, FAMILIES, GIVEN, NEEDED, ROOT, composed, config, files

# Sizes of a build with random weights: a checkpoint brings its own, so a file that asks for one does not state them.
RANDOM_BUILD = {"seed", "depth", "width", "heads", "ffn", "patch_width", "conv_pos", "conv_width"}
GROUPS = sorted(path.name for path in CONFIGS.iterdir() if path.is_dir())
TRAIN_GROUPS = ("llm", "experts", "fusion")
SYNTHESIS_PARTS = ("topics", "events", "music", "writer", "voice", "checks", "engine")


def plain(group: str, name: str) -> dict[str, Any]:
    """A part's own file, with what it builds on and the settings of its verb that it refers to."""
    if "defaults" in OmegaConf.load(CONFIGS / group / f"{name}.yaml"):
        verb = "baseline" if group == "system" else "synthesize"
        node = OmegaConf.to_container(composed(verb, [f"{group}={name}"])[group], resolve=True)
        assert isinstance(node, dict)
        return node
    tree = OmegaConf.create(
        {"path": "some/path", "max_words": 14, "node": OmegaConf.load(CONFIGS / group / f"{name}.yaml")}
    )
    node = OmegaConf.to_container(tree, resolve=True)
    assert isinstance(node, dict)
    return node["node"]


def test_every_group_is_known_here() -> None:
    known = {*FAMILIES, *TRAIN_GROUPS, "experiment", "corpus", "launch", "hydra"}
    assert known == set(GROUPS), "a new group needs a test below"


@pytest.mark.parametrize("verb", SCHEMAS)
def test_a_verb_composes_and_states_every_setting(verb: str) -> None:
    tree = composed(verb)
    assert type(config(verb, NEEDED.get(verb, ()))) is SCHEMAS[verb]
    assert not missing_settings(SCHEMAS[verb], tree, ""), "not in the YAML, so in no --help and no list of valid keys"


@pytest.mark.parametrize("verb", SCHEMAS)
def test_no_plain_setting_is_called_like_a_group(verb: str) -> None:
    """Hydra would take `source=mine` for the choice of a file in configs/source."""
    parts = {"fusion", "source", "system", "layout", *SYNTHESIS_PARTS, "experts", "llm", "launch", "judge", "asr"}
    assert {entry.name for entry in fields(SCHEMAS[verb])} & set(GROUPS) <= parts
    tree = composed(verb, ["source=dailytalk"] if verb == "prepare" else [])
    assert all(OmegaConf.is_dict(tree[name]) for name in parts & set(tree)), "a group's choice is a mapping"


def missing_settings(schema: Any, tree: Any, prefix: str) -> list[str]:
    """Fields of a schema, and of the schemas in it, that a composed tree does not state."""
    missing = []
    for entry in fields(schema):
        if entry.name in GROUPS and entry.name not in tree:
            continue  # chosen by name; --help lists the names
        if entry.name not in list(tree):  # `in tree` is false for a mandatory value
            missing.append(prefix + entry.name)
        elif is_dataclass(kind := get_type_hints(schema)[entry.name]):
            missing += missing_settings(kind, tree[entry.name], f"{prefix}{entry.name}.")
    return missing


def test_the_search_for_missing_settings_finds_one() -> None:
    tree = composed("train")
    OmegaConf.set_struct(tree, False)
    del tree.trainer.optim["beta1"]
    assert missing_settings(SCHEMAS["train"], tree, "") == ["trainer.optim.beta1"]


@pytest.mark.parametrize(("group", "name"), [(group, name) for group in TRAIN_GROUPS for name in files(group)])
def test_each_option_of_train_composes(group: str, name: str) -> None:
    overrides = [f"{group}={name}", *(["chat.input=text"] if name == "none" else [])]
    check_parts(config("train", overrides))
    bare = ["experiment=none", *overrides]  # an experiment may set more
    taken, stated = composed("train", bare)[group], OmegaConf.load(CONFIGS / group / f"{name}.yaml")
    own = {key: value for key, value in stated.items() if key != "defaults"}
    assert OmegaConf.merge(taken, own) == taken, "what the option states is what a run gets"


@pytest.mark.parametrize(("group", "name"), [(group, name) for group in FAMILIES for name in files(group)])
def test_a_part_states_what_its_class_takes(group: str, name: str) -> None:
    node, base = plain(group, name), FAMILIES[group]
    if group == "fusion":
        assert node.pop("budget", "absent") is None, "the budget is no argument of the class, and off by default"
    given = GIVEN.get(group, ())
    check_part(node, group, base, given)
    arguments = set(inspect.signature(part_class(node, group, base)).parameters) - set(given)
    silent = arguments - set(node)
    assert silent <= (RANDOM_BUILD if group == "expert" and node["path"] == "???" else set()), silent


@pytest.mark.parametrize("verb", ["train", "cache", "inspect", "bench"])
@pytest.mark.parametrize("name", files("experiment"))
def test_each_experiment_composes(name: str, verb: str) -> None:
    run = config(verb, [f"experiment={name}"])
    check_parts(run)
    assert run.mixture.sources or name == "none", "an experiment names its corpora"


@pytest.mark.parametrize("name", files("launch"))
def test_each_launch_composes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "somewhere")
    monkeypatch.setenv("SLURM_JOB_ID", "1")
    run = config("train", [f"launch={name}"])
    assert run.trainer.micro_batches == run.launch.count, "a batch for each process"
    assert (run.launch.count == 1) == (name == "none")


@pytest.mark.parametrize("name", files("corpus"))
def test_each_corpus_preset_composes(name: str) -> None:
    text = (CONFIGS / "corpus" / f"{name}.yaml").read_text(encoding="utf-8")
    verb = "prepare" if "stand_in" in text else "synthesize"
    run = config(verb, [f"corpus={name}"])
    parts = {key: getattr(run, key) for key in ("source", "voice", "asr")} if verb == "prepare" else {}
    for key, node in (parts or {key: getattr(run, key) for key in SYNTHESIS_PARTS}).items():
        check_part(node, key, FAMILIES[key], GIVEN.get(key, ()))
    assert Path(run.out) != Path(config("synthesize").out), "a preset has a folder of its own"


@pytest.mark.parametrize("name", files("source"))
def test_prepare_gives_each_reader_its_path(name: str) -> None:
    assert config("prepare", [f"source={name}", *NEEDED["prepare"]]).source["path"] == "some/corpus"


def test_command_line_wins_over_experiment_wins_over_base() -> None:
    base, chosen = config("train"), config("train", ["experiment=smoke"])
    assert base.trainer.steps != chosen.trainer.steps
    assert config("train", ["experiment=smoke", "trainer.steps=7"]).trainer.steps == 7
    assert config("train", ["trainer.steps=7", "experiment=smoke"]).trainer.steps == 7
    other = config("train", ["experiment=smoke", "fusion=stack"]).fusion["_target_"]
    assert other.endswith("Stack") and not chosen.fusion["_target_"].endswith("Stack")


def test_a_corpus_is_added_piece_by_piece_or_whole() -> None:
    pieces = ["+mixture.sources.mine.path=a/b", "+mixture.sources.mine.weight=2"]
    whole = ["+mixture.sources.mine={path: a/b, weight: 2}"]
    for overrides in (pieces, whole):
        source = config("train", overrides).mixture.sources["mine"]
        assert (source.path, source.weight) == ("a/b", 2.0)


def test_seed_zero_is_a_seed() -> None:
    assert config("train", ["seed=0"]).seed == 0 and config("train").seed == 0


@pytest.mark.parametrize("preset", ["demo", "smoke"])
def test_every_step_of_the_demo_composes(preset: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("demo", ROOT / "scripts" / "demo.py")
    assert spec is not None and spec.loader is not None
    demo = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "demo", demo)  # its dataclass looks its module up
    spec.loader.exec_module(demo)
    monkeypatch.chdir(tmp_path)  # no corpora, no finished runs: all steps
    commands = [arguments for _, arguments in demo.steps(demo.PRESETS[preset])]
    beside = {
        "bench",
        "runs",
        "lr-find",
        "data",
        "score",
        "judge",
        "speak",
        "baseline",
        "chat",
        "serve",
        "export",
        "browse",
        "web",
    }
    assert {command[0] for command in commands} == set(SCHEMAS) - beside
    made = {config(verb, rest).out for verb, *rest in commands if verb in ("synthesize", "prepare")}
    for verb, *rest in commands:
        run = config(verb, rest)
        if verb in ("train", "cache", "inspect"):
            assert {source.path for source in run.mixture.sources.values()} == made, "trains on what it made"


KEY = re.compile(r"^(\s*)[\w.]+:(\s+[^\s#])?")


def uncommented(text: str) -> list[str]:
    """Lines that set a value of which neither they nor a mapping around them say what it is."""
    lines: list[str] = []
    covered: int | None = None  # indent of a mapping whose comment speaks for all below it
    for line in text.splitlines():
        if (key := KEY.match(line)) is None:
            continue
        indent = len(key.group(1))
        if covered is not None and indent > covered:
            continue
        covered = None
        if line.startswith(("defaults:", "hydra:")) or ("#" in line and key.group(2) is None):
            covered = indent
        elif key.group(2) is not None and "#" not in line:
            lines.append(line)
    return lines


@pytest.mark.parametrize(
    "name",
    [
        "train_base",
        "bench",
        "evaluate",
        "judge",
        "speak",
        "baseline",
        "chat",
        "report",
        "inspect",
        "prepare",
        "synthesize",
        "serve",
        "web",
        "export",
    ],
)
def test_every_setting_has_its_comment(name: str) -> None:
    assert not uncommented((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", files("fusion") + files("expert") + files("system"))
def test_every_setting_of_a_part_that_is_tuned_has_its_comment(name: str) -> None:
    folder = next(group for group in ("fusion", "expert", "system") if name in files(group))
    lines = uncommented((CONFIGS / folder / f"{name}.yaml").read_text(encoding="utf-8"))
    obvious = {"_target_", "width", "heads", "path"}  # path: null is spoken of in the head of the file
    assert not [line for line in lines if line.split(":")[0].strip() not in obvious]


def test_the_comment_rule_catches_a_bare_line() -> None:
    assert uncommented("a:\n  b: 1\nc: 2  # said\nd:  # said\n  e: 3\nf: 4\n") == ["  b: 1", "f: 4"]


def test_an_unknown_option_is_an_error() -> None:
    with pytest.raises(HydraException, match="nothing_like_it"):
        composed("train", ["fusion=nothing_like_it"])
