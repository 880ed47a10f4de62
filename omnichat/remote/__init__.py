"""Asking models on other machines: a chat client that survives faults, and a store of what they answered."""
