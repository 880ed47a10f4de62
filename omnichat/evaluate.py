"""`omnichat evaluate`: a run folder -> predictions and metrics on held-out dialogues."""

from __future__ import annotations

import json
import os
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
from omnichat.decoding import STOPPED, decode_all, partial_path, partial_paths
from omnichat.evaluation.partial import PartialReplies
from omnichat.evaluation.predictions import prediction_of, write_predictions
from omnichat.evaluation.score import score
from omnichat.launch import EVALUATE, refuse_launcher, start
from omnichat.model.omnichat import OmniChat
from omnichat.prompt_sets import PromptSet, leaking, outside_sources, prompt_sets, without
from omnichat.run_folder import clear_requeue, write_requeue
from omnichat.text.chat import Role
from omnichat.training.checkpoint import MARKER, checkpoints, load_checkpoint
from omnichat.training.data import Source
from omnichat.training.identity import refuse_other_parts
from omnichat.training.liveness import SCORING
from omnichat.training.processes import Setup
from omnichat.training.samples import keep_recording
from omnichat.training.settings import resolve_precision
from omnichat.training.speed import SpeedConfig
from omnichat.training.trainer import Stopped
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.files import check_writable, read_json, sha256_bytes, write_json_atomic
from omnichat.utils.log import get_logger
from omnichat.utils.signals import answered

log = get_logger(__name__)
ABOUT = "about.json"  # beside the predictions: what each file was made of


def run(config: EvaluateRun) -> None:
    """Decode the replies of every set, keep them, score them; in one process or, with `launch`, in several.

    A SIGTERM or a kill leaves older predictions as they were; the replies decoded by then are kept, and the next call
    goes on from them, in as many processes as it likes.
    """
    refuse_launcher(EVALUATE)
    folder = Path(config.run)
    trained = read_run_config(folder)
    chosen_checkpoint(folder, config.checkpoint)
    check_writable(folder, "run")
    clear_requeue(folder, "evaluate")
    try:
        if config.launch.count == 1:
            evaluate(config, Setup())
        else:
            checked_sources(trained)
            outside_sources(config, trained)
            start(config, config.launch, folder / "launch" / "evaluate", EVALUATE)
    except Stopped as stopped:
        write_requeue(folder, "evaluate", stopped)
        raise


def evaluate(config: EvaluateRun, setup: Setup) -> None:
    """Evaluate in this process, one of `config.launch.count`: it decodes its share; the first one scores and writes."""

    def stop(which: signal.Signals) -> None:
        raise Stopped(STOPPED, None, which)

    try:
        with answered(stop):
            _evaluate(config, setup)
    except Stopped as stopped:
        setup.say_stopped(stopped.by)
        raise


def _evaluate(config: EvaluateRun, setup: Setup) -> None:
    folder = Path(config.run)
    trained, checkpoint = read_run_config(folder), chosen_checkpoint(folder, config.checkpoint)
    trained.trainer.speed = SpeedConfig()  # switches of training, which this machine may lack
    outside = outside_sources(config, trained)
    parts = assemble(trained, [*checked_sources(trained), *outside])
    load_trained(parts.model, checkpoint, {"experts": parts.expert_fingerprints, "llm": parts.llm_fingerprint})
    to_accelerator(parts.model, trained, config.launch.cpu)
    asked = prompt_sets(config, parts.sources, parts.chat)
    own = [source for source in parts.sources if source.name not in config.sets]
    rows = setup.main_says(lambda: leaking(config, asked, own))
    asked = [without(config, each, leaks) for each, leaks in zip(asked, rows, strict=True)]
    if setup.is_main:
        for each in asked:
            log.info("%s: %d replies", each.stem, len(each.prompts))
        log.info("%s, checkpoint %s", folder, checkpoint.name)
    partials = [
        PartialReplies(partial_path(folder, each, setup.rank), _decoding_key(config, trained, parts, each, checkpoint))
        for each in asked
    ]
    decoded = decode_all(config, trained, parts, asked, partials, setup)
    if not setup.is_main:
        return
    setup.progress.at(setup.progress.step, SCORING)
    for each, partial in zip(asked, partials, strict=True):
        raw = [partial.done[row] for row in range(len(each.prompts))]
        _finish(config, trained, parts, each, raw, checkpoint)
        for path in partial_paths(folder, each):
            path.unlink(missing_ok=True)
    print(decoded)
    print(f"metrics: {folder / 'metrics.json'}\nnext: omnichat report runs={folder.parent}")


