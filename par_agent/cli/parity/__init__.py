"""Reference tensors of NOVA and of its VAE, recomputed stage by stage (for `par-agent check-nova`)."""
