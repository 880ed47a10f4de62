"""Voices: one file a speech synthesiser."""
