"""How fast a trained model talks: first token, tokens a second, batched and single, kept cache and reading again.

    python scripts/bench_talk.py runs/demo/speech
    python scripts/bench_talk.py runs/demo/speech --corpus corpora/sharechatx-demo --prompts 32 --rounds 3

Kinds that are compared take turns within one process. Replies have a fixed number of tokens, so that nobody wins by
saying less. Writes bench/talk.json.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch

from omnichat.chat.base import DecodingConfig, Talker
from omnichat.chat.session import Session
from omnichat.chat_config import TalkerConfig
from omnichat.data.parquet_corpus import open_corpus
from omnichat.evaluate import read_run_config
from omnichat.model.pretrained.conversation import ChatPrompt, Said, read_sound
from omnichat.run_folder import hardware
from omnichat.talk import open_talker
from omnichat.utils.files import write_json_atomic

TURNS = 8


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="run folder or saved model")
    parser.add_argument("--corpus", help="whose test dialogues are used; default: the run's first")
    parser.add_argument("--prompts", type=int, default=24, help="of the comparison of batched with single decoding")
    parser.add_argument("--tokens", type=int, default=32, help="of every reply")
    parser.add_argument("--rounds", type=int, default=3, help="of every comparison")
    parser.add_argument("--precision", default="auto", help="auto (as trained) | fp32 | bf16")
    parser.add_argument("--out", type=Path, default=Path("bench/talk.json"))
    args = parser.parse_args()
    talker = open_talker(args.run, TalkerConfig(run=args.run, precision=args.precision))
    sounds = recordings(args.run, args.corpus, max(args.prompts, TURNS))
    found = {
        "hardware": hardware(),
        "threads": torch.get_num_threads(),
        "precision": talker.model.precision,
        "tokens": args.tokens,
        **first_token(talker, sounds, args),
        **batched(talker, sounds, args),
        **eight_turns(talker, sounds, args),
    }
    for name, value in found.items():
        print(f"{name:<28} {value}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    write_json_atomic(args.out, found)
    print(f"written: {args.out}")


def recordings(run: str, corpus: str | None, count: int) -> list[Said]:
    """User turns with recordings, of test dialogues."""
    if corpus is None:
        corpus = next(iter(read_run_config(Path(run)).mixture.sources.values())).path
    opened, found = open_corpus(corpus), []
    for dialogue in opened.iterate("test"):
        for turn in dialogue.turns:
            if turn.speaker == "A" and turn.audio is not None and len(found) < count:
                path = opened.path_of(turn)
                assert isinstance(path, Path), "name a corpus folder, not a Parquet export"
                found.append(Said("user", read_sound(path), turn.text))
    if len(found) < count:
        raise SystemExit(f"{corpus}: {len(found)} recorded test turns, {count} are needed")
    return found


def fixed(tokens: int) -> DecodingConfig:
    """Greedy replies of so many tokens."""
    return DecodingConfig(max_new_tokens=tokens)


class LongSession(Session):
    """A session whose replies never end early."""

    def _decode(self, *given: Any) -> Any:
        end, self.talker.model.config.end_token_id = self.talker.model.config.end_token_id, None
        try:
            return super()._decode(*given)
        finally:
            self.talker.model.config.end_token_id = end


def first_token(talker: Talker, sounds: Sequence[Said], args: argparse.Namespace) -> dict[str, Any]:
    """Medians over single questions, experts included."""
    answers = []
    for said in sounds[: 2 + args.rounds * 4]:
        session = LongSession(talker, fixed(args.tokens))
        answers.append(session.answer(said))
    answers = answers[2:]  # the first two warm up
    rates = [(answer.tokens - 1) / (answer.seconds - answer.first_token_sec) for answer in answers]
    return {
        "first_token_sec": round(median(answer.first_token_sec for answer in answers), 3),
        "tokens_per_sec": round(median(rates), 1),
        "prompt_positions": median(answer.prompt_tokens for answer in answers),
    }


def batched(talker: Talker, sounds: Sequence[Said], args: argparse.Namespace) -> dict[str, Any]:
    """Replies a second, all prompts in one batch and one by one, in turns."""
    prompts = [talker.processor.prompt([said]) for said in sounds[: args.prompts]]

    def decode(group: Sequence[ChatPrompt]) -> None:
        inputs = talker.processor.batch(group)
        talker.model.generate(**inputs, max_new_tokens=args.tokens, eos_token_id=None, pad_token_id=0)

    decode(prompts[:1])
    together, alone = [], []
    for _ in range(args.rounds):
        together.append(timed(lambda: decode(prompts)))
        alone.append(timed(lambda: [decode([prompt]) for prompt in prompts]))
    ratios = [one / many for one, many in zip(alone, together, strict=True)]
    return {
        "batched_replies_per_sec": round(len(prompts) / median(together), 2),
        "single_replies_per_sec": round(len(prompts) / median(alone), 2),
        "batched_over_single": round(median(ratios), 2),
        "batched_over_single_rounds": [round(ratio, 2) for ratio in ratios],
    }


def eight_turns(talker: Talker, sounds: Sequence[Said], args: argparse.Namespace) -> dict[str, Any]:
    """Time to the first token of every turn of one dialogue, its cache kept and the whole read again, in turns."""
    kept: list[list[float]] = [[] for _ in range(TURNS)]
    again: list[list[float]] = [[] for _ in range(TURNS)]
    for _ in range(args.rounds):
        one = LongSession(talker, fixed(args.tokens))
        other = LongSession(talker, fixed(args.tokens), keep_cache=False)
        for turn, said in enumerate(sounds[:TURNS]):
            kept[turn].append(one.answer(said).first_token_sec)
            other.say(one.turns[:-2])  # the same dialogue, should a rounding have parted them
            again[turn].append(other.answer(said).first_token_sec)
    medians = [[round(median(turn), 3) for turn in kind] for kind in (kept, again)]
    return {
        "kept_first_token_sec": medians[0],
        "again_first_token_sec": medians[1],
        "again_at_8_over_kept_at_2": round(medians[1][-1] / medians[0][1], 2),
        "again_at_8_over_kept_at_8": round(medians[1][-1] / medians[0][-1], 2),
    }


def timed(work: Callable[[], Any]) -> float:
    """Seconds that it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
