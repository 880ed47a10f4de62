"""Helpers without knowledge of audio, text or models: errors, files, logging, progress, seeding, assets."""
