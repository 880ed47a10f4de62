"""All metrics of a set of predictions as rows, each with n and a bootstrap interval, and paired tests of two runs.

Everything is computed from the predictions alone: no model under test, no audio, no GPU.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from omnichat.evaluation import scene, style, text
from omnichat.evaluation.bootstrap import Measure, cluster_ids, mean_measure
from omnichat.evaluation.metrics import METRICS, MetricInfo
from omnichat.evaluation.predictions import Prediction
from omnichat.evaluation.seeds import seeds_interval, seeds_test
from omnichat.schema import SCENARIOS, SPLITS
from omnichat.utils.errors import UserError

__all__ = ["METRICS", "MetricInfo", "ScoreConfig", "compare", "compare_seeds", "figures", "measures", "score"]
Bools = NDArray[np.bool_]
Extra = Mapping[str, Mapping[str, float]]  # metric -> key of a reply -> its number
_MOST_VALUES = 40  # of an attribute that is told apart by value


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


def score(predictions: Sequence[Prediction], config: ScoreConfig, extra: Extra | None = None) -> list[dict[str, Any]]:
    """Return the rows of metrics.json: {"split", "scenario", "metric", "value", "n", "ci95", "note"?}.

    `scenario` is "all" or another name of `subsets`. `n` counts items: replies, or pairs of replies for the two
    sensitivities. `ci95` is [low, high]; where there is but one independent dialogue, nothing can be resampled and it
    is the metric's whole range. Metrics without any item have no row. `extra` are more numbers a reply, by their
    metric and the reply's key, such as `sidecars.sidecars` reads.

    Raises:
        UserError: no predictions, or a BERTScore model that cannot be loaded.
    """
    if not predictions:
        raise UserError("there are no predictions to score")
    bertscore = bertscore_of(config)
    rows = []
    for split in SPLITS:
        part = [p for p in predictions if p.split == split]
        if part:
            found = figures([part], [measures(part, bertscore, extra)], config, bertscore)
            rows += [{"split": split} | row for row in found]
    return rows


def compare(
    predictions: Sequence[Prediction], baseline: Sequence[Prediction], config: ScoreConfig
) -> list[dict[str, Any]]:
    """Return paired bootstrap tests of a run against a baseline on the replies both have (paired by source and id).

    Rows: {"split", "scenario", "metric", "difference", "ci95", "p", "n"}; difference is run minus baseline. BERTScore
    takes part only where the config names its model.
    """
    bertscore = bertscore_of(config)
    rows = []
    for split in SPLITS:
        mine, theirs = ([p for p in part if p.split == split] for part in (predictions, baseline))
        if mine and theirs:
            tests = compare_seeds([mine], [measures(mine, bertscore)], [measures(theirs, bertscore)], config)
            rows += [{"split": split} | test for test in tests]
    return rows


def bertscore_of(config: ScoreConfig) -> text.BertScore | None:
    """The BERTScore model that the config names. Raises UserError where it cannot be loaded."""
    if config.bertscore_model is None:
        return None
    return text.BertScore(config.bertscore_model, config.bertscore_layers, config.batch_size, config.device)


def dialogue_stem(dialogue: str) -> str:
    """Return the id that the style variants of one dialogue share (`d12-v0` and `d12-v1`: `d12`)."""
    return re.sub(r"-v\d+$", "", dialogue)


def measures(
    predictions: Sequence[Prediction], bertscore: text.BertScore | None, extra: Extra | None = None
) -> dict[str, Measure]:
    """Return every metric of one split as a measure; metrics that have no item are left out."""
    clusters = reply_clusters(predictions)
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
    return found | extra_measures(predictions, extra or {})


def extra_measures(predictions: Sequence[Prediction], extra: Extra) -> dict[str, Measure]:
    """Return each metric of `extra` as the mean of its numbers over the replies that have one."""
    clusters, ids = reply_clusters(predictions), [p.key for p in predictions]
    found = {}
    for metric, values in extra.items():
        rated = np.array([row for row, name in enumerate(ids) if name in values], dtype=np.int64)
        if len(rated):
            names = [ids[row] for row in rated]
            found[metric] = mean_measure([values[name] for name in names], clusters[rated], rated, names)
    return found


def reply_clusters(predictions: Sequence[Prediction]) -> NDArray[np.int64]:
    """Return int [N]: replies that are drawn together, those of one dialogue and its variants."""
    stems = [f"{p.source}/{dialogue_stem(p.dialogue)}" for p in predictions]
    groups = [None if p.variant_of is None else f"{p.source}/{p.variant_of}" for p in predictions]
    return cluster_ids(stems, groups)


def _variant_rows(predictions: Sequence[Prediction]) -> Bools:
    keep = np.zeros(len(predictions), dtype=bool)
    for group in style.variant_groups(predictions):
        keep[group] = True
    return keep


def subsets(predictions: Sequence[Prediction]) -> dict[str, Bools]:
    """Return bool [N] of each named subset that is not empty.

    "all"; each scenario; "source:NAME" for each source where there are several; "attribute:NAME" for the replies that
    have the attribute, and "attribute:NAME=VALUE" for each of its values, where it has not more than forty.
    """
    found = {"all": np.ones(len(predictions), dtype=bool)}
    for scenario in SCENARIOS:
        found[scenario] = np.array([p.scenario == scenario for p in predictions])
    sources = sorted({p.source for p in predictions})
    if len(sources) > 1:
        for source in sources:
            found[f"source:{source}"] = np.array([p.source == source for p in predictions])
    for name in sorted({name for p in predictions for name in p.attributes}):
        found[f"attribute:{name}"] = np.array([name in p.attributes for p in predictions])
        values = sorted({p.attributes[name] for p in predictions if name in p.attributes})
        for value in values if len(values) <= _MOST_VALUES else ():
            found[f"attribute:{name}={value}"] = np.array([p.attributes.get(name) == value for p in predictions])
    return {name: keep for name, keep in found.items() if keep.any()}


def figures(
    seeds: Sequence[Sequence[Prediction]],
    found: Sequence[Mapping[str, Measure]],
    config: ScoreConfig,
    bertscore: text.BertScore | None = None,
) -> list[dict[str, Any]]:
    """Return a system's rows for one split: {"scenario", "metric", "value", "n", "ci95", "note"?}.

    Args:
        seeds: the replies of each seed of the system to the same turns.
        found: the `measures` of each seed.
        config: samples and seeds.
        bertscore: the model behind a figure of BERTScore, for its note.

    With several seeds a value is their mean, and a row has also "seeds" (their number), "values" (one a seed) and
    "ci95_seeds"; see `seeds.seeds_interval`.
    """
    notes = {"bleu": text.bleu_signature(), "meteor": text.meteor_note()}
    if bertscore is not None:
        notes["bertscore_f1"] = bertscore.note
    masks = [subsets(part) for part in seeds]
    rows = []
    for scenario in masks[0]:
        for metric in found[0]:
            chosen = _selected(found, masks, metric, scenario)
            if chosen is not None and (row := _figure(metric, chosen, config, notes.get(metric))):
                rows.append({"scenario": scenario} | row)
        if all(scenario in mask for mask in masks):
            keeps = [mask[scenario] for mask in masks]
            rows += [{"scenario": scenario} | row for row in chance_rows(seeds, keeps, config)]
    return rows


def extra_rows(predictions: Sequence[Prediction], extra: Extra, config: ScoreConfig) -> list[dict[str, Any]]:
    """Return the rows of `score` for the metrics of `extra` alone, of predictions of one split."""
    found, rows = extra_measures(predictions, extra), []
    for scenario, mask in subsets(predictions).items():
        for metric, whole in found.items():
            part = whole.select(mask)
            if part.n and (row := _figure(metric, [part], config, None)):
                rows.append({"split": predictions[0].split, "scenario": scenario} | row)
    return rows


def _figure(metric: str, seeds: Sequence[Measure], config: ScoreConfig, note: str | None) -> dict[str, Any] | None:
    """One figure's part of a row; None where the seeds share no item."""
    info = METRICS[metric]
    limits = (info.bottom, np.inf if info.open_ended else info.top)
    over = seeds_interval(seeds, config.bootstrap_samples, config.seed, limits)
    if over is None:
        return None
    row: dict[str, Any] = {"metric": metric, "value": over.value, "n": over.n}
    row["ci95"] = [info.bottom, info.top] if over.ci95 is None else list(over.ci95)
    if over.ci95_seeds is not None:
        row |= {"seeds": len(seeds), "values": [m.value() for m in seeds], "ci95_seeds": list(over.ci95_seeds)}
    remarks = [note] if note is not None else []
    remarks += ["one dialogue: its interval is unknown"] if over.ci95 is None else []
    return row | ({"note": "; ".join(remarks)} if remarks else {})