def _finish(
    config: EvaluateRun, trained: TrainRun, parts: Assembly, asked: PromptSet, raw: Sequence[str], checkpoint: Path
) -> None:
    """Write a set's predictions, what they were made of, and its rows of metrics.json, where others stay."""
    folder = Path(config.run)
    extras = _samples(config, parts, asked)
    predictions = [
        prediction_of(
            asked.dialogue_of(prompt),
            prompt.turn,
            prompt.item.source,
            text,
            trained.chat.input,
            **extras.get(number, {}),
        )
        for number, (prompt, text) in enumerate(zip(asked.prompts, raw, strict=True))
    ]
    rows = score(predictions, config.score)
    if asked.name is not None:
        rows = [outside_row(row, asked.name) for row in rows]
    path, about = folder / "metrics.json", folder / "predictions" / ABOUT
    older = read_json(path) if path.is_file() else []
    facts = read_json(about) if about.is_file() else {}
    write_predictions(folder / "predictions" / f"{asked.stem}.jsonl", predictions)
    write_json_atomic(about, facts | {asked.stem: _facts(config, asked, checkpoint)})
    kept = [row for row in older if (row["split"], row.get("set")) != (asked.split, asked.name)]
    write_json_atomic(path, kept + rows)
    whole = "all" if asked.name is None else f"source:{asked.name}"
    for row in rows:
        if row["scenario"] == whole:
            low, high = row["ci95"]
            print(f"{row['metric']:<28} {row['value']:8.3f}   [{low:.3f}, {high:.3f}]   n={row['n']}")
    print(f"predictions: {folder / 'predictions' / (asked.stem + '.jsonl')}")


def outside_row(row: dict[str, Any], name: str) -> dict[str, Any]:
    """A row of metrics.json of a set from outside, which must not be taken for one of the run's own test set.

    `scenario` becomes `source:NAME` in place of "all", else `source:NAME/SCENARIO`; `set` is NAME.
    """
    inside = "" if row["scenario"] == "all" else f"/{row['scenario']}"
    return {**row, "scenario": f"source:{name}{inside}", "set": name}


def _facts(config: EvaluateRun, asked: PromptSet, checkpoint: Path) -> dict[str, Any]:
    return {
        "set": asked.name,
        "split": asked.split,
        "replies": len(asked.prompts),
        "dialogues": len({(prompt.item.source, prompt.item.dialogue) for prompt in asked.prompts}),
        "fingerprint": asked.fingerprint(),
        "sources": {s.name: {"path": str(s.corpus.root), "fingerprint": s.corpus.fingerprint()} for s in asked.sources},
        "leaks": {"replies": asked.leaks, "what": config.leaks},
        "checkpoint": checkpoint.name,
        "decoding": {name: getattr(config, name) for name in ("replies", "limit", "max_new_tokens", "batch_tokens")},
    }


def to_accelerator(model: OmniChat, trained: TrainRun, cpu: bool = False) -> None:
    """Move the model to this process's GPU where there is one that it may use; a quantised LLM is there already."""
    if trained.llm.quantize is not None:
        if model.fusion is not None:
            model.fusion.to(model.device)
    elif torch.cuda.is_available() and not (cpu or trained.launch.cpu):
        if (local := os.environ.get("LOCAL_RANK")) is None:
            model.to("cuda")
        else:
            model.to(f"cuda:{int(local) % torch.cuda.device_count()}")


def _decoding_key(config: EvaluateRun, trained: TrainRun, parts: Assembly, asked: PromptSet, checkpoint: Path) -> str:
    """Names everything that sets the replies: what the model is, what it is asked, and in whose company."""
    sets = {
        "version": __version__,
        "checkpoint": (checkpoint / MARKER).read_text(encoding="utf-8"),  # the hashes of all its files
        "llm": parts.llm_fingerprint,
        "experts": parts.expert_fingerprints,
        "trained": to_plain(trained),
        "data": [source.corpus.fingerprint() for source in asked.sources],
        "prompts": [
            [prompt.item.source, prompt.item.dialogue, prompt.turn, prompt.item.sequence.ids]
            for prompt in asked.prompts
        ],
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


def load_trained(model: OmniChat, checkpoint: Path, frozen: dict[str, Any]) -> dict[str, Any]:
    """Give a model the weights of a checkpoint, and return the checkpoint's identity.

    Raises:
        UserError: it is damaged, or was trained with other parts than those `frozen`; see `refuse_other_parts`.
    """
    trainables, _, saved = load_checkpoint(checkpoint)
    identity: dict[str, Any] = saved["identity"]
    refuse_other_parts(identity, frozen, checkpoint)
    model.load_trainable_state(trainables)
    return identity


@torch.no_grad()
def _samples(config: EvaluateRun, parts: Assembly, asked: PromptSet) -> dict[int, dict[str, Any]]:
    """For the first few replies of each scenario: the heard turn's recording and the attention over its windows."""
    taken: Counter[str] = Counter()
    extras: dict[int, dict[str, Any]] = {}
    sources: dict[str, Source] = {source.name: source for source in asked.sources}
    parts.model.eval()
    for number, prompt in enumerate(asked.prompts):
        dialogue = asked.dialogue_of(prompt)
        turn = dialogue.turns[prompt.turn - 1]
        if turn.audio is None or taken[dialogue.scenario] >= config.audio_samples:
            continue
        taken[dialogue.scenario] += 1
        kept = keep_recording(sources[prompt.item.source], dialogue, prompt.turn - 1, Path(config.run), "predictions")
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
