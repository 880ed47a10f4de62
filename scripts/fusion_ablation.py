"""The fusion ablation: every fusion on the demo's corpora, same recipe, same parameters, same steps; one table.

Each step is a command that a user could type; it is printed before it runs. A second call continues: finished runs are
neither trained nor evaluated again. Corpora and feature cache are the demo's (`scripts/demo.py`), made where absent.

    python scripts/fusion_ablation.py                                       all members, 2M parameters each
    python scripts/fusion_ablation.py --members mix_former stack --seeds 0 1 2
    python scripts/fusion_ablation.py --preset smoke                        the same way in miniature
    python scripts/fusion_ablation.py --dry-run                             print the commands
    python scripts/fusion_ablation.py --set experts=all fusion.window_sec=0.5   more settings, for every run
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

OMNICHAT = [sys.executable, "-m", "omnichat.cli"]
BASELINE = "mix_former"
LEDGER = "ablation.json"  # in the folder of the runs


@dataclass(frozen=True)
class Preset:
    """One size of the ablation. `batch_tokens`: of a member with as many slots as Mix-Former."""

    experiment: str
    corpora: tuple[tuple[str, tuple[str, str]], ...]  # folder -> the command that makes it
    runs: str
    steps: int
    batch_tokens: int
    evaluate: tuple[str, ...] = ()


@dataclass(frozen=True)
class Member:
    """A row of the table: settings of the run, and how many tokens a dialogue takes beside Mix-Former's.

    With `tokens` as the factor of loader.batch_tokens all members see about as many dialogues a step.
    """

    overrides: tuple[str, ...]
    tokens: float = 1.0


PRESETS = {
    "demo": Preset(
        experiment="demo",
        corpora=(
            ("corpora/sharechatx-demo", ("synthesize", "corpus=demo")),
            ("corpora/dailytalk-stand-in", ("prepare", "corpus=stand_in")),
        ),
        runs="runs/fusion",
        steps=100,
        batch_tokens=768,
    ),
    "smoke": Preset(
        experiment="smoke",
        corpora=(
            ("corpora/sharechatx-smoke", ("synthesize", "corpus=smoke")),
            ("corpora/dailytalk-stand-in-smoke", ("prepare", "corpus=stand_in_smoke")),
        ),
        runs="runs/fusion-smoke",
        steps=6,
        batch_tokens=1024,
        evaluate=("score.bertscore_model=null", "score.bootstrap_samples=100", "max_new_tokens=8"),
    ),
}

_SALMONN = ("experts.whisper.layers=last", "experts.whisper.keep_padding=true", "trainer.calibration_clips=0")
MEMBERS = {
    BASELINE: Member(("fusion=mix_former",)),
    "mix_former_conditioned": Member(("fusion=mix_former", "fusion.conditioned=true")),
    "single_whisper": Member(("fusion=single", "fusion.expert=whisper")),
    "single_beats": Member(("fusion=single", "fusion.expert=beats")),
    "single_mert": Member(("fusion=single", "fusion.expert=mert")),
    "stack": Member(("fusion=stack",)),
    "gated": Member(("fusion=gated",)),
    "moe": Member(("fusion=moe",)),
    "cross_attention": Member(("fusion=cross_attention",)),
    "perceiver": Member(("fusion=perceiver",)),
    # SLAM-LLM's 17 frames of 50 Hz, for as many slots as the others; linear_10hz has its own 5 frames.
    "linear": Member(("fusion=linear", "fusion.window_sec=0.34", "fusion.frames=17")),
    "linear_10hz": Member(("fusion=linear",), tokens=1.4),
    "salmonn": Member(("fusion=salmonn",), tokens=2.9),  # 88 slots a clip; the demo's clips are 7 windows long
    # The same with SALMONN's own input: Whisper's last layer, its frames of the padding, nothing standardised.
    "salmonn_own": Member(("fusion=salmonn", *_SALMONN), tokens=2.9),
}
LEFT_OUT = ("single_beats", "single_mert", "linear_10hz", "salmonn_own")  # unless asked for


@dataclass(frozen=True)
class Plan:
    """What was asked for on the command line."""

    preset: Preset
    members: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int
    budget: str
    overrides: tuple[str, ...]

    def runs(self) -> list[tuple[str, int, Path]]:
        """(member, seed, run folder) in the order of the table: the baseline first, where it is among them."""
        members = sorted(self.members, key=lambda member: member != BASELINE)
        return [(m, seed, Path(self.preset.runs) / f"{m}-seed{seed}") for seed in self.seeds for m in members]

    def settings(self, member: str, seed: int) -> list[str]:
        """Overrides of a run that set its result."""
        tokens = round(self.preset.batch_tokens * MEMBERS[member].tokens)
        return [
            f"experiment={self.preset.experiment}",
            *MEMBERS[member].overrides,
            f"fusion.budget={self.budget}",
            f"trainer.steps={self.steps}",
            f"loader.batch_tokens={tokens}",
            f"seed={seed}",
            *self.overrides,
        ]

    def steps_to_do(self) -> list[list[str]]:
        """The commands in their order, without what is there already."""
        commands: list[list[str]] = []
        for corpus, command in self.preset.corpora:
            if not (Path(corpus) / "manifest.jsonl").is_file():
                commands.append(list(command))
        runs = self.runs()
        if any(not finished(folder) for *_, folder in runs):
            commands.append(["cache", f"experiment={self.preset.experiment}", *self.overrides])
        for member, seed, folder in runs:
            if not finished(folder):
                where = [f"runs={self.preset.runs}", f"name={folder.name}"]
                commands.append(["train", *where, *self.settings(member, seed)])
            if not (finished(folder) and evaluated(folder)):
                commands.append(["evaluate", f"run={folder}", *self.preset.evaluate])
        return [*commands, self.report()]

    def report(self) -> list[str]:
        """The command that writes the page."""
        folders = [str(folder) for *_, folder in self.runs()]
        baseline = [f"baseline={folder.name}" for member, _, folder in self.runs()[:1] if member == BASELINE]
        return ["report", f"runs=[{','.join(folders)}]", f"out={self.preset.runs}/report", *baseline]


def finished(folder: Path) -> bool:
    """Whether a run has trained to its end."""
    path = folder / "run.json"
    return path.is_file() and json.loads(path.read_text())["state"] == "finished"


def evaluated(folder: Path) -> bool:
    """Whether a run's figures on the test split are there."""
    path = folder / "metrics.json"
    return path.is_file() and any(row["split"] == "test" for row in json.loads(path.read_text()))


