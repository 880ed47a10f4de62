"""`omnichat evaluate`: a run folder -> predictions and metrics on held-out dialogues."""

from __future__ import annotations

import json
import signal
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from yaml import YAMLError

from omnichat import __version__
from omnichat.assembly import Assembly, assemble, checked_sources
from omnichat.config import EvaluateRun, TrainRun, to_plain, typed
from omnichat.data.collate import collate
from omnichat.evaluation.partial import PartialReplies
from omnichat.evaluation.predictions import Heard, Line, Prediction, write_predictions
from omnichat.evaluation.predictions import Reply as PredictedReply
from omnichat.evaluation.score import score
from omnichat.model.generation import Prompt, end_of_turn_id, generate_replies, prompt_for
from omnichat.model.omnichat import OmniChat
from omnichat.run_folder import clear_requeue, write_requeue
from omnichat.schema import Dialogue
from omnichat.text.chat import Role
from omnichat.text.style_format import parse_reply
from omnichat.training.checkpoint import MARKER, checkpoints, load_checkpoint
from omnichat.training.data import split_items
from omnichat.training.identity import refuse_changes
from omnichat.training.samples import keep_recording
from omnichat.training.settings import resolve_precision
from omnichat.training.speed import SpeedConfig
from omnichat.training.trainer import Stopped
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.files import check_writable, read_json, sha256_bytes, write_json_atomic
from omnichat.utils.log import get_logger
from omnichat.utils.progress import progress
from omnichat.utils.signals import answered

log = get_logger(__name__)


def run(config: EvaluateRun) -> None:
    """Decode the split's replies, keep them, score them.

    A SIGTERM or a kill leaves older predictions as they were; the replies decoded by then are kept, and the next call
    goes on from them.
    """
    folder = Path(config.run)
    trained = read_run_config(folder)
    checkpoint = chosen_checkpoint(folder, config.checkpoint)
    check_writable(folder, "run")
    clear_requeue(folder, "evaluate")

    def stop(which: signal.Signals) -> None:
        raise Stopped("stopped; the same command goes on from the replies decoded so far", None, which)

    try:
        with answered(stop, (signal.SIGTERM,)):
            _evaluate(config, trained, folder, checkpoint)
    except Stopped as stopped:
        write_requeue(folder, "evaluate", stopped)
        raise


def _evaluate(config: EvaluateRun, trained: TrainRun, folder: Path, checkpoint: Path) -> None:
    trained.trainer.speed = SpeedConfig()  # switches of training, which this machine may lack
    parts = assemble(trained, checked_sources(trained))
    trainables, _, saved = load_checkpoint(checkpoint)
    refuse_changes(
        {"experts": saved["identity"]["experts"], "llm": saved["identity"]["llm"]},
        {"experts": parts.expert_fingerprints, "llm": parts.llm_fingerprint},
        checkpoint,
    )
    parts.model.load_trainable_state(trainables)
    to_accelerator(parts.model, trained)
    prompts, dialogues = _prompts(config, parts)
    if not prompts:
        raise UserError(f"split={config.split}: the run's corpora have no {config.split} dialogue with a reply")
    log.info("%s: %d replies of %d dialogues, checkpoint %s", folder, len(prompts), len(dialogues), checkpoint.name)
    key = _decoding_key(config, trained, parts, prompts, checkpoint)
    partial = PartialReplies(folder / "predictions" / f".{config.split}.partial.jsonl", key)
    raw = _decode(config, trained, parts, prompts, partial)
    extras = _samples(config, parts, prompts, dialogues, folder)
    predictions = [
        _prediction(trained, prompt, dialogues[_key(prompt)], text, extras.get(number, {}))
        for number, (prompt, text) in enumerate(zip(prompts, raw, strict=True))
    ]
    rows = score(predictions, config.score)
    path = folder / "metrics.json"
    older = [row for row in read_json(path) if row["split"] != config.split] if path.is_file() else []
    write_predictions(folder / "predictions" / f"{config.split}.jsonl", predictions)
    write_json_atomic(path, older + rows)
    partial.remove()
    for row in rows:
        if row["scenario"] == "all":
            low, high = row["ci95"]
            print(f"{row['metric']:<28} {row['value']:8.3f}   [{low:.3f}, {high:.3f}]   n={row['n']}")
    print(f"predictions: {folder / 'predictions' / (config.split + '.jsonl')}\nmetrics: {path}")
    print(f"next: omnichat report runs={folder.parent}")


def to_accelerator(model: OmniChat, trained: TrainRun) -> None:
    """Move the model to the GPU where there is one that the run may use; a quantised LLM is on its device already."""
    if trained.llm.quantize is not None:
        if model.fusion is not None:
            model.fusion.to(model.device)
    elif torch.cuda.is_available() and not trained.launch.cpu:
        model.to("cuda")


def _decode(
    config: EvaluateRun, trained: TrainRun, parts: Assembly, prompts: list[Prompt], partial: PartialReplies
) -> list[str]:
    """The replies of all prompts, those of an earlier call not decoded again."""
    if partial.done:
        log.info("%d of %d replies were decoded before", len(partial.done), len(prompts))
    with progress(len(prompts), "decode", unit="reply", initial=len(partial.done)) as bar, partial:

        def keep(replies: dict[int, str]) -> None:
            partial.add(replies)
            bar.update(len(replies))

        return generate_replies(
            parts.model,
            prompts,
            parts.chat,
            parts.features,
            end_of_turn_id(_first_item(parts, config.split)),
            max_new_tokens=config.max_new_tokens,
            batch_tokens=config.batch_tokens,
            precision=resolve_precision(trained.trainer.precision),
            done=partial.done,
            on_batch=keep,
        )


