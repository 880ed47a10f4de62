"""Scripts from a file: written by people, by another project (VoxDialogue), or by a model elsewhere.

The plan of a corpus asks for styles, so that labels are balanced; a file has the styles that it has. An entry answers a
request if it is of its scenario, split and topic (where the request names one), has at least as many turns of history
(the last ones are taken), a reply for each emotion asked for, and, where there is a sound, replies that name it. Pitch
and speed of the current turn are then the plan's: they say how it is spoken, not what is said. `offers` lists what
the entries answer as they stand; the plan takes its turns and styles from there.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omnichat.schema import SPLITS, Style
from omnichat.synthesis.base import (
    Line,
    Rejected,
    Script,
    ScriptRequest,
    ScriptWriter,
    Sound,
    Variant,
    names_sound,
    script_problems,
)
from omnichat.synthesis.writers.script_entries import (
    SCENARIOS,
    BadEntry,
    Entry,
    raw_entries,
    read_entry,
    says_volume,
    whole_style,
)
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.files import sha256_file
from omnichat.utils.log import get_logger
from omnichat.utils.seeding import derive_seed

log = get_logger(__name__)

ON_BAD_ENTRY = ("raise", "skip")
_Key = tuple[Any, ...]


class ScriptFileWriter(ScriptWriter):
    """Gives the scripts of a file to requests, each at most once; the same requests in the same order get the same.

    Args:
        path: .jsonl or .json in one of the forms of script_entries.py.
        licence: of the texts; for the data card.
        scenario: of the entries that do not state their own: emotion, audio or music.
        on_bad_entry: what happens to an entry that is no script: "raise" an error naming it, or "skip" and count it.
        split_shares: split -> share of the topics whose entries state no split; an entry's split follows its topic.
        max_words: longest sentence.

    Raises:
        UserError: a file that cannot be read, no usable entry, or a bad one under "raise"; with line or entry.
    """

    def __init__(
        self,
        path: str,
        licence: str,
        scenario: str,
        on_bad_entry: str,
        split_shares: Mapping[str, float],
        max_words: int,
    ) -> None:
        if scenario not in SCENARIOS:
            raise one_of("writer.scenario", scenario, SCENARIOS)
        if on_bad_entry not in ON_BAD_ENTRY:
            raise one_of("writer.on_bad_entry", on_bad_entry, ON_BAD_ENTRY)
        for split, share in split_shares.items():
            if split not in SPLITS:
                raise one_of("writer.split_shares", split, SPLITS)
            if share < 0:
                raise UserError(f"writer.split_shares.{split} must be >= 0, got {share}")
        if abs(sum(split_shares.values()) - 1) > 1e-6:
            raise UserError(f"writer.split_shares must sum to 1, got {sum(split_shares.values()):g}")
        self.path, self.licence, self.max_words = Path(path).expanduser(), licence, max_words
        self.skipped: Counter[str] = Counter()
        self._shares = {split: float(split_shares.get(split, 0.0)) for split in SPLITS}
        self._entries = list(self._read(scenario, on_bad_entry == "skip"))
        if not self._entries:
            raise UserError(f"{self.path}: holds no usable script ({sum(self.skipped.values())} skipped)")
        if self.skipped:
            (reason, _), *_rest = self.skipped.most_common(1)
            log.warning("%s: %d entries skipped, most often: %s", self.path, sum(self.skipped.values()), reason)
        self._sha256 = sha256_file(self.path)
        self._index()
        self._used: set[int] = set()
        self._given: dict[_Key, Script | Rejected] = {}

    def write(self, request: ScriptRequest) -> Script:
        """See `ScriptWriter.write`."""
        given = self._give(request)
        if isinstance(given, Rejected):
            raise UserError(f"{self.path}: {given.reasons[0]}")
        return given

    def write_batch(self, requests: Sequence[ScriptRequest], store: Path | None) -> Iterator[Script | Rejected]:
        """See `ScriptWriter.write_batch`; nothing is kept in `store`, the file is there already."""
        for request in requests:
            yield self._give(request)

    def offers(self, scenario: str, split: str) -> list[ScriptRequest]:
        """See `ScriptWriter.offers`: what the entries answer as they stand, in the order of the file."""
        found = []
        for index, entry in enumerate(self._entries):
            if (entry.scenario, self._split(entry)) == (scenario, split):
                sound = None if entry.caption is None else Sound(entry.caption, entry.caption, entry.keywords, {})
                styles = tuple(whole_style(variant.style) for variant in entry.variants)
                seed = derive_seed(0, "script file", index)
                found.append(ScriptRequest(scenario, split, seed, len(entry.history), styles, sound, entry.topic))
        return found

    def describe(self) -> dict[str, Any]:
        """See `ScriptWriter.describe`."""
        return {
            "name": "script file",
            "sha256": self._sha256,
            "scripts": len(self._entries),
            "skipped": sum(self.skipped.values()),
            "split_shares": self._shares,
            "max_words": self.max_words,
            "reply_style": "as written in the file",
            "licence": self.licence,
        }

    def _read(self, scenario: str, skip: bool) -> Iterator[Entry]:
        raw = list(raw_entries(self.path))
        volume = False
        for where, value in raw:
            try:
                volume = volume or says_volume(value)
            except BadEntry as error:
                log.debug("%s: %s", where, error)  # told below, where the entry itself is read
        for where, value in raw:
            try:
                yield read_entry(where, value, scenario, volume)
            except BadEntry as error:
                if not skip:
                    raise UserError(f"{where}: {error}") from None
                self.skipped[str(error)] += 1

    def _split(self, entry: Entry) -> str:
        """The entry's own split, or the one that its topic falls into: a topic is never in two."""
        if entry.split is not None:
            return entry.split
        place, bound = derive_seed(0, "split", entry.topic.lower()) / 2**63, 0.0
        for split, share in self._shares.items():
            bound += share
            if place < bound:
                return split
        return max(self._shares, key=lambda split: self._shares[split])  # the sum fell short of 1 by rounding

    def _give(self, request: ScriptRequest) -> Script | Rejected:
        sound = request.sound.name if request.sound is not None else None
        key = (
            request.scenario,
            request.split,
            request.seed,
            request.history_turns,
            request.styles,
            sound,
            request.topic,
        )
        if key not in self._given:
            self._given[key] = self._choose(request)
        return self._given[key]

    def _choose(self, request: ScriptRequest) -> Script | Rejected:
        fits = False
        for index in self._candidates(request):
            if (script := self._fit(self._entries[index], request)) is None:
                continue
            fits = True
            if index not in self._used:
                self._used.add(index)
                problems = script_problems(script, request, self.max_words)
                return Rejected(tuple(problems)) if problems else script
        return Rejected(("every fitting script of the file is used" if fits else "no script of the file fits",))

    def _candidates(self, request: ScriptRequest) -> Iterator[int]:
        """Entries that may fit: those that do as they stand first, then the others, each from a place by the seed."""
        asked = [(request.scenario, request.split, style.emotion) for style in request.styles]
        exact = self._as_they_stand.get((request.scenario, request.split, request.history_turns, request.styles), [])
        rarest = min((self._by_emotion.get(key, []) for key in asked), key=len)
        for indices in (exact, rarest):
            start = derive_seed(request.seed, "script file") % max(1, len(indices))
            yield from indices[start:]
            yield from indices[:start]

    def _index(self) -> None:
        """Entries by what requests ask for, so that a file of many scripts is not read through for each."""
        self._as_they_stand: dict[_Key, list[int]] = {}
        self._by_emotion: dict[_Key, list[int]] = {}
        for index, entry in enumerate(self._entries):
            where = (entry.scenario, self._split(entry))
            styles = tuple(whole_style(variant.style) for variant in entry.variants)
            self._as_they_stand.setdefault((*where, len(entry.history), styles), []).append(index)
            for emotion in sorted({style.emotion or "" for style in styles}):
                self._by_emotion.setdefault((*where, emotion), []).append(index)
            self._by_emotion.setdefault((*where, None), []).append(index)

    def _fit(self, entry: Entry, request: ScriptRequest) -> Script | None:
        """The entry's script in the styles of the request, or None if it does not answer it."""
        if (entry.scenario, self._split(entry)) != (request.scenario, request.split):
            return None
        if (request.topic is not None and request.topic != entry.topic) or len(entry.history) < request.history_turns:
            return None
        left, variants = list(entry.variants), []
        for style in request.styles:
            same = [variant for variant in left if style.emotion in (None, whole_style(variant.style).emotion)]
            if not same:
                return None
            best = max(same, key=lambda variant: _agreement(variant.style, style))
            left.remove(best)
            variants.append(Variant(style, _whole_line(best.reply)))
        if request.sound is not None and not all(names_sound(v.reply.text, request.sound.keywords) for v in variants):
            return None
        history = entry.history[len(entry.history) - request.history_turns :]
        lines = tuple(_whole_line(line) for line in history)
        return Script(entry.topic, entry.scenario, lines, entry.current, tuple(variants), request.sound)


def _whole_line(line: Line) -> Line:
    return Line(line.speaker, line.text, whole_style(line.style))


def _agreement(one: Style, other: Style) -> int:
    one = whole_style(one)
    return (one.pitch == other.pitch) + (one.speed == other.speed)
