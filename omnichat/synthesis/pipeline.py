"""The factory: plan, write, speak, check, mix, assemble.

Work proceeds in rounds. Round 0 attempts every dialogue; each later round rewrites and respeaks those that a check
rejected, up to `max_attempts`. All scripts of a round are written here, in order, so the corpus does not depend on the
number of processes. Each attempt's folder appears whole or not at all in a work folder beside the corpus; a killed run
continues from it and ends in the same bytes.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from omnichat.data.corpus import Corpus, finish_corpus
from omnichat.synthesis.assemble import Tally, assemble, checks_for_card, licences, notes, report, versions
from omnichat.synthesis.base import Script, ScriptWriter, Voice, script_problems
from omnichat.synthesis.checks.suite import CheckSuite
from omnichat.synthesis.plan import Stem, SynthesisConfig, plan_corpus
from omnichat.synthesis.pool import worker_pool
from omnichat.synthesis.scenes.maker import SceneMaker
from omnichat.synthesis.stem import Job, Outcome, Parts, make_stem
from omnichat.synthesis.topics.base import TopicSource
from omnichat.utils.errors import UserError
from omnichat.utils.files import read_json, replace_folder, sha256_bytes, write_json_atomic
from omnichat.utils.log import get_logger
from omnichat.utils.progress import progress
from omnichat.utils.seeding import derive_seed

log = get_logger(__name__)

_SCRIPT_TRIES = 50  # seeds tried for one script that is valid and new


def synthesize(
    config: SynthesisConfig,
    writer: ScriptWriter,
    voice: Voice,
    checks: CheckSuite,
    scenes: SceneMaker,
    topics: TopicSource | None = None,
) -> Corpus:
    """Make the corpus of `config` and return it, loaded from its folder; without `topics` the writer chooses them.

    Raises:
        UserError: a speaker or a sound that is not there, a writer that has no new script, splits that share a
            sentence, or no dialogue that passes its checks.
    """
    config.check_voice(voice)
    parts = Parts(voice, checks, scenes, config.seed)
    stems = plan_corpus(config, scenes, topics)
    sounds = scenes.describe({stem.scenario for stem in stems})
    work = _work_folder(config, parts, [writer.describe(), sounds, None if topics is None else topics.describe()])
    tally = Tally()
    scripts, outcomes = _run_rounds(config, writer, parts, stems, work, tally)
    accepted = [stem for stem in stems if stem.id in outcomes]
    if not accepted:
        reasons = ", ".join(f"{check}: {reason} ({n})" for (check, reason), n in tally.rejected.most_common(3))
        raise UserError(f"no dialogue of {config.name!r} passed its checks: {reasons}")
    _check_splits_apart({stem.id: (stem.split, scripts[stem.id]) for stem in accepted})
    folder = work / "corpus"
    dialogues = assemble(config, accepted, outcomes, parts, folder, work)
    findings = [outcomes[stem.id].check_findings() for stem in accepted]
    card_checks = checks_for_card(checks, findings, tally, len(stems))
    finish_corpus(
        folder,
        dialogues,
        name=config.name,
        kind="synthetic",
        seed=config.seed,
        checks=card_checks,
        licences=licences(writer, voice, sounds),
        notes=notes(config, writer, sounds),
        versions=versions(),
    )
    replace_folder(folder, Path(config.out))
    shutil.rmtree(work)
    report(tally, len(accepted), len(dialogues), card_checks)
    return Corpus.load(config.out)


def _run_rounds(
    config: SynthesisConfig, writer: ScriptWriter, parts: Parts, stems: Sequence[Stem], work: Path, tally: Tally
) -> tuple[dict[str, Script], dict[str, Outcome]]:
    """Attempt every dialogue until it passes or has had its attempts: scripts and accepted outcomes by stem id."""
    scripts: dict[str, Script] = {}
    outcomes: dict[str, Outcome] = {}
    seen: set[str] = set()
    waiting = list(stems)
    with worker_pool(config.workers, make_stem, parts) as run:
        for attempt in range(config.max_attempts):
            jobs = []
            for stem in waiting:
                scripts[stem.id] = _new_script(config, writer, stem, attempt, seen, tally)
                jobs.append(Job(stem, attempt, scripts[stem.id], work / "stems" / f"{stem.id}.{attempt}"))
            title = "synthesize" if attempt == 0 else f"attempt {attempt + 1}"
            with progress(len(jobs), title, unit="dialogue") as bar:
                for outcome, seconds in run(jobs):
                    tally.seconds.update(seconds)
                    if outcome.accepted:
                        outcomes[outcome.stem] = outcome
                    tally.count(outcome)
                    bar.update()
            waiting = [stem for stem in waiting if stem.id not in outcomes]
            if not waiting:
                break
    tally.dropped = [stem.id for stem in waiting]
    return scripts, outcomes


def _new_script(
    config: SynthesisConfig, writer: ScriptWriter, stem: Stem, attempt: int, seen: set[str], tally: Tally
) -> Script:
    """A valid script whose words no dialogue of the corpus has; rejected ones are counted by reason."""
    problems = ["no script"]
    for number in range(_SCRIPT_TRIES):
        request = stem.request(derive_seed(config.seed, "write", stem.id, attempt, number))
        script = writer.write(request)
        key = "\n".join(script.sentences())
        problems = script_problems(script, request, config.max_words) or (["duplicate script"] if key in seen else [])
        if not problems:
            seen.add(key)
            return script
        tally.script_rejects.update(problems)
    raise UserError(f"the writer gave no usable script for {stem.id} in {_SCRIPT_TRIES} tries: {problems[0]}")


def _work_folder(config: SynthesisConfig, parts: Parts, sources: Sequence[object]) -> Path:
    """The work folder beside the corpus; finished work of a run with other settings is thrown away."""
    out = Path(config.out)
    work = out.with_name(f".{out.name}.work")
    facts = [config.content(), *sources, parts.voice.describe(), parts.checks.settings(), versions()]
    plan = {"fingerprint": sha256_bytes(repr(facts).encode("utf-8"))}
    if (work / "plan.json").is_file() and read_json(work / "plan.json") != plan:
        log.warning("%s is left from a run with other settings; starting afresh", work)
        shutil.rmtree(work)
    elif (work / "plan.json").is_file():
        log.info("continuing from %s", work)
    write_json_atomic(work / "plan.json", plan)
    shutil.rmtree(work / "corpus", ignore_errors=True)
    return work


def _check_splits_apart(scripts: dict[str, tuple[str, Script]]) -> None:
    """Raise UserError if a sentence occurs in two splits: a test would then measure memory."""
    owner: dict[str, tuple[str, str]] = {}
    for stem_id, (split, script) in scripts.items():
        for sentence in script.sentences():
            first = owner.setdefault(sentence.lower(), (split, stem_id))
            if first[0] != split:
                raise UserError(f"{sentence!r} is said in {first[1]} and in {stem_id}: splits must share no sentence")
