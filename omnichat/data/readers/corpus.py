"""omnichat's own corpus folder as a source: to make a corpus of another rate, or of some splits, out of it."""

from __future__ import annotations

from collections.abc import Iterator

from omnichat.data.corpus import Corpus
from omnichat.data.readers.base import Reader, card_facts
from omnichat.schema import Dialogue


class CorpusFolder(Reader):
    """Reader of a corpus folder; names, splits and styles stay as they are.

    Args:
        path: the folder with manifest.jsonl.
        verify: how the recordings are checked against the manifest: exists, fast (headers) or full (hashes).
    """

    def __init__(self, path: str, verify: str = "fast") -> None:
        super().__init__(path)
        self.corpus = Corpus.load(self.root, verify)
        self.name = self.corpus.name
        self.kind = self.corpus.dialogues[0].kind
        self.licence = card_facts(self.root / "card.json")[1]

    def dialogues(self) -> Iterator[Dialogue]:
        """Yield the dialogues in the order of the manifest."""
        self.issues = []
        yield from self.corpus.dialogues
