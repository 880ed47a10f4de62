"""The factory: plan, scripts, speech, checks, scenes, corpus.

Work proceeds in rounds. Round 0 attempts every dialogue; each later round rewrites and respeaks those that a check
rejected, up to `max_attempts`. All scripts of a round are judged here, in the plan's order, so the corpus does not
depend on the number of processes, on their engine, or on where a run was cut. Each attempt appears whole or not at all
in a work folder beside the corpus (work.py), under the hash of all that sets it; a killed run, a run that ended after
a stage, and runs that shared the work continue from it and end in the same bytes.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omnichat.data.corpus import AnyCorpus, Corpus
from omnichat.data.parquet import export_parquet
from omnichat.data.parquet_corpus import ParquetCorpus
from omnichat.synthesis.assemble import assemble, write_corpus
from omnichat.synthesis.base import ScriptWriter, Voice
from omnichat.synthesis.checked_voice import CheckedVoice
from omnichat.synthesis.checks.suite import CheckSuite
from omnichat.synthesis.engines.base import Engine, Run
from omnichat.synthesis.engines.local import LocalEngine
from omnichat.synthesis.plan import STAGES, SynthesisConfig, plan_corpus
from omnichat.synthesis.scenes.maker import SceneMaker
from omnichat.synthesis.scripting import ScriptStage
from omnichat.synthesis.stem import Job, Outcome, Parts, make_stem
from omnichat.synthesis.tally import Made, report
from omnichat.synthesis.topics.base import TopicSource
from omnichat.synthesis.versions import versions
from omnichat.synthesis.work import WorkFolder, attempt_key, check_disk, digest, read_value, remove, write_value
from omnichat.utils.errors import UserError
from omnichat.utils.files import replace_folder, write_jsonl_atomic
from omnichat.utils.log import get_logger
from omnichat.utils.progress import progress

log = get_logger(__name__)

PLAN = "plan.jsonl"
SCRIPTS = "scripts.jsonl"


def synthesize(
    config: SynthesisConfig,
    writer: ScriptWriter,
    voice: Voice,
    checks: CheckSuite,
    scenes: SceneMaker,
    topics: TopicSource | None = None,
    engine: Engine | None = None,
) -> Made:
    """Run the stages up to `config.until`; the corpus, if it comes so far, is loaded from its folder.

    Args:
        topics: what dialogues are about; None = the writer chooses.
        engine: who does the work; None = `config.workers` processes of this machine.

    Raises:
        UserError: a speaker or a sound that is not there, a full disk, a writer or a voice that cannot go on, or no
            dialogue that passes its checks.
    """
    config.check_voice(voice)
    number, shards = config.shard_numbers()
    whole = plan_corpus(config, scenes, topics, writer)
    made = Made(WorkFolder.beside(Path(config.out)), whole[number::shards])
    made.work.root.mkdir(parents=True, exist_ok=True)
    write_jsonl_atomic(made.work.root / PLAN, (asdict(stem) for stem in whole))
    if config.until == "plan":
        return made
    if config.check_disk:
        check_disk(config, len(made.stems), voice.sample_rate)
    if any(made.work.root.glob("stems/*")):
        log.info("continuing from %s", made.work.root)
    parts = Parts(voice, checks, scenes, config.seed, made.work, config.until)
    stage = ScriptStage(config, writer, made.work.answers, made.tally)
    if config.until == "scripts":
        made.scripts = stage.write(made.stems, 0)
        _write_scripts(made)
        return made
    _calibrate(config, parts)
    _run_rounds(config, engine or LocalEngine(config.workers), parts, stage, made)
    if config.until == "corpus" and shards == 1:
        made.corpus = _finish(config, writer, parts, made)
    return made


def _calibrate(config: SynthesisConfig, parts: Parts) -> None:
    """Let the checks listen to the speakers, or read what an earlier run measured of the same ones."""
    speakers = sorted({*config.user_voices, *config.model_voices})
    path = parts.work.calibration(digest([parts.voice.describe(), parts.checks.settings(), speakers, versions()]))
    if (found := read_value(path)) is None:
        write_value(path, parts.checks.calibrate(CheckedVoice(parts.voice), speakers))
        found = read_value(path)  # as a resumed run reads it
    parts.checks.use(found)


def _run_rounds(config: SynthesisConfig, engine: Engine, parts: Parts, stage: ScriptStage, made: Made) -> None:
    """Attempt every dialogue until it passes or has had its attempts."""
    facts = {scenario: digest(facts_of(parts, scenario)) for scenario in {stem.scenario for stem in made.stems}}
    waiting = made.stems
    with engine.start(make_stem, parts) as run:
        for attempt in range(config.max_attempts):
            scripts = stage.write(waiting, attempt)
            made.scripts |= scripts
            missing = {stem.id: "no usable script" for stem in waiting if stem.id not in scripts}
            made.tally.dropped |= missing
            jobs = [
                Job(stem, attempt, scripts[stem.id], attempt_key(facts[stem.scenario], stem, scripts[stem.id], attempt))
                for stem in waiting
                if stem.id in scripts
            ]
            rejected = _run_round(run, jobs, attempt, made)
            waiting = [job.stem for job in jobs if job.stem.id in rejected]
            if not waiting:
                break
    made.tally.dropped |= {stem.id: f"rejected {config.max_attempts} times" for stem in waiting}


def _run_round(
    run: Run[Job, tuple[Outcome, dict[str, float]]], jobs: Sequence[Job], attempt: int, made: Made
) -> set[str]:
    """Carry out one round's jobs; returns the ids of the dialogues that were rejected."""
    rejected = set()
    begun, before = time.monotonic(), made.tally.speech_sec
    title = "synthesize" if attempt == 0 else f"attempt {attempt + 1}"
    with progress(len(jobs), title, unit="dialogue") as bar:
        for outcome, seconds in run(jobs):
            made.tally.count(outcome, seconds)
            if outcome.accepted:
                made.outcomes[outcome.stem] = outcome
            else:
                rejected.add(outcome.stem)
            bar.set_postfix_str(made.tally.progress(time.monotonic() - begun, before), refresh=False)
            bar.update()
    return rejected


