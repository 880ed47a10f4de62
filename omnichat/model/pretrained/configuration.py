"""What `config.json` of a saved OmniChat holds: everything that builds the model again, but for the frozen weights."""

from __future__ import annotations

from collections.abc import Mapping
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

    def find_elsewhere(self, llm_path: str | None = None, expert_paths: Mapping[str, str] | None = None) -> None:
        """Name other places of the frozen parts. What lies there must be the same, by its fingerprint.

        Raises:
            UserError: an expert that is none of this model's, or has no weights to be found.
        """
        if llm_path is not None and llm_path != (self.llm or {}).get("path"):
            self.llm = {**(self.llm or {}), "path": llm_path, "revision": None}
        for name, path in (expert_paths or {}).items():
            experts = dict(self.experts or {})
            if name not in experts:
                raise one_of("expert_paths", name, sorted(experts))
            if experts[name].get("path") is None:
                raise UserError(f"expert_paths.{name}: this expert was built without weights of a file; leave it out")
            self.experts = {**experts, name: {**experts[name], "path": path}}

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
