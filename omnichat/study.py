"""The study's scripts: flags, presets and the engine, put together. Called by `scripts/study.py` and its like."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omnichat.experiments.study.arms import RunSpec, settings_of
from omnichat.experiments.study.ledger import CHANGES
from omnichat.experiments.study.presets import PRESETS, preset_of
from omnichat.experiments.study.rows import ROWS, rows_of
from omnichat.utils.errors import UserError

if TYPE_CHECKING:
    from omnichat.experiments.study.work import Composed


def main(scripts: Sequence[str], what: str | None, arguments: list[str] | None = None) -> int:
    """Run some scripts of the study, or say what they would do; returns the exit code.

    Args:
        scripts: names of the rows, see `omnichat.experiments.study.rows`; none = all.
        what: text for --help.
        arguments: of the command line; None = this process's.
    """
    asked = _parser(what or "").parse_args(arguments)
    try:
        return _run(tuple(scripts) or tuple(ROWS), asked)
    except UserError as error:
        print(f"study: error: {error}", file=sys.stderr)
        return 2


def _parser(what: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=what, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=PRESETS, default="demo", help="how large (default: %(default)s)")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="N", help="one run each (default: the preset's)")
    parser.add_argument("--steps", type=int, metavar="N", help="optimiser steps of every run (default: the preset's)")
    parser.add_argument("--fusions", nargs="+", metavar="NAME", help="rows of the fusion table (default: the preset's)")
    parser.add_argument("--dry-run", action="store_true", help="print runs, data, steps and hours, and stop")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="runs at the same time (default: 1)")
    parser.add_argument("--launcher", choices=("local", "slurm"), default="local", help="where (default: %(default)s)")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="more settings, for every run")
    parser.add_argument("--out", type=Path, default=Path("studies"), help="folder of the studies (default: studies)")
    parser.add_argument(
        "--accept", nargs="+", choices=CHANGES, default=[], help="take finished runs although this has changed"
    )
    parser.add_argument("--remake", action="store_true", help="make changed runs anew; the old ones are moved aside")
    parser.add_argument("--no-report", action="store_true", help="leave the report out")
    return parser


def _run(scripts: tuple[str, ...], asked: argparse.Namespace) -> int:
    from omnichat.cli import run as run_verb
    from omnichat.experiments.study.engine import STOPPED, Options, Study  # after --help: these import torch
    from omnichat.experiments.study.slurm import Resources

    for name in ("jobs", "steps"):
        if getattr(asked, name) is not None and getattr(asked, name) < 1:
            raise UserError(f"--{name} must be at least 1, got {getattr(asked, name)}")
    preset = preset_of(asked.preset)
    if asked.seeds is not None:
        preset = replace(preset, seeds={"": tuple(dict.fromkeys(asked.seeds))})
    if asked.fusions is not None:
        preset = replace(preset, fusions=tuple(dict.fromkeys(asked.fusions)))
    extra = settings_of(asked.set) | ({"trainer.steps": str(asked.steps)} if asked.steps is not None else {})
    options = Options(asked.out, asked.jobs, tuple(asked.accept), asked.remake, extra)
    study = Study(preset, rows_of(scripts, preset), options, Composer())
    if asked.dry_run:
        print(study.dry_run())
        return 0
    if asked.launcher == "slurm":
        ids = study.submit(Resources.of(slurm_settings()))
        print("\n".join(f"{number}  {name}" for name, number in ids.items()))
        print(f"submitted: {len(ids)} jobs; ledger: {study.ledger.path}\nnext: the same call, when they have ended")
        return 0
    code = study.run()
    if code != STOPPED and not asked.no_report:
        code = run_verb(["report", f"study={study.folder}"]) or code
    print(f"study: {study.folder}\nledger: {study.ledger.path}")
    print("the same call goes on" if code else f"next: omnichat report study={study.folder}")
    return code


class Composer:
    """Resolves a run's overrides through Hydra; runs that differ in their seed only are composed once."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, ...], dict[str, Any]] = {}

    def __call__(self, spec: RunSpec) -> Composed:
        """See `omnichat.experiments.study.work.Compose`. Raises UserError for an override that is none."""
        from omnichat.experiments.study.work import Composed, settings_hash

        words = [word for word in spec.words if not word.startswith("seed=")]
        plain = self.known.get(tuple(words))
        if plain is None:
            plain = self.known[tuple(words)] = compose_train(words)
        sources = {name: Path(source["path"]) for name, source in plain["mixture"]["sources"].items()}
        config_hash = settings_hash(plain | {"seed": spec.seed})
        return Composed(config_hash, sources, plain["chat"]["input"], plain["trainer"]["steps"])


def compose_train(words: list[str]) -> dict[str, Any]:
    """The resolved config of `omnichat train` with these overrides. Raises UserError."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from omnichat.config import TrainRun, composed_keys, config_folder, explain, to_plain, typed

    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(config_folder()), version_base="1.3"):
            return to_plain(typed(compose("train", overrides=words), TrainRun))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error, composed_keys("train", words))) from None


def slurm_settings() -> dict[str, Any]:
    """What configs/hydra/launcher/slurm.yaml says, the user's to change."""
    from omegaconf import OmegaConf

    from omnichat.config import config_folder

    plain = OmegaConf.to_container(OmegaConf.load(config_folder() / "hydra" / "launcher" / "slurm.yaml"))
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}
