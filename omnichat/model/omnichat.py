"""OmniChat: windows of fused audio in place of the user's words, and an LLM that answers with style and words.

Only the fusion and LoRA train. The experts are not part of this module: their features come with the batch, from the
cache or from the experts themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnichat.data.collate import Batch
from omnichat.fusion.base import FusedAudio, Fusion
from omnichat.schema import EncodedAudio
from omnichat.text.chat import IGNORE
from omnichat.utils.errors import UserError

HEARD_SCALE = 1.0  # logit of one unit along a label's direction; an embedding of SmolLM2 is about 3 units long


@dataclass(slots=True)
class TokenLosses:
    """Cross-entropy at each of the N supervised positions: float32 [N], and their roles, uint8 [N].

    `heard_ce_M`: float32 [M], cross-entropy of the heard style, one for each labelled (recording, attribute) pair.
    """

    ce_N: Tensor
    roles_N: Tensor
    heard_ce_M: Tensor


class OmniChat(nn.Module):
    """The trainable model.

    Args:
        llm: PEFT causal LLM, frozen but for LoRA.
        fusion: streams -> embeddings; None for a model that reads words only.
        label_ids: token ids of each label word of pitch, speed and emotion, in the schema's order; without them the
            heard style is not scored (`TokenLosses.heard_ce_M` is empty).
    """

    def __init__(self, llm: Any, fusion: Fusion | None, label_ids: Sequence[Sequence[list[int]]] = ()) -> None:
        super().__init__()
        self.llm = llm
        self.fusion = fusion
        base = llm.get_base_model()
        self._decoder = [base.get_decoder()]  # in lists: these are parts of llm and must not be registered twice
        self._head = [base.get_output_embeddings()]
        self.head_is_exact = self._check_head()
        self.label_ids = [list(attribute) for attribute in label_ids]

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.llm.parameters()).device

    def forward(self, batch: Batch) -> TokenLosses:
        """Next-token cross-entropy of every supervised position; logits are made at those positions only."""
        embeds_BSD, fused = self.embed(batch)
        target_BS = batch.labels_BS[:, 1:]
        wanted_BS = target_BS != IGNORE
        logits_NV = self._logits(embeds_BSD, batch.mask_BS, wanted_BS)
        ce_N = F.cross_entropy(logits_NV.float(), target_BS[wanted_BS], reduction="none")
        return TokenLosses(ce_N, batch.roles_BS[:, 1:][wanted_BS], self._heard_losses(batch, fused))

    def embed(self, batch: Batch) -> tuple[Tensor, FusedAudio | None]:
        """Embeddings [B, S, D] with fused audio at the AUDIO positions, and the fusion's own output."""
        embeds_BSD = self.llm.get_input_embeddings()(batch.ids_BS)
        if self.fusion is None:
            if batch.streams:
                raise ValueError("the batch holds recordings, but this model reads words only")
            return embeds_BSD, None
        if not batch.streams:
            # The graph must be the same on every rank, so a batch of words fuses silence and adds nothing of it.
            silence = self.fusion(self._silence(), torch.tensor([self.fusion.window_sec], dtype=torch.float64))
            return embeds_BSD + 0.0 * silence.x_BSD.sum().to(embeds_BSD.dtype), None
        context_CD = self._context(batch, embeds_BSD) if self.fusion.uses_context else None
        fused = self.fusion(batch.streams, batch.seconds_C, context_CD)
        slots = fused.x_BSD.flatten(0, 1)[batch.slot_N].to(embeds_BSD.dtype)
        audio_BS1 = batch.audio_BS.unsqueeze(-1)
        return embeds_BSD.masked_scatter(audio_BS1, slots), fused

    @torch.no_grad()
    def generate(self, batch: Batch, end_id: int, max_new_tokens: int) -> list[list[int]]:
        """Greedy replies to a left-padded batch of prompts: ids up to, without, the end of turn."""
        embeds_BSD, _ = self.embed(batch)
        produced = self.llm.generate(
            inputs_embeds=embeds_BSD,
            attention_mask=batch.mask_BS.long(),
            do_sample=False,
            num_beams=1,
            repetition_penalty=1.0,  # some instruct models ship another one in their generation config
            max_new_tokens=max_new_tokens,
            eos_token_id=end_id,
            pad_token_id=end_id,
        )
        replies = []
        for row in produced.tolist():
            replies.append(row[: row.index(end_id)] if end_id in row else row)
        return replies

    def trainable_state(self) -> dict[str, Tensor]:
        """All that a checkpoint holds: the fusion's whole state and the LLM's trainable tensors."""
        state = {f"llm.{name}": p.detach() for name, p in self.llm.named_parameters() if p.requires_grad}
        if self.fusion is not None:
            state |= {f"fusion.{name}": value for name, value in self.fusion.state_dict().items()}
        return state

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        """Load what `trainable_state` gave. Raises UserError naming the first tensor that does not fit."""
        own = self.trainable_state()
        for name in sorted(set(own) | set(state)):
            if name not in state:
                raise UserError(f"checkpoint lacks {name!r}; was it made with other fusion or llm.lora settings?")
            if name not in own:
                raise UserError(f"checkpoint holds {name!r}, which this model has not; other fusion or llm.lora?")
            if own[name].shape != state[name].shape:
                raise UserError(f"checkpoint: {name} is {tuple(state[name].shape)}, not {tuple(own[name].shape)}")
        for name, value in own.items():  # only now: a refused checkpoint has changed nothing
            value.copy_(state[name])

    def _heard_losses(self, batch: Batch, fused: FusedAudio | None) -> Tensor:
        """How well the mean window of each recording points at the LLM's own word for how it is spoken.

        A label's direction is its word's input embedding minus the mean over the attribute's labels, at unit length:
        what the fusion learns to say is then a word that the LLM can already read. (Ours; not in the paper.)
        """
        if fused is None or not self.label_ids:
            return torch.zeros(0, device=self.device)
        mask_BS1 = fused.mask_BS.unsqueeze(-1)
        mean_CD = (fused.x_BSD.float() * mask_BS1).sum(1) / mask_BS1.sum(1)
        table = self.llm.get_input_embeddings().weight
        found = []
        for column, words in enumerate(self.label_ids):
            target_C = batch.styles_C3[:, column]
            labels_KD = torch.stack([table[ids].float().mean(0) for ids in words])
            labels_KD = F.normalize(labels_KD - labels_KD.mean(0), dim=-1)
            logits_CK = HEARD_SCALE * mean_CD @ labels_KD.T
            known_C = target_C != IGNORE
            found.append(F.cross_entropy(logits_CK[known_C], target_C[known_C], reduction="none"))
        return torch.cat(found)

    @staticmethod
    def _context(batch: Batch, embeds_BSD: Tensor) -> Tensor:
        """The dialogue before each clip, [C, D]: the mean embedding of the words that stand before it. No gradient."""
        words_BS1 = (batch.mask_BS & ~batch.audio_BS).unsqueeze(-1)
        sums_BSD = (embeds_BSD.detach().float() * words_BS1).cumsum(1)
        counts_BS1 = words_BS1.cumsum(1).clamp(min=1)
        row_C, start_C = batch.place_C2.unbind(1)
        before_C = (start_C - 1).clamp(min=0)  # a chat template always opens with a token, so there is one
        return sums_BSD[row_C, before_C] / counts_BS1[row_C, before_C]

    def _logits(self, embeds_BSD: Tensor, mask_BS: Tensor, wanted_BS: Tensor) -> Tensor:
        if not self.head_is_exact:
            return self.llm(inputs_embeds=embeds_BSD, attention_mask=mask_BS).logits[:, :-1][wanted_BS]
        hidden_BSD = self._decoder[0](inputs_embeds=embeds_BSD, attention_mask=mask_BS, use_cache=False)[0]
        return self._head[0](hidden_BSD[:, :-1][wanted_BS])

    @torch.no_grad()
    def _check_head(self) -> bool:
        """Whether decoder + output embeddings is all there is: some models scale or cap their logits afterwards."""
        was_training = self.llm.training
        self.llm.eval()
        ids = torch.arange(4, device=self.device).unsqueeze(0)
        whole = self.llm(input_ids=ids, use_cache=False).logits
        parts = self._head[0](self._decoder[0](input_ids=ids, use_cache=False)[0])
        self.llm.train(was_training)
        return bool(torch.allclose(whole.float(), parts.float(), atol=1e-4, rtol=1e-4))

    def _silence(self) -> dict[str, EncodedAudio]:
        assert self.fusion is not None
        streams = {}
        for name, spec in self.fusion.specs.items():
            shape: Sequence[int] = (1, spec.layers, 1, spec.width) if spec.layers > 1 else (1, 1, spec.width)
            x = torch.zeros(*shape, device=self.device)
            mask = torch.ones(1, 1, dtype=torch.bool, device=self.device)
            streams[name] = EncodedAudio(x, mask, torch.zeros(1, 1, device=self.device))
        return streams
