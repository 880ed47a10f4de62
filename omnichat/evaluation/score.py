"""All metrics of a set of predictions as rows, each with n and a bootstrap interval, and paired tests of two runs.

Everything is computed from the predictions alone: no model under test, no audio, no GPU.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnichat.evaluation import scene, style, text
from omnichat.evaluation.bootstrap import Measure, cluster_ids, interval, mean_measure, paired_test
from omnichat.evaluation.predictions import Prediction
from omnichat.schema import SCENARIOS, SPLITS
from omnichat.utils.errors import UserError

Bools = NDArray[np.bool_]


@dataclass(kw_only=True, slots=True)
class ScoreConfig:
    """How predictions are scored.

    Attributes:
        bootstrap_samples: resamples behind every interval and paired test.
        permutations: shuffles behind the chance rows.
        seed: seed of both.
        bertscore_model: `asset:NAME`, a folder or a hub name; None leaves BERTScore out.
        bertscore_layers: layer of that model; None takes bert-score's own choice for models that it knows.
        batch_size: pairs a batch of BERTScore.
        device: torch device of BERTScore.
    """

    bootstrap_samples: int = 1000
    permutations: int = 200
    seed: int = 0
    bertscore_model: str | None = "asset:minilm"
    bertscore_layers: int | None = 6
    batch_size: int = 32
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, least in (("bootstrap_samples", 100), ("permutations", 20), ("batch_size", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise UserError(f"score.{name} must be >= {least}, got {getattr(self, name)}")
        if self.bertscore_layers is not None and self.bertscore_layers < 1:
            raise UserError(f"score.bertscore_layers must be >= 1, got {self.bertscore_layers}")


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """A metric's name for people, which way is better (None: neither), its decimals, and what it is."""

    title: str
    better: str | None
    decimals: int
    meaning: str
    top: float = 1.0  # values lie in 0 to this


METRICS: dict[str, MetricInfo] = {
    "emotion_f1": MetricInfo(
        "Emotion F1",
        "higher",
        3,
        "Weighted F1 of the reply's emotion over the seven classes; a style that cannot be parsed counts as wrong.",
    ),
    "emotion_f1_chance": MetricInfo(
        "Chance F1",
        None,
        3,
        "Mean emotion F1 after the predicted labels are shuffled over the replies of each scenario: what the same "
        "habit of labels earns without listening. Its interval is that of the shuffles.",
    ),
    "emotion_f1_variants": MetricInfo(
        "Emotion F1, same words",
        "higher",
        3,
        "Emotion F1 on last turns that exist in several styles with the same words, where only the voice can tell.",
    ),
    "emotion_f1_variants_chance": MetricInfo(
        "Chance F1, same words", None, 3, "Chance F1 on the same-words turns, by the same shuffles."
    ),
    "style_sensitivity": MetricInfo(
        "Style sensitivity",
        "higher",
        3,
        "Over pairs of same words in two styles whose reference replies differ in emotion: the share where both "
        "replies carry their own reference's emotion. A model that hears only words scores 0 under greedy decoding.",
    ),
    "reply_sensitivity": MetricInfo(
        "Reply sensitivity",
        "higher",
        3,
        "Over pairs of same words in two styles: the share where each reply's words are strictly closer (sentence "
        "chrF) to its own reference than to its sibling's. Independent replies reach about 0.25, equal replies 0.",
    ),
    "emotion_accuracy": MetricInfo("Emotion accuracy", "higher", 3, "Share of replies with the reference's emotion."),
    "pitch_accuracy": MetricInfo("Pitch accuracy", "higher", 3, "Share of replies with the reference's pitch label."),
    "speed_accuracy": MetricInfo("Speed accuracy", "higher", 3, "Share of replies with the reference's speed label."),
    "style_parse_failure": MetricInfo(
        "Unparsed styles", "lower", 3, "Share of replies whose style tag could not be read; they count as wrong above."
    ),
    "scene_hit": MetricInfo(
        "Scene hit rate",
        "higher",
        3,
        "Share of replies to turns with a background sound that name it, by the keywords kept with the scene "
        "(whole words, Porter stems).",
    ),
    "scene_hit_chance": MetricInfo(
        "Scene chance",
        None,
        3,
        "Mean hit rate of the same replies after the scenes are shuffled within each scenario: what naming common "
        "sounds earns unheard. Its interval is that of the shuffles.",
    ),
    "bleu": MetricInfo("BLEU", "higher", 2, "Corpus BLEU of the reply's words, 0 to 100 (sacrebleu).", 100.0),
    "rouge_l": MetricInfo("ROUGE-L", "higher", 3, "Mean ROUGE-L F measure with Porter stems (rouge-score)."),
    "meteor": MetricInfo("METEOR", "higher", 3, "Mean METEOR (nltk); the note says whether WordNet synonyms counted."),
    "bertscore_f1": MetricInfo("BERTScore", "higher", 3, "Mean BERTScore F1 without baseline rescaling (bert-score)."),
}


