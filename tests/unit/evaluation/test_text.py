"""Text metrics agree with their reference libraries."""

from collections.abc import Sequence

import numpy as np
import pytest
import sacrebleu
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from omnichat.evaluation import text
from omnichat.utils.assets import asset_folder
from omnichat.utils.errors import UserError

HYPOTHESES = [
    "That sounds lovely! What kind of paintings do you like to create?",
    "I am so sorry to hear that.",
    "",
    "It has stickers. You can stick stickers on the things through the camera.",
    "yes",
]
REFERENCES = [
    "That sounds wonderful! What kinds of paintings do you create?",
    "Oh no, I'm sorry to hear that happened.",
    "What happened?",
    "It's a sticker that you can stick on your clothes to take pictures.",
    "No, I have never been there.",
]


def test_corpus_bleu_from_sentence_statistics_is_sacrebleus() -> None:
    stats = text.bleu_stats(HYPOTHESES, REFERENCES)
    for rows in ([0, 1, 2, 3, 4], [0, 0, 3], [4], [2]):
        expected = sacrebleu.corpus_bleu([HYPOTHESES[i] for i in rows], [[REFERENCES[i] for i in rows]]).score
        assert text.bleu_from_stats(stats[rows].sum(axis=0, keepdims=True))[0] == pytest.approx(expected)
    assert "version:" in text.bleu_signature()


words = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "."]), max_size=12).map(" ".join)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(words, words), min_size=1, max_size=5))
def test_bleu_agrees_on_random_texts(pairs: Sequence[tuple[str, str]]) -> None:
    hypotheses, references = [h for h, _ in pairs], [r for _, r in pairs]
    sums = text.bleu_stats(hypotheses, references).sum(axis=0, keepdims=True)
    expected = sacrebleu.corpus_bleu(hypotheses, [references], force=True).score
    assert text.bleu_from_stats(sums)[0] == pytest.approx(expected)


def test_rouge_l_is_the_librarys_with_reference_first() -> None:
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    expected = [scorer.score(r, h)["rougeL"].fmeasure for h, r in zip(HYPOTHESES, REFERENCES, strict=True)]
    assert text.rouge_l(HYPOTHESES, REFERENCES) == pytest.approx(expected)


def test_meteor_by_hand_and_its_label() -> None:
    scores = text.meteor(["the cat sat on the mat", "cats", "", "dog"], ["the cat sat on the mat", "cat", "a", "cat"])
    # six matches in one chunk: penalty 0.5 * (1/6)^3; one stem match in one chunk: penalty 0.5
    assert scores == pytest.approx([1 - 0.5 / 6**3, 0.5, 0.0, 0.0])
    assert ("WordNet synonyms" in text.meteor_note()) == text.wordnet_present()


def test_meteor_without_wordnet_counts_no_synonym(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "wordnet_present", lambda: False)
    assert text.meteor(["the car"], ["the automobile"]) == pytest.approx(text.meteor(["the zzz"], ["the automobile"]))
    assert "exact + stem only" in text.meteor_note()


@pytest.fixture(scope="module")
def bertscore() -> text.BertScore:
    try:
        asset_folder("minilm")
    except UserError as error:
        pytest.skip(str(error))
    torch.set_num_threads(1)
    return text.BertScore("asset:minilm", 6, batch_size=4)


def test_bertscore_by_the_definition(bertscore: text.BertScore) -> None:
    from transformers import AutoModel, AutoTokenizer

    folder = asset_folder("minilm")
    model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)

    def embed(sentence: str) -> torch.Tensor:
        with torch.no_grad():
            hidden = model(**tokenizer(sentence, return_tensors="pt")).last_hidden_state[0]
        return torch.nn.functional.normalize(hidden, dim=-1)

    got = bertscore(HYPOTHESES, REFERENCES)
    for index in (0, 1, 3, 4):
        similarity = embed(HYPOTHESES[index]) @ embed(REFERENCES[index]).T
        # [CLS] and [SEP] may be matched, but have no weight of their own
        precision, recall = similarity.amax(1)[1:-1].mean(), similarity.amax(0)[1:-1].mean()
        assert got[index] == pytest.approx(float(2 * precision * recall / (precision + recall)), abs=2e-3)
    assert got[2] == 0.0


def test_bertscore_edges(bertscore: text.BertScore) -> None:
    assert bertscore(["Same words."], ["Same words."])[0] == pytest.approx(1.0, abs=1e-4)
    long = "word " * 900
    assert np.isfinite(bertscore([long], [long])).all()
    assert "not rescaled" in bertscore.note and "asset:minilm" in bertscore.note


def test_bertscore_config_errors_are_one_line(tmp_path) -> None:
    with pytest.raises(UserError, match="bertscore_layers must be set"):
        text.BertScore(str(tmp_path))
    with pytest.raises(UserError, match="cannot be loaded") as error:
        text.BertScore(str(tmp_path), 6)
    assert "\n" not in str(error.value)
