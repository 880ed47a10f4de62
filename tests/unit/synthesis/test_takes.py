"""Takes: only the turns at fault are spoken and heard again, and a corpus made so is the same however it was cut up."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from omnichat.data.corpus import Corpus
from omnichat.schema import Style
from omnichat.synthesis import stem
from omnichat.synthesis.base import ClipFailed, Utterance
from omnichat.synthesis.checks.base import Check, Clip, Finding, lowest
from omnichat.synthesis.checks.signal import SignalCheck
from omnichat.synthesis.checks.speakers import SpeakerCheck
from omnichat.synthesis.checks.suite import CheckSuite
from omnichat.synthesis.checks.words import WINDOW_SEC
from omnichat.synthesis.takes import Judged, Take, judge
from omnichat.utils.errors import UserError
from omnichat.utils.files import read_json, read_jsonl, sha256_bytes
from tests.helpers.speaking import RATE, STEP, Ear
from tests.helpers.tones import ToneVoice
from tests.unit.synthesis.test_pipeline import files, sounds, start  # noqa: F401  (fixtures)

TEXTS = ("One line of words.", "Two are better.", "Now the words that stay.", "A reply for you.", "Another reply.")
LINES = {"h0": ("A", 0), "h1": ("B", 1), "u0": ("A", 2), "r0": ("B", 3), "u1": ("A", 2), "r1": ("B", 4)}


def clip(key: str, take: int = 0) -> Clip:
    """A clip as `Ear` hears it; its samples tell its take."""
    voice, number = LINES[key]
    wave = np.full(STEP * (100 + number), 0.1 + 0.01 * take, dtype=np.float32)
    return Clip(wave, RATE, TEXTS[number], voice, Style(emotion="sad" if key[1] == "1" else "happy"))


class Fussy(Check):
    """Rejects the turns in `faults` until each was spoken as often as it says; turns named in `also` are suspected too.

    `stretch`: what it asks for. It notes which clips it was shown as new.
    """

    name = "fussy"

    def __init__(self, faults: dict[str, int], stretch: float = 1.0, blind: bool = False) -> None:
        self.faults, self.stretch, self.blind = faults, stretch, blind
        self.fresh: list[Sequence[int]] = []

    def examine(self, clips: Sequence[Clip]) -> Finding:
        takes = [round(100 * (float(one.wave_N[0]) - 0.1)) for one in clips]
        bad = [takes[i] < self.faults.get(key, 0) for i, key in enumerate(LINES)]
        return Finding(["a turn is not to its taste"] if any(bad) else [], [{"bad": one} for one in bad])

    def examine_again(self, clips: Sequence[Clip], before: Finding, fresh: Sequence[int]) -> Finding:
        self.fresh.append(fresh)
        return self.examine(clips)

    def suspects(self, finding: Finding) -> dict[int, float] | None:
        return None if self.blind else {i: self.stretch for i, one in enumerate(finding.clips) if one["bad"]}

    def thresholds(self) -> dict[str, Any]:
        return {}

    def summarise(self, findings: Sequence[Finding]) -> dict[str, Any]:
        return {}


def judged(check: Check, asked: list[list[str]], fails: Sequence[int] = (), **suite: Any) -> Judged:
    def speak(take: Take, number: int) -> dict[str, Clip]:
        asked.append(list(take.turns))
        if number in fails:
            raise ClipFailed("the voice gave silence")
        return {key: clip(key, number) for key in take.turns}

    first = {key: clip(key) for key in LINES}
    found = judge(CheckSuite({check.name: check}, **suite), first, speak, lambda name: None)
    kept = {key for key in LINES if all(key not in turns for turns in asked)}
    assert list(found.clips) == list(LINES)
    assert all(found.clips[key] is first[key] for key in kept), "what is not at fault keeps its clip"
    return found


def test_only_suspects_are_spoken_again_and_with_them_all_that_say_the_same_words() -> None:
    asked: list[list[str]] = []
    check = Fussy({"h1": 2, "u1": 1})
    found = judged(check, asked, max_retake_share=0.5)
    assert asked == [["h1", "u0", "u1"], ["h1"]], "u0 says what u1 says"
    assert check.fresh == [[1, 2, 4], [1]], "only what is new is measured again"
    assert not found.findings["fussy"].reasons and [take.check for take in found.takes] == ["fussy"] * 2
    assert found.again_sec == pytest.approx(sum(found.clips[key].seconds for key in ("h1", "u0", "u1", "h1")))


@pytest.mark.parametrize(
    ("check", "suite", "takes"),
    [
        (Fussy({"h0": 9}), {"max_retakes": 3}, 3),
        (Fussy({"h0": 1}), {"max_retakes": 0}, 0),
        (Fussy({"h0": 1}, blind=True), {}, 0),
        (Fussy({"h0": 1, "h1": 1, "r0": 1}), {"max_retake_share": 0.4}, 0),
    ],
    ids=["never good", "switched off", "no turn is named", "too many turns"],
)
def test_what_takes_cannot_put_right_is_left_to_the_whole_dialogue(
    check: Fussy, suite: dict[str, Any], takes: int
) -> None:
    asked: list[list[str]] = []
    found = judged(check, asked, **suite)
    assert len(asked) == len(found.takes) == takes and found.findings["fussy"].reasons


def test_a_take_that_the_voice_fails_changes_nothing_and_the_next_one_is_tried() -> None:
    asked: list[list[str]] = []
    found = judged(Fussy({"h0": 1}), asked, fails=[1])
    assert [take.failed for take in found.takes] == ["the voice gave silence", None]
    assert not found.findings["fussy"].reasons and len(asked) == 2


def test_factors_on_the_duration_add_up_within_bounds() -> None:
    found = judged(Fussy({"h0": 3}, stretch=1.1), [])
    assert [take.turns["h0"] for take in found.takes] == pytest.approx([1.1, 1.21, 1.331])
    assert judged(Fussy({"h0": 1}, stretch=5.0), []).takes[0].turns["h0"] == 1.35


class Listening(Ear):
    """Counts what it hears, and in which window; a second take is heard right unless it is `stubborn`."""

    def __init__(self, mishears: dict[str, str], early: dict[str, str] | None = None, stubborn: bool = False) -> None:
        super().__init__(TEXTS, mishears, early)
        self.max_dialogue_wer, self.heard, self.stubborn = 0.05, Counter[tuple[bool, int]](), stubborn

    def transcribe(self, waves: Sequence[np.ndarray], window_sec: float) -> list[str]:
        self.heard[window_sec == WINDOW_SEC, len(waves)] += 1
        again = [wave[0] > 0.105 and not self.stubborn for wave in waves]
        right = [self.texts[len(wave) // STEP - 100] for wave in waves]
        heard = super().transcribe(waves, window_sec)
        return [good if late else text for good, text, late in zip(right, heard, again, strict=True)]


def test_the_word_check_hears_only_what_is_new() -> None:
    check, asked = Listening({TEXTS[2]: "Now the birds that stay."}), []
    found = judged(check, asked)
    assert asked == [["u0", "u1"]]
    assert check.heard == {(False, 6): 1, (False, 2): 1}, "another take is cheaper than the full window"
    clips = list(found.clips.values())
    assert found.findings["words"] == check.examine(clips) and found.findings["words"].dialogue["wer"] == 0.0


def test_the_full_window_has_the_last_word() -> None:
    wrong = {TEXTS[2]: "Now the birds that stay."}
    never = Listening(wrong, stubborn=True)
    found = judged(never, [])
    assert found.findings["words"].reasons and len(found.takes) == 3
    assert sum(n for (full, _), n in never.heard.items() if full) == 1, "once, after the last take"
    early = Listening({}, wrong, stubborn=True)
    found = judged(early, [])
    assert not found.findings["words"].reasons and len(found.takes) == 3 and early.heard[True, 2] == 1


def test_measures_of_kept_clips_are_those_of_a_whole_look() -> None:
    check = SignalCheck(0.1, 20.0, -40.0, 0.0, 0.0, 0.1)
    before = [clip(key) for key in LINES]
    after = [clip(key, take) for key, take in zip(LINES, (0, 3, 0, 0, 2, 0), strict=True)]
    assert check.examine_again(after, check.examine(before), [1, 4]) == check.examine(after)
    silent = [*after[:5], Clip(np.zeros(0, np.float32), RATE, "x", "A", Style())]
    assert check.examine_again(silent, check.examine(after), [5]).reasons == ["a turn holds no samples"]
    assert check.examine_again(after, check.examine(silent), [5]) == check.examine(after)


def test_checks_name_the_turns_at_fault() -> None:
    check = SignalCheck(0.1, 20.0, -40.0, 0.0, 0.0, 0.1, max_dc=1.0, max_dialogue_sec=6.0)
    loud = [Clip(np.ones(RATE, np.float32), RATE, "x", "A", Style()), clip("h0")]
    assert check.suspects(check.examine(loud)) == {0: 1.0}
    assert check.suspects(check.examine([clip("h0")] * 9)) is None, "no one turn is too long"
    assert check.suspects(Finding(["a turn holds no samples"], [{}])) is None
    speakers = SpeakerCheck("none", 0.5, 0.02, 0.85)
    measured = [{"within": 0.8, "margin": 0.3}, {"within": 0.4, "margin": 0.2}, {"within": 0.8, "margin": 0.01}]
    assert speakers.suspects(Finding(["x"], measured, {"alike": 0.6, "gap": 0.2})) == {1: 1.0, 2: 1.0}
    assert speakers.suspects(Finding(["x"], [*measured[:1], *measured[:1]], {"alike": 0.9})) is None
    near = [{"within": 0.8, "margin": margin} for margin in (0.3, 0.1, 0.2, 0.3)]
    assert speakers.suspects(Finding(["x"], near, {"alike": 0.6, "gap": 0.1})) == {1: 1.0}
    assert lowest([3.0, 1.0, 2.0, 1.0, 5.0, 6.0, 7.0, 8.0]) == [1, 3] and lowest([4.0]) == [0]


def test_wrong_settings_are_told() -> None:
    with pytest.raises(UserError, match="0 <= max_retakes <= 20"):
        CheckSuite({}, max_retakes=-1)


class Flawed(Check):
    """Finds flaws in the samples themselves, as if by chance: another seed cures them, or not."""

    name = "flawed"

    def examine(self, clips: Sequence[Clip]) -> Finding:
        bad = [sha256_bytes(one.wave_N.tobytes())[0] == "0" for one in clips]
        return Finding(["a turn is flawed"] if any(bad) else [], [{"bad": one} for one in bad])

    def suspects(self, finding: Finding) -> dict[int, float] | None:
        return {i: 1.0 for i, one in enumerate(finding.clips) if one["bad"]}

    def thresholds(self) -> dict[str, Any]:
        return {}

    def summarise(self, findings: Sequence[Finding]) -> dict[str, Any]:
        return {"dialogues": len(findings)}


FEW = {"emotion": {"train": 5}, "audio": {"train": 1}}


@pytest.fixture
def flawed(start: Any) -> Any:  # noqa: F811
    return lambda out, **changes: start(out, Flawed(), dialogues=FEW, **changes)


@pytest.fixture
def whole(flawed: Any) -> Corpus:
    return flawed("whole").corpus


def test_takes_spare_attempts_and_are_counted(flawed: Any, whole: Corpus) -> None:
    card = read_json(whole.root / "card.json")["checks"]
    at_once = read_json(flawed("at_once", retakes={"max_retakes": 0}).corpus.root / "card.json")["checks"]
    assert card["attempts rejected"] < at_once["attempts rejected"] and at_once["turns spoken again"] == 0
    rows = [row for row in read_jsonl(whole.root / "rejected.jsonl") if row["stage"] == "take"]
    assert card["turns spoken again"] == sum(len(row["turns"]) for row in rows) > 0
    assert card["takes of turns at fault: flawed: a turn is flawed"] == len(rows)
    assert {row["check"] for row in rows} == {"flawed"} and all(row["take"] in (1, 2, 3) for row in rows)
    kept = read_jsonl(whole.root / "checks.jsonl")
    assert any("takes" in row for row in kept) and any("takes" not in row for row in kept)
    assert not any(one["bad"] for row in kept for one in row["checks"]["flawed"]["clips"].values())


class Once(Flawed):
    """Takes offence, once, at the first of the lines that say the same words in several styles."""

    def __init__(self) -> None:
        self._seen: set[str] = set()

    def examine(self, clips: Sequence[Clip]) -> Finding:
        texts = [one.text for one in clips]
        shared = {text for text in texts if texts.count(text) > 1} - self._seen
        self._seen |= shared
        bad = [text in shared and texts.index(text) == i for i, text in enumerate(texts)]
        return Finding(["a turn is flawed"] if any(bad) else [], [{"bad": one} for one in bad])


def test_variants_of_a_dialogue_share_their_seed_in_every_take(
    start: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    batches: list[list[Utterance]] = []
    speak_batch = ToneVoice.speak_batch

    def watched(self: ToneVoice, lines: Sequence[Utterance]) -> list[np.ndarray]:
        batches.append(list(lines))
        return speak_batch(self, lines)

    monkeypatch.setattr(ToneVoice, "speak_batch", watched)
    start("seen", Once(), dialogues={"emotion": {"train": 1}}, until="scenes")
    whole, take = batches[-2:]
    assert (len(whole), len(take)) == (2 + 3 + 3, 3)
    assert len({line.text for line in take}) == len({line.seed for line in take}) == 1
    assert len({line.style for line in take}) == 3, "they differ by style alone"
    before = [line for line in whole if line.text == take[0].text]
    assert [(line.text, line.style) for line in before] == [(line.text, line.style) for line in take]
    assert len({line.seed for line in before}) == 1 and before[0].seed != take[0].seed


def test_takes_are_the_same_however_the_work_is_cut_up(
    flawed: Any,
    whole: Corpus,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    for shard in ("1/2", "0/2"):
        flawed("shared", shard=shard)
    assert files(flawed("shared").corpus.root) == files(whole.root)
    for until in ("speech", "checks"):
        flawed("staged", until=until)
    kept = list((tmp_path / ".staged.work" / "speech").glob("*-1"))
    assert kept, "a later stage does not speak again what an earlier one spoke"
    monkeypatch.setattr(ToneVoice, "speak", None)
    flawed("staged", until="scenes")
    assert not list((tmp_path / ".staged.work" / "speech").iterdir())
    monkeypatch.undo()
    assert files(flawed("staged").corpus.root) == files(whole.root)


def test_a_run_killed_between_takes_ends_in_the_same_bytes(
    flawed: Any,
    whole: Corpus,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    speak, again = stem._spoken_again, 0

    def dies(*args: Any) -> Any:
        nonlocal again
        again += 1
        if again in (1, 3, 4):
            raise KeyboardInterrupt
        return speak(*args)

    monkeypatch.setattr(stem, "_spoken_again", dies)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            flawed("cut")
    assert files(flawed("cut").corpus.root) == files(whole.root)


def test_the_retry_policy_is_part_of_what_sets_a_corpus(flawed: Any) -> None:
    keys = []
    for number, suite in enumerate(({}, {"max_retakes": 1}, {"max_retake_share": 0.9})):
        made = flawed(f"x{number}", retakes=suite, until="scenes")
        keys.append({path.name for path in (made.work.root / "stems").iterdir()})
    assert not keys[0] & keys[1] and not keys[0] & keys[2]
