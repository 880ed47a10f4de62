"""Small random audio language models in the layout of the published ones, with tokenizers made here."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    GraniteSpeechConfig,
    GraniteSpeechFeatureExtractor,
    GraniteSpeechForConditionalGeneration,
    GraniteSpeechProcessor,
    PreTrainedTokenizerFast,
    Qwen2AudioConfig,
    Qwen2AudioForConditionalGeneration,
    Qwen2AudioProcessor,
    WhisperFeatureExtractor,
)

# The template of Qwen2-Audio-7B-Instruct in short: parts in a list, clips counted over the whole conversation.
QWEN_TEMPLATE = (
    "{% set clips = namespace(n=0) %}{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'audio' %}{% set clips.n = clips.n + 1 %}Audio {{ clips.n }}: "
    "<|audio_bos|><|AUDIO|><|audio_eos|>\n{% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
# Granite's: plain text, in which the audio token is written.
GRANITE_TEMPLATE = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' + m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def tokenizer(special: list[str], end: str, template: str) -> PreTrainedTokenizerFast:
    """Bytes and nothing else, and the special tokens."""
    alphabet = sorted(ByteLevel.alphabet())
    backend = Tokenizer(BPE({symbol: number for number, symbol in enumerate(alphabet)}, []))
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = ByteLevelDecoder()
    made = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end, pad_token=special[0])
    made.add_special_tokens({"additional_special_tokens": special})
    made.chat_template = template
    return made


def qwen2_audio(folder: Path) -> Path:
    """A Qwen2-Audio of two layers a side."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"]
    made = tokenizer(special, "<|im_end|>", QWEN_TEMPLATE)
    torch.manual_seed(0)
    config = Qwen2AudioConfig(
        audio_config={
            "model_type": "qwen2_audio_encoder", "num_mel_bins": 16, "d_model": 32, "encoder_layers": 2,
            "encoder_attention_heads": 2, "encoder_ffn_dim": 64,
        },
        text_config={
            "model_type": "qwen2", "vocab_size": len(made), "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2,
            "max_position_embeddings": 8192,
        },
        audio_token_index=made.convert_tokens_to_ids("<|AUDIO|>"),
    )  # fmt: skip
    loud(Qwen2AudioForConditionalGeneration(config)).save_pretrained(folder)
    features = WhisperFeatureExtractor(feature_size=16)
    Qwen2AudioProcessor(features, made, chat_template=QWEN_TEMPLATE).save_pretrained(folder)
    return folder


def granite_speech(folder: Path) -> Path:
    """A Granite Speech of one layer a part."""
    made = tokenizer(["<|end_of_text|>", "<|audio|>"], "<|end_of_text|>", GRANITE_TEMPLATE)
    torch.manual_seed(0)
    config = GraniteSpeechConfig(
        text_config={
            "model_type": "granite", "vocab_size": len(made), "hidden_size": 32, "intermediate_size": 64,
            "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
            "max_position_embeddings": 8192,
        },
        encoder_config={
            "model_type": "granite_speech_encoder", "hidden_dim": 32, "num_layers": 1, "num_heads": 2, "dim_head": 16,
            "output_dim": 8,
        },
        projector_config={
            "model_type": "blip_2_qformer", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "intermediate_size": 64, "encoder_hidden_size": 32,
        },
        audio_token_index=made.convert_tokens_to_ids("<|audio|>"),
        has_lora_adapter=False,
    )  # fmt: skip
    loud(GraniteSpeechForConditionalGeneration(config)).save_pretrained(folder)
    processor = GraniteSpeechProcessor(GraniteSpeechFeatureExtractor(), made, chat_template=GRANITE_TEMPLATE)
    processor.save_pretrained(folder)
    return folder


def loud(model: torch.nn.Module) -> torch.nn.Module:
    """Larger weights: a fresh model's are so small that it says the same whatever it hears."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(6.0)
    return model
