"""The index of a corpus: columns by which dialogues are found without reading any of them again.

A dialogue's number is its place in the corpus, split after split (train, dev, test), from 0.
"""

from __future__ import annotations

import functools
import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from omnichat.chat.browse.findings import (
    Findings,
    Reject,
    Row,
    clip_figures,
    clip_key,
    dialogue_figures,
    read_rejects,
    stem_id,
)
from omnichat.chat.browse.query import FACETS, LABELS, TURNS, Query
from omnichat.data.corpus import AnyCorpus
from omnichat.data.parquet_corpus import open_corpus
from omnichat.schema import SPLITS, Dialogue, Turn
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.log import get_logger
from omnichat.utils.packed import PackedFile, Recording
from omnichat.utils.progress import progress

log = get_logger(__name__)

MAX_FIGURES = 200  # columns; a file of another making could name any number
LOWEST, HIGHEST = ", lowest of a turn", ", highest of a turn"
_HEARD, _REPLY, _HISTORY = TURNS.index("heard"), TURNS.index("reply"), TURNS.index("history")


def heard_turn(dialogue: Dialogue) -> int:
    """Number of the last turn of A, which the model answers; that of the last turn where A says nothing."""
    numbers = [number for number, turn in enumerate(dialogue.turns) if turn.speaker == "A"]
    return numbers[-1] if numbers else len(dialogue.turns) - 1


@dataclass(frozen=True, slots=True)
class Columns:
    """N dialogues with M turns in all.

    Attributes:
        facets: name -> uint8 [N], place of the value in its choices.
        labels: name -> int8 [M], place of the value in its choices, -1 where a turn lacks the label.
        roles: int8 [M], place in TURNS.
        dialogue_of: int32 [M], number of the dialogue.
        texts: N texts in lower case, for the search.
        figures: name -> float32 [N], NaN where it was not measured.
        families: dialogues with the same words in other styles, by `variant_of`.
    """

    facets: Mapping[str, NDArray[np.uint8]]
    labels: Mapping[str, NDArray[np.int8]]
    roles: NDArray[np.int8]
    dialogue_of: NDArray[np.int32]
    texts: Sequence[str]
    figures: dict[str, NDArray[np.float32]]
    families: Mapping[str, Sequence[int]]


