"""`omnichat baseline`: a system that is not trained here answers held-out turns -> an ordinary run folder."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jiwer
from whisper.normalizers import EnglishTextNormalizer

from omnichat import __version__
from omnichat.assembly import assemble, load_sources
from omnichat.baseline_config import BaselineRun
from omnichat.baseline_folder import Folder
from omnichat.data.mixture import MixtureConfig
from omnichat.evaluate import chosen_checkpoint, load_trained, read_run_config, to_accelerator
from omnichat.evaluation.partial import PartialReplies
from omnichat.evaluation.predictions import prediction_of, write_predictions
from omnichat.evaluation.score import score
from omnichat.model.systems.base import USER, Request, SeenTurn, System, requests_of, seen_turn
from omnichat.model.systems.prompts import Prompts, training_examples
from omnichat.model.systems.text import Cascade, CascadeStyle, TextLLM
from omnichat.model.systems.trained_lm import TrainedLM
from omnichat.schema import Dialogue
from omnichat.training.checkpoint import MARKER
from omnichat.training.data import Source
from omnichat.training.features import CacheConfig
from omnichat.training.settings import resolve_precision
from omnichat.training.speed import SpeedConfig
from omnichat.training.trainer import Stopped
from omnichat.utils.errors import UserError
from omnichat.utils.files import sha256_bytes, sha256_file
from omnichat.utils.log import get_logger
from omnichat.utils.parts import build_part, check_part, part_class
from omnichat.utils.progress import progress
from omnichat.utils.signals import answered

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, and where it comes from, which the system does not see."""

    request: Request
    source: Source
    dialogue: Dialogue
    turn: int


def run(config: BaselineRun) -> None:
    """Answer the split's turns, keep the replies, score them.

    Replies that were there when it was stopped or killed are kept; the same command goes on from them.
    """
    started = time.time()
    prompts = Prompts(config.prompts)
    given = ("llm",) if config.run is not None else ()
    node = {name: value for name, value in config.system.items() if name not in given}
    kind = check_system(config, node, given)
    sources = load_sources(MixtureConfig(sources=config.mixture.sources), CacheConfig())
    llm = {"llm": trained_llm(config)} if config.run is not None else {}
    system: System = build_part(node, "system", kind, **llm)
    asked = ask(config, system, sources)
    corpora = [source.corpus for source in sources]
    examples = (
        training_examples(corpora, config.shots, system.sees, config.missing_audio, config.seed)
        if config.shots_from == "train"
        else prompts.packaged_examples(config.shots, system.tagged)
    )
    system.instruct(prompts.instructions(system, examples))
    folder = Folder(config, system, sources)

    def stop(which: signal.Signals) -> None:
        raise Stopped("stopped; the same command goes on from the replies that are there", None, which)

    with folder.running(started), answered(stop, (signal.SIGTERM,)):
        system.load()
        if system.learns:
            system.study(training_turns(config, sources))
        log.info("%s: %d replies of %s on %s", folder.path, len(asked), system.name, config.split)
        system.prepare([one.request for one in asked])
        folder.facts = system.describe() | {"prompts": [config.prompts, prompts.sha256]}
        partial = PartialReplies(
            folder.path / "predictions" / f".{config.split}.partial.jsonl",
            decoding_key(config, folder.facts, system, asked),
        )
        raw = decode(config, system, asked, partial, folder)
        kept = folder.recordings([(one.source, one.dialogue, one.turn) for one in asked])
        predictions = [
            prediction_of(one.dialogue, one.turn, one.source.name, text, system.input, audio_file=kept.get(number))
            for number, (one, text) in enumerate(zip(asked, raw, strict=True))
        ]
        folder.facts |= word_errors(system, asked)
        folder.warnings = system.warnings()
        write_predictions(folder.path / "predictions" / f"{config.split}.jsonl", predictions)
        folder.write_metrics(score(predictions, config.score))
        partial.remove()
    print(f"predictions: {folder.path / 'predictions' / (config.split + '.jsonl')}")
    print(f"next: omnichat report runs={config.runs}")


def check_system(config: BaselineRun, node: dict[str, Any], given: tuple[str, ...]) -> type[System]:
    """The system's class, once its settings (`node`, without those `given`) are known to be right. Raises UserError."""
    kind = part_class(config.system, "system", System)
    if config.run is not None and (not issubclass(kind, TextLLM) or issubclass(kind, CascadeStyle)):
        raise UserError(
            f"run={config.run}: a trained LLM answers in system=text_llm or cascade, not in {kind.__name__}"
        )
    check_part(node, "system", System, given)
    return kind


