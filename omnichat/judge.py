"""`omnichat judge`: predictions -> a language model's grades beside them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from omnichat.config import JudgeRun
from omnichat.evaluation.judge.base import Judge, Judgement, Outlook, unread
from omnichat.evaluation.predictions import Prediction, read_predictions
from omnichat.evaluation.sidecars import as_config_value, prediction_files, sidecar_path
from omnichat.remote.answers import AnswerStore
from omnichat.schema import SCENARIOS
from omnichat.utils.errors import UserError
from omnichat.utils.files import check_writable, write_jsonl_atomic
from omnichat.utils.parts import build_part


def run(config: JudgeRun) -> None:
    """Grade the replies of every file; a second call asks for what is missing only."""
    files = {path: read_predictions(path) for path in prediction_files(config.predictions)}
    judge: Judge = build_part(config.judge or {}, "judge", Judge)
    folder = Path(config.answers).expanduser()
    if config.dry_run:
        store = AnswerStore(folder if folder.is_dir() else None, judge.prices)
        everything = [prediction for predictions in files.values() for prediction in predictions]
        print(dry_run(judge, everything, judge.outlook(everything, store)))
        return
    check_writable(folder, "answers")
    for path in files:
        check_writable(path.parent, "predictions")
    store = AnswerStore(folder, judge.prices)
    before = store.usage()["paid"]
    unheard = []
    for path, predictions in files.items():
        judgements = judge.judge(predictions, store)
        out = sidecar_path(path, "judge")
        write_jsonl_atomic(out, [each.to_json() for each in judgements])
        print(summary(path, predictions, judgements, judge))
        print(f"scores: {out}")
        if not any(each.samples for each in judgements):
            unheard.append(path)
    print(spent(before, store.usage()))
    if unheard:
        raise UserError(
            f"{unheard[0]}: the judge {judge.model!r} gave no score that could be read; its answers are in {folder}; "
            "try a larger model, or more judge.max_tokens"
        )
    print(f"next: omnichat score predictions={as_config_value(list(files))}")


def summary(path: Path, predictions: Sequence[Prediction], judgements: Sequence[Judgement], judge: Judge) -> str:
    """Mean score of each scenario, and every answer that could not be read."""
    of = judge.prompts.version
    lines = [f"{path}: {len(judgements)} replies, judge {judge.model}, prompts {of}, {judge.samples} samples a reply"]
    for scenario in ("all", *SCENARIOS):
        pairs = zip(predictions, judgements, strict=True)
        mine = [judged for predicted, judged in pairs if scenario in ("all", predicted.scenario)]
        scores = [each.score for each in mine if each.score is not None]
        if mine:
            mean = f"{fmean(scores):.3f}" if scores else "-"
            lines.append(f"  {scenario:<8} {mean:>6}   n={len(scores)} of {len(mine)}")
    if reasons := unread(judgements):
        told = ", ".join(f"{reason} ({count})" for reason, count in sorted(reasons.items()))
        without = sum(not each.samples for each in judgements)
        total = len(judgements) * judge.samples
        lines.append(
            f"  {reasons.total()} of {total} answers could not be read: {told}; {without} replies have no score"
        )
    return "\n".join(lines)


def spent(before: Mapping[str, Any], usage: Mapping[str, Mapping[str, Any]]) -> str:
    """What was asked now, and what all answers that the scores are made of have cost, whenever that was."""
    paid, kept = usage["paid"], usage["kept"]
    now = {name: paid[name] - before[name] for name in ("answers", "prompt_tokens", "completion_tokens", "cost")}
    return f"asked now: {_costs(now, paid['currency'])}\nin the scores: {_costs(kept, paid['currency'])}"


def _costs(sums: Mapping[str, Any], currency: str) -> str:
    tokens = f"{sums['prompt_tokens']:,} + {sums['completion_tokens']:,} tokens"
    return f"{sums['answers']:,} answers, {tokens}, {sums['cost']:.4f} {currency}"


def dry_run(judge: Judge, predictions: Sequence[Prediction], outlook: Outlook) -> str:
    """What judging would take, and the first prompt in full."""
    prompt = "\n".join(
        f"[{message['role']}]\n{message['content']}" for message in judge.prompts.messages(predictions[0])
    )
    return (
        f"{prompt}\n\n"
        f"the prompt above: {judge.prompts.name(predictions[0].scenario)}, for {predictions[0].key}\n"
        f"replies: {len(predictions)}, {judge.samples} samples each by {judge.model}: {outlook.questions} distinct "
        f"questions, {outlook.questions - outlook.requests} of them answered already\n"
        f"requests: {outlook.requests}\n"
        f"tokens: about {outlook.prompt_tokens:,} of prompts, at most {outlook.completion_tokens:,} of answers\n"
        f"cost: at most {outlook.cost:.4f} {outlook.currency}, by judge.prices\n"
        "nothing was asked\n"
        "next: the same command without dry_run"
    )
