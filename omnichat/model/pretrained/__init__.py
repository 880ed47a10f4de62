"""OmniChat in the manner of transformers; importing this registers it with AutoConfig, AutoModel and AutoProcessor."""

from transformers import AutoConfig, AutoModel, AutoModelForMultimodalLM, AutoProcessor

from omnichat.model.pretrained.configuration import OmniChatConfig
from omnichat.model.pretrained.modeling import OmniChatForConditionalGeneration
from omnichat.model.pretrained.processing import OmniChatProcessor

__all__ = ["OmniChatConfig", "OmniChatForConditionalGeneration", "OmniChatProcessor"]

AutoConfig.register("omnichat", OmniChatConfig)
AutoModel.register(OmniChatConfig, OmniChatForConditionalGeneration)
AutoModelForMultimodalLM.register(OmniChatConfig, OmniChatForConditionalGeneration)
AutoProcessor.register(OmniChatConfig, OmniChatProcessor)
