"""Replies graded by a language model, 1 to 5: prompts by scenario, kept answers, scores beside the predictions."""
