"""What stands behind every table and figure: one function a script, from a preset to its arms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from omnichat.experiments.study.arms import Arm, Row, Settings
from omnichat.experiments.study.presets import Preset
from omnichat.utils.errors import one_of

STYLE = ("emotion_f1", "emotion_f1_variants", "style_sensitivity", "pitch_accuracy", "speed_accuracy")
TEXT = ("bleu", "rouge_l", "meteor", "bertscore_f1")
_SALMONN: Settings = {
    "fusion": "salmonn",
    "experts.whisper.layers": "last",
    "experts.whisper.keep_padding": "true",
    "trainer.calibration_clips": "0",
}
# Row of the fusion table -> its settings, and how many positions a dialogue takes beside Mix-Former's. With that as the
# factor of loader.batch_tokens all of them see about as many dialogues a step.
FUSIONS: dict[str, tuple[Settings, float]] = {
    "mix_former": ({"fusion": "mix_former"}, 1.0),
    "mix_former_conditioned": ({"fusion": "mix_former", "fusion.conditioned": "true"}, 1.0),
    **{
        f"single_{name}": ({"fusion": "single", "fusion.expert": name}, 1.0)
        for name in ("whisper", "beats", "mert", "emotion2vec")
    },
    "stack": ({"fusion": "stack"}, 1.0),
    "gated": ({"fusion": "gated"}, 1.0),
    "moe": ({"fusion": "moe"}, 1.0),
    "cross_attention": ({"fusion": "cross_attention"}, 1.0),
    "perceiver": ({"fusion": "perceiver"}, 1.0),
    # SLAM-LLM's 17 frames of 50 Hz, for as many slots as the others; linear_10hz has its own 5 frames.
    "linear": ({"fusion": "linear", "fusion.window_sec": "0.34", "fusion.frames": "17"}, 1.0),
    "linear_10hz": ({"fusion": "linear"}, 1.4),
    "salmonn": ({"fusion": "salmonn"}, 2.9),  # 88 slots a clip; the demo's clips are 7 windows long
    # The same with SALMONN's own input: Whisper's last layer, its frames of the padding, nothing standardised.
    "salmonn_own": (_SALMONN, 2.9),
}
_USUAL_SEC = 0.34  # Mix-Former's window
_TOKENS_PER_HZ = 0.056  # share of a dialogue's positions that one more slot a second adds, on the demo's clips
INPUT_NAMES = {"text": "T (words)", "asr": "ASR-T", "speech_text": "S+T", "speech": "S (speech)"}


def _keys(input_: str, alpha: float = 0.0, **more: Any) -> dict[str, Any]:
    return {"input": input_, "alpha": alpha, **more}


def _input(input_: str) -> Settings:
    return {"chat.input": input_}


def _systems(preset: Preset, sets: tuple[str, ...] = ()) -> tuple[Arm, ...]:
    """The four rows of the paper's main tables."""
    plus = {"chat.input": "speech", "mixture.alpha": f"{preset.real:g}"}
    rows = [Arm("text LLM", _input("text"), _keys("text"), sets=sets)]
    if "asr" in preset.inputs:
        rows.append(Arm("ASR + LLM", _input("asr"), _keys("asr")))
    rows.append(Arm("OmniChat, synthetic only", _input("speech"), _keys("speech"), sets=sets))
    rows.append(Arm("OmniChat, + real", plus, _keys("speech", preset.real), sets=sets))
    return tuple(rows)


def _tokens(preset: Preset, factor: float) -> Settings:
    """A batch's positions for a model whose dialogues take `factor` times Mix-Former's."""
    return {} if factor == 1.0 else {"loader.batch_tokens": str(round(preset.batch_tokens * factor))}


def _slots(preset: Preset, queries: int, window_sec: float) -> Settings:
    """Mix-Former with so many queries in windows of this length; nothing for its usual ones."""
    settings: Settings = {} if queries == 1 else {"fusion.queries": str(queries)}
    settings |= {} if window_sec == _USUAL_SEC else {"fusion.window_sec": f"{window_sec:g}"}
    more_hz = queries / window_sec - 1 / _USUAL_SEC
    return settings | _tokens(preset, round(1 + _TOKENS_PER_HZ * more_hz, 2))


