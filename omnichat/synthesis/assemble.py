"""From accepted attempts to a corpus folder: clips in place, dialogues for the manifest, facts for the data card."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from omnichat.data.corpus import FINDINGS, REJECTED, finish_corpus
from omnichat.schema import Backchannel, Dialogue, Scene, Speaker, Style, Turn
from omnichat.synthesis.base import NO_TOPIC, ScriptWriter, Voice
from omnichat.synthesis.checks.base import Finding
from omnichat.synthesis.checks.suite import CheckSuite
from omnichat.synthesis.plan import Stem, SynthesisConfig
from omnichat.synthesis.stem import Outcome, Parts, write_background
from omnichat.synthesis.tally import VOICE, Made, Tally
from omnichat.synthesis.versions import versions
from omnichat.synthesis.work import digest
from omnichat.utils.files import write_jsonl_atomic


def assemble(
    config: SynthesisConfig, stems: Sequence[Stem], outcomes: Mapping[str, Outcome], parts: Parts, folder: Path
) -> list[Dialogue]:
    """Put the clips below `folder` and return the manifest's dialogues, one for each variant, in the order of `stems`.

    A dialogue's id is the hash of what it holds: its styles, words and recordings.
    """
    dialogues: list[Dialogue] = []
    for stem in stems:
        outcome = outcomes[stem.id]
        source = parts.work.finished(outcome.key)
        name = _content_id(stem, outcome)
        turns = {}
        for key, raw in outcome.turns.items():
            audio = f"audio/{name}/{raw['file']}"
            _link(source / raw["file"], folder / audio)
            fields = {field: value for field, value in raw.items() if field not in ("file", "style", "backchannels")}
            fields["backchannels"] = tuple(Backchannel(**said) for said in raw.get("backchannels", ()))
            turns[key] = Turn(style=Style(**raw["style"]), audio=audio, **fields)
        scene = None
        if (sound := stem.scene.sound) is not None:
            audio = parts.scenes.scene_file(sound)
            write_background(parts.scenes, sound, folder / audio)
            placement = stem.scene.placement or "under"
            scene = Scene(sound.caption, placement, stem.scene.snr_db, audio, sound.keywords)
        dialogues += _variants(config, stem, name, outcome, turns, scene, parts.voice)
    return dialogues


def _content_id(stem: Stem, outcome: Outcome) -> str:
    facts = {key: (raw["speaker"], raw["text"], raw["style"], raw["sha256"]) for key, raw in outcome.turns.items()}
    return f"{stem.scenario}-{stem.split}-{digest([facts, stem.user_voice, stem.model_voice])[:12]}"


def _link(source: Path, target: Path) -> None:
    """Give a finished clip its name in the corpus without a second copy of its bytes, where the disk can."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another disk, or a file system without hard links
        shutil.copyfile(source, target)


def _variants(
    config: SynthesisConfig,
    stem: Stem,
    name: str,
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
            user = replace(user, variant_of=name)
        dialogues.append(
            Dialogue(
                id=f"{name}-v{index}",
                source=config.name,
                kind="synthetic",
                scenario=stem.scenario,
                split=stem.split,
                turns=(*history, user, turns[f"r{index}"]),
                speakers={speaker: Speaker(who, genders[who]) for speaker, who in pairs},
                scene=scene,
                topic=None if outcome.topic == NO_TOPIC else outcome.topic,
            )
        )
    return dialogues


def write_corpus(
    config: SynthesisConfig,
    writer: ScriptWriter,
    parts: Parts,
    folder: Path,
    dialogues: Sequence[Dialogue],
    made: Made,
) -> dict[str, Any]:
    """Write what is known beside the clips: rejects with their reasons, findings, data card, manifest.

    Returns:
        The data card.
    """
    accepted = [stem for stem in made.stems if stem.id in made.outcomes]
    sounds = parts.scenes.describe({stem.scenario for stem in made.stems})
    rows = made.tally.in_plan_order(made.stems)
    rows += [{"stage": "dropped", "plan": stem_id, "reasons": [why]} for stem_id, why in made.tally.dropped.items()]
    write_jsonl_atomic(folder / REJECTED, rows)
    write_jsonl_atomic(folder / FINDINGS, (_findings_row(stem, made.outcomes[stem.id]) for stem in accepted))
    findings = [made.outcomes[stem.id].check_findings() for stem in accepted]
    checks = _checks_for_card(parts.checks, findings, made.tally, len(made.stems))
    if usage := writer.usage(made.work.answers):
        checks |= {f"language model: {key}": value for key, value in _rounded(usage["kept"]).items()}
    return finish_corpus(
        folder,
        dialogues,
        name=config.name,
        kind="synthetic",
        seed=config.seed,
        checks=checks,
        licences=licences(writer, parts.voice, sounds),
        notes=notes(config, writer, parts.voice, sounds),
        versions=versions(),
    )


def _findings_row(stem: Stem, outcome: Outcome) -> dict[str, Any]:
    """What the checks measured on one dialogue: of the whole, and of each clip by its key."""
    checks = {}
    for name, finding in outcome.findings.items():
        clips = dict(zip(outcome.turns, finding["clips"], strict=True)) if finding["clips"] else {}
        checks[name] = {"dialogue": finding["dialogue"], "clips": clips}
    takes = {"takes": [list(take["turns"]) for take in outcome.takes]} if outcome.takes else {}
    return (
        {"id": _content_id(stem, outcome), "plan": stem.id, "attempt": outcome.attempt}
        | takes
        | {"checks": _rounded(checks)}
    )


def _checks_for_card(
    suite: CheckSuite, findings: Sequence[Mapping[str, Finding]], tally: Tally, planned: int
) -> dict[str, Any]:
    """Per check: thresholds, figures over accepted dialogues, rejects by reason; then the counts of the run."""
    measured = suite.summarise(findings)
    card: dict[str, Any] = {}
    for name, thresholds in suite.describe().items():
        reasons = {reason: n for (check, reason), n in sorted(tally.rejected.items()) if check == name}
        card[name] = {"threshold": thresholds, "measured": _rounded(measured[name]), "rejected": reasons}
    if unspoken := {reason: n for (check, reason), n in sorted(tally.rejected.items()) if check == "voice"}:
        card["voice"] = {"rejected": unspoken}
    card["dialogues planned (without variants)"] = planned
    card["attempts"] = tally.attempts
    card["attempts rejected"] = tally.failed
    card["turns spoken again"] = tally.turns_again
    for (check, reason), n in sorted(tally.retakes.items()):
        card[f"takes of turns at fault: {check}: {reason}"] = n
    card["dropped after all attempts"] = len(tally.dropped)
    for (check, reason), n in sorted(tally.rejected.items()):
        if check == VOICE:
            card[f"attempts rejected: {reason}"] = n
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


def notes(
    config: SynthesisConfig, writer: ScriptWriter, voice: Voice, sounds: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """What a reader of the corpus must know."""
    lines = [
        "Speech is synthetic. Word and speaker checks are made on clean speech, before the background is mixed in.",
        f"Each dialogue's current words are spoken in {config.variants_per_dialogue} styles, each in another emotion "
        "and with its own reply; these variants share their history's recordings.",
        "Emotions, pitches and speeds of the current turns occur equally often in each scenario and split; the "
        "history's styles are drawn apart from them.",
        "Train, dev and test share no sentence; the writing is checked for it.",
    ]
    if not voice.reproducible:
        lines.append(
            "The voice does not give the same samples twice: the recordings cannot be made again from the seed."
        )
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


def _rounded(value: Any) -> Any:
    """Four decimals: what a card can hold, and what another machine's last bit does not change."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return value
