"""The fusion ablation in miniature: its runs, its resume, and a table that is made of the run folders alone."""

from __future__ import annotations

import importlib.util
import json
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest

from omnichat.cli import run as run_cli
from omnichat.utils.files import read_json
from tests.config.composing import ROOT, SCHEMAS, config, files
from tests.helpers.corpora import real_corpus, synthetic_corpus

MEMBERS = ["salmonn", "mix_former_conditioned", "mix_former"]
EXPERTS = ["~experts.whisper", "tracking.wandb=disabled"]  # the two that take no time
ASKED = ["--preset", "smoke", "--budget", "120K", "--steps", "2", "--set", *EXPERTS]


@pytest.fixture(scope="module")
def ablation() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fusion_ablation", ROOT / "scripts" / "fusion_ablation.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fusion_ablation"] = module  # its dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the corpora of the smoke preset."""
    work = tmp_path_factory.mktemp("ablation")
    synthetic_corpus(work / "corpora" / "sharechatx-smoke")
    real_corpus(work / "corpora" / "dailytalk-stand-in-smoke")
    return work


@pytest.fixture
def calls(ablation: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The commands that the script runs, in this process."""
    made: list[list[str]] = []

    def call(arguments: list[str]) -> int:
        made.append(arguments)
        return run_cli(arguments)

    monkeypatch.setattr(ablation, "call", call)
    monkeypatch.chdir(folder)
    return made


def table_of(folder: Path) -> dict[str, dict[str, str]]:
    """Rows of the written table by run, cells by title."""
    lines = (folder / "runs" / "fusion-smoke" / "report" / "ablation.md").read_text(encoding="utf-8").splitlines()
    titles, _, *rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]
    return {row[0]: dict(zip(titles, row, strict=True)) for row in rows}


def test_a_dry_run_prints_and_does_nothing(
    ablation: ModuleType, calls: list[list[str]], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ablation.main([*ASKED, "--members", *MEMBERS, "--dry-run"]) == 0
    printed = [line.split() for line in capsys.readouterr().out.splitlines() if line]
    assert [line[2] for line in printed] == ["cache", *["train", "evaluate"] * 3, "report"]
    assert not calls and not (folder / "runs").exists()


def test_the_runs_the_page_and_the_table(ablation: ModuleType, calls: list[list[str]], folder: Path) -> None:
    assert ablation.main([*ASKED, "--members", *MEMBERS]) == 0
    assert [call[0] for call in calls] == ["cache", *["train", "evaluate"] * 3, "report"]
    rows = table_of(folder)
    names = [f"{name}-seed0" for name in ("mix_former", "salmonn", "mix_former_conditioned")]
    assert list(rows) == names, "the baseline first, then as asked"
    for name in names:
        run = folder / "runs" / "fusion-smoke" / name
        info, row = read_json(run / "run.json"), rows[name]
        assert row["Fusion"] == info["fusion"]["class"] and row["Steps"] == "2"
        assert row["Parameters"] == f"{info['fusion']['parameters']:,d}"
        assert abs(info["fusion"]["parameters"] - 120_000) <= 2_400, "one budget for all"
        assert float(row["Slots / s"]) == pytest.approx(info["fusion"]["slots_per_sec"], abs=0.006)
        metrics = {m["metric"]: m["value"] for m in read_json(run / "metrics.json") if m["scenario"] == "all"}
        assert row["Emotion F1"].startswith(f"{metrics['emotion_f1']:.3f} [")
        for title, metric in (("Pitch accuracy", "pitch_accuracy"), ("Speed accuracy", "speed_accuracy")):
            assert row[title].startswith(f"{metrics[metric]:.3f}")
        assert float(row["s / step"]) > 0 and float(row["Dev loss"]) > 0 and int(row["Dialogues"]) > 0
    assert {rows[name]["Fusion"] for name in names} == {"MixFormer", "WindowQFormer"}
    slots = {name: float(rows[name]["Slots / s"]) for name in names}
    assert slots["salmonn-seed0"] > 20 * slots["mix_former-seed0"] > 0
    against = [title for title in rows[names[0]] if title.endswith("against mix_former")]
    assert len(against) == 1 and rows[names[0]][against[0]] == "–"
    assert all(re.match(r"[+-]\d\.\d{3}.* \[.*\], p = \d\.\d{3}", rows[name][against[0]]) for name in names[1:])
    page = (folder / "runs" / "fusion-smoke" / "report" / "index.html").read_text(encoding="utf-8")
    assert 'id="fusions"' in page and "WindowQFormer" in page


def test_a_second_call_makes_only_the_page_again(ablation: ModuleType, calls: list[list[str]], folder: Path) -> None:
    before = table_of(folder)
    assert ablation.main([*ASKED, "--members", *MEMBERS]) == 0
    assert [call[0] for call in calls] == ["report"]
    assert table_of(folder) == before


def test_a_run_that_was_stopped_is_taken_up(ablation: ModuleType, calls: list[list[str]], folder: Path) -> None:
    path = folder / "runs" / "fusion-smoke" / "mix_former_conditioned-seed0" / "run.json"
    path.write_text(json.dumps(read_json(path) | {"state": "stopped"}))
    assert ablation.main([*ASKED, "--members", *MEMBERS]) == 0
    assert [call[0] for call in calls] == ["cache", "train", "evaluate", "report"]
    assert "name=mix_former_conditioned-seed0" in calls[1] and read_json(path)["state"] == "finished"


def test_other_settings_do_not_get_into_the_same_table(
    ablation: ModuleType, calls: list[list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    longer = ["--preset", "smoke", "--budget", "120K", "--steps", "3", "--members", "salmonn", "--set", *EXPERTS]
    assert ablation.main(longer) == 2 and not calls
    said = capsys.readouterr().err
    assert "salmonn-seed0" in said and "trainer.steps=2" in said and "trainer.steps=3" in said


def test_a_failing_command_ends_it(
    ablation: ModuleType, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(ablation, "call", lambda arguments: 3)
    assert ablation.main([*ASKED, "--members", "stack", "--seeds", "5"]) == 3
    assert "the same call continues" in capsys.readouterr().err


@pytest.mark.parametrize("preset", ["demo", "smoke"])
def test_every_command_composes(
    ablation: ModuleType, preset: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """All members of both presets, from nothing: each command is one that the program understands."""
    monkeypatch.chdir(tmp_path)
    there = tuple(name for name, m in ablation.MEMBERS.items() if m.overrides[0].partition("=")[2] in files("fusion"))
    plan = ablation.Plan(ablation.PRESETS[preset], there, (0, 1), 7, "2M", ())
    commands = plan.steps_to_do()
    assert [command[0] for command in commands[:3]] == ["synthesize", "prepare", "cache"]
    made = {config(verb, rest).out for verb, *rest in commands[:2]}
    seen = set()
    for verb, *rest in commands:
        assert verb in SCHEMAS
        run = config(verb, rest)
        if verb == "train":
            assert {source.path for source in run.mixture.sources.values()} == made
            assert run.fusion["budget"] == "2M" and run.trainer.steps == 7
            seen.add((run.name, run.seed))
    assert len(seen) == 2 * len(there)


def test_every_fusion_is_a_member(ablation: ModuleType) -> None:
    named = {member.overrides[0].partition("=")[2] for member in ablation.MEMBERS.values()}
    assert set(files("fusion")) <= named, "a new fusion gets its row"
