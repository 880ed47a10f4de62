"""Corpora: readers, mixture, batches, feature cache."""