def corpora(preset: Preset) -> Row:
    """Counts and label balance of all corpora; trains nothing."""
    return Row(
        script="corpora",
        title="The corpora: dialogues, turns, hours and labels",
        kind="statistics",
        arms=(),
        seeds=preset.seeds_of("corpora"),
        corpora=tuple(preset.corpora),
    )


def dailytalk(preset: Preset) -> Row:
    """The paper's table on the real corpus."""
    return Row(
        script="dailytalk",
        title="Real dialogues: DailyTalk",
        kind="table",
        arms=_systems(preset),
        seeds=preset.seeds_of("dailytalk"),
        corpora=("sharechatx", "dailytalk"),
        baseline="text LLM",
        metrics=(*TEXT, "emotion_f1"),
        note="Figures on the test dialogues of dailytalk. ASR + LLM reads what Whisper heard, in training and test.",
    )


def sharechatx(preset: Preset) -> Row:
    """The paper's table on the synthetic subsets, and the row "+ real" that it lacks there."""
    return Row(
        script="sharechatx",
        title="Synthetic dialogues: ShareChatX-Emotion, -Audio, -Music",
        kind="table",
        arms=_systems(preset),
        seeds=preset.seeds_of("sharechatx"),
        corpora=("sharechatx", "dailytalk"),
        baseline="text LLM",
        metrics=(*TEXT, *STYLE, "scene_hit"),
        note="The same runs as on DailyTalk, by scenario: emotion, audio, music.",
    )


def alpha(preset: Preset) -> Row:
    """The share of real dialogues, picked on dev, reported on test, carried over to a second real corpus."""
    arms = tuple(
        Arm(f"alpha {a:g}", {"mixture.alpha": f"{a:g}"}, _keys("speech", a), sets=("second",)) for a in preset.alphas
    )
    return Row(
        script="alpha",
        title="How much real data: alpha",
        kind="curve",
        arms=arms,
        seeds=preset.seeds_of("alpha"),
        corpora=("sharechatx", "dailytalk", "second"),
        x="alpha",
        baseline="alpha 0",
        pick_on="dev",
        metrics=("emotion_f1", "bleu", "bertscore_f1", "style_sensitivity"),
        note="alpha is the probability that a training dialogue is real. It is picked on dev and reported on test; the "
        "set `second` is a corpus that no run has trained on.",
    )


def scale(preset: Preset) -> Row:
    """More dialogues, four kinds of input; the subsets are nested."""
    arms = []
    for input_ in preset.scaled:
        for size in preset.sizes:
            limit: Settings = {"+mixture.sources.sharechatx.limit": str(size)} if size else {}
            shown = str(size) if size else "all"
            keys = _keys(input_, dialogues=size or None)
            # The end of a curve is the tables' row, with its seeds.
            seeds = None if size else preset.seeds_of("sharechatx")
            arms.append(Arm(f"{INPUT_NAMES[input_]}, {shown} dialogues", _input(input_) | limit, keys, seeds=seeds))
    return Row(
        script="scale",
        title="How much synthetic data, and in which form",
        kind="curve",
        arms=tuple(arms),
        seeds=preset.seeds_of("scale"),
        corpora=("sharechatx", "dailytalk"),
        x="dialogues",
        metrics=("emotion_f1", "emotion_f1_variants", "style_sensitivity", "bleu"),
        note="Dialogues with their style variants; each subset lies in the next. The steps are the same for all.",
    )


