"""Browsing a corpus: what its dialogues can be found by, and what is shown of each. No web library is needed here."""
