"""What dialogues are about."""
