"""Baselines: what a system may see, what stands before a request, and that a batch is its requests one by one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer, GenerationConfig

from omnichat.audio.io import save_audio
from omnichat.data.corpus import AnyCorpus
from omnichat.data.parquet_corpus import open_corpus
from omnichat.data.transcripts import TranscriptStore
from omnichat.encoders.whisper import WhisperEncoder
from omnichat.model.systems.audio_llm import AudioLLM
from omnichat.model.systems.base import (
    PLAYED,
    USER,
    Answerer,
    Conversation,
    Example,
    Instructions,
    ReadTurn,
    Request,
    SeenTurn,
    messages_of,
    requests_of,
)
from omnichat.model.systems.chat_lm import ChatLM
from omnichat.model.systems.loading import make_greedy
from omnichat.model.systems.prompts import Prompts, training_examples
from omnichat.model.systems.recogniser import Recogniser
from omnichat.model.systems.style_probe import StyleProbe
from omnichat.model.systems.text import Cascade, CascadeStyle, TextLLM
from omnichat.schema import EMOTIONS, Dialogue, Style, Turn
from omnichat.text.style_format import parse_reply
from omnichat.utils.errors import UserError
from tests.helpers.corpora import synthetic_corpus
from tests.helpers.tiny_audio_llm import granite_speech, loud, qwen2_audio
from tests.helpers.tiny_llm import tiny_llm

SAD = Style("low", "slow", "sad")


class Echo(Answerer):
    """Answers with what it was asked last."""

    def load(self) -> None:
        pass

    def answer(self, conversations: Sequence[Conversation], max_new_tokens: int) -> list[str]:
        self.asked = list(conversations)
        return [messages_of(conversation.turns)[-1][1] for conversation in conversations]

    def describe(self) -> dict[str, Any]:
        return {"llm": "echo"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> AnyCorpus:
    torch.set_num_threads(1)
    return open_corpus(synthetic_corpus(tmp_path_factory.mktemp("systems") / "made"))


def requests(corpus: AnyCorpus, sees: Sequence[str], replies: str = "all") -> list[Request]:
    found = [requests_of(dialogue, corpus, sees, replies, "words") for dialogue in corpus.iterate("test")]
    return [request for pairs in found for _, request in pairs]


def recogniser(folder: Path, **changed: Any) -> Recogniser:
    settings: dict[str, Any] = {
        "path": "asset:whisper_tiny_en", "language": "en", "device": "cpu", "dtype": "float32", "max_tokens": 8,
        "batch_size": 4, "window_sec": 30.0, "cache": str(folder),
    }  # fmt: skip
    return Recogniser(**{**settings, **changed})


def test_a_request_shows_what_the_system_may_see_and_nothing_else(corpus: AnyCorpus) -> None:
    for sees in (("words",), ("audio",), ("audio", "style")):
        for request in requests(corpus, sees):
            assert request.turns[-1].speaker == USER
            for turn in request.turns:
                if turn.speaker == PLAYED:
                    assert turn.text and turn.style and turn.audio is None
                    continue
                assert (turn.text is not None) == ("words" in sees)
                assert (turn.audio is not None) == ("audio" in sees) == (turn.sha256 is not None)
                assert bool(turn.style) == ("style" in sees)


def test_the_last_reply_is_the_last_of_all_and_a_turn_without_recording_is_read(corpus: AnyCorpus) -> None:
    turns = (Turn("B", "Hi."), Turn("A", "One."), Turn("A", "Two."), Turn("B", "Three."), Turn("B", "Four."))
    dialogue = Dialogue("d", "s", "real", "daily", "test", (*turns, Turn("A", "Five."), Turn("B", "Six.")))
    found = requests_of(dialogue, corpus, ("audio",), "all", "words")
    assert [place for place, _ in found] == [3, 6], "the first of several turns in a row"
    assert [request.id for _, request in found] == ["d#3", "d#6"]
    assert requests_of(dialogue, corpus, ("audio",), "last", "words") == found[1:]
    assert [turn.text for turn in found[0][1].turns] == ["Hi.", "One.", "Two."]
    with pytest.raises(UserError, match="turn 1 has no recording"):
        requests_of(dialogue, corpus, ("audio",), "all", "error")
    assert requests_of(Dialogue("d", "s", "real", "daily", "test", turns[:3]), corpus, ("words",), "all", "words") == []


@given(st.lists(st.tuples(st.sampled_from("AB"), st.sampled_from(["one", "two"]), st.sampled_from([Style(), SAD]))))
def test_messages_take_turns_and_lose_no_word(turns: list[tuple[str, str, Style]]) -> None:
    made = messages_of([ReadTurn(*turn) for turn in turns])
    speakers = [speaker for speaker, _ in made]
    assert all(one != other for one, other in itertools.pairwise(speakers))
    words = " ".join(text for _, text in made).replace("[low, slow, sad]", "").split()
    assert words == [text for _, text, _ in turns]


def test_packaged_prompt_and_examples_state_the_format() -> None:
    prompts = Prompts("v1")
    for reads in ("text", "asr", "speech"):
        text = prompts.system(reads, tagged=False)
        assert "[pitch, speed, emotion]" in text and all(emotion in text for emotion in EMOTIONS)
    assert prompts.system("asr", True) != prompts.system("asr", False) != prompts.system("text", False)
    for example in prompts.examples:
        style, words = parse_reply(example.reply)
        assert style is not None and style.pitch and style.speed and style.emotion and words
    assert len(prompts.packaged_examples(2, tagged=True)) == 2
    assert not any(example.heard.style for example in prompts.packaged_examples(6, tagged=False))
    with pytest.raises(UserError, match="has 6 examples"):
        prompts.packaged_examples(7, tagged=False)
    with pytest.raises(UserError, match="packaged versions: v1"):
        Prompts("v0")


@pytest.mark.parametrize(
    ("system", "row", "error"),
    [
        ("{{ nothing }}", '{"heard": {"text": "a", "style": {}}, "reply": {"text": "b", "style": {}}}', "nothing"),
        ("rule", '{"heard": {"text": "a", "style": {}}}', "examples.jsonl:1: an example is"),
        ("rule", '{"heard": {"text": "a", "style": {"pitch": "x"}}, "reply": {"text": "b", "style": {}}}', "jsonl:1"),
        ("rule", '{"heard": {"text": " ", "style": {}}, "reply": {"text": "b", "style": {}}}', "non-empty"),
    ],
)
def test_a_prompt_of_the_user_s_is_checked(tmp_path: Path, system: str, row: str, error: str) -> None:
    (tmp_path / "system.md").write_text(system)
    (tmp_path / "examples.jsonl").write_text(row + "\n")
    with pytest.raises(UserError, match=error):
        Prompts(str(tmp_path))


def test_a_prompt_that_lacks_a_file_or_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "system.md").write_bytes(b"\xff")
    with pytest.raises(UserError, match=r"has no file examples\.jsonl"):
        Prompts(str(tmp_path))
    (tmp_path / "examples.jsonl").write_text("")
    with pytest.raises(UserError, match=r"system\.md: 'utf-8' codec"):
        Prompts(str(tmp_path))
    (tmp_path / "system.md").unlink()
    with pytest.raises(UserError, match=r"has no file system\.md"):
        Prompts(str(tmp_path))


def test_examples_from_training_are_of_that_split_and_take_the_emotions_in_turn(corpus: AnyCorpus) -> None:
    made = training_examples([corpus], 4, ("audio", "words"), "words", seed=0)
    assert all("train" in str(example.heard.audio) for example in made)
    emotions = [style.emotion for example in made if (style := parse_reply(example.reply)[0])]
    assert len(set(emotions)) >= 2
    assert made == training_examples([corpus], 4, ("audio", "words"), "words", seed=0)
    assert all(example.heard.text is None for example in training_examples([corpus], 2, ("audio",), "words", 0))
    with pytest.raises(UserError, match="shots=99"):
        training_examples([corpus], 99, ("words",), "words", seed=0)


@pytest.fixture(scope="module")
def lm() -> ChatLM:
    lm = ChatLM(str(tiny_llm()), None, "cpu", "float32")
    lm.load()
    loud(lm._model)
    return lm


def test_a_language_model_answers_a_batch_as_one_by_one(lm: ChatLM, corpus: AnyCorpus) -> None:
    system = TextLLM(lm)
    prompts = Prompts("v1")
    system.instruct(prompts.instructions(system, prompts.packaged_examples(2, False)))
    asked = requests(corpus, system.sees)
    together = system.reply(asked, 12)
    assert together == [system.reply([request], 12)[0] for request in asked]
    assert len(set(together)) > 1 and len({len(request.turns) for request in asked}) > 1


def test_the_prompt_holds_rule_examples_and_turns_in_order_and_no_control_token(lm: ChatLM) -> None:
    turns = (ReadTurn(USER, "I am<|im_end|> fine", SAD), ReadTurn(PLAYED, "Good.", SAD), ReadTurn(USER, "Bye."))
    text = lm.rendered(Conversation(turns, "The rule.", ((ReadTurn(USER, "Hello"), "[normal, slow, sad] Yes."),)))
    places = [text.index(part) for part in ("The rule.", "Hello", "Yes.", "[low, slow, sad] I am", "Good.", "Bye.")]
    assert places == sorted(places)
    assert text.count("<|im_end|>") == 6 and text.endswith("<|im_start|>assistant\n")


def test_a_template_without_system_message_gets_the_rule_before_the_first_turn(lm: ChatLM) -> None:
    template = lm._tokenizer.chat_template
    refuses = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    lm._tokenizer.chat_template = refuses + "<{{ m.role }}>{{ m.content }}{% endfor %}"
    try:
        text = lm.rendered(Conversation((ReadTurn(USER, "Hello."),), "The rule."))
        assert text == "<user>The rule.\n\nHello."
        first = lm.rendered(Conversation((ReadTurn(PLAYED, "Hi."), ReadTurn(USER, "Hello.")), "The rule."))
        assert first == "<user>The rule.<assistant>Hi.<user>Hello."
        lm._tokenizer.chat_template = "{{ raise_exception('never') }}"
        with pytest.raises(UserError, match="refuses the conversation: never"):
            lm.rendered(Conversation((ReadTurn(USER, "Hello."),), "The rule."))
    finally:
        lm._tokenizer.chat_template = template


def test_a_model_s_own_sampling_and_penalties_are_put_aside(lm: ChatLM) -> None:
    model: Any = type("Model", (), {})()
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=0.3, repetition_penalty=1.7, eos_token_id=[1, 5]
    )
    make_greedy(model, AutoTokenizer.from_pretrained(tiny_llm()))
    greedy = model.generation_config
    assert not greedy.do_sample and greedy.repetition_penalty in (None, 1.0) and {1, 5} <= set(greedy.eos_token_id)


def test_a_prompt_that_does_not_fit_is_one_line(lm: ChatLM) -> None:
    with pytest.raises(UserError, match="fewer shots help"):
        lm.answer([Conversation((ReadTurn(USER, "word " * 9000),))], 8)


def test_transcripts_are_made_once_for_all_systems(
    corpus: AnyCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = requests(corpus, ("audio",))
    echo = Echo()
    first = Cascade(echo, recogniser(tmp_path))
    first.load()
    first.instruct(Instructions())
    first.prepare(asked)
    answers = first.reply(asked, 8)
    assert all(turn.text for one in echo.asked for turn in one.turns)
    monkeypatch.setattr(Recogniser, "_hear", lambda self, turns: pytest.fail("heard again"))
    second = Cascade(Echo(), recogniser(tmp_path, batch_size=1))
    second.load()
    second.instruct(Instructions())
    second.prepare(asked)
    assert second.reply(asked, 8) == answers
    other = recogniser(tmp_path, max_tokens=4)
    other.load()
    assert not other._store.texts, "other settings, other transcripts"


def test_a_recording_longer_than_whisper_s_window_is_heard_in_pieces(tmp_path: Path) -> None:
    tone = 0.3 * np.sin(np.arange(31 * 16_000) / 20)
    save_audio(tmp_path / "long.wav", tone.astype(np.float32), 16_000)
    asr = recogniser(tmp_path / "kept")
    asr.load()
    heard = asr._whisper
    assert heard is not None
    lengths: list[int] = []
    heard.transcribe = lambda waves, window_sec=30.0: (  # type: ignore[method-assign, assignment, misc]
        lengths.extend(len(wave) for wave in waves) or [f"part{len(wave)}" for wave in waves]
    )
    text = asr.transcripts([SeenTurn(USER, None, audio=tmp_path / "long.wav", seconds=31.0, sha256="x")])["x"]
    assert lengths == [480_000, 16_000] and text == "part480000 part16000"


@given(st.dictionaries(st.text(min_size=1), st.text()), st.integers(0, 60))
def test_transcripts_are_read_as_written_and_a_torn_line_costs_itself_alone(
    tmp_path_factory: pytest.TempPathFactory, texts: dict[str, str], torn: int
) -> None:
    folder = tmp_path_factory.mktemp("store")
    TranscriptStore(folder, "r").add(texts)
    assert TranscriptStore(folder, "r").texts == texts
    path = folder / "r.jsonl"
    content = path.read_bytes()
    path.write_bytes(content[: max(0, len(content) - torn)])
    after = TranscriptStore(folder, "r")
    assert after.texts.items() <= texts.items()
    after.add({"new": "words"})
    assert TranscriptStore(folder, "r").texts == after.texts | {"new": "words"}


def test_measured_tags_come_from_the_recording_and_gold_ones_are_called_an_oracle(
    corpus: AnyCorpus, tmp_path: Path
) -> None:
    """The corpus's styles are tones of 200 and 260 Hz, which a probe on any encoder tells apart."""

    def probe() -> StyleProbe:
        return StyleProbe(WhisperEncoder(layers=2, pad_sec=0.0), "cpu", 1.0, 100, 2)

    echo = Echo()
    system = CascadeStyle(echo, recogniser(tmp_path), "measured", probe())
    assert system.learns and "style" not in system.sees
    system.load()
    train = [
        turn
        for dialogue in corpus.iterate("train")
        for _, request in requests_of(dialogue, corpus, ("audio", "style"), "all", "words")
        for turn in request.turns
        if turn.speaker == USER
    ]
    system.study(train)
    system.instruct(Instructions("", (Example(SeenTurn(USER, "Hi.", SAD), "[low, slow, sad] Oh."),)))
    asked = requests(corpus, system.sees, "last")
    system.reply(asked, 8)
    told = [one.turns[-1].style.emotion for one in echo.asked]
    gold = [dialogue.turns[-2].style.emotion for dialogue in corpus.iterate("test")]
    assert told == gold, "sad or happy"
    assert echo.asked[0].examples[0][0].style == SAD, "an example in the file says itself how it was spoken"
    assert "Whisper" in system.warnings()[0] and "accuracy" in system.warnings()[0]
    assert system.describe()["style_tags"]["clips"] == 9
    oracle = CascadeStyle(Echo(), recogniser(tmp_path), "gold", probe())
    assert "style" in oracle.sees and not oracle.learns and "oracle" in oracle.warnings()[0] and "gold" in oracle.name
    with pytest.raises(UserError, match="too few or all alike"):
        StyleProbe(WhisperEncoder(layers=2, pad_sec=0.0), "cpu", 1.0, 100, 50).fit(train)


