"""Which scripts are too much like others of the corpus to stand beside them."""

from __future__ import annotations

from omnichat.synthesis.base import Script


class SeenScripts:
    """The scripts that a corpus has so far.

    Args:
        threshold: highest similarity of two scripts. ngram: words in an n-gram.
    """

    def __init__(self, threshold: float, ngram: int) -> None:
        self.threshold = threshold
        self.ngram = ngram
        self._keys: set[str] = set()
        self._split_of: dict[str, str] = {}

    def reason(self, script: Script, split: str) -> str | None:
        """Why a script may not be added to `split`; None = it may."""
        if "\n".join(script.sentences()) in self._keys:
            return "duplicate script"
        if any(self._split_of.get(sentence.lower(), split) != split for sentence in script.sentences()):
            return "a sentence of another split"
        return None

    def add(self, script: Script, split: str) -> None:
        """Take a script into the corpus."""
        self._keys.add("\n".join(script.sentences()))
        for sentence in script.sentences():
            self._split_of.setdefault(sentence.lower(), split)
