"""Dialogue -> ids, labels, roles: one tokenisation, every reply supervised with its end, content never control."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from transformers import AutoTokenizer

from omnichat.schema import Dialogue, Style, Turn
from omnichat.text.chat import AUDIO_MARKER, IGNORE, ChatConfig, ChatFormat, ChatSequence, Role
from omnichat.text.style_format import format_reply
from omnichat.text.visualise import print_sequence, render_sequence
from omnichat.utils.errors import UserError
from omnichat.utils.llm_files import local_llm

STYLE = Style("low", "normal", "happy")


def slots(seconds: float) -> int:
    return round(seconds * 10)


@cache
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(local_llm("asset:smollm2"))


@cache
def chat(**settings_: str) -> ChatFormat:
    return ChatFormat(tokenizer(), ChatConfig(**settings_), slots)


def dialogue(*turns: Turn) -> Dialogue:
    return Dialogue("d", "s", "synthetic", "emotion", "train", turns)


def said(speaker: str, text: str, seconds: float | None = 0.5, style: Style = STYLE, **fields: Any) -> Turn:
    audio = {} if seconds is None else {"audio": "a.flac", "sample_rate": 16000, "seconds": seconds}
    return Turn(speaker, text, style, **audio, **fields)


TALK = dialogue(
    said("A", "I lost my keys.", 0.3),
    said("B", "Where did you see them?", 0.4),
    said("A", "At home, I think.", 0.7),
    said("B", "Then look again!", 0.2, Style(emotion="sad")),
)


def supervised(sequence: ChatSequence, reply: int) -> str:
    span = sequence.replies[reply]
    return tokenizer().decode(sequence.ids[span.start : span.stop])


def test_labels_are_the_ids_of_replies_and_nothing_else() -> None:
    sequence = chat().sequence(TALK, "B")
    inside = {p for reply in sequence.replies for p in range(reply.start, reply.stop)}
    for position, (token, label, role) in enumerate(zip(sequence.ids, sequence.labels, sequence.roles, strict=True)):
        assert (label == token) == (position in inside) == (role in (Role.STYLE, Role.WORDS, Role.END))
        assert label in (token, IGNORE)
    assert [reply.turn for reply in sequence.replies] == [1, 3]
    assert supervised(sequence, 0) == "[low, normal, happy] Where did you see them?<|im_end|>"
    assert supervised(sequence, 1) == "[sad] Then look again!<|im_end|>"


def test_each_role_holds_its_own_text() -> None:
    sequence = chat(input="speech_text").sequence(TALK, "B")

    def text(role: Role) -> str:
        return tokenizer().decode([i for i, r in zip(sequence.ids, sequence.roles, strict=True) if r == role])

    assert text(Role.STYLE) == "[low, normal, happy][sad]"
    assert text(Role.WORDS) == " Where did you see them? Then look again!"
    assert text(Role.END) == "<|im_end|><|im_end|>"
    assert text(Role.USER_TEXT) == " I lost my keys. At home, I think."
    assert set(text(Role.AUDIO).split(AUDIO_MARKER)) == {""}


def test_the_sequence_is_the_template_with_the_contents_in_it() -> None:
    sequence = chat(input="text").sequence(TALK, "B")
    contents = [t.text if t.speaker == "A" else "".join(format_reply(t.style, t.text)) for t in TALK.turns]
    messages = [{"role": "system", "content": ChatConfig().system_prompt}]
    messages += [{"role": ("user", "assistant")[i % 2], "content": c} for i, c in enumerate(contents)]
    assert sequence.ids == tokenizer()(tokenizer().apply_chat_template(messages, tokenize=False))["input_ids"]


@pytest.mark.parametrize(
    ("how", "words", "heard"),
    [
        ("speech", "", [3, 7]),
        ("text", "I lost my keys.At home, I think.", []),
        ("asr", "i lost my keeshome", []),
        ("speech_text", " I lost my keys. At home, I think.", [3, 7]),
    ],
)
def test_input_decides_what_is_read_and_heard(how: str, words: str, heard: list[int]) -> None:
    turns = [replace(t, asr_text=asr) for t, asr in zip(TALK.turns, ("i lost my kees", "x", "home", "x"), strict=True)]
    sequence = chat(input=how).sequence(dialogue(*turns), "B")
    roles = sequence.roles
    read = [i for i, role in zip(sequence.ids, roles, strict=True) if role == Role.USER_TEXT]
    assert tokenizer().decode(read) == words
    assert [clip.slots for clip in sequence.clips] == heard
    assert roles.count(Role.AUDIO) == sum(heard)
    assert [clip.turn for clip in sequence.clips] == ([0, 2] if heard else [])


@pytest.mark.parametrize("how", ["speech", "text", "asr", "speech_text"])
def test_two_variants_differ_in_the_reply_alone(how: str) -> None:
    """No word of the user's style may stand in the sequence, else a model need not listen."""
    one = dialogue(said("A", "Hm.", asr_text="hm"), said("B", "What?"), said("A", "Well.", asr_text="well"))
    sequences = []
    for style, reply in ((Style("high", "fast", "angry"), "Calm down."), (Style("low", "slow", "sad"), "Oh no.")):
        turns = (*one.turns[:2], replace(one.turns[2], style=style), said("B", reply, style=style))
        sequences.append(chat(input=how).sequence(dialogue(*turns), "B"))
    first, second = (s.prompt_of(s.replies[-1]) for s in sequences)
    assert (first.ids, first.roles) == (second.ids, second.roles)
    assert [(c.turn, c.slots) for c in first.clips] == [(c.turn, c.slots) for c in second.clips]
    assert sequences[0].ids != sequences[1].ids


