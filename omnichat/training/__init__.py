"""Loss, optimiser, checkpoints, tracking, trainer."""
