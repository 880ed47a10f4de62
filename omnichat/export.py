"""`omnichat export`: a run folder -> a folder that others load, with its model card; and onto the hub."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

from omnichat import __version__
from omnichat.config import TrainRun
from omnichat.data.hub import login, upload
from omnichat.evaluate import chosen_checkpoint, read_run_config
from omnichat.experiments.card.facts import Measured, measured, public_facts
from omnichat.experiments.card.licences import Licence, data_licences, local_paths, part_licences
from omnichat.experiments.card.page import Card, model_card
from omnichat.experiments.runs import Run, load_run
from omnichat.export_config import ExportRun
from omnichat.model.llm import DTYPES
from omnichat.model.pretrained import OmniChatConfig
from omnichat.model.pretrained.merging import PROBE_TOKENS, Merged, write_merged
from omnichat.talk import facts_of_run, model_of_run
from omnichat.utils.errors import UserError
from omnichat.utils.files import check_writable, read_json, replace_folder, write_text_atomic

MERGED = "llm"  # folder of the merged LLM inside an export
_REPLACED = [f"{MERGED}/*"]  # on the hub: what an older form may have and a newer one lacks


def run(config: ExportRun) -> None:
    """Write the folder, whole or not at all, and push it if asked to.

    Raises:
        UserError: no such checkpoint, a place that is taken, parts that are missing or cannot be merged, a hub that
            refuses.
    """
    folder, out = Path(config.run).expanduser(), Path(config.out).expanduser()
    trained = read_run_config(folder)
    checkpoint = chosen_checkpoint(folder, config.checkpoint)
    check_place(out, config.overwrite)
    check_writable(out, "out")
    if config.merge:
        check_mergeable(trained)
    check_elsewhere(config, trained)
    told = load_run(folder)
    figures = measured(told, checkpoint.name)
    token = login("leave push out to write the folder only") if config.push is not None and not config.dry_run else None

    model, processor = model_of_run(trained, checkpoint)
    settled = processor.config = model.config
    settled.find_elsewhere(config.llm_path, config.expert_paths)
    settled.facts = public_facts(facts_of_run(folder, trained, checkpoint), figures.rows)
    work = out.with_name(f".{out.name}.{uuid.uuid4().hex[:8]}.partial")
    try:
        model.save_pretrained(work)
        processor.save_pretrained(work)
        merged = None
        if config.merge:
            dtype = DTYPES.get(config.merge_dtype)
            merged = write_merged(model.model.llm, processor.tokenizer, work / MERGED, dtype)
        card = card_of(config, told, settled, checkpoint.name, figures, merged)
        write_text_atomic(work / "README.md", model_card(told, card))
        replace_folder(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    _say(config, folder, out, checkpoint.name, settled, figures, merged, card.licences)
    if config.push is not None:
        _push(config, out, token)
    print(f"next: omnichat chat run={out}")


def check_place(out: Path, overwrite: bool) -> None:
    """Raise UserError unless `out` is free, or holds an export that may be replaced."""
    if not out.name or out.name == "..":
        raise UserError(f"out={out}: give the folder a name of its own, such as exports/speech")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not out.is_dir():
        raise UserError(f"out={out}: there is a file of that name")
    if not _is_export(out):
        raise UserError(f"out={out}: the folder holds other things than an export; name a new one")
    if not overwrite:
        raise UserError(f"out={out}: there is an export already; overwrite=true replaces it")


def _is_export(folder: Path) -> bool:
    path = folder / "config.json"
    value = read_json(path) if path.is_file() else None
    return isinstance(value, dict) and value.get("model_type") == OmniChatConfig.model_type


def check_mergeable(trained: TrainRun) -> None:
    """Raise UserError for an LLM whose weights LoRA cannot be added to."""
    if trained.llm.quantize is not None:
        raise UserError(
            f"merge=true: llm.quantize={trained.llm.quantize} keeps the LLM's matrices in a few bits, which LoRA "
            "cannot be added to without loss; leave merge out: the export then brings its LoRA along"
        )


def check_elsewhere(config: ExportRun, trained: TrainRun) -> None:
    """Raise UserError for a place of a frozen part that cannot be, and where paths of this machine would be shown to
    everybody, who could not load from them either."""
    experts = {name: dict(node) for name, node in trained.experts.items()} if trained.chat.hears else {}
    saved = OmniChatConfig(llm=asdict(trained.llm), experts=experts)
    saved.find_elsewhere(config.llm_path, config.expert_paths)
    local = local_paths(saved)
    if config.push is not None and not config.private and local:
        key = next(iter(local))
        raise UserError(
            f"push with private=false: {key}={local[key]!r} is a path of this machine; give {_elsewhere(key)}, where "
            "others find the same weights"
        )


def _elsewhere(key: str) -> str:
    """The setting that replaces the path of a frozen part, `llm.path` or `experts.NAME.path`."""
    if key == "llm.path":
        return "llm_path=ORGANISATION/NAME"
    return f"+expert_paths.{key.split('.')[1]}=ORGANISATION/NAME"


def card_of(
    config: ExportRun, told: Run, saved: OmniChatConfig, checkpoint: str, figures: Measured, merged: Merged | None
) -> Card:
    """What the card is made of."""
    licences = part_licences(saved, __version__, config.licence, merged is not None) + data_licences(told.sources)
    return Card(
        name=config.push.partition("/")[2] if config.push is not None else Path(config.out).name,
        config=saved,
        checkpoint=checkpoint,
        figures=figures,
        licences=licences,
        version=__version__,
        own=config.licence,
        merged=merged,
        repo=config.push,
        revision=config.revision,
        languages=config.languages,
        datasets=config.datasets,
    )


def _say(
    config: ExportRun,
    folder: Path,
    out: Path,
    checkpoint: str,
    saved: OmniChatConfig,
    figures: Measured,
    merged: Merged | None,
    licences: Sequence[Licence],
) -> None:
    size = (out / "model.safetensors").stat().st_size
    print(
        f"{out}: {checkpoint} of {folder}, {megabytes(size)} of trained weights; the frozen parts stay where they are"
    )
    for key, path in local_paths(saved).items():
        print(
            f"{key}={path} is a path of this machine and stands in config.json: with {_elsewhere(key)} others can load "
            "the model"
        )
    if merged is not None:
        _say_merged(out / MERGED, merged, next(row for row in licences if row.role == "llm"))
    for note in figures.notes:
        print(f"note: {note}")
    if not figures.rows:
        print(
            f"note: omnichat evaluate run={folder} checkpoint={checkpoint}, then overwrite=true, fills in the results"
        )
    print(f"model card: {out / 'README.md'}")


def _say_merged(folder: Path, merged: Merged, licence: Licence) -> None:
    size = sum(size for path, size in files_of(folder) if path.endswith(".safetensors"))
    print(
        f"{folder}: LoRA merged, {merged.dtype}, {megabytes(size)}; on {PROBE_TOKENS} probe tokens its logits differ "
        f"from LoRA's by {merged.saved:.2g} (relative L2; one logit by {merged.largest:.2g} at most; before rounding "
        f"{merged.exact:.2g}), LoRA moves them by {merged.moved:.2g}; same likeliest token at {merged.agree:.0%}"
    )
    if merged.rounded_away:
        print(f"note: rounding to {merged.dtype} is not small beside what LoRA does; merge_dtype=float32 keeps it all")
    print(f"note: {folder} holds the LLM's own weights, too: pass it on as its licence allows ({licence.licence})")


def _push(config: ExportRun, out: Path, token: str | None) -> None:
    assert config.push is not None
    where = config.push if config.revision is None else f"{config.push}, revision {config.revision}"
    kind = "private" if config.private else "public"
    if config.dry_run:
        for path, size in files_of(out):
            print(f"would upload {path}  {megabytes(size)}")
        print(f"to {where} ({kind}); nothing was uploaded")
        return
    assert token is not None
    address = upload(
        out,
        config.push,
        "model",
        token=token,
        private=config.private,
        message=f"Add {out.name} with its model card",
        delete=_REPLACED,
        revision=config.revision,
    )
    print(f"{address} ({kind})")


def files_of(folder: Path) -> Iterator[tuple[str, int]]:
    """(path inside, bytes) of every file of a folder, in order."""
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path.stat().st_size


def megabytes(size: int) -> str:
    """A number of bytes for people."""
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size / 1e3:.1f} kB"
