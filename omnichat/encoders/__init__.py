"""Frozen experts: one file each, one interface."""
