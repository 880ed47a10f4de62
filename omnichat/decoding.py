"""Decoding of prompt sets, shared by processes: each decodes whole batches and keeps its replies in its own file."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from pathlib import Path

from omnichat.assembly import Assembly
from omnichat.config import EvaluateRun, TrainRun
from omnichat.evaluation.partial import PartialReplies
from omnichat.model.generation import batches_of, generate_share
from omnichat.prompt_sets import PromptSet
from omnichat.training.processes import Setup
from omnichat.training.settings import resolve_precision
from omnichat.training.trainer import Stopped
from omnichat.utils.errors import UserError
from omnichat.utils.log import get_logger
from omnichat.utils.progress import progress

log = get_logger(__name__)
STOPPED = "stopped; the same command goes on from the replies decoded so far"


def partial_path(folder: Path, asked: PromptSet, rank: int) -> Path:
    """Where a process keeps the replies of a set that it has decoded."""
    return folder / "predictions" / f".{asked.stem}.partial{f'-{rank}' if rank else ''}.jsonl"


def partial_paths(folder: Path, asked: PromptSet) -> list[Path]:
    """Those of all processes, of this call or an earlier one."""
    return sorted((folder / "predictions").glob(f".{asked.stem}.partial*.jsonl"))


def decode_all(
    config: EvaluateRun,
    trained: TrainRun,
    parts: Assembly,
    asked: Sequence[PromptSet],
    partials: Sequence[PartialReplies],
    setup: Setup,
) -> str:
    """Decode this process's share of all sets. In the first process all replies are in `partials` afterwards.

    Returns:
        How many replies were decoded, and how fast, for people.
    """
    folder = Path(config.run)

    def gather() -> int:
        for each, partial in zip(asked, partials, strict=True):
            partial.include(partial_paths(folder, each))
        return sum(len(partial.done) for partial in partials)

    kept = setup.main_says(gather)  # before any other process goes on to decode
    gather()
    total = sum(len(each.prompts) for each in asked)
    if kept and setup.is_main:
        log.info("%d of %d replies were decoded before", kept, total)
    started = time.perf_counter()
    for each, partial in zip(asked, partials, strict=True):
        _decode(config, trained, parts, each, partial, setup)
    for _ in range(2):  # ahead of all that still decode: were one to hang, it is those that are behind
        setup.progress.at(0, "done")
    if not setup.all_here("decoded"):
        raise Stopped(STOPPED, None, setup.stopped() or signal.SIGTERM)
    if setup.is_main and gather() != total:
        raise UserError(f"{folder / 'predictions'}: replies are missing; was another evaluation of this run at work?")
    seconds = max(1e-9, time.perf_counter() - started)
    several = f" by {setup.count} processes" if setup.count > 1 else ""
    more = f", {kept} were there before" if kept else ""
    return f"decoded {total - kept} replies in {seconds:.1f} s{several}: {(total - kept) / seconds:.2f} replies/s{more}"


def _decode(
    config: EvaluateRun,
    trained: TrainRun,
    parts: Assembly,
    asked: PromptSet,
    partial: PartialReplies,
    setup: Setup,
) -> None:
    """Decode this process's share of a set into its partial file, but for what is there."""
    share = batches_of(asked.prompts, config.batch_tokens)[setup.rank :: setup.count]
    rows = [row for batch in share for row in batch]
    before = sum(all(row in partial.done for row in batch) * len(batch) for batch in share)
    with progress(len(rows), f"decode {asked.stem}", unit="reply", initial=before) as bar, partial:

        def keep(replies: dict[int, str]) -> None:
            setup.progress.at(setup.progress.step + 1, "decode")
            if (which := setup.stopped()) is not None:
                raise Stopped(STOPPED, None, which)
            if replies:
                partial.add(replies)
                bar.update(len(replies))

        setup.progress.at(setup.progress.step, "decode")
        partial.done |= generate_share(
            parts.model,
            asked.prompts,
            parts.chat,
            parts.features,
            asked.end_id,
            max_new_tokens=config.max_new_tokens,
            batch_tokens=config.batch_tokens,
            precision=resolve_precision(trained.trainer.precision),
            share=(setup.rank, setup.count),
            done=partial.done,
            on_batch=keep,
        )
