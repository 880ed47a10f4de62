"""`omnichat lr-find`: a learning-rate range test of a run that is still to be trained."""

from __future__ import annotations

import shlex
import sys
from dataclasses import replace
from pathlib import Path

from accelerate.state import AcceleratorState

from omnichat.assembly import assemble, calibrate, check_mixture, checked_sources, one_process, training_data
from omnichat.config import LrFindRun
from omnichat.experiments.lr_plot import plot_lr_find
from omnichat.run_folder import run_name
from omnichat.training.lr_finder import Finding, sweep
from omnichat.training.tracking import Tracker, TrackingConfig
from omnichat.training.trainer import Trainer
from omnichat.utils.errors import UserError
from omnichat.utils.files import check_writable, write_json_atomic
from omnichat.utils.progress import progress


def run(config: LrFindRun) -> None:
    """Sweep; write lr_find.json and lr_find.png to <run>/lr_find, and nothing else of the run."""
    one_process(config.launch, "lr-find")
    swept = config.lr_find.which
    if not config.chat.hears:
        if swept == "fusion":
            raise UserError("lr_find.which=fusion, but chat.input=text has no fusion; set it to lora or both")
        swept = "lora"
    sources = checked_sources(config)
    check_mixture(sources, config)
    folder = Path(config.runs) / run_name(config) / "lr_find"
    check_writable(folder, "runs")
    parts = assemble(config, sources)
    data = training_data(config, parts)
    (folder / "log.jsonl").unlink(missing_ok=True)
    tracker = Tracker(folder, TrackingConfig(wandb="disabled"), {})
    settings = replace(config.trainer, steps=config.lr_find.steps)
    trainer = Trainer(parts.model, data, lambda: iter(()), settings, folder, config.seed, {}, tracker)
    calibrate(config, parts, data)
    bar = progress(config.lr_find.steps, "lr-find", unit="step")
    try:
        finding = sweep(
            trainer,
            config.lr_find,
            lambda point: (bar.update(1), bar.set_postfix_str(f"factor {point.factor:.3g} loss {point.smoothed:.3f}")),
        )
    finally:
        bar.close()
        tracker.finish()
        AcceleratorState._reset_state()
    optim = config.trainer.optim
    rates = finding.rates(optim, swept)
    result = finding.to_json() | {
        "which": swept,
        "lr_fusion": optim.lr_fusion,
        "lr_lora": optim.lr_lora,
        "rates": rates,
        "command": shlex.join(["omnichat", "lr-find", *sys.argv[1:]]),
    }
    write_json_atomic(folder / "lr_find.json", result)
    plot_lr_find(result, folder / "lr_find.png")
    print(_words(finding, rates))
    print(f"lr_find: {folder / 'lr_find.json'}, {folder / 'lr_find.png'}")
    if rates:
        words = [word for word in sys.argv[1:] if not word.startswith(("lr_find.", "+lr_find.", *rates))]
        print("next: " + shlex.join(["omnichat", "train", *words, *(f"{key}={rate:g}" for key, rate in rates.items())]))


def _words(finding: Finding, rates: dict[str, float]) -> str:
    steepest = "the loss never fell" if finding.steepest is None else f"steepest at a factor of {finding.steepest:.3g}"
    diverged = "it did not diverge" if finding.diverged is None else f"diverged at {finding.diverged:.3g}"
    if finding.suggested is None:
        return f"{steepest}; {diverged}: no suggestion; raise lr_find.highest, or look at the data"
    found = ", ".join(f"{key.rpartition('.')[2]} {rate:g}" for key, rate in rates.items())
    return f"{steepest}; {diverged}; suggested: a factor of {finding.suggested:.3g}, which is {found}"