def score(predictions: Sequence[Prediction], config: ScoreConfig) -> list[dict[str, Any]]:
    """Return the rows of metrics.json: {"split", "scenario", "metric", "value", "n", "ci95", "note"?}.

    `scenario` is "all", each scenario present, and "source:NAME" for each source where there are several. `n` counts
    items: replies, or pairs of replies for the two sensitivities. `ci95` is [low, high]; where there is but one
    independent dialogue, nothing can be resampled and it is the metric's whole range. Metrics without any item have
    no row.

    Raises:
        UserError: no predictions, or a BERTScore model that cannot be loaded.
    """
    if not predictions:
        raise UserError("there are no predictions to score")
    bertscore = None
    if config.bertscore_model is not None:
        bertscore = text.BertScore(config.bertscore_model, config.bertscore_layers, config.batch_size, config.device)
    rows = []
    for split in SPLITS:
        part = [p for p in predictions if p.split == split]
        if part:
            rows += _score_split(split, part, config, bertscore)
    return rows


def compare(
    predictions: Sequence[Prediction], baseline: Sequence[Prediction], config: ScoreConfig
) -> list[dict[str, Any]]:
    """Return paired bootstrap tests of a run against a baseline on the replies both have (paired by source and id).

    Rows: {"split", "scenario", "metric", "difference", "ci95", "p", "n"}; difference is run minus baseline. BERTScore
    takes part only where the config names its model.
    """
    bertscore = None
    if config.bertscore_model is not None:
        bertscore = text.BertScore(config.bertscore_model, config.bertscore_layers, config.batch_size, config.device)
    rows = []
    for split in SPLITS:
        mine, theirs = ([p for p in part if p.split == split] for part in (predictions, baseline))
        if not mine or not theirs:
            continue
        other = measures(theirs, bertscore)
        for metric, measure in measures(mine, bertscore).items():
            if metric not in other:
                continue
            for scenario, keep in _subsets(mine).items():
                test = paired_test(measure.select(keep), other[metric], config.bootstrap_samples, config.seed)
                if test is not None:
                    row = {"split": split, "scenario": scenario, "metric": metric, "difference": test.difference}
                    rows.append(row | {"ci95": list(test.ci95), "p": test.p, "n": test.n})
    return rows


def dialogue_stem(dialogue: str) -> str:
    """Return the id that the style variants of one dialogue share (`d12-v0` and `d12-v1`: `d12`)."""
    return re.sub(r"-v\d+$", "", dialogue)


def measures(predictions: Sequence[Prediction], bertscore: text.BertScore | None) -> dict[str, Measure]:
    """Return every metric of one split as a measure; metrics that have no item are left out."""
    stems = [f"{p.source}/{dialogue_stem(p.dialogue)}" for p in predictions]
    groups = [None if p.variant_of is None else f"{p.source}/{p.variant_of}" for p in predictions]
    clusters = cluster_ids(stems, groups)
    ids = [p.key for p in predictions]
    found: dict[str, Measure] = {}

    def add_mean(metric: str, rows: Sequence[int], values: Sequence[float], names: Sequence[str] | None = None) -> None:
        if len(rows):
            index = np.array(rows, dtype=np.int64)
            found[metric] = mean_measure(values, clusters[index], index, names or [ids[row] for row in rows])

    everything = list(range(len(predictions)))
    rows, wanted, got = style.emotion_codes(predictions)
    if len(rows):
        stats = style.confusion_stats(wanted, got)
        whole = Measure(stats, clusters[rows], rows, style.weighted_f1, tuple(ids[row] for row in rows))
        found["emotion_f1"] = whole
        several = whole.select(_variant_rows(predictions))
        if several.n:
            found["emotion_f1_variants"] = several
    for metric, pairing in (("style_sensitivity", style.style_pairs), ("reply_sensitivity", style.reply_pairs)):
        pairs, hits = pairing(predictions)
        add_mean(metric, [a for a, _ in pairs], hits, ["|".join(sorted((ids[a], ids[b]))) for a, b in pairs])
    for attribute in ("emotion", "pitch", "speed"):
        add_mean(f"{attribute}_accuracy", *style.attribute_hits(predictions, attribute))
    styled = [row for row, p in enumerate(predictions) if p.reference.style]
    add_mean("style_parse_failure", styled, [float(predictions[row].hypothesis.style is None) for row in styled])
    heard = scene.scene_rows(predictions)
    add_mean("scene_hit", heard, scene.scene_hits(predictions, heard))
    hypotheses = [p.hypothesis.text for p in predictions]
    references = [p.reference.text for p in predictions]
    bleu = text.bleu_stats(hypotheses, references)
    found["bleu"] = Measure(bleu, clusters, np.arange(len(predictions)), text.bleu_from_stats, tuple(ids))
    add_mean("rouge_l", everything, text.rouge_l(hypotheses, references))
    add_mean("meteor", everything, text.meteor(hypotheses, references))
    if bertscore is not None:
        add_mean("bertscore_f1", everything, bertscore(hypotheses, references))
    return found


