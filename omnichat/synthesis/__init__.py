"""The ShareChatX factory: scripts, voices, scenes, checks."""
