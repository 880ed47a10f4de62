"""What `config.json` of a saved OmniChat holds: everything that builds the model again, but for the frozen weights."""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import PreTrainedConfig

from omnichat.model.llm import LLMConfig, LoraConfig
from omnichat.text.chat import ChatConfig
from omnichat.utils.errors import UserError, one_of

PRECISIONS = ("fp32", "bf16")


class OmniChatConfig(PreTrainedConfig):
    """Configuration of `OmniChatForConditionalGeneration`, in the manner of transformers.

    The frozen parts (LLM, experts) are named here and not stored: `llm["path"]` and the experts' own settings say where
    they lie, `fingerprints` says what they must be.

    Attributes:
        llm: settings of `LLMConfig`; `lora` is a mapping inside.
        experts: name -> part (`_target_` and settings); empty for a model that reads words only.
        fusion: part, its sizes settled; None for a model that reads words only.
        specs: expert -> {"width", "layers", "rate_hz", "sample_rate"}.
        out_width: width of the LLM's embeddings.
        chat: settings of `ChatConfig`.
        precision: fp32 | bf16, of the run that trained it.
        feature_dtype: float32 | bfloat16, that the experts' features are rounded to.
        end_token_id: the id that ends a reply.
        seed: of random parts, where there are any.
        fingerprints: {"llm": hash, "experts": {name: hash}} of the frozen weights and front-ends.
        facts: what the run says of itself: data, alpha, metrics, licences; for people, changes nothing.
    """

    model_type: ClassVar[str] = "omnichat"

    llm: dict[str, Any] | None = None
    experts: dict[str, Any] | None = None
    fusion: dict[str, Any] | None = None
    specs: dict[str, Any] | None = None
    out_width: int | None = None
    chat: dict[str, Any] | None = None
    precision: str = "fp32"
    feature_dtype: str = "bfloat16"
    end_token_id: int | None = None
    seed: int = 0
    fingerprints: dict[str, Any] | None = None
    facts: dict[str, Any] | None = None

    def chat_config(self) -> ChatConfig:
        """How a conversation becomes a sequence. Raises UserError."""
        return _settings(ChatConfig, "chat", self.chat)

    def llm_config(self) -> LLMConfig:
        """Which LLM, with which LoRA. Raises UserError."""
        given = dict(self.llm or {})
        given["lora"] = _settings(LoraConfig, "llm.lora", given.get("lora"))
        return _settings(LLMConfig, "llm", given)

    def check(self) -> None:
        """Raise UserError for a file that is not whole."""
        if self.precision not in PRECISIONS:
            raise one_of("config.json: precision", self.precision, PRECISIONS)
        self.llm_config()
        if not self.chat_config().hears:
            return
        for name in ("experts", "fusion", "specs"):
            if not isinstance(getattr(self, name), dict) or not getattr(self, name):
                raise UserError(f"config.json: {name} is missing, and chat.input needs to hear")
        if set(self.specs or {}) != set(self.experts or {}):
            raise UserError("config.json: specs and experts name different experts")


def _settings(cls: Any, key: str, given: Any) -> Any:
    if not isinstance(given, dict):
        raise UserError(f"config.json: {key} is missing or no mapping")
    if unknown := sorted(set(given) - set(cls.__dataclass_fields__)):
        raise one_of(f"config.json: {key}: setting", unknown[0], sorted(cls.__dataclass_fields__))
    return cls(**given)
