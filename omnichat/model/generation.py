"""Batched greedy decoding of replies, each from the gold history before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from omnichat.data.collate import Features, Item, collate
from omnichat.model.omnichat import OmniChat
from omnichat.text.chat import ChatFormat, Reply, Role


@dataclass(frozen=True, slots=True)
class Prompt:
    """A reply to be written: the item whose sequence ends where the reply begins, and the turn that it is."""

    item: Item
    turn: int


def prompt_for(item: Item, reply: Reply) -> Prompt:
    """The prompt of one reply of an item: everything before it, and the recordings that this holds."""
    sequence = item.sequence.prompt_of(reply)
    return Prompt(Item(item.dialogue, item.source, sequence, item.keys[: len(sequence.clips)]), reply.turn)


def end_of_turn_id(item: Item) -> int:
    """The id that ends a reply in this chat template."""
    sequence = item.sequence
    return next(token for token, role in zip(sequence.ids, sequence.roles, strict=True) if role == Role.END)


def generate_replies(
    model: OmniChat,
    prompts: Sequence[Prompt],
    chat: ChatFormat,
    features: Features | None,
    end_id: int,
    *,
    max_new_tokens: int,
    batch_tokens: int,
    precision: str,
) -> list[str]:
    """Greedy replies, in the order of the prompts; batched by length, so that little is padded.

    The model is put into eval mode for the call and back afterwards. In float32 a batch gives what single prompts give.
    """
    replies = generate_share(
        model, prompts, chat, features, end_id,
        max_new_tokens=max_new_tokens, batch_tokens=batch_tokens, precision=precision,
    )  # fmt: skip
    return [replies[row] for row in range(len(prompts))]


@torch.no_grad()
def generate_share(
    model: OmniChat,
    prompts: Sequence[Prompt],
    chat: ChatFormat,
    features: Features | None,
    end_id: int,
    *,
    max_new_tokens: int,
    batch_tokens: int,
    precision: str,
    share: tuple[int, int] = (0, 1),
    done: Mapping[int, str] | None = None,
    on_batch: Callable[[dict[int, str]], Any] = lambda replies: None,
) -> dict[int, str]:
    """One process's share of the greedy replies, by the numbers of their prompts; see `generate_replies`.

    Whole batches are dealt out, so a prompt is decoded in the same company, and gets the same reply, however many
    processes there are.

    Args:
        share: (rank, processes); batch n belongs to rank n modulo processes.
        done: replies of an earlier call: batches whose replies are all there are not decoded again.
        on_batch: gets the replies of each batch of the share once it is decoded, none of one that was done before.

    Returns:
        `done` and the replies of this share.
    """
    rank, processes = share
    was_training = model.training
    model.eval()
    replies = dict(done or {})
    autocast = torch.autocast(model.device.type, torch.bfloat16, enabled=precision == "bf16")
    for rows in batches_of(prompts, batch_tokens)[rank::processes]:
        if all(row in replies for row in rows):
            on_batch({})
            continue
        batch = collate([prompts[row].item for row in rows], features, pad_left=True).to(model.device)
        with autocast:
            produced = model.generate(batch, end_id, max_new_tokens)
        decoded = [chat.tokenizer.decode(ids, skip_special_tokens=True) for ids in produced]
        replies |= dict(zip(rows, decoded, strict=True))
        on_batch(dict(zip(rows, decoded, strict=True)))
    model.train(was_training)
    return replies


def batches_of(prompts: Sequence[Prompt], batch_tokens: int) -> list[list[int]]:
    """The decoding batches, as numbers of prompts; the longest first, so that memory fails early or not at all."""
    order = sorted(range(len(prompts)), key=lambda row: (-len(prompts[row].item.sequence), row))
    batches: list[list[int]] = []
    for row in order:
        if batches and len(prompts[batches[-1][0]].item.sequence) * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
