"""The policy: observations become tokens, tokens become chunks of actions; and the checkpoint folder that keeps it."""
