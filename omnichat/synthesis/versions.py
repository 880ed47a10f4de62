"""Versions of everything that makes a corpus."""

from __future__ import annotations

from importlib import metadata

import omnichat

_PACKAGES = (
    *("piper-tts", "praat-parselmouth", "onnxruntime", "openai-whisper", "torch", "torchaudio", "transformers"),
    *("numpy", "scipy", "soundfile", "pyloudnorm", "jiwer"),
)


def versions() -> dict[str, str]:
    """{package: version}."""
    found = {"omnichat": omnichat.__version__}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found
