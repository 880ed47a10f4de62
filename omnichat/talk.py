"""A run folder, an exported folder or a hub id -> a model to talk to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import torch

from omnichat.assembly import build_experts, build_settled, check_parts, settled_fusion
from omnichat.chat.base import Talker
from omnichat.chat_config import TalkerConfig
from omnichat.config import TrainRun
from omnichat.encoders.base import AudioEncoder
from omnichat.encoders.whisper_asr import RATE_HZ, WhisperTranscriber
from omnichat.encoders.whisper_files import find_whisper
from omnichat.evaluate import chosen_checkpoint, load_trained, read_run_config
from omnichat.model.llm import check_path, load_llm, weights_fingerprint
from omnichat.model.omnichat import OmniChat
from omnichat.model.pretrained import OmniChatConfig, OmniChatForConditionalGeneration, OmniChatProcessor
from omnichat.model.pretrained.conversation import Sound
from omnichat.model.pretrained.parts import Parts
from omnichat.training.settings import resolve_precision
from omnichat.utils.devices import resolve_device
from omnichat.utils.errors import UserError
from omnichat.utils.files import read_json

_ASR_TOKENS = 220  # longest transcript of a turn


class Settings(Protocol):
    """What the verbs that talk have in common.

    Attributes:
        checkpoint: of a run: last | best | step-NNNNNN. device: auto | cpu | cuda | cuda:N.
        precision: auto (as trained) | fp32 | bf16.
        recogniser: weights of a Whisper, which hears the words for a model that reads them; None: they must be given.
    """

    checkpoint: str
    device: str
    precision: str
    recogniser: str | None


def open_talker(path: str, settings: Settings | None = None) -> Talker:
    """Load a model to talk to, in eval mode.

    Args:
        path: folder of a run, folder of a saved model, or hub id of one.
        settings: None: the last checkpoint, as trained, on a GPU if there is one.

    Raises:
        UserError: nothing loadable there, or other frozen parts than those it was trained with.
    """
    settings = settings or TalkerConfig(run=path)
    checkpoint, precision, recogniser = settings.checkpoint, settings.precision, settings.recogniser
    place, folder = resolve_device(settings.device, "device"), Path(path).expanduser()
    if (folder / "config.yaml").is_file():
        trained = read_run_config(folder)
        step = chosen_checkpoint(folder, checkpoint)
        model, processor = model_of_run(trained, step, None if precision == "auto" else precision)
        model.config.facts = facts_of_run(folder, trained, step)
        name = folder.name
    else:
        model, processor = _saved(path, precision)
        name = folder.name if folder.is_dir() else path
    transcribe = None if recogniser is None else _transcriber(recogniser)
    torch.nn.Module.to(model, torch.device(place))
    return Talker(model, processor, name, dict(model.config.facts or {}), transcribe)


def model_of_run(
    trained: TrainRun, checkpoint: Path, precision: str | None = None
) -> tuple[OmniChatForConditionalGeneration, OmniChatProcessor]:
    """The trained model of a checkpoint and its processor, on the CPU; no corpus is opened.

    Raises:
        UserError: a part that is missing, or another one than the checkpoint was made with.
    """
    check_parts(trained)
    check_path(trained.llm)
    as_trained = resolve_precision(trained.trainer.precision)
    hears = trained.chat.hears
    experts = build_experts(trained.experts) if hears else {}
    dtype = torch.bfloat16 if (precision or as_trained) == "bf16" else torch.float32
    llm, tokenizer = load_llm(trained.llm, dtype, trained.seed)
    settled = settled_fusion(trained, experts, llm) if hears else None
    model = OmniChat(llm, build_settled(trained, *settled) if settled is not None else None)
    frozen: dict[str, Any] = {"experts": {name: expert.fingerprint() for name, expert in experts.items()}}
    if precision in (None, as_trained):  # else the LLM's weights may be rounded otherwise
        frozen["llm"] = weights_fingerprint(llm)
    identity = load_trained(model, checkpoint, frozen)
    config = saved_config(trained, experts, settled[0] if settled is not None else None, llm, as_trained)
    config.fingerprints = {"experts": identity["experts"], "llm": identity["llm"]}
    processor = OmniChatProcessor(config, tokenizer)
    config.end_token_id = processor.end_id
    return OmniChatForConditionalGeneration(config, Parts(model, experts, tokenizer), precision), processor


def saved_config(
    trained: TrainRun,
    experts: dict[str, AudioEncoder],
    fusion: dict[str, Any] | None,
    llm: Any,
    precision: str,
) -> OmniChatConfig:
    """What `config.json` says of a run's model, but for fingerprints and `end_token_id`; `fusion` is its node with
    settled sizes."""
    return OmniChatConfig(
        llm=asdict(trained.llm),
        experts={name: dict(trained.experts[name]) for name in experts},
        fusion=fusion,
        specs={name: asdict(expert.spec) | {"sample_rate": expert.sample_rate} for name, expert in experts.items()},
        out_width=int(llm.get_input_embeddings().weight.shape[1]),
        chat=asdict(trained.chat),
        precision=precision,
        feature_dtype=trained.cache.dtype,
        seed=trained.seed,
    )


def facts_of_run(folder: Path, trained: TrainRun, checkpoint: Path) -> dict[str, Any]:
    """What a run says of itself, as far as its files are there: for pages and model cards."""
    facts: dict[str, Any] = {
        "run": folder.name,
        "checkpoint": checkpoint.name,
        "input": trained.chat.input,
        "alpha": trained.mixture.alpha,
        "seed": trained.seed,
    }
    for name in ("data", "run", "metrics"):
        if (path := folder / f"{name}.json").is_file():
            facts[f"{name}.json"] = read_json(path)
    return facts


def _saved(path: str, precision: str) -> tuple[OmniChatForConditionalGeneration, OmniChatProcessor]:
    folder = Path(path).expanduser()
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UserError(
            f"run={path}: neither a run folder (config.yaml) nor a saved model (config.json); "
            "name a folder that `omnichat train` or `omnichat export` made"
        )
    if not folder.is_dir() and (folder.is_absolute() or path.count("/") > 1 or path.startswith(".")):
        raise UserError(f"run={path}: no such folder")
    where: str = str(folder) if folder.is_dir() else path
    try:
        model = OmniChatForConditionalGeneration.from_pretrained(where, dtype=precision)
        return model, OmniChatProcessor.from_pretrained(where)
    except (OSError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"run={path}: {str(error).strip().splitlines()[0]}") from None


def _transcriber(path: str) -> Callable[[Sound], str]:
    recogniser = WhisperTranscriber(find_whisper(path), _ASR_TOKENS)

    def transcribe(sound: Sound) -> str:
        return recogniser.transcribe_long([sound.at(RATE_HZ).numpy()], 1)[0]

    return transcribe