def facts_of(parts: Parts, scenario: str) -> dict[str, Any]:
    """All but plan and words that sets the clips and findings of a scenario's dialogues: what their keys must hold."""
    return {
        "seed": parts.seed,
        "voice": parts.voice.describe(),
        "checks": parts.checks.settings(),
        "retakes": parts.checks.retakes(),
        "scene": asdict(parts.scenes.config),
        "sounds": parts.scenes.describe({scenario}),
        "versions": versions(),
    }


def _finish(config: SynthesisConfig, writer: ScriptWriter, parts: Parts, made: Made) -> AnyCorpus:
    """Put the corpus together and clear the work folder."""
    accepted = [stem for stem in made.stems if stem.id in made.outcomes]
    if not accepted:
        counted = [(f"{check}: {reason}", n) for (check, reason), n in made.tally.rejected.most_common(3)]
        counted += [(f"script: {reason}", n) for reason, n in made.tally.script_rejects.most_common(3)]
        reasons = ", ".join(f"{reason} ({n})" for reason, n in counted)
        raise UserError(f"no dialogue of {config.name!r} passed its checks: {reasons}")
    folder = made.work.corpus
    remove(folder)
    dialogues = assemble(config, accepted, made.outcomes, parts, folder)
    card = write_corpus(config, writer, parts, folder, dialogues, made)
    out = Path(config.out)
    corpus: AnyCorpus
    if config.format == "parquet":
        export_parquet(Corpus.load(folder, verify="exists"), out)
        corpus = ParquetCorpus.load(out)
    else:
        replace_folder(folder, out)
        corpus = Corpus.load(out)
    shutil.rmtree(made.work.root)
    report(made.tally, len(accepted), len(dialogues), _in_order(card))
    return corpus


def _in_order(card: Mapping[str, Any]) -> Any:
    return card["checks"].get("styles", {}).get("measured", {}).get("in_order")


def _write_scripts(made: Made) -> None:
    """Scripts for people to read, beside the plan."""
    rows = [{"plan": stem.id} | asdict(made.scripts[stem.id]) for stem in made.stems if stem.id in made.scripts]
    write_jsonl_atomic(made.work.root / SCRIPTS, rows)


def next_stage(until: str) -> str:
    """The stage after `until`."""
    return STAGES[STAGES.index(until) + 1]
