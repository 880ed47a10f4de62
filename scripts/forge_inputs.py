"""Feed the factory a hundred forged or corrupt inputs, and count what it survived.

Recordings whose headers lie, caption tables and script files that are none, servers that answer anything, voices that
fail, work folders that were tampered with: each ends in one line that says what is wrong, or in a clean corpus.

    python scripts/forge_inputs.py                          a hundred inputs
    python scripts/forge_inputs.py --count 1000 --seed 7    others
    python scripts/forge_inputs.py --kinds caption_cells,voices --count 20
"""

from __future__ import annotations

import argparse
import json
import os
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


def main() -> None:
    """Entry point."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--count", type=int, default=100, help="inputs (default: 100)")
    arguments.add_argument("--seed", type=int, default=0, help="of every choice (default: 0)")
    arguments.add_argument("--kinds", default="", help="comma-separated; default: all")
    arguments.add_argument("--out", type=Path, default=Path("bench/forged.json"), help="file of the results")
    given = arguments.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="omnichat-forged-"))
    os.environ["HF_DATASETS_CACHE"] = str(folder / "datasets")  # before the library is imported
    from tests.faults.forged_kinds import KINDS

    by_name = {kind.__name__: kind for kind in KINDS}
    wanted = [name for name in given.kinds.split(",") if name]
    if unknown := [name for name in wanted if name not in by_name]:
        arguments.error(f"--kinds: no kind {unknown[0]!r}; choose from {', '.join(by_name)}")
    results = campaign(folder, [by_name[name] for name in wanted] or list(KINDS), given.count, given.seed)
    failed = sum(result["outcome"] == "failed" for result in results)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps({"seed": given.seed, "inputs": results}, indent=2) + "\n")
    print(table(results))
    print(f"{len(results)} forged inputs, {failed} failed; results: {given.out}")
    if failed:
        sys.exit(f"the inputs that did harm are kept in {folder}")
    shutil.rmtree(folder)


def campaign(folder: Path, kinds: Sequence[Any], count: int, seed: int) -> list[dict[str, Any]]:
    """Feed `count` inputs. Returns one row each: number, kind, outcome (held, failed), what was said, seconds."""
    import torch

    from tests.faults.forged import Bench, Hangs

    torch.set_num_threads(1)
    bench = Bench(folder)
    results = []
    for number in range(count):
        kind = kinds[number % len(kinds)]
        start, outcome = time.monotonic(), "held"
        try:
            said = kind(bench, random.Random(f"{seed} {number} {kind.__name__}"))
        except (Exception, Hangs):  # whatever went wrong, it is this input's result, and the next one is tried
            outcome, said = "failed", traceback.format_exc()
            if bench.folder.is_dir():
                bench.folder.rename(folder / f"failed-{number:04d}-{kind.__name__}")
        seconds = round(time.monotonic() - start, 1)
        said = "".join(sign if sign.isprintable() or sign == "\n" else "?" for sign in said)
        print(f"{number + 1:4d}/{count} {kind.__name__:<16} {outcome} {seconds:5.1f} s  {said}", flush=True)
        results.append({"number": number, "kind": kind.__name__, "outcome": outcome, "said": said, "sec": seconds})
    return results


def table(results: Sequence[dict[str, Any]]) -> str:
    """Kind, inputs, held, failed, and how those that held ended."""
    ends = ("error", "told", "the same corpus", "a valid input")
    lines = [
        f"{'input':<18}{'count':>6}{'held':>6}{'failed':>7}{'error':>7}{'told':>6}{'same':>6}{'valid':>7}{'s each':>8}"
    ]
    for name in [*dict.fromkeys(result["kind"] for result in results), "all"]:
        mine = [result for result in results if name in (result["kind"], "all")]
        held = [result for result in mine if result["outcome"] == "held"]
        counts = [sum(result["said"].rpartition(" -> ")[2].startswith(end) for result in held) for end in ends]
        each = sum(result["sec"] for result in mine) / len(mine)
        figures = "".join(f"{n:>{width}}" for n, width in zip(counts, (7, 6, 6, 7), strict=True))
        lines.append(f"{name:<18}{len(mine):>6}{len(held):>6}{len(mine) - len(held):>7}{figures}{each:>8.1f}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
