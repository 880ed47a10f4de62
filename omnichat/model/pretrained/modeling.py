"""OmniChat in the manner of transformers: loaded, saved and asked like any other of its models."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import cached_file

from omnichat.data.collate import Batch
from omnichat.encoders.base import COMPUTE_DTYPES, EncodedClip, collate_clips
from omnichat.fusion.base import FusedAudio
from omnichat.model.llm import weights_fingerprint
from omnichat.model.pretrained.configuration import PRECISIONS, OmniChatConfig
from omnichat.model.pretrained.conversation import ChatPrompt, Sound
from omnichat.model.pretrained.parts import Parts, build_parts
from omnichat.model.pretrained.processing import HUB_OPTIONS
from omnichat.text.chat import IGNORE, Role
from omnichat.utils.devices import resolve_device
from omnichat.utils.errors import UserError, one_of
from omnichat.utils.files import write_bytes_atomic
from omnichat.utils.log import get_logger

log = get_logger(__name__)
WEIGHTS_FILE = "model.safetensors"
_WAVES, _SAMPLES = "waves_", "samples_"


class OmniChatForConditionalGeneration(PreTrainedModel):
    """Frozen experts, fusion and LoRA-tuned LLM; takes what `OmniChatProcessor` makes.

    Only the fusion and LoRA are saved. The frozen parts are loaded from where the configuration names them, and their
    fingerprints are compared with those that the model was trained with.

    Args:
        config: how it is built.
        parts: the parts themselves, where they are there already; None builds them.
        precision: fp32 | bf16; None: as trained.
    """

    config_class = OmniChatConfig
    main_input_name = "input_ids"

    def __init__(self, config: OmniChatConfig, parts: Parts | None = None, precision: str | None = None) -> None:
        super().__init__(config)
        self.precision = precision or config.precision
        parts = parts or build_parts(config, self.precision)
        self.model = parts.model
        self.experts = nn.ModuleDict(dict(parts.experts))
        self._listeners = dict(parts.experts)  # the same, with their type
        self.feature_dtype = COMPUTE_DTYPES[config.feature_dtype]
        self.eval()

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        config: OmniChatConfig | None = None,
        dtype: str | torch.dtype | None = "auto",
        device: str = "cpu",
        llm_path: str | None = None,
        expert_paths: dict[str, str] | None = None,
        check_fingerprints: bool = True,
        **options: Any,
    ) -> OmniChatForConditionalGeneration:
        """Load a saved model from a folder or a hub id, in eval mode.

        Args:
            dtype: "auto" (as trained), or torch.float32 | torch.bfloat16 and their names, for LLM and arithmetic.
            device: auto | cpu | cuda | cuda:N.
            llm_path, expert_paths: where the frozen parts lie on this machine, where not as the configuration says.
            check_fingerprints: refuse other frozen parts than those it was trained with.
            options: of the hub: revision, token, cache_dir, local_files_only, ...

        Raises:
            OSError: nothing there, as transformers has it.
            UserError: files that are not whole, a frozen part that is missing or another one.
        """
        known = {name: options.pop(name) for name in HUB_OPTIONS if name in options}
        if unknown := sorted(set(options) - {"trust_remote_code", "_from_auto", "adapter_kwargs", "dtype"}):
            raise one_of("from_pretrained: option", unknown[0], (*HUB_OPTIONS, "dtype", "device", "llm_path"))
        config = config or OmniChatConfig.from_pretrained(pretrained_model_name_or_path, **known)
        config.find_elsewhere(llm_path, expert_paths)
        model = cls(config, precision=_precision(config, dtype))
        path = cached_file(str(pretrained_model_name_or_path), WEIGHTS_FILE, **known)
        model.model.load_trainable_state(_weights(Path(str(path))))
        if check_fingerprints:
            model.check_fingerprints()
        nn.Module.to(model, torch.device(resolve_device(device, "device")))
        return model

    def save_pretrained(self, save_directory: str | os.PathLike[str], **ignored: Any) -> None:  # type: ignore[override]
        """Write config.json and model.safetensors (fusion and LoRA) into a folder; frozen parts stay where they are.

        For the processor's files call its own `save_pretrained` on the same folder.
        """
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: value.detach().cpu().contiguous() for name, value in self.model.trainable_state().items()}
        write_bytes_atomic(folder / WEIGHTS_FILE, save(state, metadata={"format": "pt"}))
        self.config.architectures = [type(self).__name__]
        self.config.save_pretrained(folder)

    def check_fingerprints(self) -> None:
        """Raise UserError naming the first frozen part that is not the one that the model was trained with.

        In another precision than the trained one an LLM's weights may be rounded otherwise; then it only warns.
        """
        trained = self.config.fingerprints or {}
        for name, expert in self._listeners.items():
            asked = trained.get("experts", {}).get(name)
            if asked is not None and expert.fingerprint() != asked:
                raise UserError(f"experts.{name}: not the weights and front-end that this model was trained with")
        asked = trained.get("llm")
        if asked is not None and weights_fingerprint(self.model.llm) != asked:
            message = "llm: not the weights that this model was trained with"
            if self.precision == self.config.precision:
                raise UserError(f"{message}; see llm_path of from_pretrained")
            log.warning("%s, or they are rounded otherwise in %s", message, self.precision)

    @property
    def hears(self) -> bool:
        """Whether it takes recordings."""
        return self.model.fusion is not None

    @torch.no_grad()
    def hear(self, sounds: Sequence[Sound]) -> dict[str, list[EncodedClip]]:
        """What every expert heard in each recording; the same values as in training."""
        return self._encode(len(sounds), lambda row, rate: sounds[row].at(rate))

    def _encode(self, count: int, wave_of: Callable[[int, int], Tensor]) -> dict[str, list[EncodedClip]]:
        heard = {}
        with torch.autocast(self.device.type, enabled=False):
            for name, expert in self._listeners.items():
                inputs = [expert.frontend(wave_of(row, expert.sample_rate)) for row in range(count)]
                clips = expert.encode_clips(inputs)
                heard[name] = [EncodedClip(clip.x_TD.to(self.feature_dtype), clip.time_sec) for clip in clips]
        return heard

    @torch.no_grad()
    def embed_prompt(
        self, prompt: ChatPrompt, heard: dict[str, list[EncodedClip]], start: int = 0
    ) -> tuple[Tensor, FusedAudio | None]:
        """Embeddings [1, S, D] of one prompt; audio before position `start` is left out, for a cache holds it.

        Args:
            heard: what `hear` gave for the recordings whose clips begin at `start` or later, in order.

        Returns:
            (embeddings, the fusion's output for these recordings or None)
        """
        sequence, starts = prompt.sequence, prompt.starts()
        fresh = [number for number, place in enumerate(starts) if place >= start]
        audio = [role == Role.AUDIO for role in sequence.roles]
        ids = [0 if is_audio else token for token, is_audio in zip(sequence.ids, audio, strict=True)]
        batch = self._batch(
            torch.tensor([ids]),
            torch.ones(1, len(ids), dtype=torch.bool),
            torch.tensor([audio]),
            {name: collate_clips(clips) for name, clips in heard.items()} if fresh else {},
            torch.tensor([sequence.clips[number].seconds for number in fresh], dtype=torch.float64),
            torch.tensor([[0, starts[number]] for number in fresh], dtype=torch.int64).view(-1, 2),
        )
        embeds_1SD = self.model.llm.get_input_embeddings()(batch.ids_BS)
        if not fresh:
            return embeds_1SD, None
        fused = self.model.fuse(batch, embeds_1SD)
        for row, number in enumerate(fresh):
            place, slots = starts[number], sequence.clips[number].slots
            embeds_1SD[0, place : place + slots] = fused.x_BSD[row, :slots].to(embeds_1SD.dtype)
        return embeds_1SD, fused

    def _batch(
        self, ids: Tensor, mask: Tensor, audio: Tensor, streams: Any, seconds_C: Tensor, place_C2: Tensor
    ) -> Batch:
        roles = torch.where(audio, int(Role.AUDIO), int(Role.TEMPLATE)).to(torch.uint8)
        batch = Batch(
            ids_BS=ids,
            labels_BS=torch.full_like(ids, IGNORE),
            roles_BS=roles,
            mask_BS=mask.bool(),
            slot_N=torch.empty(0, dtype=torch.int64),
            streams=streams,
            seconds_C=seconds_C,
            place_C2=place_C2,
            styles_C3=torch.full((len(seconds_C), 3), IGNORE),
            dialogues=[],
            sources=[],
        )
        return batch.to(self.device)

    def _embed(
        self, input_ids: Tensor, attention_mask: Tensor, audio_mask: Tensor | None, tensors: dict[str, Any]
    ) -> Tensor:
        """Embeddings [B, S, D] of what the processor made."""
        audio = torch.zeros_like(input_ids, dtype=torch.bool) if audio_mask is None else audio_mask.bool()
        seconds_C = tensors.pop("clip_seconds", None)
        waves = {int(k.removeprefix(_WAVES)): tensors.pop(k).cpu() for k in list(tensors) if k.startswith(_WAVES)}
        sizes = {int(k.removeprefix(_SAMPLES)): tensors.pop(k) for k in list(tensors) if k.startswith(_SAMPLES)}
        if seconds_C is None:
            if bool(audio.any()):
                raise ValueError("audio_mask marks slots of audio, but no recordings came with it")
            return self.model.llm.get_input_embeddings()(input_ids.to(self.device))
        if self.model.fusion is None:
            raise ValueError("recordings came, but this model reads words only")
        heard = self._encode(len(seconds_C), lambda row, rate: waves[rate][row, : int(sizes[rate][row])])
        slots = [self.model.fusion.slots(float(seconds)) for seconds in seconds_C]
        rows, columns = torch.nonzero(audio.cpu(), as_tuple=True)
        if len(rows) != sum(slots):
            raise ValueError(f"audio_mask marks {len(rows)} slots, the recordings take {sum(slots)}")
        firsts = torch.tensor([0, *slots[:-1]]).cumsum(0)
        streams = {name: collate_clips(clips) for name, clips in heard.items()}
        place_C2 = torch.stack([rows[firsts], columns[firsts]], dim=1)
        batch = self._batch(input_ids, attention_mask, audio, streams, seconds_C.cpu(), place_C2)
        most = max(slots)
        slot = [row * most + place for row, count in enumerate(slots) for place in range(count)]
        batch.slot_N = torch.tensor(slot, device=self.device)
        return self.model.embed(batch)[0]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        audio_mask: Tensor | None = None,
        labels: Tensor | None = None,
        **tensors: Any,
    ) -> CausalLMOutputWithPast:
        """Logits [B, S, V], and the mean cross-entropy where `labels` (not shifted, -100 = not counted) are given."""
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        with self.arithmetic():
            embeds = self._embed(input_ids, mask, audio_mask, tensors)
            found: CausalLMOutputWithPast = self.model.llm(
                inputs_embeds=embeds, attention_mask=mask.to(self.device), labels=labels, **tensors
            )
        return found

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        audio_mask: Tensor | None = None,
        **options: Any,
    ) -> Any:
        """Replies to what the processor made: ids [B, T] of the new tokens alone.

        Greedy unless `options`, those of transformers' `generate`, say otherwise: do_sample, temperature, top_p,
        num_beams, max_new_tokens (48), streamer, stopping_criteria, ...
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        with self.arithmetic():
            embeds = self._embed(input_ids, mask, audio_mask, options)
            return self.generate_from(embeds, mask.to(self.device), **options)

    @torch.no_grad()
    @torch.compiler.set_stance("force_eager")  # compiled layers would be compiled anew for every state of the cache
    def generate_from(self, embeds_BSD: Tensor, mask_BS: Tensor, **options: Any) -> Any:
        """`generate` for embeddings, padded on the left."""
        plain: dict[str, Any] = {
            "do_sample": False,
            "num_beams": 1,
            "repetition_penalty": 1.0,  # some instruct models ship another one in their generation config
            "max_new_tokens": 48,
            "eos_token_id": self.config.end_token_id,
            "pad_token_id": self.config.end_token_id,
        }
        if not options.get("do_sample"):
            plain |= {"temperature": None, "top_p": None, "top_k": None}
        return self.model.llm.generate(inputs_embeds=embeds_BSD, attention_mask=mask_BS, **{**plain, **options})

    def arithmetic(self) -> torch.autocast:
        """The context of the LLM's and the fusion's arithmetic: bfloat16 products in bf16, nothing in fp32."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.precision == "bf16")


def _precision(config: OmniChatConfig, dtype: str | torch.dtype | None) -> str:
    names = {"float32": "fp32", "bfloat16": "bf16"}
    if dtype in (None, "auto"):
        return config.precision
    name = str(dtype).removeprefix("torch.")
    if name in PRECISIONS:
        return name
    if name not in names:
        raise one_of("dtype", name, ("auto", *names))
    return names[name]


def _weights(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path}: not readable as safetensors ({str(error).splitlines()[0]})") from None
