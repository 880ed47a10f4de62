"""OmniChat: windows of fused audio in place of the user's words, and an LLM that answers with style and words.

Only the fusion and LoRA train. The experts are not part of this module: their features come with the batch, from the
cache or from the experts themselves.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from omnichat.data.collate import Batch
from omnichat.fusion.base import FusedAudio, Fusion
from omnichat.model.token_losses import PLAIN, Terms, TokenLosses, divergence, smooth_and_z
from omnichat.schema import EncodedAudio
from omnichat.text.chat import IGNORE, Role
from omnichat.utils.errors import UserError

HEARD_SCALE = 1.0  # logit of one unit along a label's direction; an embedding of SmolLM2 is about 3 units long


class OmniChat(nn.Module):
    """The trainable model.

    Args:
        llm: PEFT causal LLM, frozen but for LoRA.
        fusion: streams -> embeddings; None for a model that reads words only.
        label_ids: token ids of each label word of pitch, speed and emotion, in the schema's order; without them the
            heard style is not scored (`TokenLosses.heard_ce_M` is empty).
        all_logits: make logits at every position and then select the supervised ones: the same loss, for comparison.
    """

    def __init__(
        self,
        llm: Any,
        fusion: Fusion | None,
        label_ids: Sequence[Sequence[list[int]]] = (),
        all_logits: bool = False,
    ) -> None:
        super().__init__()
        self.all_logits = all_logits
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

    def forward(self, batch: Batch, terms: Terms = PLAIN) -> TokenLosses:
        """Next-token cross-entropy of every supervised position; logits are made at those positions only.

        `terms` says what else is computed there. For distillation the batch must have a teacher.
        """
        embeds_BSD, fused = self.embed(batch)
        target_BS = batch.labels_BS[:, 1:]
        wanted_BS = target_BS != IGNORE
        roles_N = batch.roles_BS[:, 1:][wanted_BS]
        logits_NV = self._logits(embeds_BSD, batch, wanted_BS).float()
        ce_N = F.cross_entropy(logits_NV, target_BS[wanted_BS], reduction="none")
        extra = smooth_and_z(logits_NV, terms)
        if terms.distill:
            extra["distill"] = self._distil(logits_NV, roles_N, batch, terms)
        return TokenLosses(ce_N, roles_N, self._heard_losses(batch, fused), extra)

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
        fused = self.fuse(batch, embeds_BSD)
        slots = fused.x_BSD.flatten(0, 1)[batch.slot_N].to(embeds_BSD.dtype)
        audio_BS1 = batch.audio_BS.unsqueeze(-1)
        return embeds_BSD.masked_scatter(audio_BS1, slots), fused

    def fuse(self, batch: Batch, embeds_BSD: Tensor) -> FusedAudio:
        """What the fusion makes of the batch's recordings, given the embeddings of its ids."""
        assert self.fusion is not None, "a model that reads words only"
        context_CD = self._context(batch, embeds_BSD) if self.fusion.uses_context else None
        fused: FusedAudio = self.fusion(batch.streams, batch.seconds_C, context_CD)
        return fused

    @torch.no_grad()
    @torch.compiler.set_stance("force_eager")  # compiled layers would be compiled anew for every state of the cache
    def generate(self, batch: Batch, end_id: int, max_new_tokens: int) -> list[list[int]]:
        """Greedy replies to a left-padded batch of prompts: ids up to, without, the end of turn."""
        embeds_BSD, _ = self.embed(batch)
        produced = self.llm.generate(
            inputs_embeds=embeds_BSD,
            attention_mask=batch.mask_BS.long(),
            do_sample=False,
            num_beams=1,
            synced_gpus=False,  # else a sharded model that was gathered waits for other processes to generate too
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
        embed = self.llm.get_input_embeddings()  # called, not read: a sharded table is whole in its forward pass alone
        found = []
        for column, words in enumerate(self.label_ids):
            target_C = batch.styles_C3[:, column]
            words_KD = [embed(torch.tensor(ids, device=self.device)).float().mean(0) for ids in words]
            labels_KD = torch.stack(words_KD)
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
        counts_BS1 = words_BS1.cumsum(1)
        row_C, start_C = batch.place_C2.unbind(1)
        before_C = (start_C - 1).clamp(min=0)  # a chat template always opens with a token, so there is one
        sums_CD, counts_C1 = sums_BSD[row_C, before_C], counts_BS1[row_C, before_C]
        if batch.position_BS is not None:  # what a row's earlier dialogues said is not this dialogue's context
            first_C = start_C - batch.position_BS[row_C, start_C]
            later_C1 = (first_C > 0).unsqueeze(-1)
            sums_CD = sums_CD - later_C1 * sums_BSD[row_C, first_C - 1]
            counts_C1 = counts_C1 - later_C1 * counts_BS1[row_C, first_C - 1]
        return sums_CD / counts_C1.clamp(min=1)

    def _logits(self, embeds_BSD: Tensor, batch: Batch, wanted_BS: Tensor) -> Tensor:
        if not self.head_is_exact:
            return self._run(self.llm, embeds_BSD, batch)[:, :-1][wanted_BS]
        hidden_BSD = self._run(self._decoder[0], embeds_BSD, batch)
        if self.all_logits:
            return self._head[0](hidden_BSD)[:, :-1][wanted_BS]
        return self._head[0](hidden_BSD[:, :-1][wanted_BS])

    @staticmethod
    def _run(module: Any, embeds_BSD: Tensor, batch: Batch) -> Tensor:
        """The LLM's (or its decoder's) output at every position, [B, S, ...].

        Of a packed batch the LLM is told positions that begin anew with every dialogue, and no mask: from them
        transformers makes the mask, block-diagonal and causal, as the kind of attention wants it.
        """
        if batch.position_BS is None:
            return module(inputs_embeds=embeds_BSD, attention_mask=batch.mask_BS, use_cache=False)[0]
        position_BS = batch.position_BS
        if "flash" in (module.config._attn_implementation or ""):  # its kernels take packed dialogues in one row only
            x_1ND, position_1N = embeds_BSD.flatten(0, 1).unsqueeze(0), position_BS.flatten().unsqueeze(0)
            out_1ND = module(inputs_embeds=x_1ND, position_ids=position_1N, use_cache=False)[0]
            return out_1ND.view(*position_BS.shape, -1)
        return module(inputs_embeds=embeds_BSD, position_ids=position_BS, use_cache=False)[0]

    def _distil(self, logits_NV: Tensor, roles_N: Tensor, batch: Batch, terms: Terms) -> Tensor:
        """Divergence from the teacher at every supervised position, [N]; 0 where the teacher is not followed.

        The teacher is this LLM without LoRA, in evaluation mode, which reads the words that were said (Ultravox).
        """
        teacher = batch.teacher
        assert teacher is not None, "distillation needs ChatFormat(..., teacher=True)"
        taught_N = torch.ones_like(roles_N, dtype=torch.bool) if terms.distill_style else roles_N != int(Role.STYLE)
        wanted_BS = teacher.labels_BS[:, 1:] != IGNORE
        if not terms.distill_style:
            wanted_BS &= teacher.roles_BS[:, 1:] != int(Role.STYLE)
        was_training = self.llm.training
        self.llm.eval()  # neither drop-out nor the recomputation of checkpointed layers is the teacher's
        with torch.no_grad(), self.llm.disable_adapter():
            embeds_BSD = self.llm.get_input_embeddings()(teacher.ids_BS)
            teacher_NV = self._logits(embeds_BSD, teacher, wanted_BS).float()
        self.llm.train(was_training)
        distill_N = torch.zeros_like(roles_N, dtype=torch.float32)
        distill_N[taught_N] = divergence(logits_NV[taught_N], teacher_NV, terms.temperature)
        return distill_N

    @torch.no_grad()
    def keeps_packed_apart(self) -> bool:
        """Whether a dialogue's hidden states ignore the dialogue before it in a packed row: not every LLM packs."""
        was_training = self.llm.training
        self.llm.eval()
        ids_BS = torch.tensor([[1, 2, 3, 4, 9, 10, 11, 12], [5, 6, 7, 8, 9, 10, 11, 12]], device=self.device)
        embeds_BSD = self.llm.get_input_embeddings()(ids_BS)
        with self._without_flash():
            both_BSD = self._decoder[0](
                inputs_embeds=embeds_BSD,
                position_ids=torch.arange(4, device=self.device).repeat(2, 2),
                use_cache=False,
            )[0][:, 4:].float()
        self.llm.train(was_training)
        return bool(torch.allclose(both_BSD[0], both_BSD[1], atol=1e-3, rtol=1e-3))

    @torch.no_grad()
    def _check_head(self) -> bool:
        """Whether decoder + output embeddings is all there is: some models scale or cap their logits afterwards."""
        was_training = self.llm.training
        self.llm.eval()
        ids = torch.arange(4, device=self.device).unsqueeze(0)
        with self._without_flash():
            whole = self.llm(input_ids=ids, use_cache=False).logits
            parts = self._head[0](self._decoder[0](input_ids=ids, use_cache=False)[0])
        self.llm.train(was_training)
        return bool(torch.allclose(whole.float(), parts.float(), atol=1e-4, rtol=1e-4))

    @contextlib.contextmanager
    def _without_flash(self) -> Iterator[None]:
        """Attention by PyTorch where flash attention is asked for: its kernels need the GPU, where the model, when it
        is checked, is not yet, and take 16-bit values alone.

        The config is set, and not `set_attn_implementation` called, which would look for the kernels on the way back.
        """
        config = self._decoder[0].config
        asked = config._attn_implementation
        if "flash" in (asked or ""):
            config._attn_implementation = "sdpa"
        try:
            yield
        finally:
            config._attn_implementation = asked

    def _silence(self) -> dict[str, EncodedAudio]:
        assert self.fusion is not None
        streams = {}
        for name, spec in self.fusion.specs.items():
            shape: Sequence[int] = (1, spec.layers, 1, spec.width) if spec.layers > 1 else (1, 1, spec.width)
            x = torch.zeros(*shape, device=self.device)
            mask = torch.ones(1, 1, dtype=torch.bool, device=self.device)
            streams[name] = EncodedAudio(x, mask, torch.zeros(1, 1, device=self.device))
        return streams
