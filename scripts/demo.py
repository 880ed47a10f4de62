"""The whole way once: corpus, stand-in, features, three runs, evaluation, report.

Each step is a command that a user could type; it is printed before it runs. A second call continues: finished corpora
and runs are not made again.

    python scripts/demo.py                  the laptop demo
    python scripts/demo.py --preset smoke   the same way in miniature, for CI
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

OMNICHAT = [sys.executable, "-m", "omnichat.cli"]


@dataclass(frozen=True)
class Preset:
    """Names of the configs and folders of one size of the demo."""

    experiment: str
    corpus: str
    stand_in: str
    corpora: tuple[str, str]
    runs: str


PRESETS = {
    "demo": Preset("demo", "demo", "stand_in", ("corpora/sharechatx-demo", "corpora/dailytalk-stand-in"), "runs/demo"),
    "smoke": Preset(
        "smoke",
        "smoke",
        "stand_in_smoke",
        ("corpora/sharechatx-smoke", "corpora/dailytalk-stand-in-smoke"),
        "runs/smoke",
    ),
}

RUNS = {
    "words": ["chat.input=text", "mixture.alpha=0"],
    "speech-alpha0": ["chat.input=speech", "mixture.alpha=0"],
    "speech-alpha0.2": ["chat.input=speech", "mixture.alpha=0.2"],
}


def main() -> int:
    """Run the demo; returns the exit code of the first command that failed, else 0."""
    parser = argparse.ArgumentParser(description="The whole way once: corpus, training, evaluation, report.")
    parser.add_argument("--preset", choices=PRESETS, default="demo", help="how large (default: %(default)s)")
    preset = PRESETS[parser.parse_args().preset]
    start = time.perf_counter()
    took: dict[str, float] = {}
    for title, arguments in steps(preset):
        print(f"\n$ omnichat {' '.join(arguments)}", flush=True)
        begun = time.perf_counter()
        code = subprocess.run([*OMNICHAT, *arguments]).returncode
        took[title] = time.perf_counter() - begun
        if code != 0:
            print(f"demo: '{title}' failed with exit code {code}; the same command continues", file=sys.stderr)
            return code
    print("\ntime: " + ", ".join(f"{title} {seconds:.0f} s" for title, seconds in took.items()))
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20
    print(f"all: {(time.perf_counter() - start) / 60:.1f} min; largest process {peak:.1f} GiB")
    page = Path(preset.runs) / "report" / "index.html"
    print(f"report: {page.resolve()}")
    return 0


def steps(preset: Preset) -> list[tuple[str, list[str]]]:
    """The commands in their order, without the corpora that are there already."""
    synthetic, real = preset.corpora
    commands: list[tuple[str, list[str]]] = []
    if not (Path(synthetic) / "manifest.jsonl").is_file():
        commands.append(("synthesize", ["synthesize", f"corpus={preset.corpus}"]))
    if not (Path(real) / "manifest.jsonl").is_file():
        commands.append(("prepare", ["prepare", f"corpus={preset.stand_in}"]))
    commands.append(("cache", ["cache", f"experiment={preset.experiment}"]))
    commands.append(("inspect", ["inspect", f"experiment={preset.experiment}", "color=false"]))
    for name, overrides in RUNS.items():
        folder = Path(preset.runs) / name
        base = [f"experiment={preset.experiment}", f"runs={preset.runs}", f"name={name}"]
        if not finished(folder):
            commands.append((f"train {name}", ["train", *base, *overrides]))
        commands.append((f"evaluate {name}", ["evaluate", f"run={folder}"]))
    folders = ",".join(f"{preset.runs}/{name}" for name in RUNS)
    return [*commands, ("report", ["report", f"runs=[{folders}]", f"out={preset.runs}/report"])]


def finished(folder: Path) -> bool:
    """Whether a run has trained to its end."""
    path = folder / "run.json"
    return path.is_file() and json.loads(path.read_text())["state"] == "finished"


if __name__ == "__main__":
    sys.exit(main())