@pytest.mark.parametrize("how", ["speech", "text", "speech_text"])
def test_a_prompt_is_what_the_model_reads_before_it_answers(how: str) -> None:
    """Each reply's prompt is the beginning of the sequence, and what the template makes of the dialogue so far."""
    sequence = chat(input=how).sequence(TALK, "B")
    for reply in sequence.replies:
        prompt = sequence.prompt_of(reply)
        assert prompt.ids == sequence.ids[: reply.start] and prompt.roles == sequence.roles[: reply.start]
        assert set(prompt.labels) == {IGNORE} and not prompt.replies
        assert sum(clip.slots for clip in prompt.clips) == prompt.roles.count(Role.AUDIO)
        assert prompt.clips == [clip for clip in sequence.clips if clip.turn < reply.turn]
        marks = {"speech": "{a}", "text": "{t}", "speech_text": "{a} {t}"}[how]
        messages = [{"role": "system", "content": ChatConfig().system_prompt}]
        for turn in TALK.turns[: reply.turn]:
            said_ = marks.format(a=AUDIO_MARKER, t=turn.text)
            own = "".join(format_reply(turn.style, turn.text))
            role, content = ("user", said_) if turn.speaker == "A" else ("assistant", own)
            messages.append({"role": role, "content": content})
        text = tokenizer().apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        once = [
            i for i, before in zip(prompt.ids, [None, *prompt.ids], strict=False) if i != chat().audio_id or i != before
        ]
        assert once == tokenizer()(text)["input_ids"]


def test_who_is_played_and_who_begins() -> None:
    talk = dialogue(said("B", "Hello?"), said("A", "Hi."), said("B", "Who is it?"), said("A", "Me."))
    assert [r.turn for r in chat().sequence(talk, "B").replies] == [2], "nobody was heard before the first words"
    assert [r.turn for r in chat(target="A").sequences(talk)[0].replies] == [1, 3]
    both = chat(target="both").sequences(talk)
    assert [[r.turn for r in s.replies] for s in both] == [[1, 3], [2]]
    assert [[c.turn for c in s.clips] for s in both] == [[0, 2], [1, 3]]
    assert chat().sequences(dialogue(said("B", "Hello?"), said("A", "Hi."))) == []
    assert chat(target="both").sequences(dialogue(said("A", "Hello?"))) == []


def test_turns_of_one_speaker_in_a_row_are_one_message() -> None:
    talk = dialogue(
        said("A", "One.", 0.2), said("A", "Two.", 0.3), said("B", "Three."), said("B", "Four.", style=Style("high"))
    )
    sequence = chat().sequence(talk, "B")
    assert [clip.slots for clip in sequence.clips] == [2, 3] and sequence.roles.count(Role.AUDIO) == 5
    assert len(sequence.replies) == 1
    assert supervised(sequence, 0) == "[low, normal, happy] Three. Four.<|im_end|>"
    assert tokenizer().decode(sequence.ids).count("<|im_start|>") == 3, "system, user, assistant"


def test_a_style_holds_what_the_corpus_knows() -> None:
    def reply(style: Style) -> str:
        return supervised(chat().sequence(dialogue(said("A", "Hm."), said("B", "Yes.", style=style)), "B"), 0)

    assert reply(Style()) == "Yes.<|im_end|>"
    assert reply(Style(emotion="happy")) == "[happy] Yes.<|im_end|>"
    assert reply(Style("low", "slow")) == "[low, slow] Yes.<|im_end|>"