class CorpusIndex:
    """A corpus that can be searched. Nothing is changed once it is made, so threads may share it.

    Args:
        corpus: folder or Parquet export. Dialogues are read through `corpus.get` when they are looked at.
        bad: path of a recording -> what is wrong with it.

    Raises:
        UserError: a dialogue or a line of checks.jsonl or rejected.jsonl that is not what it should be.
    """

    def __init__(self, corpus: AnyCorpus, bad: Mapping[str, str] | None = None) -> None:
        self.corpus = corpus
        self.bad = dict(bad or {})
        self._ends = list(itertools.accumulate(corpus.count(split) for split in SPLITS))
        self.rejects: tuple[Reject, ...] = read_rejects(corpus.root)
        self.columns, members, clips = _read(corpus, len(self))
        gather = _Gather(self.columns.figures, members, clips, len(self))
        self.findings = Findings.read(corpus.root, gather.take)
        self._found = functools.lru_cache(maxsize=32)(self._search)

    @classmethod
    def open(cls, path: str | Path, verify: str = "exists") -> CorpusIndex:
        """Open a corpus. A recording that is not what the manifest states is noted, and its dialogue stays."""
        bad: dict[str, str] = {}
        corpus = open_corpus(path, verify, lambda file, _, error: bad.update({str(file): str(error)}))
        if bad:
            log.warning("%s: %d recordings are not there or not the manifest's; the page says which", path, len(bad))
        return cls(corpus, bad)

    def __len__(self) -> int:
        return self._ends[-1]

    def dialogue(self, number: int) -> Dialogue:
        """One dialogue. Raises UserError where there is no such number."""
        if not 0 <= number < len(self):
            raise UserError(f"there is no dialogue {number}; they are numbered from 0 to {len(self) - 1}")
        place = next(place for place, end in enumerate(self._ends) if number < end)
        before = self._ends[place - 1] if place else 0
        return self.corpus.get(SPLITS[place], number - before)

    def recording(self, number: int, turn: int, follow_links: bool = False) -> Recording:
        """Where the recording of a turn is.

        Args:
            follow_links: also where a link leads out of the corpus folder.

        Raises:
            UserError: no such dialogue, turn or recording, one that is bad, or a link that leads out of the folder.
        """
        dialogue = self.dialogue(number)
        if not 0 <= turn < len(dialogue.turns):
            raise UserError(f"dialogue {number} has {len(dialogue.turns)} turns, {turn} is none of them")
        return self._usable(dialogue.turns[turn], follow_links)

    def problem(self, turn: Turn, follow_links: bool = False) -> str | None:
        """Why the recording of a turn cannot be heard; None where it can."""
        try:
            self._usable(turn, follow_links)
        except UserError as error:
            return str(error)
        return None

    def _usable(self, turn: Turn, follow_links: bool) -> Recording:
        recording = self.corpus.path_of(turn)
        if reason := self.bad.get(str(recording)):
            raise UserError(reason)
        if isinstance(recording, PackedFile):
            return recording
        if not recording.is_file():
            raise UserError(f"{recording}: no such audio file")
        if not follow_links and not recording.resolve().is_relative_to(self.corpus.root.resolve()):
            raise UserError(f"{recording}: is a link out of the corpus; follow_links=true lets it be heard")
        return recording

    def present(self, name: str) -> list[str]:
        """The values of a facet or label that occur."""
        if name in FACETS:
            return [FACETS[name][code] for code in np.unique(self.columns.facets[name])]
        return [LABELS[name][code] for code in np.unique(self.columns.labels[name]) if code >= 0]

    def find(self, query: Query) -> NDArray[np.int64]:
        """Numbers of the dialogues that a query asks for, int64 [<= N], in its order.

        Raises:
            UserError: a figure that the corpus does not have.
        """
        return self._found(query)

    def _search(self, query: Query) -> NDArray[np.int64]:
        keep = np.ones(len(self), dtype=bool)
        for name, choices in FACETS.items():
            if (value := getattr(query, name)) is not None:
                keep &= self.columns.facets[name] == choices.index(value)
        keep &= self._with_labels(query)
        figure = self._figure(query.figure)
        if figure is not None and query.low is not None:
            keep &= figure >= query.low  # false for NaN
        if figure is not None and query.high is not None:
            keep &= figure <= query.high
        found = np.flatnonzero(keep)
        if terms := query.terms():
            texts = self.columns.texts
            found = np.array([n for n in found.tolist() if all(term in texts[n] for term in terms)], dtype=np.int64)
        if figure is not None and query.order != "corpus":
            values = figure[found] if query.order == "lowest" else -figure[found]
            found = found[np.argsort(values, kind="stable")]  # NaN last
        return found

    def _figure(self, name: str | None) -> NDArray[np.float32] | None:
        if name is None:
            return None
        if name not in self.columns.figures:
            raise one_of("figure", name, self.columns.figures)
        return self.columns.figures[name]

    def _with_labels(self, query: Query) -> NDArray[np.bool_]:
        """Which dialogues have a turn with all of the labels, bool [N]."""
        keep = np.ones(len(self), dtype=bool)
        asked = {name: value for name in LABELS if (value := getattr(query, name)) is not None}
        if not asked:
            return keep
        turns = np.ones(len(self.columns.roles), dtype=bool)
        if query.turn != "any":
            turns &= self.columns.roles == TURNS.index(query.turn)
        for name, value in asked.items():
            turns &= self.columns.labels[name] == LABELS[name].index(value)
        keep[:] = False
        keep[self.columns.dialogue_of[turns]] = True
        return keep