def ledger(plan: Plan) -> dict[str, list[str]]:
    """Settings with which the runs of this folder were begun, by name."""
    path = Path(plan.preset.runs) / LEDGER
    return json.loads(path.read_text()) if path.is_file() else {}


def changed(plan: Plan) -> list[str]:
    """Runs that are there and were begun with other settings than those asked for now."""
    begun, found = ledger(plan), []
    for member, seed, folder in plan.runs():
        before, now = begun.get(folder.name), plan.settings(member, seed)
        if folder.exists() and before is not None and before != now:
            differ = sorted(set(before) ^ set(now))
            found.append(f"{folder} was begun with other settings ({', '.join(differ)})")
    return found


def note(plan: Plan) -> None:
    """Write down the settings of the runs that are now asked for."""
    asked = {folder.name: plan.settings(member, seed) for member, seed, folder in plan.runs()}
    path = Path(plan.preset.runs) / LEDGER
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    draft.write_text(json.dumps(ledger(plan) | asked, indent=1))
    draft.replace(path)


def write_table(plan: Plan) -> Path:
    """Make the table from the run folders, print it and write it beside the report; returns its path."""
    from omnichat.evaluation.score import ScoreConfig  # here: --dry-run and --help need no torch
    from omnichat.experiments.ablation import fusion_table, fusion_tests
    from omnichat.experiments.runs import load_runs
    from omnichat.utils.files import write_text_atomic

    runs = load_runs([folder for *_, folder in plan.runs()])
    tests, baseline = [], ""
    if plan.runs()[0][0] == BASELINE:
        tests, baseline = fusion_tests(runs, runs[0], "test", ScoreConfig(bertscore_model=None)), BASELINE
    table = fusion_table(runs, "test", tests, baseline).markdown()
    path = Path(plan.preset.runs) / "report" / "ablation.md"
    write_text_atomic(path, table)
    print(f"\n{table}\ntable: {path}\nreport: {path.with_name('index.html')}")
    return path


def call(arguments: list[str]) -> int:
    """Run one command of omnichat."""
    return subprocess.run([*OMNICHAT, *arguments]).returncode


def main(arguments: list[str] | None = None) -> int:
    """Run the ablation; returns the exit code of the first command that failed, else 0."""
    parser = argparse.ArgumentParser(description="All fusions at one size on the demo's corpora: one table.")
    parser.add_argument("--preset", choices=PRESETS, default="demo", help="how large (default: %(default)s)")
    parser.add_argument("--steps", type=int, help="optimiser steps of every run (default: the preset's)")
    parser.add_argument("--budget", default="2M", help="parameters of every fusion (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="one run each (default: 0)")
    chosen = [name for name in MEMBERS if name not in LEFT_OUT]
    parser.add_argument(
        "--members", nargs="+", choices=MEMBERS, default=chosen, metavar="NAME",
        help=f"rows of the table, of {', '.join(MEMBERS)} (default: all but {', '.join(LEFT_OUT)})",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print the commands and stop")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="more settings, for every run")
    asked = parser.parse_args(arguments)
    preset = PRESETS[asked.preset]
    steps = asked.steps if asked.steps is not None else preset.steps
    members, seeds = tuple(dict.fromkeys(asked.members)), tuple(dict.fromkeys(asked.seeds))
    plan = Plan(preset, members, seeds, steps, asked.budget, tuple(asked.set))
    if others := changed(plan):
        print("\n".join([*others, f"move {preset.runs} aside, or ask for the settings of its runs"]), file=sys.stderr)
        return 2
    if not asked.dry_run:
        note(plan)
    for command in plan.steps_to_do():
        print(f"\n$ omnichat {' '.join(command)}", flush=True)
        if not asked.dry_run and (code := call(command)) != 0:
            print(f"fusion_ablation: it failed with exit code {code}; the same call continues", file=sys.stderr)
            return code
    if not asked.dry_run:
        write_table(plan)
    return 0


if __name__ == "__main__":
    sys.exit(main())