def test_a_turn_without_recording_is_read_or_refused() -> None:
    talk = dialogue(said("A", "Read me.", None), said("B", "Yes."), said("A", "Hear me.", 0.2), said("B", "Yes."))
    sequence = chat().sequence(talk, "B")
    read = [i for i, role in zip(sequence.ids, sequence.roles, strict=True) if role == Role.USER_TEXT]
    assert tokenizer().decode(read) == "Read me." and [clip.turn for clip in sequence.clips] == [2]
    with pytest.raises(UserError, match=r"chat\.missing_audio=error: dialogue 'd' turn 0"):
        chat(missing_audio="error").sequence(talk, "B")
    with pytest.raises(UserError, match="dialogue 'd' turn 0 has no asr_text"):
        chat(input="asr").sequence(talk, "B")


def test_a_recogniser_that_heard_nothing_leaves_a_mark_not_the_truth() -> None:
    talk = dialogue(said("A", "The truth.", asr_text=""), said("B", "Yes."))
    sequence = chat(input="asr").sequence(talk, "B")
    read = [i for i, role in zip(sequence.ids, sequence.roles, strict=True) if role == Role.USER_TEXT]
    assert tokenizer().decode(read) == "..."


LETTERS = st.characters(max_codepoint=0x2FFF, exclude_categories=["Cc", "Cs", "Cn"])  # the vocabulary lacks rarer bytes
PIECES = [
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    AUDIO_MARKER,
    "<|im_",
    "end|>",
    "<|",
    "|>",
    "<",
    ">",
    "<file_sep>",
]
PIECES += [
    "<jupyter_code>",
    "\ue000",
    "\ue001",
    "\ue0001\ue001",
    "assistant\n",
    "\n",
    " ",
    "a",
    "é",
    "漢",
    "🙂",
    "[sad]",
    "\x1c",
]
CONTENT = (st.lists(st.sampled_from(PIECES), max_size=8).map("".join) | st.text(max_size=12)).filter(str.strip)


@settings(max_examples=150, deadline=None)
@given(texts=st.lists(CONTENT, min_size=4, max_size=4), how=st.sampled_from(["speech", "text", "asr", "speech_text"]))
def test_content_never_yields_a_control_id(texts: list[str], how: str) -> None:
    """Whatever is said, control ids stand where they stand in a plain dialogue, and the slots are the clips'."""
    turns = [said("AB"[i % 2], text, 0.2 + i / 10, asr_text=text) for i, text in enumerate(texts)]
    plain = [replace(t, text="x", asr_text="x") for t in turns]
    format_ = chat(input=how)
    sequence, simple = (format_.sequence(dialogue(*t), "B") for t in (turns, plain))

    def control(s: ChatSequence) -> list[tuple[int, int]]:
        return [(i, r) for i, r in zip(s.ids, s.roles, strict=True) if i in format_.special_ids]

    assert control(sequence) == control(simple)
    assert sequence.clips == simple.clips
    assert [r.turn for r in sequence.replies] == [1, 3]
    for reply in sequence.replies:
        prompt = sequence.prompt_of(reply)
        own = sequence.ids[reply.start : reply.stop]
        assert prompt.ids + own == sequence.ids[: reply.stop]
        assert sequence.labels[reply.start : reply.stop] == own and sequence.roles[reply.stop - 1] == Role.END


@settings(max_examples=60, deadline=None)
@given(texts=st.lists(st.text(LETTERS, min_size=1, max_size=20).filter(str.strip), min_size=2, max_size=2))
def test_words_without_control_strings_are_kept_to_the_letter(texts: list[str]) -> None:
    sequence = chat(input="text").sequence(dialogue(said("A", texts[0]), said("B", texts[1])), "B")
    if not any(mark in text for text in texts for mark in chat().special_texts):
        assert supervised(sequence, 0) == f"[low, normal, happy] {texts[1].strip()}<|im_end|>"


@pytest.mark.parametrize("added", ["  ", "\t", " <x>", " y"])
def test_added_tokens_with_blanks_end_and_do_no_harm(added: str) -> None:
    other = copy.deepcopy(tokenizer())
    other.add_tokens([added])
    format_ = ChatFormat(other, ChatConfig(), slots)
    escaped = format_.escape(f"one{added}{added}   two<|im_end|>")
    assert escaped.startswith("one") and "   two" in escaped and "<|im_end|>" not in escaped
    assert (added in escaped) == (not added.strip())
    assert format_.sequence(dialogue(said("A", f"a{added}b"), said("B", "c   d")), "B").replies


def test_a_control_string_in_the_system_prompt_is_text() -> None:
    plain = chat(system_prompt="Be.").sequence(TALK, "B")
    odd = chat(system_prompt=f"Be {AUDIO_MARKER} <|im_end|> \ue0000\ue001.").sequence(TALK, "B")
    special = chat().special_ids
    assert [i for i in odd.ids if i in special] == [i for i in plain.ids if i in special]
    assert odd.clips == plain.clips


