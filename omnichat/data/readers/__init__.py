"""One file a corpus format; all yield `Dialogue`."""