def fusion(preset: Preset) -> Row:
    """Every way to fuse the experts, at one number of parameters."""
    base: Settings = {"mixture.alpha": f"{preset.real:g}"}
    arms = []
    for name in preset.fusions:
        if name not in FUSIONS:
            raise one_of("--fusions", name, FUSIONS)
        settings, factor = FUSIONS[name]
        settings = settings | _tokens(preset, factor)
        seeds = preset.seeds_of("fusion")[:1] if name in preset.single_seed else None
        arms.append(Arm(name, base | settings, _keys("speech", preset.real, fusion=name), seeds=seeds))
    return Row(
        script="fusion",
        title="How the experts are fused",
        kind="bars",
        arms=tuple(arms),
        seeds=preset.seeds_of("fusion"),
        corpora=("sharechatx", "dailytalk"),
        baseline="mix_former" if "mix_former" in preset.fusions else None,
        metrics=STYLE,
        note=f"Every fusion has {preset.base['fusion.budget']} parameters, the same data and the same steps.",
    )


def windows(preset: Preset) -> Row:
    """Queries a window, and the window's length."""
    arms = [
        Arm(f"K = {k}", _slots(preset, k, _USUAL_SEC), _keys("speech", queries=k, window_sec=_USUAL_SEC))
        for k in preset.queries
    ]
    arms += [
        Arm(f"window {sec:g} s", _slots(preset, 1, sec), _keys("speech", queries=1, window_sec=sec))
        for sec in preset.windows_sec
        if sec != _USUAL_SEC
    ]
    return Row(
        script="windows",
        title="How many queries a window, and how long a window",
        kind="table",
        arms=tuple(arms),
        seeds=preset.seeds_of("windows"),
        corpora=("sharechatx", "dailytalk"),
        baseline="K = 1",
        metrics=(*STYLE, "scene_hit"),
        note="Where only K is named the window has 0.34 s (17 frames of 50 Hz), where only the window is, K = 1.",
    )


def experts(preset: Preset) -> Row:
    """Which expert is heard, by scenario: attention of runs that other scripts have made."""
    plus = {"mixture.alpha": f"{preset.real:g}"}
    return Row(
        script="experts",
        title="Which experts are heard",
        kind="attention",
        arms=(
            Arm("OmniChat, synthetic only", {}, _keys("speech")),
            Arm("OmniChat, + real", plus, _keys("speech", preset.real)),
        ),
        seeds=preset.seeds_of("experts"),
        corpora=("sharechatx", "dailytalk"),
        metrics=("scene_hit", "emotion_f1"),
        note="Mass of the attention of Mix-Former's queries on each expert's frames.",
    )


def overlap(preset: Preset) -> Row:
    """People who speak at once: does a model cope that never met it, and does it help to have met it?"""
    path = str(preset.corpora["overlap"].path)
    met: Settings = {"~mixture.sources.sharechatx": "", "+mixture.sources.overlapping.path": path}
    arms = []
    for input_, name in (("text", "words"), ("speech", "speech")):
        plain = _keys(input_, trained_on="sharechatx")
        arms.append(Arm(f"{name}, never met overlaps", _input(input_), plain, sets=("overlap",)))
        arms.append(
            Arm(
                f"{name}, trained on overlaps",
                _input(input_) | met,
                _keys(input_, trained_on="overlap"),
                sets=("overlap", "sharechatx"),
            )
        )
    return Row(
        script="overlap",
        title="Overlapping turns and backchannels",
        kind="table",
        arms=tuple(arms),
        seeds=preset.seeds_of("overlap"),
        corpora=("sharechatx", "overlap"),
        baseline="speech, never met overlaps",
        metrics=(*STYLE, "scene_hit", "bleu"),
        note="Compare on the set `overlap`, which all four are tested on; the arms' own test dialogues differ.",
    )


ROWS: dict[str, Callable[[Preset], Row]] = {
    row.__name__: row for row in (corpora, dailytalk, sharechatx, alpha, scale, fusion, windows, experts, overlap)
}


def rows_of(names: tuple[str, ...], preset: Preset) -> list[Row]:
    """The rows of some scripts. Raises UserError for an unknown name."""
    for name in names:
        if name not in ROWS:
            raise one_of("script", name, ROWS)
    return [ROWS[name](preset) for name in names]