def _decoding_key(
    config: EvaluateRun, trained: TrainRun, parts: Assembly, prompts: list[Prompt], checkpoint: Path
) -> str:
    """Names everything that sets the replies: what the model is, what it is asked, and in whose company."""
    sets = {
        "version": __version__,
        "checkpoint": (checkpoint / MARKER).read_text(encoding="utf-8"),  # the hashes of all its files
        "llm": parts.llm_fingerprint,
        "experts": parts.expert_fingerprints,
        "trained": to_plain(trained),
        "data": [source.corpus.fingerprint() for source in parts.sources],
        "prompts": [[*_key(prompt), prompt.turn, prompt.item.sequence.ids] for prompt in prompts],
        "decoding": [config.max_new_tokens, config.batch_tokens, resolve_precision(trained.trainer.precision)],
    }
    return sha256_bytes(json.dumps(sets, sort_keys=True).encode())


def read_run_config(folder: Path) -> TrainRun:
    """The resolved config of a run folder."""
    path = folder / "config.yaml"
    if not path.is_file():
        raise UserError(f"run={folder}: no config.yaml there; name a folder that `omnichat train` made")
    try:
        tree = OmegaConf.load(path)
    except (YAMLError, OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML: {error}") from None
    return typed(tree, TrainRun)


def chosen_checkpoint(folder: Path, which: str) -> Path:
    """The checkpoint of a run that last, best or a step's name asks for. Raises UserError where there is none."""
    found = checkpoints(folder / "checkpoints")
    if not found:
        raise UserError(f"run={folder}: it has no complete checkpoint yet")
    if which == "last":
        return found[-1]
    if which == "best":
        best = read_json(found[-1] / "state.json")["best_step"]
        which = f"step-{best:06d}" if best is not None else found[-1].name
    by_name = {path.name: path for path in found}
    if which not in by_name:
        raise one_of("checkpoint", which, ("last", "best", *by_name))
    return by_name[which]


def _key(prompt: Prompt) -> tuple[str, str]:
    return prompt.item.source, prompt.item.dialogue


def _first_item(parts: Assembly, split: str) -> Any:
    return next(item for items in split_items(parts.sources, parts.chat, split).values() for item in items)


def _prompts(config: EvaluateRun, parts: Assembly) -> tuple[list[Prompt], dict[tuple[str, str], Dialogue]]:
    prompts: list[Prompt] = []
    dialogues: dict[tuple[str, str], Dialogue] = {}
    for source in parts.sources:
        items = split_items([source], parts.chat, config.split)[source.name]
        by_id = {dialogue.id: dialogue for dialogue in source.corpus.iterate(config.split)}
        for item in items[: config.limit]:
            replies = item.sequence.replies[-1:] if config.replies == "last" else item.sequence.replies
            prompts += [prompt_for(item, reply) for reply in replies]
            dialogues[source.name, item.dialogue] = by_id[item.dialogue]
    return prompts, dialogues


def _prediction(trained: TrainRun, prompt: Prompt, dialogue: Dialogue, raw: str, extras: dict[str, Any]) -> Prediction:
    style, words = parse_reply(raw)
    heard, reference = dialogue.turns[prompt.turn - 1], dialogue.turns[prompt.turn]
    return Prediction(
        id=f"{dialogue.id}#{prompt.turn}",
        dialogue=dialogue.id,
        turn=prompt.turn,
        source=prompt.item.source,
        kind=dialogue.kind,
        scenario=dialogue.scenario,
        split=dialogue.split,
        stand_in=dialogue.stand_in,
        history=tuple(Line(turn.speaker, turn.text) for turn in dialogue.turns[: prompt.turn - 1]),
        heard=Heard(heard.text, heard.style, dialogue.scene),
        variant_of=heard.variant_of,
        reference=PredictedReply(reference.text, reference.style),
        hypothesis=PredictedReply(words, style),
        raw=raw,
        input=trained.chat.input,
        **extras,
    )


@torch.no_grad()
def _samples(
    config: EvaluateRun,
    parts: Assembly,
    prompts: Sequence[Prompt],
    dialogues: dict[tuple[str, str], Dialogue],
    folder: Path,
) -> dict[int, dict[str, Any]]:
    """For the first few replies of each scenario: the heard turn's recording and the attention over its windows."""
    taken: Counter[str] = Counter()
    extras: dict[int, dict[str, Any]] = {}
    sources = {source.name: source for source in parts.sources}
    parts.model.eval()
    for number, prompt in enumerate(prompts):
        dialogue = dialogues[_key(prompt)]
        turn = dialogue.turns[prompt.turn - 1]
        if turn.audio is None or taken[dialogue.scenario] >= config.audio_samples:
            continue
        taken[dialogue.scenario] += 1
        kept = keep_recording(sources[prompt.item.source], dialogue, prompt.turn - 1, folder, "predictions")
        extras[number] = {"audio_file": kept}
        if parts.model.fusion is not None and Role.AUDIO in prompt.item.sequence.roles:
            batch = collate([prompt.item], parts.features).to(parts.model.device)
            fused = parts.model.embed(batch)[1]
            if fused is not None and fused.attention_BWE is not None:
                windows = prompt.item.sequence.clips[-1].slots // parts.model.fusion.queries
                mass = fused.attention_BWE[-1, :windows].float().tolist()  # the last clip of the one item
                extras[number] |= {
                    "attention": tuple(tuple(round(m, 4) for m in window) for window in mass),
                    "experts": tuple(parts.model.fusion.specs),
                    "window_sec": parts.model.fusion.window_sec,
                }
    return extras