def compare_seeds(
    seeds: Sequence[Sequence[Prediction]],
    found: Sequence[Mapping[str, Measure]],
    baseline: Sequence[Mapping[str, Measure]],
    config: ScoreConfig,
) -> list[dict[str, Any]]:
    """Return paired tests of a system against a baseline on one split: `compare`, for one or more seeds of each.

    Args:
        seeds: the replies of each seed of the system.
        found: the `measures` of each seed of the system.
        baseline: those of the baseline.
        config: samples and seeds.
    """
    masks = [subsets(part) for part in seeds]
    rows = []
    for metric in found[0]:
        other = [of_seed[metric] for of_seed in baseline if metric in of_seed]
        if len(other) < len(baseline):
            continue
        for scenario in masks[0]:
            chosen = _selected(found, masks, metric, scenario)
            test = None if chosen is None else seeds_test(chosen, other, config.bootstrap_samples, config.seed)
            if test is not None:
                row = {"scenario": scenario, "metric": metric, "difference": test.difference}
                rows.append(row | {"ci95": list(test.ci95), "p": test.p, "n": test.n})
    return rows


def _selected(
    found: Sequence[Mapping[str, Measure]], masks: Sequence[Mapping[str, Bools]], metric: str, scenario: str
) -> list[Measure] | None:
    """The metric of each seed on one subset; None where a seed lacks it or has no item there."""
    pairs = list(zip(found, masks, strict=True))
    if any(metric not in measured or scenario not in mask for measured, mask in pairs):
        return None
    chosen = [measured[metric].select(mask[scenario]) for measured, mask in pairs]
    return chosen if all(measure.n for measure in chosen) else None


