"""The three sizes of the study: smoke (does everything run?), demo (a laptop), paper (the real models and sizes)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from omnichat.experiments.study.arms import Settings
from omnichat.utils.errors import one_of


@dataclass(frozen=True, slots=True)
class CorpusSpec:
    """A corpus: where it lies, and the command that makes it."""

    path: Path
    command: tuple[str, ...]  # verb, overrides


@dataclass(frozen=True, slots=True)
class Pace:
    """How long a run takes before the ledger knows better.

    Attributes:
        step_sec: input -> seconds of an optimiser step. beside_sec: of start and end of a run.
        evaluation_sec: of one evaluation. measured: on what; shown with every estimate.
    """

    step_sec: Mapping[str, float]
    beside_sec: float
    evaluation_sec: float
    measured: str


@dataclass(frozen=True, slots=True)
class Preset:
    """One size of the study.

    Attributes:
        base: overrides that set the result of every run; arms change them.
        plumbing: overrides that set no result.
        corpora: name -> corpus.
        evaluation: overrides of every evaluation.
        seeds: script -> seeds; "" = of all others.
        alphas: of the alpha curve. real: alpha of the rows "+ real".
        inputs: what models get, of the tables' rows. scaled: those of them that have a scale curve.
        sizes: training dialogues of the scale curves, 0 = all there are.
        fusions: rows of the fusion table, of rows.FUSIONS. single_seed: those of them with the first seed only.
        batch_tokens: the recipe's, for a model with as many slots as Mix-Former's.
        queries: K of the windows table. windows_sec: its windows, seconds.
        pace: for estimates.
    """

    name: str
    base: Settings
    plumbing: Settings
    corpora: Mapping[str, CorpusSpec]
    evaluation: tuple[str, ...]
    seeds: Mapping[str, tuple[int, ...]]
    alphas: tuple[float, ...]
    real: float
    sizes: tuple[int, ...]
    inputs: tuple[str, ...]
    scaled: tuple[str, ...]
    fusions: tuple[str, ...]
    single_seed: tuple[str, ...]
    queries: tuple[int, ...]
    windows_sec: tuple[float, ...]
    batch_tokens: int
    pace: Pace

    def seeds_of(self, script: str) -> tuple[int, ...]:
        """Seeds of a script."""
        return self.seeds.get(script, self.seeds[""])


def _corpus(folder: str, *command: str) -> CorpusSpec:
    return CorpusSpec(Path("corpora") / folder, command)


def _base(experiment: str, synthetic: CorpusSpec, real: CorpusSpec, budget: str, steps: int) -> Settings:
    """What every run states, so that runs of different scripts can be one."""
    return {
        "experiment": experiment,
        "chat.input": "speech",
        "mixture.alpha": "0",
        "mixture.sources.sharechatx.path": str(synthetic.path),
        "mixture.sources.dailytalk.path": str(real.path),
        "fusion": "mix_former",
        "fusion.budget": budget,
        "trainer.steps": str(steps),
    }


_DEMO = {
    "sharechatx": _corpus("sharechatx-demo", "synthesize", "corpus=demo"),
    "dailytalk": _corpus("dailytalk-stand-in", "prepare", "corpus=stand_in"),
    "second": _corpus("stand-in-2", "prepare", "corpus=stand_in_2"),
    "overlap": _corpus("sharechatx-overlap-demo", "synthesize", "corpus=overlap_demo"),
}
_SMOKE = {
    "sharechatx": _corpus("sharechatx-smoke", "synthesize", "corpus=smoke"),
    "dailytalk": _corpus("dailytalk-stand-in-smoke", "prepare", "corpus=stand_in_smoke"),
    "second": _corpus("stand-in-2-smoke", "prepare", "corpus=stand_in_2_smoke"),
    "overlap": _corpus("sharechatx-overlap-smoke", "synthesize", "corpus=overlap_smoke"),
}
_PAPER_ASR = ("asr=whisper", "asr.path=openai/whisper-large-v3")  # for the rows that read a recogniser's words
# IEMOCAP for the second real corpus is ours: the paper has none. Both real corpora must be fetched by the user.
_PAPER = {
    "sharechatx": _corpus("sharechatx-80k", "synthesize", "corpus=paper"),
    "dailytalk": _corpus(
        "dailytalk", "prepare", "source=dailytalk", "path=data/dailytalk", "out=corpora/dailytalk", *_PAPER_ASR
    ),
    "second": _corpus(
        "iemocap",
        "prepare",
        "source=huggingface",
        "path=data/iemocap",
        "source.name=iemocap",
        "out=corpora/iemocap",
        *_PAPER_ASR,
    ),
    "overlap": _corpus("sharechatx-overlap-paper", "synthesize", "corpus=overlap_paper"),
}
_THREE = (0, 1, 2)
_SEEDS = {"": (0,), "alpha": _THREE, "fusion": _THREE, "dailytalk": _THREE, "sharechatx": _THREE, "scale": (0, 1)}
_ALPHAS = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
_FUSIONS = ("mix_former", "single_whisper", "single_beats", "single_mert", "stack", "gated", "moe", "cross_attention")

PRESETS: dict[str, Preset] = {
    "smoke": Preset(
        name="smoke",
        base=_base("smoke", _SMOKE["sharechatx"], _SMOKE["dailytalk"], "120K", 4),
        plumbing={"tracking.wandb": "disabled", "trainer.dev_every": "0", "trainer.checkpoint_every": "2"},
        corpora=_SMOKE,
        evaluation=(
            "score.bertscore_model=null",
            "score.bootstrap_samples=100",
            "score.permutations=20",
            "max_new_tokens=8",
            "audio_samples=1",
        ),
        seeds={"": (0,)},
        alphas=(0.0, 0.2, 1.0),
        real=0.2,
        sizes=(15, 0),
        inputs=("text", "speech"),
        scaled=("text", "speech"),
        fusions=("mix_former", "stack"),
        single_seed=(),
        queries=(1, 2),
        windows_sec=(0.34,),
        batch_tokens=1024,
        pace=Pace({"speech": 0.5, "text": 0.4}, 25.0, 5.0, "two x86 cores, one thread a run"),
    ),
    "demo": Preset(
        name="demo",
        base=_base("demo", _DEMO["sharechatx"], _DEMO["dailytalk"], "2M", 100) | {"loader.batch_tokens": "512"},
        plumbing={
            "tracking.wandb": "disabled",
            "trainer.dev_every": "0",
            "trainer.checkpoint_every": "30",
            "trainer.preflight": "false",  # sixty runs of one shape: the first has shown that they fit
        },
        corpora=_DEMO,
        evaluation=("max_new_tokens=32", "audio_samples=2"),
        seeds=_SEEDS,
        alphas=(0.0, 0.1, 0.2, 0.5, 1.0),
        real=0.2,
        sizes=(54, 108, 0),
        inputs=("text", "asr", "speech_text", "speech"),
        scaled=("text", "speech_text", "speech"),
        fusions=_FUSIONS,
        single_seed=("single_beats", "single_mert"),  # random weights here: one run shows what that gives
        queries=(1, 2, 4),
        windows_sec=(0.16, 0.34, 1.0, 2.0),
        batch_tokens=512,
        pace=Pace({"speech": 2.1, "text": 1.7}, 20.0, 35.0, "two x86 cores with AVX-512 and bf16, one thread a run"),
    ),
    "paper": Preset(
        name="paper",
        base=_base("paper", _PAPER["sharechatx"], _PAPER["dailytalk"], "40M", 20000),
        plumbing={},
        corpora=_PAPER,
        evaluation=(),
        seeds=_SEEDS,
        alphas=_ALPHAS,
        real=0.2,
        sizes=(5000, 10000, 20000, 40000, 0),
        inputs=("text", "asr", "speech_text", "speech"),
        scaled=("text", "asr", "speech_text", "speech"),
        fusions=("mix_former", "single_whisper", "single_emotion2vec", "single_beats", *_FUSIONS[4:]),
        single_seed=(),
        queries=(1, 2, 4),
        windows_sec=(0.16, 0.34, 0.5, 1.0, 2.0),
        batch_tokens=16384,
        pace=Pace({"speech": 1.5, "text": 1.0}, 300.0, 900.0, "NOT measured: a guess for 8 GPUs of 80 GB"),
    ),
}


def preset_of(name: str) -> Preset:
    """The preset of that name. Raises UserError."""
    if name not in PRESETS:
        raise one_of("preset", name, PRESETS)
    return PRESETS[name]
