"""`omnichat evaluate`: a run folder -> predictions and metrics on held-out dialogues."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from yaml import YAMLError

from omnichat.assembly import Assembly, assemble, checked_sources
from omnichat.audio.io import load_audio, save_audio
from omnichat.config import EvaluateRun, TrainRun, typed
from omnichat.data.collate import collate
from omnichat.evaluation.predictions import Heard, Line, Prediction, write_predictions
from omnichat.evaluation.predictions import Reply as PredictedReply
from omnichat.evaluation.score import score
from omnichat.model.generation import Prompt, end_of_turn_id, generate_replies, prompt_for
from omnichat.schema import Dialogue
from omnichat.text.chat import Role
from omnichat.text.style_format import parse_reply
from omnichat.training.checkpoint import checkpoints, load_checkpoint, refuse_changes
from omnichat.training.data import split_items
from omnichat.training.trainer import resolve_precision
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.files import check_writable, read_json, write_json_atomic
from omnichat.utils.log import get_logger
from omnichat.utils.progress import progress

log = get_logger(__name__)


def run(config: EvaluateRun) -> None:
    """Decode the split's replies, keep them, score them."""
    folder = Path(config.run)
    trained = read_run_config(folder)
    checkpoint = _checkpoint(folder, config.checkpoint)
    check_writable(folder, "run")
    parts = assemble(trained, checked_sources(trained))
    trainables, _, saved = load_checkpoint(checkpoint)
    refuse_changes(
        {"experts": saved["identity"]["experts"], "llm": saved["identity"]["llm"]},
        {"experts": parts.expert_fingerprints, "llm": parts.llm_fingerprint},
        checkpoint,
    )
    parts.model.load_trainable_state(trainables)
    prompts, dialogues = _prompts(config, parts)
    if not prompts:
        raise UserError(f"split={config.split}: the run's corpora have no {config.split} dialogue with a reply")
    log.info("%s: %d replies of %d dialogues, checkpoint %s", folder, len(prompts), len(dialogues), checkpoint.name)
    bar = progress(len(prompts), "decode", unit="reply")
    raw = generate_replies(
        parts.model,
        prompts,
        parts.chat,
        parts.features,
        end_of_turn_id(_first_item(parts, config.split)),
        max_new_tokens=config.max_new_tokens,
        batch_tokens=config.batch_tokens,
        precision=resolve_precision(trained.trainer.precision),
        on_batch=bar.update,
    )
    bar.close()
    extras = _samples(config, parts, prompts, dialogues, folder)
    predictions = [
        _prediction(trained, prompt, dialogues[_key(prompt)], text, extras.get(number, {}))
        for number, (prompt, text) in enumerate(zip(prompts, raw, strict=True))
    ]
    write_predictions(folder / "predictions" / f"{config.split}.jsonl", predictions)
    rows = score(predictions, config.score)
    path = folder / "metrics.json"
    older = [row for row in read_json(path) if row["split"] != config.split] if path.is_file() else []
    write_json_atomic(path, older + rows)
    for row in rows:
        if row["scenario"] == "all":
            low, high = row["ci95"]
            print(f"{row['metric']:<28} {row['value']:8.3f}   [{low:.3f}, {high:.3f}]   n={row['n']}")
    print(f"predictions: {folder / 'predictions' / (config.split + '.jsonl')}\nmetrics: {path}")
    print(f"next: omnichat report runs={folder.parent}")


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


def _checkpoint(folder: Path, which: str) -> Path:
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
        by_id = {dialogue.id: dialogue for dialogue in source.corpus.dialogues}
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
    roots = {source.name: source.corpus for source in parts.sources}
    parts.model.eval()
    for number, prompt in enumerate(prompts):
        dialogue = dialogues[_key(prompt)]
        turn = dialogue.turns[prompt.turn - 1]
        if turn.audio is None or taken[dialogue.scenario] >= config.audio_samples:
            continue
        taken[dialogue.scenario] += 1
        name = f"{prompt.item.source}-{dialogue.id}-{prompt.turn - 1}".replace("/", "_")
        relative = Path("predictions") / "audio" / f"{name}.flac"
        save_audio(folder / relative, load_audio(roots[prompt.item.source].path_of(turn), 16000), 16000)
        extras[number] = {"audio_file": str(relative)}
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