def chance_rows(
    seeds: Sequence[Sequence[Prediction]], keeps: Sequence[Bools], config: ScoreConfig
) -> list[dict[str, Any]]:
    """Return the chance rows of one subset; over several seeds, of their mean."""
    out: list[dict[str, Any]] = []
    each = [_chance(part, keep, config) for part, keep in zip(seeds, keeps, strict=True)]
    for metric in each[0]:
        of_seeds = [one[metric] for one in each if metric in one]
        value, draws = np.mean([one.value for one in of_seeds]), np.mean([one.draws for one in of_seeds], axis=0)
        real = float(np.mean([one.real for one in of_seeds]))
        out.append({"metric": metric, "value": float(value), "n": of_seeds[0].n} | _shuffles(draws, real))
    return out


@dataclass(frozen=True, slots=True)
class _Chance:
    """What shuffled labels or scenes earn: its mean, each shuffle's value, the real value, and the items."""

    value: float
    draws: NDArray[np.float64]
    real: float
    n: int


def _chance(predictions: Sequence[Prediction], keep: Bools, config: ScoreConfig) -> dict[str, _Chance]:
    out: dict[str, _Chance] = {}
    variants = _variant_rows(predictions)
    for metric, mask in (("emotion_f1_chance", keep), ("emotion_f1_variants_chance", keep & variants)):
        part = [p for p, kept in zip(predictions, mask, strict=True) if kept]
        rows, wanted, got = style.emotion_codes(part)
        if not len(rows):
            continue
        strata = np.array([SCENARIOS.index(part[row].scenario) for row in rows], dtype=np.int64)
        draws = style.chance_f1(wanted, got, strata, config.permutations, config.seed)
        real = float(style.weighted_f1(style.confusion_stats(wanted, got).sum(axis=0, keepdims=True))[0])
        out[metric] = _Chance(float(draws.mean()), draws, real, len(rows))
    heard = [row for row in scene.scene_rows(predictions) if keep[row]]
    if heard:
        value, draws = scene.scene_chance(predictions, heard, config.permutations, config.seed)
        real = float(np.mean(scene.scene_hits(predictions, heard)))
        out["scene_hit_chance"] = _Chance(value, draws, real, len(heard))
    return out


def _shuffles(draws: NDArray[np.float64], real: float) -> dict[str, Any]:
    """The interval of shuffled values, and how many of them reach the real one (a permutation test's p)."""
    p = (int((draws >= real - 1e-12).sum()) + 1) / (len(draws) + 1)
    low, high = np.percentile(draws, [2.5, 97.5])
    note = f"{len(draws)} shuffles; share that reach the real value: p = {p:.3f}"
    return {"ci95": [float(low), float(high)], "note": note}
