"""The model card, README.md of a saved model: a header that the hub reads, and a page for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from omnichat.evaluation.metrics import METRICS
from omnichat.experiments.card.facts import Measured, without_paths
from omnichat.experiments.card.licences import Licence, base_model, hub_licence, local_paths, place_of, restriction
from omnichat.experiments.findings import warnings
from omnichat.experiments.report import render
from omnichat.experiments.runs import Row, Run
from omnichat.experiments.tables import DASH, Cell, Table, duration, figure_text, interval_text, number_text
from omnichat.model.pretrained import OmniChatConfig
from omnichat.model.pretrained.merging import Merged
from omnichat.schema import SPLITS

TASK = "audio-text-to-text"


@dataclass(frozen=True, slots=True)
class Card:
    """What the card is made of, beside the run.

    Attributes:
        name: of the model. config: as it is saved, its facts public.
        checkpoint: name. figures: what was measured on it.
        licences: of all parts and corpora. own: that of the saved weights; None: not chosen.
        merged: what was measured of llm/; None where it is not there.
        repo, revision: where it goes on the hub; None where it stays here.
        languages, datasets: hub's codes and ids.
        version: of omnichat.
    """

    name: str
    config: OmniChatConfig
    checkpoint: str
    figures: Measured
    licences: Sequence[Licence]
    version: str
    own: str | None = None
    merged: Merged | None = None
    repo: str | None = None
    revision: str | None = None
    languages: Sequence[str] = ()
    datasets: Sequence[str] = field(default_factory=tuple)


def model_card(run: Run, card: Card) -> str:
    """The card's text. The run's files are read no more; what is in `run` of another checkpoint is not shown."""
    config = card.config
    split = next((s for s in reversed(SPLITS) if any(row["split"] == s for row in card.figures.rows)), "test")
    context: dict[str, Any] = {
        "header": header(run, card),
        "card": card,
        "input": config.chat_config().input,
        "hears": config.chat_config().hears,
        "warnings": _warnings(run, card, split),
        "code": _code(card),
        "own_paths": sorted(local_paths(config)),
        "merged": card.merged,
        "data_table": _data_table(run),
        "settings_table": _settings_table(run, card),
        "results_table": _results_table(card.figures.rows) if card.figures.rows else None,
        "metrics": [info for key, info in METRICS.items() if any(r["metric"] == key for r in card.figures.rows)],
        "parts_table": _parts_table(config),
        "licence_table": _licence_table(card.licences),
        "restriction": restriction(card.licences),
    }
    return render("card/model_card.md.j2", context, autoescape=False)


def header(run: Run, card: Card) -> str:
    """The YAML by which the hub files a model: licence, languages, task, base model, data sets, figures."""
    config = card.config
    tags = ["omnichat", "spoken-dialogue", "lora", *(["audio"] if config.chat_config().hears else [])]
    tags += ["stand-in-data"] if run.stand_ins else []
    tags += ["random-weights"] if _random_parts(run, config) else []
    results = _eval_results(run, card.figures.rows)
    data = ModelCardData(
        language=list(card.languages) or None,
        license=hub_licence(card.licences, card.own),
        library_name="omnichat",
        pipeline_tag=TASK if config.chat_config().hears else "text-generation",
        base_model=base_model(config),
        datasets=list(card.datasets) or None,
        tags=tags,
        model_name=card.name if results else None,
        eval_results=results or None,
    )
    return str(data.to_yaml(line_break="\n"))


def _eval_results(run: Run, rows: Sequence[Row]) -> list[EvalResult]:
    """One result for each metric over all replies of a set; chance levels are no results of the model."""
    found = []
    for row in rows:
        info = METRICS.get(row["metric"])
        outside = row.get("set")
        if info is None or info.better is None or row["scenario"] != (f"source:{outside}" if outside else "all"):
            continue
        own = ", ".join(str(source["name"]) for source in run.sources) or "its corpora"
        found.append(
            EvalResult(
                task_type=TASK,
                task_name="spoken dialogue",
                dataset_type=str(outside or "held-out"),  # by which the header tells sets apart
                dataset_name=str(outside or f"held-out dialogues of {own}"),
                dataset_split=row["split"],
                metric_type=row["metric"],
                metric_name=info.title,
                metric_value=round(float(row["value"]), 4),
            )
        )
    return found


def _random_parts(run: Run, config: OmniChatConfig) -> list[str]:
    """Names of the parts that never saw training before this run."""
    llm = ["the LLM"] if (config.llm or {}).get("random_size") is not None else []
    return [*llm, *run.random_experts]


def _warnings(run: Run, card: Card, split: str) -> list[str]:
    """Every reason to hold this model and its figures loosely."""
    found = []
    if (card.config.llm or {}).get("random_size") is not None:
        found.append("The LLM is a small random one, made to see whether everything runs: it has learnt nothing.")
    absent = ("no predictions", "no metrics.json")  # the card's own words say what was not measured
    problems = tuple(problem for problem in run.problems if not problem.startswith(absent))
    said = warnings([replace(run, metrics=card.figures.rows, problems=problems)], split)
    found += [line for line in said if card.figures.rows or not line.startswith("One seed a recipe")]
    if card.merged is not None and card.merged.rounded_away:
        found.append(
            f"llm/ is rounded to {card.merged.dtype}, which moves its logits by {card.merged.saved:.2g} (relative "
            f"L2); LoRA itself moves them by {card.merged.moved:.2g} only."
        )
    return [str(without_paths(line)) for line in [*found, *card.figures.notes]]


def _code(card: Card) -> str:
    """Python that loads the model and answers once. It is run by a test as it stands."""
    chat = card.config.chat_config()
    where = json.dumps(card.repo or ".")
    more = f", revision={json.dumps(card.revision)}" if card.repo and card.revision else ""
    audio, text = '{"type": "audio", "audio": "hello.wav"}', '{"type": "text", "text": "Hello, how are you?"}'
    parts = {"speech": audio, "speech_text": f"{audio}, {text}"}.get(chat.input, text)
    lines = [
        "from omnichat.model.pretrained import OmniChatForConditionalGeneration, OmniChatProcessor",
        "",
        f"where = {where}" + ("" if card.repo else "  # this folder"),
        f"model = OmniChatForConditionalGeneration.from_pretrained(where{more})",
        f"processor = OmniChatProcessor.from_pretrained(where{more})",
        f'talk = [{{"role": "user", "content": [{parts}]}}]',
        "ids = model.generate(**processor(talk), max_new_tokens=48)",
        "style, words = processor.parse(processor.decode(ids[0]))",
        "print(style, words)",
    ]
    if card.merged is not None:
        lines += [
            "",
            "# The language model alone, LoRA in its weights:",
            "from transformers import AutoModelForCausalLM, AutoTokenizer",
            "",
            f'llm = AutoModelForCausalLM.from_pretrained(where, subfolder="llm"{more})',
            f'tokenizer = AutoTokenizer.from_pretrained(where, subfolder="llm"{more})',
        ]
    return "\n".join(lines)


def _data_table(run: Run) -> Table:
    """The data specification: one corpus a row."""
    rows = []
    for source in run.sources:
        badges = ("STAND-IN",) if source.get("stand_in") else ()
        cells = [Cell(str(source["name"]), badges=badges), Cell(str(source.get("kind", DASH)))]
        for split in SPLITS:
            part = source.get("splits", {}).get(split) or {}
            hours = f"{part.get('hours', 0):.2f} h" if part.get("dialogues") else ""
            cells.append(Cell(number_text(part.get("dialogues") or None, ",d"), hours))
        cells.append(Cell(number_text(source.get("drawn"), ",d")))
        cells.append(Cell(number_text(source.get("share"), ".3f"), str(run.data.get("unit", ""))))
        cells.append(Cell(number_text(source.get("epochs"), ".2f")))
        cells.append(Cell(str(source.get("fingerprint", DASH))[:12]))
        rows.append(tuple(cells))
    columns = ("Corpus", "Kind", *(f"{split.capitalize()} dialogues" for split in SPLITS))
    return Table((*columns, "Drawn", "Share", "Epochs", "Fingerprint"), tuple(rows), numeric=frozenset(range(2, 8)))


def _settings_table(run: Run, card: Card) -> Table:
    """How it was trained, one setting a row."""
    data, info, config = run.data, run.info, card.config
    asked = DASH if run.alpha is None else f"{run.alpha:g}"
    if knots := data.get("schedule"):
        asked = ", then ".join(f"{alpha:g} from step {step}" for step, alpha in knots)
    drawn = number_text(data.get("alpha_realised"), ".3f")
    if ci95 := data.get("alpha_ci95"):
        drawn += f", 95 % interval [{ci95[0]:.3f}, {ci95[1]:.3f}]"
    lora = dict((config.llm or {}).get("lora") or {})
    fusion = info.get("fusion") or {}
    size = f", {fusion['parameters']:,d} parameters" if isinstance(fusion.get("parameters"), int) else ""
    wall, parameters = info.get("wall_seconds"), info.get("parameters") or {}
    versions = ", ".join(f"{name} {version}" for name, version in dict(info.get("versions") or {}).items())
    settings = {
        "Reads of the user's turns": config.chat_config().input,
        "Alpha, the share of real dialogues": f"asked {asked}; drawn {drawn}",
        "Checkpoint": f"{card.checkpoint} of {number_text(info.get('steps', data.get('steps')), ',d')} steps",
        "Dialogues drawn": number_text(sum(source.get("drawn") or 0 for source in run.sources) or None, ",d"),
        "Seed": str(config.seed),
        "Precision": config.precision,
        "LoRA": f"rank {lora.get('rank')}, alpha {lora.get('alpha')}, on {', '.join(lora.get('targets') or ())}",
        "Fusion": f"{fusion.get('class')}{size}" if fusion else "none: it reads words",
        "Trained parameters": number_text(parameters.get("trainable"), ",d"),
        "Wall time": DASH if wall is None else duration(float(wall)),
        "Hardware": str(without_paths(str(info.get("hardware") or DASH))),
        "Versions": versions or DASH,
    }
    return Table(("Setting", "Value"), tuple((Cell(name), Cell(value)) for name, value in settings.items()))


def _results_table(rows: Sequence[Row]) -> Table:
    """Every figure with its interval and the number of replies behind it."""
    lines = []
    for row in rows:
        info = METRICS.get(row["metric"])
        note = str(without_paths(str(row.get("note", ""))))
        lines.append(
            (
                Cell(str(row["split"])),
                Cell("all replies" if row["scenario"] == "all" else str(row["scenario"])),
                Cell(info.title if info else str(row["metric"])),
                Cell(figure_text(row["metric"], row["value"])),
                Cell(interval_text(row["metric"], row) or DASH),
                Cell(str(row["n"])),
                Cell(note),
            )
        )
    columns = ("Split", "Of", "Metric", "Value", "95 % interval", "n", "Note")
    return Table(columns, tuple(lines), numeric=frozenset({3, 4, 5}))


def _parts_table(config: OmniChatConfig) -> Table:
    """The frozen parts, which are not in the folder: name, place, fingerprint."""
    prints = config.fingerprints or {}
    llm = config.llm or {}
    random = "random weights on the tokenizer of " if llm.get("random_size") is not None else ""
    rows = [("LLM", random + place_of(str(llm.get("path"))), str(prints.get("llm") or DASH))]
    for name, node in (config.experts or {}).items():
        path = node.get("path")
        kind = str(node.get("_target_", "")).rsplit(".", 1)[-1].removesuffix("Encoder")
        place = f"{kind}, {place_of(path)}" if isinstance(path, str) else f"{kind}, random weights"
        rows.append((f"Expert {name}", place, str((prints.get("experts") or {}).get(name) or DASH)))
    cells = tuple((Cell(part), Cell(place), Cell(digest[:16])) for part, place, digest in rows)
    return Table(("Part", "Weights", "Fingerprint"), cells)


def _licence_table(licences: Sequence[Licence]) -> Table:
    rows = []
    for row in licences:
        badges = ("non-commercial",) if row.non_commercial else ()
        rows.append((Cell(row.role), Cell(row.name), Cell(row.licence, badges=badges), Cell(row.place)))
    return Table(("Role", "Part", "Licence", "Where"), tuple(rows))
