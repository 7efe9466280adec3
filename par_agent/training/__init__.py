"""Training loops and what they share: optimisation, checkpoints, progress."""
