"""Hurt training runs, or the making of corpora, in every way that the docs promise to survive, and count what held.

Each fault is a real `omnichat train` (or evaluate, or synthesize) that is killed, stopped, starved or lied to, started
again, and compared with one that was never hurt: hashes of weights, moments and state, and every figure of every step;
every byte of a corpus.

    python scripts/faults.py                       a hundred faults of training
    python scripts/faults.py --of factory --count 30
    python scripts/faults.py --count 300 --seed 7  others
    python scripts/faults.py --kinds kill_write,disk_full --count 20
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.faults import synthesis  # noqa: E402 (tests/ is beside scripts/, not installed)
from tests.faults.harness import Place  # noqa: E402
from tests.faults.kinds import KINDS, Skipped  # noqa: E402

SUITES: dict[str, tuple[Any, dict[Any, int]]] = {
    "training": (Place, KINDS),
    "factory": (synthesis.Factory, synthesis.KINDS),
}


def main() -> None:
    """Entry point."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--of", choices=SUITES, default="training", help="what is hurt (default: training)")
    arguments.add_argument("--count", type=int, default=100, help="faults (default: 100)")
    arguments.add_argument("--seed", type=int, default=0, help="of the choice of steps, writes, bytes (default: 0)")
    arguments.add_argument("--kinds", default="", help="comma-separated; default: all")
    arguments.add_argument("--out", type=Path, default=Path("runs/faults.json"), help="file of the results")
    given = arguments.parse_args()
    wanted = [name for name in given.kinds.split(",") if name]
    make, weights = SUITES[given.of]
    by_name = {kind.__name__: kind for kind in weights}
    if unknown := [name for name in wanted if name not in by_name]:
        arguments.error(f"--kinds: no kind {unknown[0]!r}; choose from {', '.join(by_name)}")
    chosen = [by_name[name] for name in wanted] or list(weights)
    folder = Path(tempfile.mkdtemp(prefix="omnichat-faults-"))
    results = campaign(make(folder), {kind: weights[kind] for kind in chosen}, given.count, given.seed)
    failed = sum(result["outcome"] == "failed" for result in results)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps({"seed": given.seed, "faults": results}, indent=2) + "\n")
    print(table(results))
    print(f"{len(results)} faults, {failed} failed; results: {given.out}")
    if failed:
        sys.exit(f"the runs that failed are kept in {folder}")
    shutil.rmtree(folder)


def campaign(place: Any, weights: dict[Any, int], count: int, seed: int) -> list[dict[str, Any]]:
    """Do `count` faults. Returns one row each: number, kind, outcome (held, failed, skipped), reason, seconds."""
    place.measure()
    results = []
    for number, kind in enumerate(order(weights, count)):
        start, outcome, reason = time.monotonic(), "held", ""
        name = f"f{number:04d}-{kind.__name__}"
        try:
            kind(place, random.Random(f"{seed} {number} {kind.__name__}"), name)
        except Skipped as skipped:
            outcome, reason = "skipped", str(skipped)
        except Exception:  # whatever went wrong, it is this fault's result, and the next one is tried
            outcome, reason = "failed", traceback.format_exc()
        seconds = round(time.monotonic() - start, 1)
        line = f"{number + 1:4d}/{count} {kind.__name__:<16} {outcome} {seconds:6.1f} s"
        print(line if outcome == "held" else f"{line}\n{reason}", flush=True)
        results.append({"number": number, "kind": kind.__name__, "outcome": outcome, "reason": reason, "sec": seconds})
        if outcome != "failed":
            for left in place.folder.glob(f"**/{name}*"):
                shutil.rmtree(left, ignore_errors=True)
    return results


def order(weights: dict[Any, int], count: int) -> list[Any]:
    """Which kind each fault is of: one of each first, then by weight, evenly spread."""
    chosen = list(weights)[:count]
    while len(chosen) < count:
        chosen.append(max(weights, key=lambda kind: weights[kind] / (1 + chosen.count(kind))))
    return chosen


def table(results: Sequence[dict[str, Any]]) -> str:
    """Kind, faults, held, skipped, failed, seconds a fault."""
    lines = [f"{'fault':<18}{'count':>7}{'held':>7}{'skipped':>9}{'failed':>8}{'s each':>8}"]
    for name in [*dict.fromkeys(result["kind"] for result in results), "all"]:
        mine = [result for result in results if name in (result["kind"], "all")]
        held, skipped, failed = (sum(r["outcome"] == o for r in mine) for o in ("held", "skipped", "failed"))
        each = sum(result["sec"] for result in mine) / len(mine)
        lines.append(f"{name:<18}{len(mine):>7}{held:>7}{skipped:>9}{failed:>8}{each:>8.1f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
