"""Audio on the CPU: reading and writing, front-ends, effects."""