def trained_llm(config: BaselineRun) -> TrainedLM:
    """The LLM of a run that reads, with its trained weights.

    Raises:
        UserError: no run, one that hears, no checkpoint, or another LLM than it was trained on.
    """
    assert config.run is not None
    trained = read_run_config(Path(config.run))
    if trained.chat.hears:
        raise UserError(
            f"run={config.run}: it hears (chat.input={trained.chat.input}); name one trained with chat.input=text or "
            "asr, and evaluate this one with omnichat evaluate"
        )
    checkpoint = chosen_checkpoint(Path(config.run), config.checkpoint)
    trained.trainer.speed = SpeedConfig()  # switches of training, which this machine may lack
    parts = assemble(trained, [])
    load_trained(parts.model, checkpoint, {"llm": parts.llm_fingerprint})
    to_accelerator(parts.model, trained)
    facts = {
        "path": trained.llm.path,
        "run": trained.name,
        "checkpoint": checkpoint.name,
        "marker": sha256_file(checkpoint / MARKER),  # which holds the hashes of all its files
        "weights": parts.llm_fingerprint,
        "trained_on": trained.chat.input,
        "system_prompt": trained.chat.system_prompt,
    }
    return TrainedLM(parts.model, parts.chat, resolve_precision(trained.trainer.precision), facts)


def ask(config: BaselineRun, system: System, sources: Sequence[Source]) -> list[Asked]:
    """Every request of the split, in the order of the sources. Raises UserError where there is none."""
    asked: list[Asked] = []
    for source in sources:
        dialogues = 0
        for dialogue in source.corpus.iterate(config.split):
            if dialogues == config.limit:
                break
            found = requests_of(dialogue, source.corpus, system.sees, config.replies, config.missing_audio)
            asked += [Asked(request, source, dialogue, turn) for turn, request in found]
            dialogues += bool(found)
    if not asked:
        raise UserError(f"split={config.split}: the corpora have no {config.split} dialogue with a reply")
    if "audio" in system.sees:
        silent = sum(turn.speaker == USER and turn.audio is None for one in asked for turn in one.request.turns)
        if silent:
            log.warning("%d turns of the user's have no recording: %s reads their words", silent, system.name)
    return asked


def training_turns(config: BaselineRun, sources: Sequence[Source]) -> list[SeenTurn]:
    """The user's recorded turns of the training split, with their labels."""
    found: list[SeenTurn] = []
    for source in sources:
        for dialogue in source.corpus.iterate("train"):
            found += [
                seen_turn(turn, source.corpus, ("audio", "style"), "words", dialogue.id)
                for turn in dialogue.turns
                if turn.speaker == USER and turn.audio is not None and turn.style
            ]
    return found


def decode(
    config: BaselineRun, system: System, asked: Sequence[Asked], partial: PartialReplies, folder: Folder
) -> list[str]:
    """The raw replies, those of an earlier call not made again; the longest requests first, so memory fails early."""
    replies = dict(partial.done)
    if replies:
        log.info("%d of %d replies were there", len(replies), len(asked))
    order = sorted(range(len(asked)), key=lambda row: (-_length(asked[row].request), row))
    with progress(len(asked), "answer", unit="reply", initial=len(replies)) as bar, partial:
        for start in range(0, len(order), config.batch_size):
            rows = order[start : start + config.batch_size]
            if all(row in replies for row in rows):
                continue
            made = system.reply([asked[row].request for row in rows], config.max_new_tokens)
            batch = dict(zip(rows, made, strict=True))
            partial.add(batch)
            fresh = len(batch.keys() - replies.keys())
            replies |= batch
            bar.update(fresh)
            folder.beat(len(replies), len(asked))
    return [replies[row] for row in range(len(asked))]


def _length(request: Request) -> float:
    """About how long a request is, in tokens: text, and sound at 25 a second."""
    return sum(len(turn.text or "") / 4 + 25 * turn.seconds for turn in request.turns)


def decoding_key(config: BaselineRun, facts: dict[str, Any], system: System, asked: Sequence[Asked]) -> str:
    """Names everything that sets the replies."""

    def turn(seen: SeenTurn) -> list[Any]:
        return [seen.speaker, seen.text, str(seen.style), seen.sha256]

    shown = system.instructions
    sets = {
        "version": __version__,
        "system": facts,
        "instructions": [shown.system, [[*turn(example.heard), example.reply] for example in shown.examples]],
        "asked": [[one.source.name, one.request.id, [turn(seen) for seen in one.request.turns]] for one in asked],
        "decoding": [config.max_new_tokens, config.batch_size],
    }
    return sha256_bytes(json.dumps(sets, sort_keys=True).encode())


def word_errors(system: System, asked: Sequence[Asked]) -> dict[str, Any]:
    """How well a cascade's recogniser heard the turns that were answered; nothing for other systems."""
    if not isinstance(system, Cascade):
        return {}
    heard = system.asr.transcripts([one.request.turns[-1] for one in asked])
    normalise = EnglishTextNormalizer()
    pairs = {
        sha256: (normalise(one.dialogue.turns[one.turn - 1].text), normalise(heard[sha256]))
        for one in asked
        if (sha256 := one.request.turns[-1].sha256) is not None
    }
    spoken = [(words, found) for words, found in pairs.values() if words]
    if not spoken:
        return {}
    rate = jiwer.wer([words for words, _ in spoken], [found for _, found in spoken])
    print(f"word error rate of the recogniser: {rate:.3f} on {len(spoken)} recordings")
    return {"asr_wer": round(rate, 4), "asr_recordings": len(spoken)}
