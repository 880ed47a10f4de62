"""The LLM with LoRA, and OmniChat around it."""
