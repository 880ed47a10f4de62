"""Licences of every part of a saved model, and what follows from them together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import try_to_load_from_cache
from huggingface_hub.repocard import metadata_load

from omnichat.data.readers.base import card_facts
from omnichat.encoders.base import AudioEncoder
from omnichat.experiments.card.facts import without_paths
from omnichat.model.pretrained import OmniChatConfig
from omnichat.utils.assets import ASSETS
from omnichat.utils.errors import UserError
from omnichat.utils.parts import part_class

SEE = "see"  # how a licence begins that must be looked up elsewhere
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_NON_COMMERCIAL = re.compile(r"\bnc\b|non-?\s?commercial|research[\s-]only", re.IGNORECASE)
_ASSET_ON_HUB = {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"}  # what a packaged part was made of


@dataclass(frozen=True, slots=True)
class Licence:
    """One part: its role (code, model, llm, expert, data), its name for people, its licence, and where it lies."""

    role: str
    name: str
    licence: str
    place: str

    @property
    def non_commercial(self) -> bool:
        """Whether its licence, as it is written here, forbids commercial use."""
        return not self.unknown and _NON_COMMERCIAL.search(self.licence) is not None

    @property
    def unknown(self) -> bool:
        """Whether this list does not hold the licence itself."""
        return self.licence.startswith((SEE, "not stated"))


def is_local(path: str) -> bool:
    """Whether a path of the configuration leads to a file of this machine, and not to a hub or a packaged part."""
    if path.startswith("asset:"):
        return False
    return path.startswith(("/", "~", ".")) or "\\" in path or Path(path).exists() or not _HUB_ID.fullmatch(path)


def local_paths(config: OmniChatConfig) -> dict[str, str]:
    """Key -> path of the frozen parts that only this machine has."""
    named = {"llm.path": str((config.llm or {}).get("path"))}
    for name, node in (config.experts or {}).items():
        if isinstance(path := node.get("path"), str):
            named[f"experts.{name}.path"] = path
    return {key: path for key, path in named.items() if is_local(path)}


def place_of(path: str) -> str:
    """Where a frozen part is loaded from, in words that hold no path of this machine."""
    if path.startswith("asset:"):
        asset = ASSETS[path.removeprefix("asset:").partition("/")[0]]
        return f"{asset.what} (package {asset.requirement})"
    return f"{Path(path.rstrip('/')).name} (a file of its owner's)" if is_local(path) else path


def base_model(config: OmniChatConfig) -> str | None:
    """Hub id of the LLM; None for one that has none: random weights, a file of this machine."""
    llm = config.llm or {}
    path = str(llm.get("path"))
    if llm.get("random_size") is not None or is_local(path):
        return None
    return _ASSET_ON_HUB.get(path.removeprefix("asset:")) if path.startswith("asset:") else path


def part_licences(config: OmniChatConfig, version: str, own: str | None, merged: bool) -> list[Licence]:
    """Of the code, the saved weights, the LLM and every expert.

    Args:
        version: of omnichat.
        own: licence that the publisher gives the saved weights; None: not chosen.
        merged: whether the LLM's own weights are in the folder, too.
    """
    rows = [
        Licence("code", f"omnichat {version}", "Apache-2.0", "installed"),
        Licence("model", "fusion and LoRA weights", own or "not stated by who trained them", "model.safetensors"),
        _llm(config.llm or {}, merged),
    ]
    for name, node in (config.experts or {}).items():
        rows.append(_expert(name, node))
    return rows


def _llm(llm: Mapping[str, Any], merged: bool) -> Licence:
    path, revision = str(llm.get("path")), llm.get("revision")
    place = "loaded from where config.json says" + ("; its weights, with LoRA in them, also in llm/" if merged else "")
    if llm.get("random_size") is not None:
        text = f"weights random, made by omnichat (Apache-2.0); tokenizer {_stated(path, revision)}"
        return Licence("llm", f"small random LLM on the tokenizer of {place_of(path)}", text, place)
    return Licence("llm", place_of(path), _stated(path, revision), place)


def _expert(name: str, node: Mapping[str, Any]) -> Licence:
    cls: type[AudioEncoder] = part_class(node, f"experts.{name}", AudioEncoder)
    kind = cls.__name__.removesuffix("Encoder")
    path = node.get("path")
    if path is None:
        what = "random weights" if "path" in node else "no weights"
        return Licence("expert", f"{name}: {kind}, {what}", "made by omnichat (Apache-2.0)", "made anew on loading")
    published = cls.licence if cls.licence != AudioEncoder.licence else _elsewhere(path)
    stated = _at_hand(path, None) or published  # a card of these very weights knows better than their kind
    return Licence("expert", f"{name}: {kind}, {place_of(path)}", stated, "loaded from where config.json says")


def _stated(path: str, revision: str | None) -> str:
    return _at_hand(path, revision) or _elsewhere(path)


def _elsewhere(path: str) -> str:
    return f"{SEE} where it comes from" if is_local(path) else f"{SEE} https://huggingface.co/{path}"


def _at_hand(path: str, revision: str | None) -> str | None:
    """The licence of a packaged part, or of a model by its own card, where that lies on this machine."""
    if path.startswith("asset:"):
        return ASSETS[path.removeprefix("asset:").partition("/")[0]].licence
    if is_local(path):
        card = Path(path).expanduser() / "README.md"
    else:
        cached = try_to_load_from_cache(path, "README.md", revision=revision)
        card = Path(cached if isinstance(cached, str) else "")
    return _on_card(card) if card.is_file() else None


def _on_card(card: Path) -> str | None:
    try:
        header = metadata_load(card) or {}
    except (OSError, ValueError, yaml.YAMLError):  # somebody else's file: then it says nothing
        return None
    licence = header.get("license_name") if header.get("license") == "other" else header.get("license")
    texts = licence if isinstance(licence, list) else [licence]
    return ", ".join(str(text) for text in texts if text) or None


def data_licences(sources: Iterable[Mapping[str, Any]]) -> list[Licence]:
    """Of the corpora, by their data cards where their folders are still there.

    Args:
        sources: of data.json, with their paths.
    """
    rows = []
    for source in sources:
        text = f"{SEE} the corpus's own card"
        if source.get("path"):
            try:
                found = card_facts(Path(str(source["path"])).expanduser() / "card.json")[1]
            except UserError:  # a damaged card: it says nothing
                found = "not stated"
            text = found if found != "not stated" else text
        rows.append(Licence("data", str(source["name"]), str(without_paths(text)), "not included"))
    return rows


def restriction(rows: Sequence[Licence]) -> str:
    """What the parts together allow, in one sentence."""
    bound = [row for row in rows if row.non_commercial]
    unknown = ", ".join(dict.fromkeys(row.name for row in rows if row.unknown))
    if bound:
        reasons = [
            f"{'it was trained on' if row.role == 'data' else 'it needs'} {row.name} ({row.licence})" for row in bound
        ]
        return f"Non-commercial use only: {', and '.join(reasons)}."
    if unknown:
        return (
            "No licence that is stated here is limited to non-commercial use; this list does not state those of "
            f"{unknown}: read them before you use the model."
        )
    return "No licence of its parts is limited to non-commercial use; each asks for what its text says."


def hub_licence(rows: Sequence[Licence], own: str | None) -> str:
    """The id that the hub files the model under."""
    if own is not None:
        return own
    bound = [row.licence.lower() for row in rows if row.non_commercial]
    return "cc-by-nc-4.0" if bound and all("cc-by-nc-4.0" in text for text in bound) else "other"
