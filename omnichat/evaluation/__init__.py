"""Metrics: pure functions of predictions."""
