"""Layer 4: talking to a model, and looking at what it learns from."""
