"""Checks of spoken dialogues: one file a check, and the suite that runs them."""
