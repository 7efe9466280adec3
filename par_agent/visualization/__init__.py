"""Pictures of what a policy sees, imagines and does: rollouts, attention and failures (the paper's Figures 4, 5, 6)."""
