"""omnichat's own corpus folder as a source: to make a corpus of another rate, or of some splits, out of it."""

from __future__ import annotations

from collections.abc import Iterator

from omnichat.data.corpus import Corpus
from omnichat.data.readers.base import Reader
from omnichat.schema import Dialogue
from omnichat.utils.files import read_json


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
        card = self.root / "card.json"
        licences = read_json(card)["licences"] if card.is_file() else []
        self.licence = "; ".join(f"{row['part']}: {row['licence']}" for row in licences) or "not stated"

    def dialogues(self) -> Iterator[Dialogue]:
        """Yield the dialogues in the order of the manifest."""
        self.issues = []
        yield from self.corpus.dialogues