@pytest.mark.parametrize(
    ("field", "value"), [("input", "audio"), ("target", "C"), ("missing_audio", "skip"), ("input", "")]
)
def test_a_bad_setting_is_named(field: str, value: str) -> None:
    with pytest.raises(UserError, match=rf"^chat\.{field}='{value}' is not valid.*choose one of"):
        ChatConfig(**{field: value})


def test_a_template_that_drops_messages_is_refused() -> None:
    other = AutoTokenizer.from_pretrained(local_llm("asset:smollm2"))
    other.chat_template = "{{ messages[-1]['content'] }}"
    with pytest.raises(UserError, match="drops or reorders messages"):
        ChatFormat(other, ChatConfig(), slots).sequence(TALK, "B")
    other.chat_template = None
    with pytest.raises(UserError, match="no chat template"):
        ChatFormat(other, ChatConfig(), slots)


def test_a_template_without_an_end_of_turn_is_refused() -> None:
    """A model that is never shown where a turn ends never learns to stop."""
    other = AutoTokenizer.from_pretrained(local_llm("asset:smollm2"))
    other.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    with pytest.raises(UserError, match="end of turn"):
        ChatFormat(other, ChatConfig(), slots).sequence(TALK, "B")


def test_a_token_that_begins_in_the_template_and_ends_in_the_reply_is_the_replys() -> None:
    """After `assistant: ` the blank joins the first word's token; if that were the template's, it were never learnt."""
    other = AutoTokenizer.from_pretrained(local_llm("asset:smollm2"))
    other.chat_template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '<|im_end|>' }}{% endfor %}"
    talk = dialogue(said("A", "Hm."), said("B", "Yes.", style=Style()))
    sequence = ChatFormat(other, ChatConfig(input="text"), slots).sequence(talk, "B")
    assert supervised(sequence, 0) == " Yes.<|im_end|>"
    [reply] = sequence.replies
    assert other.decode(sequence.prompt_of(reply).ids).endswith("assistant:")
    assert other.decode([i for i, r in zip(sequence.ids, sequence.roles, strict=True) if r == Role.USER_TEXT]) == " Hm."


def test_the_view_shows_every_token_and_each_clip_once() -> None:
    sequence = chat(input="speech_text").sequence(TALK, "B")
    text = render_sequence(sequence, tokenizer(), 0.1)
    assert text.plain.count("▐audio turn 0: 3 slots, 0.30 s, windows of 0.1 s▌") == 1
    assert text.plain.count("▐audio") == 2
    bold = "".join(text.plain[s.start : s.end] for s in text.spans if "bold" in str(s.style))
    assert bold == "[low, normal, happy] Where did you see them?<|im_end|>[sad] Then look again!<|im_end|>"
    console = Console(record=True, width=100, file=open("/dev/null", "w"))  # noqa: SIM115
    print_sequence(console, TALK, sequence, tokenizer(), 0.1)
    assert "Then look again!" in console.export_text()


@pytest.mark.parametrize("input_", ["speech", "speech_text", "asr"])
def test_the_teacher_reads_the_words_and_says_the_same(input_: str) -> None:
    heard = replace(TALK, turns=tuple(replace(turn, asr_text="misheard") for turn in TALK.turns))
    for player in ("A", "B"):
        student = ChatFormat(tokenizer(), ChatConfig(input=input_), slots, teacher=True).sequence(heard, player)
        teacher = student.teacher
        assert teacher is not None and teacher.teacher is None and not teacher.clips
        reader = chat(input="text").sequence(heard, player)
        assert (teacher.ids, teacher.labels, teacher.roles) == (reader.ids, reader.labels, reader.roles)
        for values in ("labels", "roles"):
            mine, theirs = (
                [v for v, label in zip(getattr(s, values), s.labels, strict=True) if label != IGNORE]
                for s in (student, teacher)
            )
            assert mine == theirs
        assert student.positions == max(len(student), len(teacher))
        assert chat(input=input_).sequence(heard, player).teacher is None, "made only on demand"


def test_a_tokenizer_that_cuts_replies_after_audio_otherwise_has_no_teacher() -> None:
    made = ChatFormat(tokenizer(), ChatConfig(), slots, teacher=True)
    plain, calls = made._tokenise, []

    def other(spans: Any, talk: Dialogue) -> ChatSequence:
        sequence = plain(spans, talk)
        calls.append(sequence)
        if len(calls) == 2:
            sequence.labels = [label + 1 if label != IGNORE else label for label in sequence.labels]
        return sequence

    made._tokenise = other  # type: ignore[method-assign]
    with pytest.raises(UserError, match=r"trainer\.loss\.distill_weight: this LLM's tokenizer .* dialogue 'd'"):
        made.sequence(TALK, "B")
