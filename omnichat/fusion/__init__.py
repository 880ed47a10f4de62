"""From expert streams to windows that the LLM reads: one file each, one interface."""