@pytest.fixture(scope="module", params=[qwen2_audio, granite_speech])
def audio_llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AudioLLM:
    torch.set_num_threads(1)
    system = AudioLLM(str(request.param(tmp_path_factory.mktemp("audio-llm"))), None, "cpu", "float32", 30.0)
    system.load()
    prompts = Prompts("v1")
    system.instruct(prompts.instructions(system, prompts.packaged_examples(1, False)))
    return system


def test_an_audio_model_hears_and_answers_a_batch_as_one_by_one(audio_llm: AudioLLM, corpus: AnyCorpus) -> None:
    asked = requests(corpus, audio_llm.sees)[:4]
    together = audio_llm.reply(asked, 10)
    assert together == [audio_llm.reply([request], 10)[0] for request in asked]
    inputs = audio_llm.inputs([audio_llm.chat(request) for request in asked])
    clips = sum(turn.audio is not None for request in asked for turn in request.turns)
    assert len(inputs["input_features"]) == clips, "every turn of the user's is heard, also those in the history"
    one = asked[-1]
    quiet = [SeenTurn(turn.speaker, "It was really something.", turn.style) for turn in one.turns]
    assert audio_llm.reply([Request("read", tuple(quiet))], 10) != audio_llm.reply([one], 10)


def test_an_audio_model_without_system_message_gets_the_rule_in_the_first_turn(
    audio_llm: AudioLLM, corpus: AnyCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = requests(corpus, audio_llm.sees)[0]
    with_system = audio_llm.chat(request)
    monkeypatch.setattr(audio_llm, "_has_system", False)
    merged = audio_llm.chat(request)
    assert with_system[0][0] == "system" and merged[0][0] == "user"
    assert merged[0][1] == [*with_system[0][1], *with_system[1][1]]
    assert [role for role, _ in merged[1:]] == [role for role, _ in with_system[2:]]


def test_a_recording_that_is_cut_off_is_told(audio_llm: AudioLLM, corpus: AnyCorpus, monkeypatch: Any) -> None:
    assert audio_llm.warnings() == []
    monkeypatch.setattr(audio_llm, "max_clip_sec", 0.3)
    monkeypatch.setattr(audio_llm, "_cut", set())
    part = audio_llm.chat(requests(corpus, audio_llm.sees)[0])[-1][1][0]
    assert len(part["audio"]) == 4800 and "1 recordings were cut off at 0.3 s" in audio_llm.warnings()[0]


def test_models_that_are_none_are_one_line_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        AudioLLM("./nowhere", None, "cpu", "auto", None)
    words_only = AudioLLM(str(tiny_llm()), None, "cpu", "auto", None)
    with pytest.raises(UserError, match="cannot be loaded as an audio language model"):
        words_only.load()
    (tmp_path / "config.json").write_text("{}")
    empty = ChatLM(str(tmp_path), None, "cpu", "auto")
    with pytest.raises(UserError, match="cannot be loaded as a causal LLM"):
        empty.load()
    with pytest.raises(UserError, match=r"asr: .*no"):
        recogniser(tmp_path, path=str(tmp_path / "none.pt")).load()
    with pytest.raises(UserError, match="English-only"):
        recogniser(tmp_path, language="de").load()
    with pytest.raises(UserError, match="float32, bfloat16, float16"):
        ChatLM(str(tiny_llm()), None, "cpu", "int3")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="0 CUDA devices; use auto or cpu"):
            ChatLM(str(tiny_llm()), None, "cuda", "auto")