def _variant_rows(predictions: Sequence[Prediction]) -> Bools:
    keep = np.zeros(len(predictions), dtype=bool)
    for group in style.variant_groups(predictions):
        keep[group] = True
    return keep


def _subsets(predictions: Sequence[Prediction]) -> dict[str, Bools]:
    """Return bool [N] of each named subset: all, the scenarios, and the sources where there are several."""
    subsets = {"all": np.ones(len(predictions), dtype=bool)}
    for scenario in SCENARIOS:
        subsets[scenario] = np.array([p.scenario == scenario for p in predictions])
    sources = sorted({p.source for p in predictions})
    if len(sources) > 1:
        for source in sources:
            subsets[f"source:{source}"] = np.array([p.source == source for p in predictions])
    return {name: keep for name, keep in subsets.items() if keep.any()}


def _score_split(
    split: str, predictions: Sequence[Prediction], config: ScoreConfig, bertscore: text.BertScore | None
) -> list[dict[str, Any]]:
    notes = {"bleu": text.bleu_signature(), "meteor": text.meteor_note()}
    if bertscore is not None:
        notes["bertscore_f1"] = bertscore.note
    found = measures(predictions, bertscore)
    variants = _variant_rows(predictions)
    rows = []
    for scenario, keep in _subsets(predictions).items():
        head = {"split": split, "scenario": scenario}
        for metric, whole in found.items():
            measure = whole.select(keep)
            if not measure.n:
                continue
            found_interval = interval(measure, config.bootstrap_samples, config.seed)
            ci95 = [0.0, METRICS[metric].top] if found_interval is None else list(found_interval)
            remarks = [notes[metric]] if metric in notes else []
            remarks += ["one dialogue: its interval is unknown"] if found_interval is None else []
            row = head | {"metric": metric, "value": measure.value(), "n": measure.n, "ci95": ci95}
            rows.append(row | ({"note": "; ".join(remarks)} if remarks else {}))
        rows += [head | row for row in _chance_rows(predictions, keep, variants, config)]
    return rows


def _chance_rows(
    predictions: Sequence[Prediction], keep: Bools, variants: Bools, config: ScoreConfig
) -> list[dict[str, Any]]:
    out: list[dict[str, Any]] = []
    for metric, mask in (("emotion_f1_chance", keep), ("emotion_f1_variants_chance", keep & variants)):
        part = [p for p, kept in zip(predictions, mask, strict=True) if kept]
        rows, wanted, got = style.emotion_codes(part)
        if not len(rows):
            continue
        strata = np.array([SCENARIOS.index(part[row].scenario) for row in rows], dtype=np.int64)
        draws = style.chance_f1(wanted, got, strata, config.permutations, config.seed)
        real = float(style.weighted_f1(style.confusion_stats(wanted, got).sum(axis=0, keepdims=True))[0])
        out.append({"metric": metric, "value": float(draws.mean()), "n": len(rows)} | _shuffles(draws, real))
    heard = [row for row in scene.scene_rows(predictions) if keep[row]]
    if heard:
        value, draws = scene.scene_chance(predictions, heard, config.permutations, config.seed)
        real = float(np.mean(scene.scene_hits(predictions, heard)))
        out.append({"metric": "scene_hit_chance", "value": value, "n": len(heard)} | _shuffles(draws, real))
    return out


def _shuffles(draws: NDArray[np.float64], real: float) -> dict[str, Any]:
    """The interval of shuffled values, and how many of them reach the real one (a permutation test's p)."""
    p = (int((draws >= real - 1e-12).sum()) + 1) / (len(draws) + 1)
    low, high = np.percentile(draws, [2.5, 97.5])
    note = f"{len(draws)} shuffles; share that reach the real value: p = {p:.3f}"
    return {"ci95": [float(low), float(high)], "note": note}
