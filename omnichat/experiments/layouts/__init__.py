"""Layouts of files that hold systems' replies."""
