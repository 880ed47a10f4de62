"""The metrics by name: what people call them, which way is better, and what they mean."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MetricInfo:
    """A metric's name for people, which way is better (None: neither), its decimals, and what it is.

    Values lie in `bottom` to `top`, which an `open_ended` one may exceed.
    """

    title: str
    better: str | None
    decimals: int
    meaning: str
    top: float = 1.0
    bottom: float = 0.0
    open_ended: bool = False


METRICS: dict[str, MetricInfo] = {
    "emotion_f1": MetricInfo(
        "Emotion F1",
        "higher",
        3,
        "Weighted F1 of the reply's emotion over the seven classes; a style that cannot be parsed counts as wrong.",
    ),
    "emotion_f1_chance": MetricInfo(
        "Chance F1",
        None,
        3,
        "Mean emotion F1 after the predicted labels are shuffled over the replies of each scenario: what the same "
        "habit of labels earns without listening. Its interval is that of the shuffles.",
    ),
    "emotion_f1_variants": MetricInfo(
        "Emotion F1, same words",
        "higher",
        3,
        "Emotion F1 on last turns that exist in several styles with the same words, where only the voice can tell.",
    ),
    "emotion_f1_variants_chance": MetricInfo(
        "Chance F1, same words", None, 3, "Chance F1 on the same-words turns, by the same shuffles."
    ),
    "style_sensitivity": MetricInfo(
        "Style sensitivity",
        "higher",
        3,
        "Over pairs of same words in two styles whose reference replies differ in emotion: the share where both "
        "replies carry their own reference's emotion. A model that hears only words scores 0 under greedy decoding.",
    ),
    "reply_sensitivity": MetricInfo(
        "Reply sensitivity",
        "higher",
        3,
        "Over pairs of same words in two styles: the share where each reply's words are strictly closer (sentence "
        "chrF) to its own reference than to its sibling's. Independent replies reach about 0.25, equal replies 0.",
    ),
    "emotion_accuracy": MetricInfo("Emotion accuracy", "higher", 3, "Share of replies with the reference's emotion."),
    "pitch_accuracy": MetricInfo("Pitch accuracy", "higher", 3, "Share of replies with the reference's pitch label."),
    "speed_accuracy": MetricInfo("Speed accuracy", "higher", 3, "Share of replies with the reference's speed label."),
    "style_parse_failure": MetricInfo(
        "Unparsed styles", "lower", 3, "Share of replies whose style tag could not be read; they count as wrong above."
    ),
    "scene_hit": MetricInfo(
        "Scene hit rate",
        "higher",
        3,
        "Share of replies to turns with a background sound that name it, by the keywords kept with the scene "
        "(whole words, Porter stems).",
    ),
    "scene_hit_chance": MetricInfo(
        "Scene chance",
        None,
        3,
        "Mean hit rate of the same replies after the scenes are shuffled within each scenario: what naming common "
        "sounds earns unheard. Its interval is that of the shuffles.",
    ),
    "bleu": MetricInfo("BLEU", "higher", 2, "Corpus BLEU of the reply's words, 0 to 100 (sacrebleu).", 100.0),
    "rouge_l": MetricInfo("ROUGE-L", "higher", 3, "Mean ROUGE-L F measure with Porter stems (rouge-score)."),
    "meteor": MetricInfo("METEOR", "higher", 3, "Mean METEOR (nltk); the note says whether WordNet synonyms counted."),
    "bertscore_f1": MetricInfo("BERTScore", "higher", 3, "Mean BERTScore F1 without baseline rescaling (bert-score)."),
    "judge": MetricInfo(
        "Judge", "higher", 2, "Mean mark of the LLM judge, 1 to 5, over the replies that it marked.", 5.0, 1.0
    ),
    "reply_wer": MetricInfo(
        "Reply WER",
        "lower",
        3,
        "Mean word error rate of the spoken reply, as a recogniser hears it, against its words.",
        open_ended=True,
    ),
    "reply_dnsmos": MetricInfo(
        "DNSMOS", "higher", 2, "Mean predicted quality of the spoken reply, 1 to 5 (DNSMOS P.835 overall).", 5.0, 1.0
    ),
}
