"""From accepted attempts to a corpus folder: clips in place, dialogues for the manifest, facts for the data card."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import omnichat
from omnichat.schema import Backchannel, Dialogue, Scene, Speaker, Style, Turn
from omnichat.synthesis.base import ScriptWriter, Voice
from omnichat.synthesis.checks.base import Finding
from omnichat.synthesis.checks.suite import CheckSuite
from omnichat.synthesis.plan import Stem, SynthesisConfig
from omnichat.synthesis.stem import Outcome, Parts, write_background
from omnichat.utils.log import get_logger

log = get_logger(__name__)

_PACKAGES = ("piper-tts", "praat-parselmouth", "onnxruntime", "openai-whisper", "torch", "torchaudio", "numpy", "jiwer")


@dataclass(slots=True)
class Tally:
    """Counts of a run: `rejected` by (check, reason), `script_rejects` by reason, `seconds` by stage over processes."""

    rejected: Counter[tuple[str, str]] = field(default_factory=Counter)
    script_rejects: Counter[str] = field(default_factory=Counter)
    attempts: int = 0
    clips: int = 0
    dropped: list[str] = field(default_factory=list)
    seconds: Counter[str] = field(default_factory=Counter)

    def count(self, outcome: Outcome) -> None:
        """Take in one attempt."""
        self.attempts += 1
        self.clips += len(outcome.turns)
        for name, finding in outcome.findings.items():
            self.rejected.update((name, reason) for reason in finding["reasons"])


def assemble(
    config: SynthesisConfig,
    stems: Sequence[Stem],
    outcomes: Mapping[str, Outcome],
    parts: Parts,
    folder: Path,
    work: Path,
) -> list[Dialogue]:
    """Copy the clips below `folder` and return the manifest's dialogues, one for each variant."""
    dialogues = []
    for stem in stems:
        outcome = outcomes[stem.id]
        source = work / "stems" / f"{stem.id}.{outcome.attempt}"
        target = folder / "audio" / stem.id
        target.mkdir(parents=True, exist_ok=True)
        turns = {}
        for key, raw in outcome.turns.items():
            shutil.copyfile(source / raw["file"], target / raw["file"])
            fields = {name: value for name, value in raw.items() if name not in ("file", "style", "backchannels")}
            fields["backchannels"] = tuple(Backchannel(**said) for said in raw.get("backchannels", ()))
            turns[key] = Turn(style=Style(**raw["style"]), audio=f"audio/{stem.id}/{raw['file']}", **fields)
        scene = None
        if (sound := stem.scene.sound) is not None:
            audio = parts.scenes.scene_file(sound)
            write_background(parts.scenes, sound, folder / audio)
            placement = stem.scene.placement or "under"
            scene = Scene(sound.caption, placement, stem.scene.snr_db, audio, sound.keywords)
        dialogues += _variants(config, stem, outcome, turns, scene, parts.voice)
    return dialogues


def _variants(
    config: SynthesisConfig,
    stem: Stem,
    outcome: Outcome,
    turns: Mapping[str, Turn],
    scene: Scene | None,
    voice: Voice,
) -> list[Dialogue]:
    history = tuple(turns[f"h{index}"] for index in range(stem.history_turns))
    genders = voice.speakers
    pairs = (("A", stem.user_voice), ("B", stem.model_voice))
    dialogues = []
    for index in range(len(stem.styles)):
        user = turns[f"u{index}"]
        if len(stem.styles) > 1:
            user = replace(user, variant_of=stem.id)
        dialogues.append(
            Dialogue(
                id=f"{stem.id}-v{index}",
                source=config.name,
                kind="synthetic",
                scenario=stem.scenario,
                split=stem.split,
                turns=(*history, user, turns[f"r{index}"]),
                speakers={speaker: Speaker(name, genders[name]) for speaker, name in pairs},
                scene=scene,
                topic=outcome.topic,
            )
        )
    return dialogues


