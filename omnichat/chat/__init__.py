"""Talking to a trained model: sessions, voices, servers, pages."""
