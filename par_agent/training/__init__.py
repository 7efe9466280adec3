"""Training loops and what they share: optimisation, training states, progress."""
