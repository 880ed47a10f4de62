"""OmniChat in the manner of transformers: saved, loaded, batched, refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForMultimodalLM, AutoProcessor

from omnichat.chat.base import Talker
from omnichat.fusion.base import Fusion
from omnichat.model.pretrained import OmniChatConfig, OmniChatForConditionalGeneration, OmniChatProcessor
from omnichat.model.pretrained.conversation import Said, said_of, sound_of
from omnichat.model.pretrained.parts import build_fusion, shape_of_fusion
from omnichat.schema import Style
from omnichat.utils.errors import UserError
from tests.helpers.talkers import CONFIGS, small_config, small_talker, tone

TALK = [
    {"role": "user", "content": [{"type": "audio", "audio": tone(0.8, 300.0)}]},
    {"role": "assistant", "content": "[low, slow, sad] Oh no."},
    {"role": "user", "content": [{"type": "audio", "audio": tone(1.3, 150.0, 8000)}]},
]
OTHER = [{"role": "user", "content": [{"type": "text", "text": "Hello there, what is this?"}]}]


@pytest.fixture(scope="module")
def talker() -> Talker:
    return small_talker()


@pytest.fixture(scope="module")
def saved(talker: Talker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    talker.model.save_pretrained(folder)
    talker.processor.save_pretrained(folder)
    return folder


def test_a_saved_model_is_loaded_by_the_auto_classes_and_says_the_same(talker: Talker, saved: Path) -> None:
    inputs = talker.processor(TALK)
    expected, logits = talker.model.generate(**inputs, max_new_tokens=8), talker.model(**inputs).logits
    assert isinstance(AutoConfig.from_pretrained(saved), OmniChatConfig)
    processor = AutoProcessor.from_pretrained(saved)
    assert isinstance(processor, OmniChatProcessor)
    for auto in (AutoModel, AutoModelForMultimodalLM):
        model = auto.from_pretrained(saved)
        assert isinstance(model, OmniChatForConditionalGeneration) and not model.training
        again = processor(TALK)
        assert again.keys() == inputs.keys() and all(torch.equal(again[key], inputs[key]) for key in inputs)
        assert torch.equal(model(**again).logits, logits)
        assert torch.equal(model.generate(**again, max_new_tokens=8), expected)


def test_only_trainables_are_saved(talker: Talker, saved: Path) -> None:
    from safetensors import safe_open

    with safe_open(saved / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert names == set(talker.model.model.trainable_state())
    assert not any("experts" in name or "embed_tokens" in name for name in names)
    config = json.loads((saved / "config.json").read_text())
    assert config["model_type"] == "omnichat" and set(config["fingerprints"]["experts"]) == {"beats", "mert"}


def test_a_batch_says_what_each_of_its_conversations_says_alone(talker: Talker) -> None:
    longer = [*TALK, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "And now?"}]
    talks: list[Any] = [TALK, OTHER, longer]
    batched = talker.model.generate(**talker.processor(talks), max_new_tokens=12)
    for row, talk in enumerate(talks):
        alone = talker.model.generate(**talker.processor(talk), max_new_tokens=12)[0].tolist()
        assert batched[row].tolist()[: len(alone)] == alone
    assert len({tuple(row) for row in batched.tolist()}) == 3


@pytest.mark.parametrize("fusion", ["mix_former", "cross_attention"])
def test_one_prompt_is_embedded_as_the_processors_tensors_are(fusion: str) -> None:
    talker = small_talker(fusion=fusion)
    prompt = talker.processor.prompt(*said_of(TALK))
    with torch.no_grad():
        one, fused = talker.model.embed_prompt(prompt, talker.model.hear(prompt.sounds))
        inputs = dict(talker.processor(TALK))
        ids, mask, audio = (inputs.pop(name) for name in ("input_ids", "attention_mask", "audio_mask"))
        other = talker.model._embed(ids, mask, audio, inputs)
    assert fused is not None and len(prompt.sounds) == 2
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    silent = talker.model.embed_prompt(prompt, {}, len(prompt.sequence))[0]
    assert not torch.allclose(one, silent)


def test_logits_in_bfloat16_are_those_that_replies_are_decoded_from(talker: Talker, saved: Path) -> None:
    model = OmniChatForConditionalGeneration.from_pretrained(saved, dtype="bfloat16", check_fingerprints=False)
    inputs = talker.processor(TALK)
    with torch.no_grad():
        logits = model(**inputs).logits[:, -1].float()
    found = model.generate(**inputs, max_new_tokens=1, return_dict_in_generate=True, output_logits=True)
    assert torch.equal(found.logits[0].float(), logits)


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIGS / "fusion").glob("*.yaml")))
def test_the_processor_counts_slots_as_the_fusion_does(name: str) -> None:
    config = small_config(fusion="mix_former")
    from tests.helpers.talkers import node

    config.fusion = node("fusion", name, **({"expert": "beats"} if name == "single" else {}))
    config.fusion.pop("budget", None)
    shape = shape_of_fusion(config)
    real = build_fusion(config, 64, 1.0)
    assert isinstance(shape, Fusion)
    for seconds in (0.01, 0.34, 0.341, 1.0, 29.9, 31.7):
        assert shape.slots(seconds) == real.slots(seconds)


def test_other_frozen_parts_are_refused(talker: Talker, saved: Path) -> None:
    config = OmniChatConfig.from_pretrained(saved)
    assert config.experts is not None and config.llm is not None
    config.experts["mert"] = {**config.experts["mert"], "seed": 1}
    with pytest.raises(UserError, match=r"experts\.mert: not the weights"):
        OmniChatForConditionalGeneration.from_pretrained(saved, config=config)
    config = OmniChatConfig.from_pretrained(saved)
    config.seed = 5  # of the random LLM
    with pytest.raises(UserError, match="llm: not the weights"):
        OmniChatForConditionalGeneration.from_pretrained(saved, config=config)
    OmniChatForConditionalGeneration.from_pretrained(saved, config=config, check_fingerprints=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"experts": {"beats": {"_target_": "subprocess.Popen", "args": "id"}}, "specs": {"beats": {}}}, "not allowed"),
        ({"experts": {}}, "experts is missing"),
        ({"fusion": None}, "fusion is missing"),
        ({"chat": {"inputs": "speech"}}, "chat: setting"),
        ({"llm": {"path": "/no/such/model"}}, "no such folder"),
        ({"precision": "fp64"}, "precision"),
        ({"specs": {"beats": {}}}, "different experts"),
    ],
)
def test_a_config_that_is_not_whole_is_refused_in_a_line(saved: Path, change: dict[str, Any], message: str) -> None:
    config = OmniChatConfig.from_pretrained(saved)
    for name, value in change.items():
        setattr(config, name, value)
    if change.get("llm"):
        config.llm = {**change["llm"], "lora": {}}
    with pytest.raises(UserError, match=message) as caught:
        OmniChatForConditionalGeneration(config)
    assert "\n" not in str(caught.value)


def test_torn_weights_are_refused(saved: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((saved / name).read_bytes())
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"model\.safetensors: not readable"):
        OmniChatForConditionalGeneration.from_pretrained(tmp_path)
    with pytest.raises(OSError):
        OmniChatForConditionalGeneration.from_pretrained(tmp_path / "nothing")


def test_messages_are_read_in_all_their_forms(tmp_path: Path) -> None:
    from omnichat.audio.io import save_audio

    wave = tone(0.5).wave_N
    save_audio(tmp_path / "a.wav", wave, 16_000)
    turns, system = said_of(
        [
            {"role": "system", "content": "Be kind."},
            {"role": "user", "content": [{"type": "audio", "audio": str(tmp_path / "a.wav")}]},
            {"role": "assistant", "content": "[high, fast, happy] Hi!"},
            {
                "role": "user",
                "content": [
                    {"type": "audio", "audio": wave.numpy(), "sampling_rate": 16_000},
                    {"type": "audio", "audio": np.zeros((800, 2), np.int16), "sampling_rate": 8000},
                    {"type": "text", "text": "really"},
                ],
            },
        ]
    )
    assert system == "Be kind." and [turn.role for turn in turns] == ["user", "assistant", "user", "user"]
    assert turns[1].style == Style("high", "fast", "happy") and turns[1].words == "Hi!"
    assert turns[0].sound is not None and turns[0].sound.seconds == 0.5
    assert turns[3].sound is not None and turns[3].sound.seconds == 0.1 and turns[3].words == "really"


@pytest.mark.parametrize(
    ("messages", "where"),
    [
        ([{"role": "robot", "content": "x"}], r"messages\[0\]\.role"),
        ([{"role": "user", "content": 3}], r"messages\[0\]\.content"),
        ([{"role": "user", "content": [{"type": "image"}]}], r"content\[0\]\.type"),
        ([{"role": "user", "content": ""}], r"messages\[0\]: a turn"),
        ([{"role": "user", "content": [{"type": "audio", "audio": np.zeros(3)}]}], "sampling_rate"),
        ([{"role": "user", "content": [{"type": "audio", "audio": 3}]}], "path or samples"),
        ([{"role": "assistant", "content": [{"type": "audio", "audio": tone(0.1)}]}], "only the user"),
        ([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}], "last turn must be the user"),
        ([], "last turn must be the user"),
        (["hi"], r"messages\[0\]"),
    ],
)
def test_a_wrong_message_is_named(talker: Talker, messages: Any, where: str) -> None:
    with pytest.raises(UserError, match=where):
        talker.processor.prompt(*said_of(messages))


@pytest.mark.parametrize(
    ("wave", "rate", "message"),
    [
        (np.zeros(0, np.float32), 8000, "N >= 1"),
        (np.zeros((2, 2, 2), np.float32), 8000, "N >= 1"),
        (np.array([np.nan], np.float32), 8000, "finite"),
        (np.zeros(4, np.int64), 8000, "float or int16"),
        (np.zeros(4, np.float32), 0, "positive whole number"),
    ],
)
def test_a_wrong_recording_is_refused(wave: Any, rate: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        sound_of(wave, rate)


@pytest.mark.parametrize("chat_input", ["text", "asr", "speech_text"])
def test_a_model_that_reads_words_asks_for_them(chat_input: str) -> None:
    talker = small_talker(chat_input)
    with pytest.raises(UserError, match="words"):
        talker.processor.prompt([Said("user", tone())])
    inputs = talker.processor.batch([talker.processor.prompt([Said("user", tone(), "hello")])])
    assert talker.model.generate(**inputs, max_new_tokens=2).shape[1] == 2
    assert ("clip_seconds" in inputs) == (chat_input == "speech_text")
    heard = Talker(talker.model, talker.processor, "x", transcribe=lambda sound: "hello")
    assert heard.completed(Said("user", tone())).words == "hello"


def test_wrong_tensors_are_refused(talker: Talker) -> None:
    inputs = dict(talker.processor(TALK))
    with pytest.raises(ValueError, match="slots"):
        talker.model.generate(**{**inputs, "clip_seconds": inputs["clip_seconds"] * 2})
    bare = {name: inputs[name] for name in ("input_ids", "attention_mask", "audio_mask")}
    with pytest.raises(ValueError, match="no recordings"):
        talker.model.generate(**bare)
