"""Where a causal language model lies: a folder, a hub id, a GGUF file or the packaged SmolLM2.

GGUF files are converted once into the user's cache, to what transformers loads fast.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from omnichat.utils.assets import ASSETS, cache_folder, resolve_path
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.files import replace_folder, sha256_file
from omnichat.utils.log import get_logger

log = get_logger(__name__)


def local_llm(path: str) -> str:
    """Return what from_pretrained takes for a config path: GGUF files are converted once into the user's cache."""
    if path.startswith("asset:"):
        folder = resolve_path(path)
        files = sorted(folder.glob("*.gguf")) if folder.is_dir() else [folder]
        return str(convert_gguf(files[0]))
    local = Path(path).expanduser()
    if local.suffix == ".gguf":
        return str(convert_gguf(local))
    return str(local) if local.exists() else path


def check_llm_path(key: str, path: str) -> None:
    """Raise UserError, naming the config key, if `path` cannot be a model: all that can be told without loading it."""
    local = Path(path).expanduser()
    if path.startswith("asset:"):
        if (name := path.removeprefix("asset:").partition("/")[0]) not in ASSETS:
            raise one_of(f"{key}: asset", name, ASSETS)
    elif local.suffix == ".gguf":
        if not local.is_file():
            raise UserError(f"{key}={path!r}: no such file")
    elif local.is_dir():
        if not (local / "config.json").is_file():
            raise UserError(f"{key}={path!r}: the folder has no config.json")
    elif local.exists():
        raise UserError(f"{key}={path!r}: a file that is not .gguf; name a folder, a .gguf file or a hub id")
    elif path.startswith((".", "/", "~")) or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path):
        raise UserError(f"{key}={path!r}: no such folder")


def convert_gguf(file: Path) -> Path:
    """Dequantise a GGUF file into a safetensors folder (bfloat16), once; later calls return the cached folder."""
    key = f"{file.stem}-{sha256_file(file)[:12]}"
    folder = cache_folder() / "converted" / key
    if folder.is_dir():
        return folder
    log.info("converting %s to safetensors (once)", file.name)
    folder.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    quantised = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    # A model that came from GGUF refuses save_pretrained, so its weights move into a fresh one.
    config = quantised.config
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    fresh = AutoModelForCausalLM.from_config(config)
    fresh.load_state_dict(quantised.state_dict(), strict=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".convert-") as scratch:
        target = Path(scratch) / "model"
        fresh.to(torch.bfloat16).save_pretrained(target)
        tokenizer.save_pretrained(target)
        if not folder.is_dir():
            replace_folder(target, folder)
    return folder