def checks_for_card(
    suite: CheckSuite, findings: Sequence[Mapping[str, Finding]], tally: Tally, planned: int
) -> dict[str, Any]:
    """Per check: thresholds, figures over accepted dialogues, rejects by reason; then the counts of the run."""
    measured = suite.summarise(findings)
    card: dict[str, Any] = {}
    for name, thresholds in suite.describe().items():
        reasons = {reason: n for (check, reason), n in sorted(tally.rejected.items()) if check == name}
        card[name] = {"threshold": thresholds, "measured": _rounded(measured[name]), "rejected": reasons}
    card["dialogues planned (without variants)"] = planned
    card["attempts"] = tally.attempts
    card["attempts beyond the first"] = tally.attempts - planned
    card["dropped after all attempts"] = len(tally.dropped)
    if tally.dropped:
        card["dropped dialogues"] = ", ".join(tally.dropped)
    card["duplicate scripts in the corpus"] = 0  # a script that occurs twice is refused when it is written
    for reason, n in sorted(tally.script_rejects.items()):
        card[f"scripts written again: {reason}"] = n
    return card


def licences(writer: ScriptWriter, voice: Voice, sounds: Mapping[str, Mapping[str, Any]]) -> list[dict[str, str]]:
    """Whose words, voice and sounds are in the corpus; `sounds` are the facts of the sources that it hears."""
    rows = [
        {"part": "words", "source": writer.describe()["name"], "licence": writer.describe()["licence"]},
        {"part": "voice", "source": voice.describe()["name"], "licence": voice.describe()["licence"]},
    ]
    for scenario, facts in sounds.items():
        part = "events" if scenario == "audio" else scenario
        rows.append({"part": part, "source": facts["name"], "licence": facts["licence"]})
    return rows


def notes(config: SynthesisConfig, writer: ScriptWriter, sounds: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What a reader of the corpus must know."""
    lines = [
        "Speech is synthetic. Word and speaker checks are made on clean speech, before the background is mixed in.",
        f"Each dialogue's current words are spoken in {config.variants_per_dialogue} styles, each in another emotion "
        "and with its own reply; these variants share their history's recordings.",
        "Emotions, pitches and speeds of the current turns occur equally often in each scenario and split; the "
        "history's styles are drawn apart from them.",
        "Train, dev and test share no sentence; the writing is checked for it.",
    ]
    if rule := writer.describe().get("reply_emotion"):
        pairs = ", ".join(f"{heard} -> {reply}" for heard, reply in rule.items())
        lines.append(f"Emotion of a reply by the emotion heard: {pairs}. Its pitch and speed are those heard.")
    lines += [facts["split_rule"] for facts in sounds.values()]
    if "music" in sounds:
        lines.append(
            "A music dialogue's ratio is that of the common speech level to the track; a loud emotion stands out."
        )
    if config.scene.loudness_lufs is not None:
        lines.append(
            f"A dialogue and its variants are brought to {config.scene.loudness_lufs:g} LUFS (BS.1770) by one gain, or "
            "less where a sample would clip; levels within it are as spoken."
        )
    return lines


def versions() -> dict[str, str]:
    """Of everything that made the corpus."""
    found = {"omnichat": omnichat.__version__}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def report(tally: Tally, accepted: int, dialogues: int, card_checks: Mapping[str, Any]) -> None:
    """Log what came out and where the time went."""
    log.info(
        "%d dialogues (%d with their variants), %d attempts, %d dropped",
        accepted,
        dialogues,
        tally.attempts,
        len(tally.dropped),
    )
    for (check, reason), n in tally.rejected.most_common():
        log.info("rejected %d times by %s: %s", n, check, reason)
    if card_checks.get("styles", {}).get("measured", {}).get("in_order") is False:
        log.warning("measured pitch or rate is not in the order of the labels; see the data card")
    if tally.seconds:
        stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in tally.seconds.most_common())
        log.info("time over all processes for %d clips: %s", tally.clips, stages)


def _rounded(value: Any) -> Any:
    """Four decimals: what a card can hold, and what another machine's last bit does not change."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return value
