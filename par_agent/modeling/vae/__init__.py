"""The frame encoders: small VAEs of one frame, and the video VAE that NOVA uses."""