def _read(corpus: AnyCorpus, count: int) -> tuple[Columns, dict[str, list[int]], list[tuple[str, ...]]]:
    """Columns of all dialogues; their numbers by stem id; the clip keys of each."""
    facets = {name: np.zeros(count, dtype=np.uint8) for name in FACETS}
    labels: dict[str, list[int]] = {name: [] for name in LABELS}
    roles: list[int] = []
    owners: list[int] = []
    texts: list[str] = []
    figures = {name: np.full(count, np.nan, dtype=np.float32) for name in ("turns", "seconds")}
    members: dict[str, list[int]] = defaultdict(list)
    families: dict[str, list[int]] = defaultdict(list)
    clips: list[tuple[str, ...]] = []
    known: dict[tuple[str, ...], tuple[str, ...]] = {}  # one object for the many dialogues with the same keys
    with progress(count, f"reading {corpus.name}", unit=" dialogues") as bar:
        for number, dialogue in enumerate(itertools.chain.from_iterable(corpus.iterate(split) for split in SPLITS)):
            for name, choices in FACETS.items():
                facets[name][number] = choices.index(getattr(dialogue, name))
            heard = heard_turn(dialogue)
            for place, turn in enumerate(dialogue.turns):
                for name, choices in LABELS.items():
                    value = getattr(turn.style, name)
                    labels[name].append(-1 if value is None else choices.index(value))
                roles.append(_HEARD if place == heard else _REPLY if place > heard else _HISTORY)
                owners.append(number)
            texts.append(_searchable(dialogue))
            figures["turns"][number] = len(dialogue.turns)
            seconds = [turn.seconds for turn in dialogue.turns if turn.seconds is not None]
            figures["seconds"][number] = sum(seconds) if seconds else np.nan
            members[stem_id(dialogue)].append(number)
            for family in {turn.variant_of for turn in dialogue.turns} - {None}:
                families[str(family)].append(number)
            keys = tuple(key for turn in dialogue.turns if (key := clip_key(turn.audio)) is not None)
            clips.append(known.setdefault(keys, keys))
            bar.update()
    columns = Columns(
        facets=facets,
        labels={name: np.array(values, dtype=np.int8) for name, values in labels.items()},
        roles=np.array(roles, dtype=np.int8),
        dialogue_of=np.array(owners, dtype=np.int32),
        texts=texts,
        figures=figures,
        families=dict(families),
    )
    return columns, members, clips


def _searchable(dialogue: Dialogue) -> str:
    """What the words of a query are looked for in; a line break parts what no phrase may join."""
    parts = [turn.text for turn in dialogue.turns] + [dialogue.id, dialogue.topic or ""]
    parts += [said.text for turn in dialogue.turns for said in turn.backchannels]
    parts += [] if dialogue.scene is None else [dialogue.scene.caption]
    return "\n".join(" ".join(part.split()) for part in parts).lower()


class _Gather:
    """Takes the lines of checks.jsonl into the figures' columns."""

    def __init__(
        self,
        figures: dict[str, NDArray[np.float32]],
        members: Mapping[str, Sequence[int]],
        clips: Sequence[tuple[str, ...]],
        count: int,
    ) -> None:
        self.figures, self.members, self.clips, self.count = figures, members, clips, count

    def take(self, stem: str, row: Row) -> None:
        """Figures of a line's dialogue, and the extremes over the turns of each of its variants."""
        of_clip: dict[str, dict[str, float]] = {}
        whole = dialogue_figures(row)
        for number in self.members.get(stem, ()):
            for name, value in whole.items():
                self._set(name, number, value)
            extremes: dict[str, list[float]] = defaultdict(list)
            for key in self.clips[number]:
                if key not in of_clip:
                    of_clip[key] = clip_figures(row, key)
                for name, value in of_clip[key].items():
                    extremes[name].append(value)
            for name, values in extremes.items():
                self._set(name + LOWEST, number, min(values))
                self._set(name + HIGHEST, number, max(values))

    def _set(self, name: str, number: int, value: float) -> None:
        if name not in self.figures:
            if len(self.figures) >= MAX_FIGURES:
                return
            self.figures[name] = np.full(self.count, np.nan, dtype=np.float32)
        self.figures[name][number] = value
