"""Baselines: systems that answer the same turns as a trained run, so that one report shows both."""
