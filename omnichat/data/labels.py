"""Words that corpora use for how a turn is spoken, and the labels of the schema that they mean."""

from __future__ import annotations

from collections.abc import Mapping

from omnichat.schema import EMOTIONS, PITCHES, SPEEDS, Style
from omnichat.utils.errors import one_of
from omnichat.utils.files import sha256_bytes

LABELS: dict[str, tuple[str, ...]] = {"pitch": PITCHES, "speed": SPEEDS, "emotion": EMOTIONS}
SYNONYMS: dict[str, dict[str, str]] = {
    "pitch": {
        "deep": "low",
        "lower": "low",
        "very low": "low",
        "medium": "normal",
        "mid": "normal",
        "moderate": "normal",
        "higher": "high",
        "very high": "high",
    },
    "speed": {
        "slower": "slow",
        "slowly": "slow",
        "very slow": "slow",
        "medium": "normal",
        "moderate": "normal",
        "quick": "fast",
        "quickly": "fast",
        "faster": "fast",
        "very fast": "fast",
        "rapid": "fast",
    },
    "emotion": {
        "no emotion": "neutral",
        "none": "neutral",
        "calm": "neutral",
        "happiness": "happy",
        "joy": "happy",
        "joyful": "happy",
        "cheerful": "happy",
        "excited": "happy",
        "excitement": "happy",
        "amused": "happy",
        "sadness": "sad",
        "depressed": "sad",
        "disappointed": "sad",
        "anger": "angry",
        "mad": "angry",
        "furious": "angry",
        "annoyed": "angry",
        "frustrated": "angry",
        "surprise": "surprised",
        "amazed": "surprised",
        "astonished": "surprised",
        "fear": "fearful",
        "scared": "fearful",
        "afraid": "fearful",
        "terrified": "fearful",
        "frightened": "fearful",
        "anxious": "fearful",
        "worried": "fearful",
        "disgust": "disgusted",
    },
}

LabelMaps = Mapping[str, Mapping[str, str | None]]


def check_label_maps(key: str, maps: LabelMaps) -> None:
    """Check a user's map of labels, {attribute: {word of the corpus: label or None}}. Raises UserError naming the key.

    None leaves a word's attribute open on purpose.
    """
    for attribute, words in maps.items():
        if attribute not in LABELS:
            raise one_of(key, attribute, LABELS)
        for word, label in words.items():
            if label is not None and label not in LABELS[attribute]:
                raise one_of(f"{key}.{attribute}.{word}", label, LABELS[attribute])


def label_of(attribute: str, word: object, maps: LabelMaps) -> tuple[str | None, bool]:
    """(label, whether the word is known); the user's map comes first, then the schema's own words, then synonyms.

    Case, and what parts words, do not count. Nothing, an empty word or None, is known and has no label.
    """
    if word is None:
        return None, True
    if not isinstance(word, str | int) or isinstance(word, bool):
        return None, False
    plain = _plain(str(word))
    if not plain:
        return None, True
    own = {_plain(str(key)): label for key, label in maps.get(attribute, {}).items()}
    if plain in own:
        return own[plain], True
    if plain in LABELS[attribute]:
        return plain, True
    found = SYNONYMS[attribute].get(plain)
    return found, found is not None


def style_of(words: Mapping[str, object], maps: LabelMaps) -> tuple[Style, list[str]]:
    """The style that {attribute: word} names, and "attribute 'word'" for each word that no label is known for."""
    labels: dict[str, str | None] = {}
    unknown = []
    for attribute, word in words.items():
        labels[attribute], known = label_of(attribute, word, maps)
        if not known:
            unknown.append(f"{attribute} {str(word)[:40]!r}")
    return Style(**labels), unknown


def check_split_rule(key: str, rule: str, splits: tuple[str, ...]) -> None:
    """Raise UserError unless `rule` is a split or "hash"."""
    if rule not in (*splits, "hash"):
        raise one_of(key, rule, (*splits, "hash"))


def split_by(rule: str, source: str, group: str) -> str:
    """The split of a group of dialogues: `rule` itself, or for "hash" 80/10/10 by a hash that is equal everywhere."""
    if rule != "hash":
        return rule
    share = int(sha256_bytes(f"{source}\x1f{group}".encode("utf-8", "surrogatepass"))[:8], 16) / 16**8
    return "train" if share < 0.8 else "dev" if share < 0.9 else "test"


def _plain(word: str) -> str:
    return " ".join(word.lower().replace("_", " ").replace("-", " ").split())
