"""How speed and memory grow: with the turns of a dialogue, the tokens of a batch, and the dialogues of a corpus."""

from __future__ import annotations

import gc
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from omnichat.data.batching import Place
from omnichat.data.corpus import MANIFEST, Corpus
from omnichat.schema import Dialogue, dialogue_to_json
from omnichat.training.bench import Bench, BenchConfig, Variant, Workload, measure
from omnichat.training.bench_meters import give_back, resident_bytes
from omnichat.training.bench_sets import train_dialogues
from omnichat.training.data import Source
from omnichat.utils.errors import UserError
from omnichat.utils.log import get_logger
from omnichat.utils.progress import progress

log = get_logger(__name__)
Runs = dict[str, tuple[Variant, Workload]]  # name -> what is measured
DRAWN = 5000  # draws that are timed
_TOKENS_A_POINT = 1024  # at least, of every batch size


def turn_runs(bench: Bench, config: BenchConfig, reference: Variant) -> Runs:
    """Workloads over dialogues of each number of turns, all replies in one pass and one sample a reply."""
    ways = {"one_pass": reference, "one_reply_a_sample": replace(reference, one_pass=False)}
    runs: Runs = {}
    for turns in config.growth_turns:
        dialogues = bench.dialogues(turns, config.replies)
        longest = max(item.sequence.positions for item in bench.items(reference, dialogues))
        budget = max(longest, bench.loader.batch_tokens)
        runs |= {f"{turns} {way}": (v, bench.workload(v, dialogues, budget)) for way, v in ways.items()}
    return runs


def grow_turns(bench: Bench, runs: Runs, rounds: int) -> list[dict[str, Any]]:
    """Passes over the workloads of `turn_runs`."""
    passes = measured(bench, runs, rounds, "turns a dialogue")
    return [{"turns": int(name.split()[0]), "way": name.split()[1], "passes": found} for name, found in passes.items()]


def batch_runs(bench: Bench, config: BenchConfig, reference: Variant) -> Runs:
    """Workloads over dialogues of two turns in batches of each size, with one full batch at least.

    A size that the longest of its dialogues does not fit is left out with a warning.
    """
    runs: Runs = {}
    if not config.growth_batch_tokens:
        return runs
    few = bench.dialogues(2, 8)
    mean = sum(len(item.sequence) for item in bench.items(reference, few)) / len(few)
    for tokens in config.growth_batch_tokens:
        dialogues = bench.dialogues(2, max(1, round(max(tokens, _TOKENS_A_POINT) / mean)))
        longest = max(item.sequence.positions for item in bench.items(reference, dialogues))
        if longest > tokens:
            log.warning("bench.growth_batch_tokens=%d left out: a dialogue of two turns takes %d", tokens, longest)
            continue
        runs[str(tokens)] = (reference, bench.workload(reference, dialogues, tokens))
    return runs


def grow_batch_tokens(bench: Bench, runs: Runs, rounds: int) -> list[dict[str, Any]]:
    """Passes over the workloads of `batch_runs`."""
    passes = measured(bench, runs, rounds, "tokens a batch")
    return [{"batch_tokens": int(name), "passes": found} for name, found in passes.items()]


def measured(
    bench: Bench,
    runs: Runs,
    rounds: int,
    title: str,
    between: Callable[[], None] = lambda: None,
) -> dict[str, list[dict[str, Any]]]:
    """`measure` behind a progress bar."""
    bar = progress(rounds * len(runs), title, unit="pass")

    def on_pass(name: str) -> None:
        bar.set_postfix_str(name)
        bar.update(1)

    try:
        return measure(bench, runs, rounds, between, on_pass)
    finally:
        bar.close()


def grow_dialogues(bench: Bench, config: BenchConfig) -> list[dict[str, Any]]:
    """What a corpus of each number of dialogues costs before the first step, and how fast draws come.

    The rows are the source's own training dialogues over and over under new ids, with the same recordings. Memory is
    what this process's resident size grows by.
    """
    source, found = bench.source, []
    if config.growth_dialogues and source.corpus.streamed:
        raise UserError("bench.growth_dialogues grows a manifest, but this source lies in Parquet: set it to []")
    train = train_dialogues(source)
    for count in progress_over(config.growth_dialogues, "dialogues of a corpus"):
        with tempfile.TemporaryDirectory() as scratch:
            write_rows(Path(scratch), source.corpus.root, train, count)
            gc.collect()
            give_back()
            before, start = resident_bytes(), time.perf_counter()
            corpus = Corpus.load(scratch)
            loaded = time.perf_counter()
            data = bench.training_data(Source(source.name, corpus, 1.0))
            next(data.places(Place()))
            ready, memory = time.perf_counter(), resident_bytes() - before
            draws = islice((draw for batch, _ in data.places(Place()) for draw in batch), DRAWN)
            drawn = sum(1 for _ in draws)
            took = time.perf_counter() - ready
            found.append(
                {
                    "dialogues": count,
                    "load_seconds": loaded - start,
                    "start_seconds": ready - start,
                    "bytes": memory,
                    "draws_a_second": drawn / took,
                }
            )
            del corpus, data, draws
    return found


def progress_over(counts: Sequence[int], title: str) -> Any:
    """The counts, behind a progress bar."""
    bar = progress(len(counts), title, unit="size")
    for count in counts:
        yield count
        bar.update(1)
    bar.close()


def write_rows(folder: Path, root: Path, dialogues: Sequence[Dialogue], count: int) -> None:
    """A corpus folder of `count` training rows that borrows the recordings below `root`."""
    for entry in root.iterdir():
        if entry.is_dir() and not entry.name.startswith("."):
            (folder / entry.name).symlink_to(entry.resolve(), target_is_directory=True)
    texts = [json.dumps(dialogue_to_json(replace(dialogue, id="ID"))) for dialogue in dialogues]
    with open(folder / MANIFEST, "w", encoding="utf-8") as handle:
        for number in range(count):
            handle.write(texts[number % len(texts)].replace('"id": "ID"', f'"id": "row-{number}"', 1) + "\n")
